"""Newton's step on the conditions of the barrier problem, slacks eliminated.

    [H + Sigma_x + dw I   J'] [dx  ]     [g + J'lam + b_x              ]
    [J                    -E] [dlam] = - [C_i - r_i / (Sigma_s + dw)_i ]     r = lam_h + b_s, 0 for equalities

    ds = -(r + dlam_h) / (Sigma_s + dw),   dz = mu / d - z -+ z / d dx,   Sigma = z / distance,   b = grad of the barrier

least_squares   lam that makes grad L least, for given z
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .inertia import Factors, Matrices, factored
from .iterate import Iterate
from .program import Array, Values


@dataclass(frozen=True)
class Step:
    """dx, ds and the step of lam."""

    dx: Array
    ds: Array
    dlam: Array

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.dx).all() and np.isfinite(self.ds).all() and np.isfinite(self.dlam).all())

    def size(self, at: Values) -> float:
        """The largest entry relative to 1 + |x|, and to 1 + s."""
        moved = np.concatenate([np.abs(self.dx) / (1 + np.abs(at.x)), np.abs(self.ds) / (1 + at.s)])
        return float(moved.max(initial=0.0))


@dataclass(frozen=True)
class Newton:
    """The system at an iterate, factored for a barrier parameter; `step` for any C in place of the iterate's."""

    it: Iterate
    mu: float
    matrices: Matrices
    factors: Factors

    @classmethod
    def at(cls, it: Iterate, mu: float, last: float) -> Newton | None:
        """None where no shift gives the inertia. last: the shift of the step before."""
        matrices = Matrices(it.at.hessian(it.lam), it.zl / it.dl + it.zu / it.du, it.at.J, it.zs / it.at.s, it.at.program.sparse)
        factors = factored(matrices, last, mu if it.at.program.bounded else 1.0)  # without a barrier its mu says nothing
        return None if factors is None else cls(it, mu, matrices, factors)

    @functools.cached_property
    def slopes(self) -> tuple[Array, Array]:
        """The barrier's gradient."""
        return self.it.slopes(self.mu)

    def step(self, C: Array | None = None) -> Step:
        it, e = self.it, self.it.at.program.equalities
        C = it.at.C if C is None else C
        bx, bs = self.slopes
        top = it.at.g + it.at.J.T @ it.lam + bx
        r = it.lam[e:] + bs
        curvature = self.matrices.slack + self.factors.dw
        bottom = np.concatenate([C[:e], C[e:] - r / curvature])
        z = self.factors.solve(-np.concatenate([top, bottom]))
        dx, dlam = z[: len(top)], z[len(top) :]
        return Step(dx, -(r + dlam[e:]) / curvature, dlam)

    def bounds(self, step: Step) -> tuple[Array, Array, Array]:
        """The steps of zl, zu, zs."""
        it, mu = self.it, self.mu
        dzl = mu / it.dl - it.zl - it.zl / it.dl * step.dx
        dzu = mu / it.du - it.zu + it.zu / it.du * step.dx
        return dzl, dzu, mu / it.at.s - it.zs - it.zs / it.at.s * step.ds

    def slope(self, step: Step) -> float:
        """The derivative of phi along the step."""
        bx, bs = self.slopes
        return float((self.it.at.g + bx) @ step.dx + bs @ step.ds)


def least_squares(it: Iterate) -> Array:
    """lam that makes |(g + J'lam - zl + zu, lam_h - zs)| least; of several the shortest, where matrices are dense."""
    at, e = it.at, it.at.program.equalities
    r = at.g - it.zl + it.zu
    if at.program.sparse:
        from scipy.sparse import eye_array

        n = len(r)
        ones = Matrices(eye_array(n, format="csr"), np.zeros(n), at.J, np.ones(len(it.zs)), True)
        found = factored(ones, 0.0, 1.0)
        if found is None:
            return it.lam
        return found.solve(np.concatenate([-r, np.zeros(e), -it.zs]))[n:]
    rows = np.zeros((len(it.zs), len(it.lam)))
    rows[:, e:] = np.eye(len(it.zs))
    A, b = np.concatenate([at.J.T, rows]), np.concatenate([-r, it.zs])
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        return it.lam
    return np.linalg.lstsq(A, b, rcond=1e-12)[0]


def polished(newton: Newton) -> Iterate | None:
    """By the shortest step of the system without a shift, for points near a solution where J or H is singular. Equalities alone.

    None where it does not halve the residual.
    """
    it = newton.it
    n, m = len(it.at.g), len(it.lam)
    K: Any = np.zeros((n + m, n + m))
    K[:n, :n], K[:n, n:], K[n:, :n] = newton.matrices.H, it.at.J.T, it.at.J
    if not np.isfinite(K).all():
        return None
    z = np.linalg.lstsq(K, -np.concatenate([it.at.g + it.at.J.T @ it.lam, it.at.C]), rcond=1e-11)[0]
    at = it.at.program.at(it.at.x + z[:n], it.at.s)
    if not (at.finite and at.smooth):
        return None
    there = replace(it, at=at, lam=it.lam + z[n:])
    return there if there.residual <= 0.5 * it.residual else None
