"""The merit function of a Newton method on the KKT conditions, and the step lengths that it allows.

A(x, lam) = f + lam'c + eta1/2 |c|^2 + eta2/2 |g|^2,  g = grad_x L          an exact augmented Lagrangian
grad A    = (g, c) + eta2 K0 (g, 0) + eta1 (J'c, 0),                        K0 = [[H, J'], [J, 0]]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.status import Status
from ..oracle import ConstrainedOracle
from .iterate import Iterate
from .shifts import Modification

FEASIBLE = 1e-6  # |c| up to which a step may be expanded


@dataclass(frozen=True)
class Merit:
    """A for two penalties."""

    eta1: float
    eta2: float

    def __call__(self, p: Iterate) -> float:
        """f + lam'c + eta1/2 |c|^2 + eta2/2 |g|^2."""
        g, c, lam = p.g.double(), p.c.double(), p.lam.double()
        return p.value + float(lam @ c) + 0.5 * self.eta1 * float(c @ c) + 0.5 * self.eta2 * float(g @ g)

    def slope(self, p: Iterate, z: Tensor, modification: Modification, residual: float) -> float:
        """D = grad A' z without a product: K0 z = b - r - (shift dx, -gamma dlam), and r adds at most its norm."""
        g, c, z = p.g.double(), p.c.double(), z.double()
        dx, dlam = z[: len(g)], z[len(g) :]
        of_x, of_c = -g - modification.shift * dx, -c + modification.gamma * dlam  # the two parts of K0 z + r
        D = g @ dx + c @ dlam + self.eta2 * (g @ of_x) + self.eta1 * (c @ of_c)
        return float(D) + (self.eta2 * float(g.norm()) + self.eta1 * float(c.norm())) * residual


def backtrack(
    oracle: ConstrainedOracle, merit: Merit, here: Iterate, z: Tensor, slope: float, *, beta: float, halvings: int
) -> Iterate | Status:
    """The first of alpha = 1, 1/2, 1/4, ... with A(alpha) <= A + alpha beta D, D the slope; or why there is none."""
    A = merit(here)
    slack = 50 * torch.finfo(here.x.dtype).eps * max(1.0, abs(A))  # what rounding leaves of A
    alpha, there = 1.0, here
    for _ in range(halvings + 1):
        there = here.moved(oracle, z, alpha)
        trial = merit(there)
        if math.isfinite(trial) and trial <= A + alpha * beta * slope + slack:
            return there
        alpha *= 0.5
    return Status.LINE_SEARCH if there.finite else Status.NONFINITE


def expand(oracle: ConstrainedOracle, merit: Merit, here: Iterate, there: Iterate, z: Tensor) -> Iterate:
    """Further than `there` along z, where z keeps c: 10, 100, ... times z while A falls in proportion, as along a direction of no
    curvature. Where f is unbounded a few steps then show it.
    """
    if float(here.c.norm()) > FEASIBLE:
        return there
    first, alpha = merit(here), 1.0
    best = merit(Iterate.at(oracle, there.x, there.lam, there.rows))
    while best > -1e25:
        alpha *= 10.0
        further = here.moved(oracle, z, alpha)
        trial = merit(further)
        if not (math.isfinite(trial) and trial - first <= 5 * (best - first) < 0):
            break
        best, there = trial, further
    return there
