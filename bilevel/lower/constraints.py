"""The lower constraints with scaled rows, and their multipliers."""

from __future__ import annotations

import torch
from torch import Tensor

from constrained.core.errors import ProblemError
from constrained.core.problem import Multipliers
from constrained.core.vec import Vec

from ..oracle import BilevelOracle

NAMES = ("lower_equality", "lower_inequality")


class LowerConstraints:
    """The lower constraints of a problem with scaled rows, equalities first: T c_E = 0 and s c_I <= 0, with their multipliers in
    Z. T: a matrix or one factor a row.
    """

    def __init__(self, oracle: BilevelOracle, transform: Tensor, scale: Tensor, limit: float):
        self.parts = [oracle.constraints.get(name) for name in NAMES]
        self.transform, self.scale = transform, scale
        self.count = len(transform), len(scale)
        high = torch.cat([torch.full_like(scale.new_zeros(n), limit) for n in self.count])
        self.low, self.high = torch.cat([-high[: self.count[0]], torch.zeros_like(scale)]), high

    def value(self, x: Vec, y: Vec) -> Tensor:
        """The scaled constraints, float64."""
        found = [part.value((x, y)) if part is not None else self.scale[:0] for part in self.parts]
        return torch.cat([self._apply(found[0]), self.scale * found[1]])

    def vjp(self, x: Vec, y: Vec, la: Tensor) -> tuple[Vec, Vec]:
        """(J_x'la, J_y'la)."""
        total = x.zeros(), y.zeros()
        for part, weights in zip(self.parts, self.unscaled(la)):
            if part is not None:
                add = part.vjp((x, y), weights)
                total = total[0] + add[0], total[1] + add[1]
        return total

    def unscaled(self, la: Tensor) -> tuple[Tensor, Tensor]:
        """The multipliers of the user's own rows: T'la_E, s la_I."""
        equal, rest = la.split(self.count)
        T = self.transform
        return (T.T @ equal if T.ndim == 2 else T * equal), self.scale * rest

    def scaled(self, equality: Tensor, inequality: Tensor) -> Tensor:
        """The inverse of `unscaled`."""
        T = self.transform
        equal = torch.linalg.lstsq(T.T, equality[:, None]).solution[:, 0] if T.ndim == 2 and len(T) else equality / T
        return self.clipped(torch.cat([equal, inequality / self.scale]))

    def start(self, given: Multipliers | None) -> Tensor:
        """The scaled multipliers of a start; zero where it brings none."""
        tree = (given.lower if given is not None else None) or {}
        parts = [torch.as_tensor(tree.get(name[6:], torch.zeros(n))).reshape(-1) for name, n in zip(NAMES, self.count)]
        if [len(part) for part in parts] != list(self.count):
            raise ProblemError(f"start: multipliers.lower: expected {self.count} numbers, got {[len(part) for part in parts]}")
        return self.scaled(*(part.to(self.scale) for part in parts))

    def report(self, la: Tensor) -> Multipliers:
        """Multipliers of the problem's own rows, by the kind of constraint."""
        parts = zip(NAMES, self.parts, self.unscaled(la))
        return Multipliers(lower={name[6:]: value for name, part, value in parts if part is not None})

    def clipped(self, la: Tensor) -> Tensor:
        """P_Z(la)."""
        return la.clamp(self.low, self.high)

    def _apply(self, c: Tensor) -> Tensor:
        return self.transform @ c if self.transform.ndim == 2 else self.transform * c
