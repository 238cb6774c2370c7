"""ProjectedCG: conjugate gradients in the null space of the constraints, for KKT systems.

    K [x; lam] = [[B, G'], [G, -C]] [x; lam] = b,      P = [[M, G'], [G, -C]]

P, with M in place of B, is the constraint preconditioner: z = P^-1 b solves the lower equations, and every direction of CG on
K preconditioned by P then has G p = C w, so that its curvature is p'B p + w'C w. For C = 0 this is CG on Z'B Z, Z a basis of
null(G), without Z. M = I makes P^-1 the orthogonal projection, by the m x m matrix G G' + C:

    P^-1 [r; c] = [r - G'l; l],    (G G' + C) l = G r - c

References: Gould, Hribar and Nocedal 2001; Dollar, Gould, Schilders and Wathen 2006 (C nonzero).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import Unsuitable
from ..core.options import Steps
from ..core.vec import Vec
from .system import CHUNK, LinearSolution, LinearSolver, LinearStatus, System

Flat = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projector:
    """A KKT system, the application of P^-1 to flat vectors, the products `spent` on making it, and G' where C = 0."""

    system: System
    inverse: Flat
    spent: int
    lift: Flat | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectedCG(LinearSolver):
    """K [x; lam] = b by conjugate gradients in the null space of G; m products for `init`, then one a step.

    NEGATIVE_CURVATURE, with a direction [p; 0], G p = 0 and p'B p < 0, where Z'B Z is indefinite; SINGULAR where it is singular
    or G x = c has no solution. Where the recurrence says that it is done and the true residual does not, it starts again.

    preconditioner: [r; c] -> P^-1 [r; c] with M positive definite on the null space of G; None: M = I, by a Cholesky
    factorisation of G G' + C (a pseudo-inverse where the rows of G are dependent).

    >>> K = torch.tensor([[1.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    >>> cg, b = ProjectedCG(), Vec.of(torch.tensor([2.0, 4.0, 2.0], dtype=torch.float64))
    >>> found = cg.solve(cg.init(System(lambda v: v.map(lambda t: K @ t), 3, split=(2, 1))), b, tol=1e-12)
    >>> found.x.tree().round(decimals=9), found.reason.name
    (tensor([1., 1., 1.], dtype=torch.float64), 'SOLVED')
    """

    preconditioner: Callable[[Vec], Vec] | None = None
    max_steps: Steps | None = None

    def init(self, system: System) -> Projector:
        if system.split is None:
            raise Unsuitable("ProjectedCG needs a KKT system, System(split=(n, m)), and this one has no split: use Minres()")
        if self.preconditioner is not None:
            given, like = self.preconditioner, system.template
            return Projector(system, lambda v: given(like.unravel(v)).ravel().double(), 0)
        n, m = system.split
        if system.below is not None:
            below, spent = system.below().detach().double(), 0
        elif system.matrix is not None:
            below, spent = system.matrix().detach().double()[n:], 0
        else:
            like = system.template
            basis = torch.eye(m, n + m, dtype=like.dtype, device=like.device).roll(n, 1)
            chunks = [system.times(rows, like).double() for rows in basis.split(CHUNK)] if m else []
            below, spent = torch.cat([basis.new_zeros(0, n + m).double(), *chunks]), m
        G, C = below[:, :n], -below[:, n:]
        return Projector(system, projection(G, C), spent, None if bool(C.any()) else lambda lam: G.T @ lam)

    def solve(
        self, prepared: Projector, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        return self.watched(prepared, b, tol=tol, start=start, go_on=lambda steps, residual: True)

    def watched(
        self, prepared: Projector, b: Vec, *, tol: float, start: Vec | None, go_on: Callable[[int, float], bool]
    ) -> LinearSolution:
        """`solve` that asks after every step, given the steps and about the residual, whether to go on."""
        system, inverse, spent = prepared.system, prepared.inverse, 0

        def product(v: Tensor) -> Tensor:
            nonlocal spent
            spent += 1
            return system.product(b.unravel(v)).ravel().double()

        flat, limit = b.ravel().double(), self.max_steps or 10 * b.size + 20
        z = torch.zeros_like(flat) if start is None else start.ravel().double()
        r = flat if start is None else flat - product(z)
        best, residual, before, target = z, float(r.norm()), math.inf, 0.9 * tol

        def ask(left: float) -> bool:
            return go_on(run.steps, left * tol)

        run = _Descent(system, product, inverse, prepared.lift, torch.finfo(b.dtype).eps, limit, ask)
        reason = None if math.isfinite(residual) else LinearStatus.NONFINITE
        while reason is None and residual > tol:
            if run.steps or float(r[run.n :].norm()) > 0.1 * tol:
                # Solves the lower equations; with the upper residual in it, P^-1 r would be a step by M in place of B as well.
                z = z + inverse(torch.cat([torch.zeros_like(r[: run.n]), r[run.n :]]))
                r = flat - product(z)
            true = float(r.norm())
            if not math.isfinite(true):
                reason = LinearStatus.NONFINITE
                break
            best, residual = (z, true) if true < residual else (best, residual)
            reason = LinearStatus.SOLVED if residual <= tol else run.reason
            if reason is None and true > 0.5 * before:
                reason = LinearStatus.SINGULAR if float(r[run.n :].norm()) > 0.5 * true else LinearStatus.PRECISION
            if reason is None:
                known = math.isfinite(run.nominal)  # it may be within the target after no step, where the true residual is not
                target = min(target, 0.9 * tol * run.nominal / true) if known else target
                before = true if known else math.inf
                z, r = run.down(z, r, target)
        x, direction = b.unravel(best), None if run.direction is None else b.unravel(run.direction)
        return LinearSolution(x, residual, spent, reason or LinearStatus.SOLVED, direction)


class _Descent:
    """CG on K preconditioned by P, in the space where the lower residual is zero; `nominal` = sqrt(r'P^-1 r) where it ended."""

    def __init__(
        self,
        system: System,
        product: Flat,
        inverse: Flat,
        lift: Flat | None,
        eps: float,
        limit: int,
        ask: Callable[[float], bool],  # whether to go on, given sqrt(r'P^-1 r) over what is wanted of it
    ):
        assert system.split is not None
        self.n, self.product, self.inverse, self.eps, self.limit = system.split[0], product, inverse, eps, limit
        self.lift, self.ask = lift, ask
        self.steps, self.largest, self.nominal = 0, 0.0, math.inf
        self.reason: LinearStatus | None = None
        self.direction: Tensor | None = None

    def down(self, z: Tensor, r: Tensor, target: float) -> tuple[Tensor, Tensor]:
        """From z with residual r until `nominal` <= target, or a reason; z and r there."""
        n, zero = self.n, torch.zeros_like(r[self.n :])
        z, r, v = self._turned(z, torch.cat([r[:n], zero]))
        p, rho = v, float(r @ v)
        least, waited = rho, 0
        while rho > target * target and waited <= 2 * len(z) + 20:
            if self.steps == self.limit:
                self.reason = LinearStatus.MAX_STEPS
                break
            q = self.product(p)
            self.steps += 1
            # p'B p + w'C w for the direction [p; w], free of w'G p, which is zero but for rounding.
            curvature, pp = float(p[:n] @ q[:n] - p[n:] @ q[n:]), float(p[:n] @ p[:n])
            if not math.isfinite(curvature):
                self.reason = LinearStatus.NONFINITE
                break
            self.largest = max(self.largest, abs(curvature) / pp)
            if curvature <= 100 * self.eps * self.largest * pp:
                bent = curvature < -100 * self.eps * self.largest * pp
                self.reason = LinearStatus.NEGATIVE_CURVATURE if bent else LinearStatus.SINGULAR
                self.direction = torch.cat([p[:n], zero]) if bent else None
                break
            alpha = rho / curvature
            z, r, v = self._turned(z + alpha * p, r - alpha * q)
            rho, old = float(r @ v), rho
            p = v + (rho / old) * p
            least, waited = (rho, 0) if rho < 0.98 * least else (least, waited + 1)
            if rho > target * target and not self.ask(math.sqrt(rho) / target if target else math.inf):
                self.reason = LinearStatus.MAX_STEPS
                break
        self.nominal = math.sqrt(max(rho, 0.0))
        return z, r

    def _turned(self, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, r and v = P^-1 r. Where C = 0 the multipliers in v go into z and out of r at once, and the lower residual is taken
        as the zero that it is in exact arithmetic (the residual update of Gould, Hribar and Nocedal): left in the recurrences,
        their rounding errors grow with every step, by the step length.
        """
        if self.lift is None:
            return z, r, self.inverse(r)
        n, zero = self.n, torch.zeros_like(r[self.n :])
        v = self.inverse(torch.cat([r[:n], zero]))
        lam = v[n:]
        r = torch.cat([r[:n] - self.lift(lam), zero])
        return torch.cat([z[:n], z[n:] + lam]), r, torch.cat([v[:n], zero])


def projection(G: Tensor, C: Tensor) -> Flat:
    """P^-1 for M = I, with one step of refinement on the lower equations."""
    n, solve = G.shape[1], semidefinite_inverse(G @ G.T + C)

    def inverse(v: Tensor) -> Tensor:
        r, c = v[:n], v[n:]
        lam = solve(G @ r - c)
        x = r - G.T @ lam
        more = solve(G @ x - C @ lam - c)
        return torch.cat([x - G.T @ more, lam + more])

    return inverse


def semidefinite_inverse(A: Tensor) -> Flat:
    """y -> A^-1 y by Cholesky of A scaled to unit diagonal, so that rows of any size are alike; A^+ y where A is singular."""
    scale = A.diagonal().clamp(min=torch.finfo(A.dtype).tiny).rsqrt()
    L, info = torch.linalg.cholesky_ex(scale[:, None] * A * scale)
    if int(info) == 0 and bool((L.diagonal() > 1e-7).all()):
        return lambda y: scale * torch.cholesky_solve((scale * y)[:, None], L)[:, 0]
    pseudo = torch.linalg.pinv(A, hermitian=True, rtol=1e-14 * len(A))
    return lambda y: pseudo @ y
