"""Minres: minimal residuals for symmetric systems, singular and indefinite ones too."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..core.errors import Unsuitable
from ..core.options import Steps
from ..core.vec import Vec
from .system import LinearSolution, LinearSolver, LinearStatus, Operator, System


@dataclass(frozen=True, kw_only=True)
class Minres(LinearSolver):
    """Minimum residual for A symmetric, singular or not (Paige and Saunders 1975), with the least-norm lift.

    Stops when the true |b - A v| <= tol (SOLVED). Where the recurrence says so and the truth does not, it starts again on the
    true residual, until that does not halve any more (PRECISION). Where |A r| is zero to rounding for r = b - A v it stops
    with LEAST_SQUARES and v the pseudo-inverse solution: the Krylov space meets null(A) in the line of r alone, so
    v - (v'r / r'r) r has least norm (Liu, Milzarek and Roosta, arXiv 2309.17096).

    preconditioner: v -> M v with M symmetric positive definite, about A^-1; None: the system's `inverse`, or none. A
    preconditioned solve of a singular system need not give the least-norm solution.

    `smallest` of the solution is the least |A v| / |v| over the Krylov space, so at least that of A: a solve that ends early has
    not met what its right-hand side has little of. Without a preconditioner only.

    >>> A, minres = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)), Minres()
    >>> b = Vec.of(torch.tensor([2.0, 1.0], dtype=torch.float64))
    >>> found = minres.solve(minres.init(System(lambda v: v.map(lambda t: A @ t), 2)), b, tol=1e-12)
    >>> found.x.tree().round(decimals=6), found.reason.name
    (tensor([1., 0.], dtype=torch.float64), 'LEAST_SQUARES')
    """

    preconditioner: Callable[[Vec], Vec] | None = None
    max_steps: Steps | None = None

    def solve(
        self, prepared: System, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        return self.watched(prepared, b, tol=tol, start=start, go_on=lambda steps, residual: True)

    def watched(
        self, system: System, b: Vec, *, tol: float, start: Vec | None, go_on: Callable[[int, float], bool]
    ) -> LinearSolution:
        """`solve` that asks after every step, given the steps and the recurrence's residual, whether to go on."""
        product, inverse = system.product, self.preconditioner or system.inverse
        x, r, spent = (b.zeros(), b, 0) if start is None else (start, b - product(start), 1)
        residual, steps, known = float(r.norm()), 0, (None, None)
        down: Vec | None = None  # a direction of negative curvature
        limit = self.max_steps or 10 * b.size + 20

        def ended(reason: LinearStatus) -> LinearSolution:
            return LinearSolution(x, residual, spent, reason, down, None, *known)

        if not math.isfinite(residual):
            return ended(LinearStatus.NONFINITE)
        while residual > tol:
            sweep = Sweep(product, inverse, r)
            while sweep.reason is None and sweep.norm > 0.9 * tol and sweep.steps < limit - steps:
                sweep.step()
                if not go_on(steps + sweep.steps, sweep.norm):
                    limit = steps + sweep.steps
            if inverse is None and steps == 0:
                known = sweep.smallest(), sweep.norm_a
            steps, spent, down = steps + sweep.steps, spent + sweep.steps + 1, down or sweep.bent
            x_new = x + sweep.x
            r_new = b - product(x_new)
            old, new = residual, float(r_new.norm())
            if not math.isfinite(new):
                return ended(LinearStatus.NONFINITE)
            if new <= old:
                x, r, residual = x_new, r_new, new
            if residual <= tol:
                break
            if sweep.reason is LinearStatus.NONFINITE:
                return ended(sweep.reason)
            if sweep.reason is LinearStatus.LEAST_SQUARES:
                if inverse is not None:  # r is least in the norm of M only
                    plain = replace(self, preconditioner=None).watched(
                        replace(system, inverse=None), b, tol=tol, start=None, go_on=go_on
                    )
                    return replace(plain, products=plain.products + spent)
                # r is a null vector if the lift along it leaves the residual as it is, though x'r / r'r may be large.
                along, bent, spent = float(x @ r) / residual**2, float(product(r).norm()), spent + 1
                eps = torch.finfo(b.dtype).eps
                if abs(along) * bent <= 0.01 * residual and bent <= 10 * math.sqrt(eps) * sweep.norm_a * residual:
                    x, spent = x.add(r, -along), spent + 1
                    residual = float((b - product(x)).norm())
                    return ended(LinearStatus.LEAST_SQUARES)
            if steps >= limit:
                return ended(LinearStatus.MAX_STEPS)
            if new > 0.5 * old:
                return ended(LinearStatus.PRECISION)
        return ended(LinearStatus.SOLVED)


