"""SPG: spectral projected gradients on any set with a projection."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.options import Positive, Steps
from ..core.vec import Vec
from ..sets import ConvexSet
from .curvature_pairs import LONGER, Pairs, longest, straight
from .line_search import search
from .method import Descent, DescentStatus, Method, ValueAndGradient, residual, sane


@dataclass(frozen=True, kw_only=True)
class SPG(Method):
    """Nonmonotone spectral projected gradient (Birgin, Martinez and Raydan 2000, Algorithm SPG2) on any projectable set.

    d = P(x - lam g) - x;  x <- x + t d with f(x + t d) <= max of the last `window` values + 1e-4 t g'd;  lam = s's / s'y,
    where there is no positive curvature along s, ten times the length that the search left of the last.

    window: values the search compares with (1 is monotone). first: the first step has length
    first min(R, 1), R the residual.

    >>> import torch
    >>> from constrained import Ball
    >>> from constrained.descent import minimise
    >>> far = lambda x: (float((x.leaves[0] - 3).square().sum()), x.like([2 * (x.leaves[0] - 3)]))
    >>> minimise(SPG(), far, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9, X=Ball(1.0)).x.tree()
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """

    window: Steps = 10
    first: Positive = 1.0

    def for_set(self, X: ConvexSet) -> Method:
        return self

    def init(self, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        x = X.project(x)
        value, g = objective(x)
        norm = residual(X, x, g)
        lam = memory if isinstance(memory, float) else self.first / max(norm, 1.0)
        return Descent(k=0, x=x, value=value, gradient=g, residual=norm, memory=lam, recent=(value,), reason=sane(value, norm))

    def step(self, objective: ValueAndGradient, X: ConvexSet, s: Descent) -> Descent:
        lam = s.memory
        assert isinstance(lam, float)
        lam = min(lam, longest(s.x, s.gradient, s.residual))
        d = X.project(s.x.add(s.gradient, -lam)) - s.x
        slope = min(float(d @ s.gradient), -float(d @ d) / lam)  # never above -|d|^2 / lam but by rounding
        if not slope < 0:
            return replace(s, reason=DescentStatus.PRECISION)
        found = search(objective, s, d, slope, max(s.recent), curvature=False)
        if isinstance(found, DescentStatus):
            return replace(s, reason=found)
        x, value, g, t = found
        dx, dg = x - s.x, g - s.gradient
        lam = LONGER * t * lam if straight(dx, dg, g) else max(float(dx @ dx) / float(dx @ dg), 1e-10)
        norm = residual(X, x, g)
        return s.moved(x, value, g, norm, lam, recent=(*s.recent, value)[-self.window :])
