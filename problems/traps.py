"""Small problems in which a solver ends wrongly: infeasible, unbounded and degenerate ones, with what is true of each.

name                  min                 subject to                      from
no-root               x                   x^2 + 1 = 0                     1
contradiction         x1^2 + x2^2         x1 + x2 = 1, x1 + x2 = 2        (0, 0)
empty-interval        x^2                 -x <= 0, x + 1 <= 0             3
overdetermined        x1^2 + x2^2         x1 = 1, x2 = 2, x1 + x2 = 4     (0, 0)
linear-ray            x1                  x2 = 1                          (0, 0)
concave-ray           x2^2 - x1^2         x2 = 1                          (1, 0)
inflection            x^3                                                 1
duplicate-rows        x1^2 + x2^2         x1 + x2 = 1, twice              (2, 0)
redundant-rows        x1^2 + x2^2         x1 = 1, x2 = 2, x1 + x2 = 3     (0, 0)
zero-jacobian         x1 + x2             x1^2 + x2^2 = 1                 (0, 0)
no-multiplier         x                   x^2 = 0                         1
outside-the-domain    x - log x                                           -1
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from constrained.core.errors import NonFiniteStart, OptionError
from constrained.core.problem import Multipliers, Point
from constrained.core.status import Status
from constrained.problem import ConstrainedProblem

from .arguments import placed, whole
from .instance import ConstrainedInstance

INFEASIBLE = frozenset({Status.LOCALLY_INFEASIBLE})
UNBOUNDED = frozenset({Status.UNBOUNDED, Status.DIVERGED})
SOLVABLE = frozenset({Status.CONVERGED})


@dataclass(frozen=True, kw_only=True)
class Trap(ConstrainedInstance):
    """statuses: those that are true of the problem, beside those of a spent budget; raises: the error at the start instead."""

    statuses: frozenset[Status]
    raises: type[Exception] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: functions of the entries of x, what is true, the solution where there is one."""

    f: Callable[..., Tensor]
    c: Callable[..., list[Tensor]] | None = None
    h: Callable[..., list[Tensor]] | None = None
    start: Sequence[float]
    statuses: frozenset[Status]
    solution: Sequence[float] | None = None
    optimum: float = math.nan
    raises: type[Exception] | None = None


def norm(x1: Tensor, x2: Tensor) -> Tensor:
    return x1**2 + x2**2


TRAPS = {
    "no-root": Row(f=lambda x: x, c=lambda x: [x**2 + 1], start=(1,), statuses=INFEASIBLE),
    "contradiction": Row(f=norm, c=lambda x1, x2: [x1 + x2 - 1, x1 + x2 - 2], start=(0, 0), statuses=INFEASIBLE),
    "empty-interval": Row(f=lambda x: x**2, h=lambda x: [-x, x + 1], start=(3,), statuses=INFEASIBLE),
    "overdetermined": Row(f=norm, c=lambda x1, x2: [x1 - 1, x2 - 2, x1 + x2 - 4], start=(0, 0), statuses=INFEASIBLE),
    "linear-ray": Row(f=lambda x1, x2: x1, c=lambda x1, x2: [x2 - 1], start=(0, 0), statuses=UNBOUNDED),
    "concave-ray": Row(f=lambda x1, x2: x2**2 - x1**2, c=lambda x1, x2: [x2 - 1], start=(1, 0), statuses=UNBOUNDED),
    # The gradient vanishes at 0, on the way to minus infinity.
    "inflection": Row(f=lambda x: x**3, start=(1,), statuses=UNBOUNDED | SOLVABLE),
    "duplicate-rows": Row(
        f=norm,
        c=lambda x1, x2: [x1 + x2 - 1, x1 + x2 - 1],
        start=(2, 0),
        statuses=SOLVABLE,
        solution=(0.5, 0.5),
        optimum=0.5,
    ),
    "redundant-rows": Row(
        f=norm,
        c=lambda x1, x2: [x1 - 1, x2 - 2, x1 + x2 - 3],
        start=(0, 0),
        statuses=SOLVABLE,
        solution=(1, 2),
        optimum=5,
    ),
    # The start is where the violation is greatest nearby, and stationary.
    "zero-jacobian": Row(
        f=lambda x1, x2: x1 + x2,
        c=lambda x1, x2: [norm(x1, x2) - 1],
        start=(0, 0),
        statuses=SOLVABLE,
        solution=(-math.sqrt(0.5), -math.sqrt(0.5)),
        optimum=-math.sqrt(2),
    ),
    # Near 0 the residuals are as small as one likes, lam = -1 / (2 x) as large.
    "no-multiplier": Row(
        f=lambda x: x,
        c=lambda x: [x**2],
        start=(1,),
        statuses=SOLVABLE | {Status.DEGENERATE},
        solution=(0,),
        optimum=0,
    ),
    "outside-the-domain": Row(
        f=lambda x: x - torch.log(x), start=(-1,), statuses=frozenset(), solution=(1,), optimum=1, raises=NonFiniteStart
    ),
}


def trap(*, name: str = "no-root", seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Trap:
    """A small infeasible, unbounded or degenerate problem by its name in the table above, with the statuses that are true of it.

    name: one of `problems.traps.TRAPS`. seed: nothing is drawn.

    >>> [status.name for status in trap(name="no-root").statuses]
    ['LOCALLY_INFEASIBLE']
    """
    if not isinstance(name, str) or name not in TRAPS:
        raise OptionError(f"trap(name=...): expected one of {', '.join(TRAPS)}, got {name!r}")
    whole("trap(seed=...)", seed, 0)
    device, row = placed("trap", dtype, device), TRAPS[name]
    x = torch.tensor(row.start, dtype=dtype, device=device)

    def rows(function: Callable[..., list[Tensor]] | None) -> Callable[[Tensor], Tensor] | None:
        return None if function is None else lambda x: torch.stack(function(*x.unbind()))

    def zeros(function: Callable[[Tensor], Tensor] | None) -> Any:
        return None if function is None else torch.zeros_like(function(x))

    c, h = rows(row.c), rows(row.h)
    return Trap(
        name=name,
        problem=ConstrainedProblem(objective=lambda x: row.f(*x.unbind()), equality=c, inequality=h, x=x),
        source="closed form, in the table of problems.traps",
        solution=() if row.solution is None else (Point(torch.tensor(row.solution, dtype=dtype, device=device)),),
        optimum=row.optimum,
        start=Point(x, multipliers=Multipliers(equality=zeros(c), inequality=zeros(h))),
        statuses=row.statuses,
        raises=row.raises,
    )
