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
from constrained.linear import LinearSolution, LinearStatus
from constrained.linear.neumann import Neumann
from constrained.linear.spectrum import POWER, largest

from .adjoint import Adjoint, AdjointMethod, LevelsAt, Wanted, differentiate, on_tangent, read


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

    def at(self, here: LevelsAt, wanted: Wanted, *, start: Vec | None = None) -> Adjoint:
        if here.sampled is None:
            return differentiate(Neumann(terms=self.terms, eta=self.eta), here, wanted, start=start)
        g, b = here.sampled.g, here.face.project(here.f_y)
        numbers = itertools.count(here.draw)
        fresh = on_tangent(lambda v: g.at(here.x, here.y, g.draw(next(numbers))).yy(v), here.face)
        size, spent = (1 / self.eta, 0) if self.eta is not None else largest(fresh, b)
        eta, tol, eps = 1 / size if size > 0 else 1.0, wanted.of(b), torch.finfo(b.dtype).eps
        v, r = b.zeros(), b
        for _ in range(self.terms):
            if not float(r.norm()) > tol:
                break
            v, r, spent = v.add(r, eta), r.add(fresh(r), -eta), spent + 1
        q = on_tangent(here.lower.yy, here.face)(v)
        residual = float((b - q).norm())
        reason = LinearStatus.SOLVED if residual <= tol else LinearStatus.MAX_STEPS
        if not math.isfinite(residual):
            reason = LinearStatus.NONFINITE
        elif float(v @ q) < -100 * eps * size * float(v @ v):
            reason = LinearStatus.NEGATIVE_CURVATURE
        return read(here, LinearSolution(v, residual, spent + 1, reason))
