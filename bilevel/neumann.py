"""Neumann: A v = b by the series v = eta sum_{k < K} (I - eta A)^k b, exact products or fresh draws of them.

    r <- b;   K times:  v <- v + eta r,  r <- r - eta A r          eta = 1 / |A|, by the power method

References: Lorraine, Vicol and Duvenaud, arXiv 1911.02590; with draws: Ghadimi and Wang, arXiv 1802.02246; Ji, Yang and Liang
(stocBio), arXiv 2010.07962.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from constrained.core.options import Positive, Steps
from constrained.core.vec import Vec
from constrained.linear import LinearSolution, LinearSolver, Product, Reason, System

from .adjoint import Adjoint, AdjointMethod, Here, Wanted, bent, differentiate, lifted, read

POWER = 20  # products of the power method at most
SETTLED = 0.01  # relative change of the estimate at which it ends


def largest(product: Product, like: Vec) -> tuple[float, int]:
    """An estimate of |A| from below by the power method, from a fixed vector without pattern, and its products.

    With random products: the largest |A_j v| / |v| met.
    """
    v = like.unravel(torch.arange(1.0, like.size + 1, dtype=torch.float64, device=like.device).square().cos())
    found, spent = 0.0, 0
    while spent < POWER:
        q = product(v / v.norm())
        spent += 1
        size, before = float(q.norm()), found
        found = max(found, size) if math.isfinite(size) else math.nan
        if not size > 0 or abs(size - before) <= SETTLED * size:
            break
        v = q
    return found, spent


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
        size, reason, direction = 0.0, Reason.MAX_STEPS, None
        for term in range(self.terms + 1):
            norm = float(r.norm())
            if not math.isfinite(norm):
                reason = Reason.NONFINITE
                break
            if norm <= tol:
                reason = Reason.SOLVED
                break
            if term == self.terms:
                break
            q = product(r)
            spent += 1
            curvature, ratio = float(r @ q) / norm**2, float(q.norm()) / norm
            size = max(size, ratio, 1 / eta if self.eta is None else 0.0)
            if curvature < -100 * eps * size:
                reason, direction = Reason.NEGATIVE_CURVATURE, r
                break
            if ratio <= 1e3 * eps * size:
                reason = Reason.LEAST_SQUARES
                break
            if eta * ratio >= 2:
                eta = 1 / ratio
            x, r = x.add(r, eta), r.add(q, -eta)
        r, spent = b - product(x), spent + 1
        if reason is Reason.LEAST_SQUARES:
            x, null = lifted(product, x, r, size)
            r, spent = b - product(x), spent + 2
            reason = reason if null else Reason.PRECISION
        residual = float(r.norm())
        if reason is Reason.SOLVED and not residual <= max(2 * tol, 1e3 * eps * (float(b.norm()) + size * float(x.norm()))):
            reason = Reason.PRECISION  # the recurrence drifted from the truth
        return LinearSolution(x, residual, spent, reason, direction)


@dataclass(frozen=True, kw_only=True)
class StochasticNeumann(AdjointMethod):
    """The Neumann series with a fresh draw A_k of g_yy for each term: v = eta sum_{k < K} (I - eta A_k) ... (I - eta A_1) b.

    Draws are independent, so E v = eta sum_{k < K} (I - eta A)^k b with A the mean of the draws: v estimates A^-1 b with the bias
    -(I - eta A)^K A^-1 b, of size (1 - eta mu)^K at most relative to A^-1 b, mu the smallest eigenvalue of A, and with a
    variance in proportion to eta that no number of terms removes. f_y, g_xy and the residual are those of the point. The residual
    is that of this v: it does not fall below the noise, and MAX_STEPS is then the reason. Without mini-batches it is `Neumann`.

    terms: K. eta: None: 1 / the largest |A_k v| / |v| that 20 steps of the power method meet, on draws of their own. The draws
    are `Here.draw`, ... `Here.draw + draws - 1`, so that a solver counts on by `draws`.

    >>> import bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: (y**2).sum(), lambda x, y: ((y - 3 * x) ** 2).sum()
    >>> problem = bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one)
    >>> bilevel.hypergradient(problem, one, inverse=StochasticNeumann()).value
    tensor([18., 18.], dtype=torch.float64)

    Source: arXiv 2010.07962; arXiv 1802.02246 draws K itself at random instead.
    """

    samples: ClassVar[bool] = True

    terms: Steps = 1000
    eta: Positive | None = None

    @property
    def draws(self) -> int:
        return self.terms + POWER

    def at(self, here: Here, wanted: Wanted, *, start: Vec | None = None) -> Adjoint:
        if here.sampled is None:
            return differentiate(Neumann(terms=self.terms, eta=self.eta), here, wanted, start=start)
        g, b = here.sampled.g, here.face.project(here.f_y)
        numbers = itertools.count(here.draw)
        fresh = bent(lambda v: g.at(here.x, here.y, g.draw(next(numbers))).yy(v), here.face)
        size, spent = (1 / self.eta, 0) if self.eta is not None else largest(fresh, b)
        eta, tol, eps = 1 / size if size > 0 else 1.0, wanted.of(b), torch.finfo(b.dtype).eps
        v, r = b.zeros(), b
        for _ in range(self.terms):
            if not float(r.norm()) > tol:
                break
            v, r, spent = v.add(r, eta), r.add(fresh(r), -eta), spent + 1
        q = bent(here.lower.yy, here.face)(v)
        residual = float((b - q).norm())
        reason = Reason.SOLVED if residual <= tol else Reason.MAX_STEPS
        if not math.isfinite(residual):
            reason = Reason.NONFINITE
        elif float(v @ q) < -100 * eps * size * float(v @ v):
            reason = Reason.NEGATIVE_CURVATURE
        return read(here, LinearSolution(v, residual, spent + 1, reason))
