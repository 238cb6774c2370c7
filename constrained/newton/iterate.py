"""An iterate of a Newton method on the KKT conditions: the pair (x, lam) with what one evaluation says about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.derivatives.tape import Lagrangian
from ..core.vec import Vec
from ..kkt import kkt_norm
from ..oracle import ConstrainedOracle
from .kkt_system import DENSE


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """x and lam, with f, g = grad_x L and c there. lam and c are those of the rows scaled by `rows`; g is that of both."""

    x: Vec
    lam: Tensor
    rows: Tensor
    value: float
    g: Tensor
    c: Tensor

    @classmethod
    def at(cls, oracle: ConstrainedOracle, x: Vec, lam: Tensor, rows: Tensor) -> Iterate:
        """By one evaluation with first derivatives."""
        tape = oracle.tape(x)
        value, g = float(tape.value), tape.gradient_of_lagrangian(rows * lam)
        return cls(x=x, lam=lam, rows=rows, value=value, g=g, c=rows * tape.c)

    @classmethod
    def of(cls, at: Lagrangian, lam: Tensor, rows: Tensor) -> Iterate:
        """Of a Lagrangian that has been evaluated, at its x and rows * lam."""
        tape = at.tape
        return cls(x=tape.at, lam=lam, rows=rows, value=float(tape.value), g=at.gradient, c=rows * tape.c)

    def moved(self, oracle: ConstrainedOracle, z: Tensor, alpha: float) -> Iterate:
        """(x, lam) + alpha z, evaluated."""
        n = self.x.size
        x, lam = self.x.add(self.x.unravel(z[:n]), alpha), self.lam + alpha * z[n:]
        return Iterate.at(oracle, x, lam, self.rows)

    @property
    def b(self) -> Tensor:
        """The right-hand side of the KKT system, -(g, c)."""
        return -torch.cat([self.g, self.c])

    @property
    def residual(self) -> float:
        """|(g, c)|, unscaled."""
        return kkt_norm(self.g, self.c / self.rows)

    @property
    def violation(self) -> float:
        """|c|, unscaled."""
        return float((self.c / self.rows).double().norm())

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and bool(self.g.isfinite().all()) and bool(self.c.isfinite().all())

    @property
    def dense(self) -> bool:
        """Small enough for H and J as dense matrices, whatever the linear solver."""
        return len(self.g) + len(self.c) <= DENSE
