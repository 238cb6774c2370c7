"""Linear systems A v = b with A symmetric and known by its products.

Each solver has an `init`/`solve` split: `init(product)` prepares the operator once, `solve` may then run for many right-hand
sides. A `LinearSolution` carries the true residual |b - A v| (recomputed, not the recurrence's) and a `Reason`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .core.options import Options, Steps
from .core.vec import Vec

Product = Callable[[Vec], Vec]


class Reason(enum.Enum):
    """Why a linear solve ended."""

    SOLVED = "The residual is within the tolerance."
    LEAST_SQUARES = "The system is singular and inconsistent; the solution is the least-norm least-squares one."
    NEGATIVE_CURVATURE = "The operator is not positive semidefinite: v'Av < 0 for some v."
    SINGULAR = "The operator is singular and the system inconsistent."
    MAX_STEPS = "Stopped at the step limit."
    PRECISION = "Round-off limits further progress."
    NONFINITE = "A product returned NaN or infinity."


@dataclass(frozen=True)
class LinearSolution:
    """`x`; `residual` = |b - A x|, recomputed; `products` spent; `reason`; `direction` of negative curvature, where found."""

    x: Vec
    residual: float
    products: int
    reason: Reason
    direction: Vec | None = None


@dataclass(frozen=True)
class Operator:
    """A prepared operator: products with A, and with an approximate inverse where there is one."""

    product: Product
    inverse: Product | None


@dataclass(frozen=True, kw_only=True)
class CG(Options):
    """Preconditioned conjugate gradients for A positive semidefinite (Hestenes and Stiefel 1952).

    Stops when |b - A v| <= tol. Stops with a reason where p'Ap < 0 (NEGATIVE_CURVATURE) or where p'Ap is zero to rounding while
    the residual is not (SINGULAR: b is not in the range of A). A singular system with b in the range is solved; started at 0
    the solution is the least-norm one. An early exact finish (A = c I, few distinct eigenvalues) is a solution, not 0/0.

    >>> A = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> cg = CG()
    >>> b = Vec.of(torch.tensor([1.0, 1.0], dtype=torch.float64))
    >>> found = cg.solve(cg.init(lambda v: v.map(lambda t: A @ t)), b, tol=1e-12)
    >>> found.x.tree(), found.reason.name
    (tensor([1.0000, 0.5000], dtype=torch.float64), 'SOLVED')
    """

    max_steps: Steps | None = None

    def init(self, product: Product, inverse: Product | None = None) -> Operator:
        """`inverse`: products with a symmetric positive definite approximation of A^-1."""
        return Operator(product, inverse)

    def solve(self, operator: Operator, b: Vec, *, tol: float, start: Vec | None = None) -> LinearSolution:
        product, inverse = operator.product, operator.inverse or (lambda v: v)
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
class Minres(Options):
    """Minimum residual for A symmetric, singular or not (Paige and Saunders 1975), with the least-norm lift.

    Stops when |b - A v| <= tol (SOLVED), or when |A r| is zero to rounding for r = b - A v (LEAST_SQUARES, with v the
    pseudo-inverse solution: the Krylov space meets null(A) in the line of r alone, so v - (v'r / r'r) r has least norm; Liu,
    Milzarek and Roosta, arXiv 2309.17096).

    >>> A, minres = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)), Minres()
    >>> b = Vec.of(torch.tensor([2.0, 1.0], dtype=torch.float64))
    >>> found = minres.solve(minres.init(lambda v: v.map(lambda t: A @ t)), b, tol=1e-12)
    >>> found.x.tree().round(decimals=6), found.reason.name
    (tensor([1., 0.], dtype=torch.float64), 'LEAST_SQUARES')
    """

    max_steps: Steps | None = None

    def init(self, product: Product) -> Operator:
        return Operator(product, None)

    def solve(self, operator: Operator, b: Vec, *, tol: float) -> LinearSolution:
        product, eps = operator.product, torch.finfo(b.dtype).eps
        limit = self.max_steps or 10 * b.size + 20
        x, beta = b.zeros(), float(b.norm())
        reason, spent = Reason.MAX_STEPS, 0
        if beta <= tol:
            return LinearSolution(x, beta, 0, Reason.SOLVED)
        first = beta
        # Lanczos vectors v, QR of the tridiagonal by rotations (c, s), directions w; phi = |residual|.
        v_old, v, w_old, w = b.zeros(), b / beta, b.zeros(), b.zeros()
        c, s, delta, epsilon, phi, norm_a = -1.0, 0.0, 0.0, 0.0, beta, 0.0
        b_next = 0.0
        for _ in range(limit):
            b_now = b_next
            q = product(v)
            spent += 1
            a = float(v @ q)
            q = q.add(v, -a).add(v_old, -b_now)
            b_next = float(q.norm())
            if not math.isfinite(b_next):
                reason = Reason.NONFINITE
                break
            norm_a = max(norm_a, math.hypot(math.hypot(a, b_now), b_next))
            delta_k, gamma_bar = c * delta + s * a, s * delta - c * a
            epsilon_old, epsilon, delta = epsilon, s * b_next, -c * b_next
            # |A r| of the iterate reached so far: zero with r nonzero means r in null(A), a least-squares solution.
            # Lanczos vectors lose their orthogonality long before |A r| <= eps |A||r|; sqrt(eps) is what they can show, and a
            # step along a smaller pivot would only blow x up.
            if math.hypot(gamma_bar, delta) * phi <= max(math.sqrt(eps) * phi, 10 * eps * first) * norm_a:
                reason = Reason.LEAST_SQUARES
                break
            gamma = max(math.hypot(gamma_bar, b_next), eps * norm_a)
            c, s = gamma_bar / gamma, b_next / gamma
            tau, phi = c * phi, phi * s
            w_old, w = w, (v.add(w_old, -epsilon_old).add(w, -delta_k)) / gamma
            x = x.add(w, tau)
            if abs(phi) <= tol:
                reason = Reason.SOLVED
                break
            if b_next <= eps * norm_a:  # the Krylov space is exhausted
                reason = Reason.LEAST_SQUARES
                break
            v_old, v = v, q / b_next
        r = b - product(x)
        residual, spent = float(r.norm()), spent + 1
        if reason in (Reason.SOLVED, Reason.LEAST_SQUARES):  # the recurrences said so; the truth decides
            if residual <= 2 * tol:
                return LinearSolution(x, residual, spent, Reason.SOLVED)
            # r is a null vector if the lift along it leaves the residual as it is, even though x'r / r'r may be large.
            along, bent = float(x @ r) / residual**2, float(product(r).norm())
            null = abs(along) * bent <= 0.01 * residual and bent <= 10 * math.sqrt(eps) * norm_a * residual
            reason, spent = Reason.LEAST_SQUARES if null else Reason.PRECISION, spent + 1
            if null:
                x = x.add(r, -along)
        return LinearSolution(x, residual, spent, reason)
