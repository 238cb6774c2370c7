"""CG: conjugate gradients for positive semidefinite systems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core.options import Steps
from ..core.vec import Vec
from .system import LinearSolution, LinearSolver, LinearStatus, System


@dataclass(frozen=True, kw_only=True)
class CG(LinearSolver):
    """Preconditioned conjugate gradients for A positive semidefinite (Hestenes and Stiefel 1952).

    Stops when |b - A v| <= tol. Stops with a reason where p'Ap < 0 (NEGATIVE_CURVATURE) or where p'Ap is zero to rounding while
    the residual is not (SINGULAR: b is not in the range of A). A singular system with b in the range is solved; started at 0
    the solution is the least-norm one. An early exact finish (A = c I, few distinct eigenvalues) is a solution, not 0/0.

    >>> A = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> cg = CG()
    >>> b = Vec.of(torch.tensor([1.0, 1.0], dtype=torch.float64))
    >>> found = cg.solve(cg.init(System(lambda v: v.map(lambda t: A @ t), 2)), b, tol=1e-12)
    >>> found.x.tree(), found.reason.name
    (tensor([1.0000, 0.5000], dtype=torch.float64), 'SOLVED')
    """

    max_steps: Steps | None = None

    def solve(
        self, prepared: System, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        product, inverse = prepared.product, prepared.inverse or (lambda v: v)
        eps, limit = torch.finfo(b.dtype).eps, self.max_steps or 10 * b.size + 20
        x = b.zeros() if start is None else start
        r = b if start is None else b - product(x)
        spent = 0 if start is None else 1
        z = inverse(r)
        p, rz, norm = z, float(r @ z), float(r.norm())
        largest, best, waited = 0.0, norm, 0
        reason, direction = LinearStatus.MAX_STEPS, None
        for step in range(limit + 1):
            if not math.isfinite(norm):
                reason = LinearStatus.NONFINITE
                break
            if norm <= tol or rz == 0.0:
                reason = LinearStatus.SOLVED
                break
            if step == limit:
                break
            q = product(p)
            spent += 1
            pp, curvature = float(p @ p), float(p @ q)
            largest = max(largest, abs(curvature) / pp)
            if not math.isfinite(curvature):
                reason = LinearStatus.NONFINITE
                break
            if curvature <= 100 * eps * largest * pp:
                bent = curvature < -100 * eps * largest * pp
                reason, direction = (LinearStatus.NEGATIVE_CURVATURE, p) if bent else (LinearStatus.SINGULAR, None)
                break
            alpha = rz / curvature
            x, r = x.add(p, alpha), r.add(q, -alpha)
            z = inverse(r)
            rz, old = float(r @ z), rz
            p = z.add(p, rz / old)
            norm = float(r.norm())
            best, waited = (norm, 0) if norm < 0.99 * best else (best, waited + 1)
            if waited > 2 * b.size + 20:  # far past the finite termination of exact arithmetic
                reason = LinearStatus.PRECISION
                break
        residual = float((b - product(x)).norm())
        spent += 1
        if reason is LinearStatus.SOLVED and not residual <= max(
            2 * tol, 1e3 * eps * (float(b.norm()) + largest * float(x.norm()))
        ):
            reason = LinearStatus.PRECISION  # the recurrence drifted from the truth
        return LinearSolution(x, residual, spent, reason, direction)
