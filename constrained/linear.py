"""Linear systems K z = b with K symmetric, and the solvers that know K by its products: CG and MINRES.

    system = System(product, size)
    prepared = solver.init(system)                 a factorisation, or nothing
    found = solver.solve(prepared, b, tol=1e-10)   as often as there are right-hand sides

A `LinearSolution` carries the true residual |b - K z| (recomputed, never the recurrence's) and a `Reason`. The solvers that
factorise are in `direct.py`, those for KKT systems in `projected.py`, random sketches in `sketch.py`, the default choice in
`autolinear.py`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .core.errors import Unsuitable
from .core.options import Options, Steps
from .core.vec import Vec

Product = Callable[[Vec], Vec]
CHUNK = 256  # vectors in one batched product


class Reason(enum.Enum):
    """Why a linear solve ended."""

    SOLVED = "The residual is within the tolerance."
    LEAST_SQUARES = "The system is singular and inconsistent; the solution is the least-norm least-squares one."
    NEGATIVE_CURVATURE = "The operator is not positive semidefinite: v'Av < 0 for some v."
    SINGULAR = "The operator is singular and the system inconsistent."
    STALLED = "The residual has stopped falling: the system is inconsistent, or too ill-conditioned for this solver."
    MAX_STEPS = "Stopped at the step limit."
    PRECISION = "Round-off limits further progress."
    NONFINITE = "A product returned NaN or infinity."


@dataclass(frozen=True)
class System:
    """A symmetric operator K on R^size by its products; KKT systems have vectors of one flat leaf, x first.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> system = System(lambda v: v.map(lambda t: K @ t), 2, matrix=lambda: K, split=(1, 1))
    """

    product: Product
    size: int
    products: Product | None = None  # a stack of vectors: every leaf with one leading dimension more, in and out
    matrix: Callable[[], Tensor] | None = None  # K as a dense tensor, where it is explicit or cheap to form
    sparse: Callable[[], Any] | None = None  # K as a scipy.sparse matrix
    inverse: Product | None = None  # products with a symmetric positive definite approximation of K^-1
    split: tuple[int, int] | None = None  # (n, m) of a KKT system
    below: Callable[[], Tensor] | None = None  # its last m rows, where they are cheaper than m products
    convex: bool = False  # only a K without negative curvature on their null space is worth solving
    scale: float | None = None  # pivots up to 1e-14 scale count as zero; None: scale = max |K_ij|
    like: Vec | None = None  # a vector of the space, for `init`; None: one flat leaf in float64
    spent: ClassVar[int] = 0  # products that `init` took: none where it returns the system as it is

    @property
    def template(self) -> Vec:
        return self.like if self.like is not None else Vec.of(torch.zeros(self.size, dtype=torch.float64))

    def times(self, rows: Tensor, like: Vec) -> Tensor:
        """K applied to each row of a matrix, as rows; one batched product where there is one, else one by one."""
        if self.products is None:
            return torch.stack([self.product(like.unravel(row)).ravel() for row in rows])
        parts = rows.split([leaf.numel() for leaf in like.leaves], dim=1)
        stack = like.like(part.reshape(-1, *leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, like.leaves))
        return torch.cat([leaf.reshape(len(rows), -1) for leaf in self.products(stack).leaves], dim=1)

    def dense(self) -> tuple[Tensor, int]:
        """K, and the products that it took: none where it is explicit, else one a column, in batches."""
        if self.matrix is not None:
            return self.matrix().detach(), 0
        like = self.template
        if self.sparse is not None:
            return torch.as_tensor(self.sparse().toarray(), dtype=like.dtype, device=like.device), 0
        basis = torch.eye(self.size, dtype=like.dtype, device=like.device)
        K = torch.cat([self.times(rows, like) for rows in basis.split(CHUNK)])
        return (K + K.T) / 2, self.size


@dataclass(frozen=True)
class LinearSolution:
    """`x`; `residual` = |b - K x|, recomputed; `products` spent by this solve; `reason`; `direction` of negative curvature,
    where found; `inertia`, the numbers of positive, negative and zero eigenvalues, where a factorisation knows them;
    `smallest` and `largest`, estimates of K's extreme singular values from within, where they come for free: `smallest` is
    from above, and by much where few steps were taken.
    """

    x: Vec
    residual: float
    products: int
    reason: Reason
    direction: Vec | None = None
    inertia: tuple[int, int, int] | None = None
    smallest: float | None = None
    largest: float | None = None


class LinearSolver(Options):
    """Options of a linear solver; `init` prepares a system once, `solve` runs for a right-hand side.

    What `init` returns counts the products it took as `spent`; a solution counts those of its own solve.
    """

    def init(self, system: System) -> Any:
        return system

    def solve(
        self, prepared: Any, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        """z with |b - K z| <= tol, or the best there is and the reason. `generator` (CPU): the only source of randomness."""
        raise NotImplementedError


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
        reason, direction = Reason.MAX_STEPS, None
        for step in range(limit + 1):
            if not math.isfinite(norm):
                reason = Reason.NONFINITE
                break
            if norm <= tol or rz == 0.0:
                reason = Reason.SOLVED
                break
            if step == limit:
                break
            q = product(p)
            spent += 1
            pp, curvature = float(p @ p), float(p @ q)
            largest = max(largest, abs(curvature) / pp)
            if not math.isfinite(curvature):
                reason = Reason.NONFINITE
                break
            if curvature <= 100 * eps * largest * pp:
                bent = curvature < -100 * eps * largest * pp
                reason, direction = (Reason.NEGATIVE_CURVATURE, p) if bent else (Reason.SINGULAR, None)
                break
            alpha = rz / curvature
            x, r = x.add(p, alpha), r.add(q, -alpha)
            z = inverse(r)
            rz, old = float(r @ z), rz
            p = z.add(p, rz / old)
            norm = float(r.norm())
            best, waited = (norm, 0) if norm < 0.99 * best else (best, waited + 1)
            if waited > 2 * b.size + 20:  # far past the finite termination of exact arithmetic
                reason = Reason.PRECISION
                break
        residual = float((b - product(x)).norm())
        spent += 1
        if reason is Reason.SOLVED and not residual <= max(2 * tol, 1e3 * eps * (float(b.norm()) + largest * float(x.norm()))):
            reason = Reason.PRECISION  # the recurrence drifted from the truth
        return LinearSolution(x, residual, spent, reason, direction)


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

        def ended(reason: Reason) -> LinearSolution:
            return LinearSolution(x, residual, spent, reason, down, None, *known)

        if not math.isfinite(residual):
            return ended(Reason.NONFINITE)
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
                return ended(Reason.NONFINITE)
            if new <= old:
                x, r, residual = x_new, r_new, new
            if residual <= tol:
                break
            if sweep.reason is Reason.NONFINITE:
                return ended(sweep.reason)
            if sweep.reason is Reason.LEAST_SQUARES:
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
                    return ended(Reason.LEAST_SQUARES)
            if steps >= limit:
                return ended(Reason.MAX_STEPS)
            if new > 0.5 * old:
                return ended(Reason.PRECISION)
        return ended(Reason.SOLVED)


class Sweep:
    """MINRES on A x = b from 0. Lanczos vectors u, v = M u, and w; R of the tridiagonal by rotations (c, s); residual r."""

    def __init__(self, product: Product, inverse: Product | None, b: Vec):
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
            self.reason = Reason.NONFINITE

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
            self.reason = Reason.NONFINITE
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
            self.reason = Reason.LEAST_SQUARES
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
            self.reason = Reason.LEAST_SQUARES
        elif self.waited > 2 * self.x.size + 20:
            self.reason = Reason.PRECISION

    def smallest(self) -> float | None:
        """sigma_min of R, three steps of inverse iteration on R'R: from above, that of A on the Krylov space."""
        if not self.R:
            return None
        from scipy.linalg import solve_banded

        R, y, grown = np.array(self.R).T, np.ones(len(self.R)), 0.0
        upper, lower = R, np.stack([R[2], np.r_[R[1, 1:], 0.0], np.r_[R[0, 2:], 0.0, 0.0][: R.shape[1]]])
        for _ in range(3):
            y = solve_banded((2, 0), lower, y / np.linalg.norm(y))
            grown = float(np.linalg.norm(y))
            y = solve_banded((0, 2), upper, y)
        return 1 / grown
