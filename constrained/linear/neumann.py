"""Neumann: the truncated series v = (1/L) sum (I - A/L)^i b."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..core.options import Positive, Steps
from ..core.vec import Vec
from .spectrum import largest
from .system import LinearSolution, LinearSolver, LinearStatus, Operator, System


def least_norm(product: Operator, v: Vec, r: Vec, size: float) -> tuple[Vec, bool]:
    """v - (v'r / r'r) r where r = b - A v lies in the null space of A to rounding, |A| about `size`, and whether it does.

    If v lies in the Krylov space of b, that is the least-norm least-squares solution (as in `Minres`).
    """
    square, eps = float(r @ r), torch.finfo(v.dtype).eps
    null = square > 0 and float(product(r).norm()) <= 1e5 * eps * size * square**0.5
    return (v.add(r, -float(v @ r) / square), True) if null else (v, False)


@dataclass(frozen=True)
class Scaled:
    """A system and the eta for it."""

    system: System
    eta: float
    spent: int


@dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    """The Neumann series for A positive semidefinite: v = eta sum_{k < K} (I - eta A)^k b.

    Ends when |b - A v| <= tol, or after K = `terms` products (MAX_STEPS). The residual falls by 1 - mu / |A| a term, mu the
    smallest eigenvalue: CG needs the square root of that many products. Where r'A r < 0 for a residual r it ends with
    NEGATIVE_CURVATURE; where A r is zero to rounding, r not, with LEAST_SQUARES and the least-norm solution.

    eta: None: 1 / |A| by the power method, 20 products at most. An eta that a product shows to be too long, |A r| >= 2 |r| / eta,
    is cut to |r| / |A r|.

    >>> A, neumann = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64)), Neumann()
    >>> b = Vec.of(torch.tensor([1.0, 1.0], dtype=torch.float64))
    >>> found = neumann.solve(neumann.init(System(lambda v: v.map(lambda t: A @ t), 2)), b, tol=1e-9)
    >>> found.x.tree(), found.reason.name
    (tensor([1.0000, 0.5000], dtype=torch.float64), 'SOLVED')

    Source: arXiv 1911.02590.
    """

    terms: Steps = 10_000
    eta: Positive | None = None

    def init(self, system: System) -> Scaled:
        if self.eta is not None:
            return Scaled(system, self.eta, 0)
        size, spent = largest(system.product, system.template)
        return Scaled(system, 1 / size if size > 0 else 1.0, spent)

    def solve(
        self, prepared: Scaled, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        product, eta, eps = prepared.system.product, prepared.eta, torch.finfo(b.dtype).eps
        x, r, spent = (b.zeros(), b, 0) if start is None else (start, b - product(start), 1)
        size, reason, direction = 0.0, LinearStatus.MAX_STEPS, None
        for term in range(self.terms + 1):
            norm = float(r.norm())
            if not math.isfinite(norm):
                reason = LinearStatus.NONFINITE
                break
            if norm <= tol:
                reason = LinearStatus.SOLVED
                break
            if term == self.terms:
                break
            q = product(r)
            spent += 1
            curvature, ratio = float(r @ q) / norm**2, float(q.norm()) / norm
            size = max(size, ratio, 1 / eta if self.eta is None else 0.0)
            if curvature < -100 * eps * size:
                reason, direction = LinearStatus.NEGATIVE_CURVATURE, r
                break
            if ratio <= 1e3 * eps * size:
                reason = LinearStatus.LEAST_SQUARES
                break
            if eta * ratio >= 2:
                eta = 1 / ratio
            x, r = x.add(r, eta), r.add(q, -eta)
        r, spent = b - product(x), spent + 1
        if reason is LinearStatus.LEAST_SQUARES:
            x, null = least_norm(product, x, r, size)
            r, spent = b - product(x), spent + 2
            reason = reason if null else LinearStatus.PRECISION
        residual = float(r.norm())
        if reason is LinearStatus.SOLVED and not residual <= max(2 * tol, 1e3 * eps * (float(b.norm()) + size * float(x.norm()))):
            reason = LinearStatus.PRECISION  # the recurrence drifted from the truth
        return LinearSolution(x, residual, spent, reason, direction)
