"""What defines a problem of the collection: f, c, h, bounds, the start, the least value known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Bound = float | Sequence[float | None] | None  # of every entry, or one each; None where free


@dataclass(frozen=True, kw_only=True)
class Definition:
    """min f(x) subject to c(x) = 0, h(x) <= 0 and low <= x <= high, from x0.

    f, c, h: functions of the entries x1, x2, ..., c and h with a list of their rows; with `vector` functions of x as one tensor,
    c and h with a 1-D tensor. f=None is f = 0: equations. c, h: None where there are none. low, high: numbers for all entries
    or one each, None where free. start: x0, which may lie outside the bounds. optimum: f at the published solution, a stationary
    point; `note` says so where a lower value is known. solution: a point with this f; `unique`: no other solution has it.
    multiplier: every entry of the start lam0.

    >>> hs6 = Definition(
    ...     f=lambda x1, x2: (1 - x1) ** 2,
    ...     c=lambda x1, x2: [10 * (x2 - x1**2)],
    ...     start=(-1.2, 1),
    ...     optimum=0,
    ...     source="Hock and Schittkowski (1981), problem 6",
    ... )
    >>> x = torch.tensor(hs6.start, dtype=torch.float64)
    >>> float(hs6.objective(x)), float(hs6.equality(x)[0])
    (4.840000000000001, -4.3999999999999995)
    """

    f: Callable[..., Any] | None = None
    c: Callable[..., Any] | None = None
    h: Callable[..., Any] | None = None
    low: Bound = None
    high: Bound = None
    start: Sequence[float]
    optimum: float
    source: str
    vector: bool = False
    solution: Sequence[float] | None = None
    unique: bool = True
    multiplier: float = 0.0
    note: str = ""

    def objective(self, x: Tensor) -> Tensor:
        """f(x), a 0-dim tensor."""
        if self.f is None:
            return x.new_zeros(())
        return self.f(x) if self.vector else self.f(*x.unbind())

    def equality(self, x: Tensor) -> Tensor:
        """c(x), a 1-D tensor."""
        return self._rows(self.c, x)

    def inequality(self, x: Tensor) -> Tensor:
        """h(x), a 1-D tensor."""
        return self._rows(self.h, x)

    def bounds(self) -> tuple[list[float], list[float]]:
        """low and high, entry by entry, +-inf where free."""
        return self._entries(self.low, -math.inf), self._entries(self.high, math.inf)

    def _rows(self, function: Callable[..., Any] | None, x: Tensor) -> Tensor:
        if function is None:
            return x.new_zeros(0)
        return function(x) if self.vector else torch.stack(function(*x.unbind()))

    def _entries(self, bound: Bound, free: float) -> list[float]:
        each = bound if isinstance(bound, Sequence) else [bound] * len(self.start)
        return [free if entry is None else float(entry) for entry in each]