class Sweep:
    """MINRES on A x = b from 0. Lanczos vectors u, v = M u, and w; R of the tridiagonal by rotations (c, s); residual r."""

    def __init__(self, product: Operator, inverse: Operator | None, b: Vec):
        self.product, self.inverse, self.eps = product, inverse, torch.finfo(b.dtype).eps
        self.steps, self.reason, self.norm_a = 0, None, 0.0
        self.bent: Vec | None = None  # a direction of negative curvature
        self.x, self.r, self.norm = b.zeros(), b, float(b.norm())
        self.u_old, self.u, self.v, self.beta = b.zeros(), *self.normalised(b)
        self.w_old, self.w = b.zeros(), b.zeros()
        self.c, self.s, self.delta, self.epsilon = -1.0, 0.0, 0.0, 0.0
        self.phi = self.first = self.best = self.beta
        self.b_now, self.waited = 0.0, 0
        self.R: list[tuple[float, float, float]] = []  # columns: two above the diagonal, one above, the diagonal
        if not self.beta > 0:
            self.reason = LinearStatus.NONFINITE

    def normalised(self, u: Vec) -> tuple[Vec, Vec, float]:
        """u / beta, M u / beta, beta = sqrt(u'M u)."""
        v = u if self.inverse is None else self.inverse(u)
        square = float(u @ v)
        if square < 0:
            raise Unsuitable("Minres: the preconditioner is not positive definite: u'M u < 0 for a Lanczos vector u")
        beta = math.sqrt(square)
        u = u / beta if beta > 0 else u
        return u, u if self.inverse is None else v / beta if beta > 0 else v, beta

    def step(self) -> None:
        """One product, one rotation. A reason is left where there is no further step."""
        q = self.product(self.v)
        self.steps += 1
        a, b_now = float(self.v @ q), self.b_now
        q = q.add(self.u, -a).add(self.u_old, -b_now)
        u_next, v_next, b_next = self.normalised(q)
        if not (math.isfinite(a) and math.isfinite(b_next)):
            self.reason = LinearStatus.NONFINITE
            return
        norm_a = self.norm_a = max(self.norm_a, math.hypot(math.hypot(a, b_now), b_next))
        delta, gamma_bar = self.c * self.delta + self.s * a, self.s * self.delta - self.c * a
        if self.inverse is None and self.c * gamma_bar > math.sqrt(self.eps) * norm_a:  # r'A r = -c gamma_bar phi^2
            self.bent = self.r
        epsilon, self.epsilon, self.delta = self.epsilon, self.s * b_next, -self.c * b_next
        # |A r| of the iterate reached so far: zero with r nonzero means r in null(A), a least-squares solution.
        # Lanczos vectors lose their orthogonality long before |A r| <= eps |A||r|; sqrt(eps) is what they can show, and a
        # step along a smaller pivot would only blow x up.
        floor = max(math.sqrt(self.eps) * self.phi, 10 * self.eps * self.first) * norm_a
        if math.hypot(gamma_bar, self.delta) * self.phi <= floor:
            self.reason = LinearStatus.LEAST_SQUARES
            return
        gamma = max(math.hypot(gamma_bar, b_next), self.eps * norm_a)
        self.c, self.s = gamma_bar / gamma, b_next / gamma
        tau, self.phi = self.c * self.phi, self.phi * self.s
        self.w_old, self.w = self.w, (self.v.add(self.w_old, -epsilon).add(self.w, -delta)) / gamma
        self.x = self.x.add(self.w, tau)
        self.r = (self.r * self.s**2).add(u_next, -self.phi * self.c)
        self.norm = float(self.r.norm())
        self.R.append((epsilon, delta, gamma))
        self.u_old, self.u, self.v, self.b_now = self.u, u_next, v_next, b_next
        self.best, self.waited = (self.phi, 0) if self.phi < 0.99 * self.best else (self.best, self.waited + 1)
        if b_next <= self.eps * norm_a:  # the Krylov space is exhausted
            self.reason = LinearStatus.LEAST_SQUARES
        elif self.waited > 2 * self.x.size + 20:
            self.reason = LinearStatus.PRECISION

    def smallest(self) -> float | None:
        """sigma_min of R, three steps of inverse iteration on R'R: from above, that of A on the Krylov space."""
        if not self.R:
            return None
        from scipy.linalg import solve_banded

        largest = float(np.abs(self.R).max())
        if largest == 0 or not math.isfinite(largest):
            return None if largest else 0.0
        R, y, grown = np.array(self.R).T / largest, np.ones(len(self.R)), 0.0
        upper, lower = R, np.stack([R[2], np.r_[R[1, 1:], 0.0], np.r_[R[0, 2:], 0.0, 0.0][: R.shape[1]]])
        for _ in range(3):
            with np.errstate(all="ignore"):
                y = solve_banded((2, 0), lower, y / np.linalg.norm(y), check_finite=False)
                grown = float(np.linalg.norm(y))
                y = solve_banded((0, 2), upper, y / grown, check_finite=False)
                if not (math.isfinite(grown) and math.isfinite(float(np.linalg.norm(y)))):
                    return 0.0  # below what numbers tell from it
        return largest / grown
