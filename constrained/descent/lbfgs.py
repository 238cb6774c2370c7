"""LBFGS on the whole space and ProjectedLBFGS on boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..core.options import Positive, Steps
from ..core.vec import Vec
from ..sets import ConvexSet
from .curvature_pairs import Pairs, longest
from .line_search import search
from .method import Descent, DescentStatus, Method, ValueAndGradient, residual, sane
from .spg import SPG


@dataclass(frozen=True, kw_only=True)
class LBFGS(Method):
    """Limited-memory BFGS with a weak-Wolfe search by bracketing and quadratic interpolation. The whole space only.

    d = -H g;  x <- x + t d with f(x + t d) <= f + 1e-4 t g'd and slope >= 0.9 g'd. Where values are equal to rounding the
    approximate Wolfe test decides by slopes, so that gradients far below sqrt(eps) are reached. Where the function is straight
    along a step or bends down, H grows (`Pairs.add`).

    memory: curvature pairs kept. first: the first step, where there is no memory yet, has length first min(|g|, 1).
    """

    memory: Steps = 20
    first: Positive = 1.0

    def for_set(self, X: ConvexSet) -> Method:
        return self if X.whole else ProjectedLBFGS(memory=self.memory, first=self.first).for_set(X)

    def init(self, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        return _with_pairs(self, objective, X, x, memory)

    def step(self, objective: ValueAndGradient, X: ConvexSet, s: Descent) -> Descent:
        pairs = s.memory
        assert isinstance(pairs, Pairs)
        d = -pairs.solve(s.gradient)
        slope = float(d @ s.gradient)
        if not slope < 0:  # the memory is of another function: forget it
            pairs = Pairs.empty(self.memory, s.x, self.first / max(s.residual, 1.0))
            d = -pairs.solve(s.gradient)
            slope = float(d @ s.gradient)
        found = search(objective, s, d, slope, s.value, curvature=True)
        if isinstance(found, DescentStatus):
            if pairs.count:  # once more along the gradient before giving up
                pairs = Pairs.empty(self.memory, s.x, pairs.scale)
                d = -pairs.solve(s.gradient)
                again = search(objective, s, d, float(d @ s.gradient), s.value, curvature=True)
                found = found if isinstance(again, DescentStatus) else again
            if isinstance(found, DescentStatus):
                return replace(s, memory=pairs, reason=found)
        x, value, g, t = found
        norm = float(g.norm())
        return s.moved(x, value, g, norm, pairs.add(x - s.x, g - s.gradient, g, t, longest(x, g, norm)))


@dataclass(frozen=True, kw_only=True)
class ProjectedLBFGS(Method):
    """L-BFGS with two-metric projection (Bertsekas 1982) on a set that projects each entry alone: Box, Everywhere.

    Entries at a bound that the gradient pushes outwards move by the projected gradient, the free ones by -H g, H made from the
    curvature pairs restricted to them;  x <- P(x + t d), Armijo along the projected path. Where the free entries are not those
    of the last step, a spectral projected gradient step d = P(x - lam g) - x first: it finds the right face sooner. Where the
    function is straight along a step, as linear ones are, or bends down, the next is ten times as long: a bound at a distance D
    takes log10(D / |g|) steps.

    memory: curvature pairs kept. first: the first step, where there is no memory yet, has length first min(|g|, 1).

    Source: Bertsekas 1982; the two phases after Hager and Zhang 2006.

    >>> from constrained import Box
    >>> from constrained.descent import minimise
    >>> far = lambda x: (float((x.leaves[0] - 3).square().sum()), x.like([2 * (x.leaves[0] - 3)]))
    >>> minimise(ProjectedLBFGS(), far, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9, X=Box(0, 1)).x.tree()
    tensor([1., 1.], dtype=torch.float64)
    """

    memory: Steps = 20
    first: Positive = 1.0

    def for_set(self, X: ConvexSet) -> Method:
        return self if X.entrywise else SPG(first=self.first)

    def init(self, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        return _with_pairs(self, objective, X, X.project(x), memory)

    def step(self, objective: ValueAndGradient, X: ConvexSet, s: Descent) -> Descent:
        x, g, pairs = s.x, s.gradient, s.memory
        assert isinstance(pairs, Pairs)
        plain = X.project(x.add(g, -min(pairs.spectral, longest(x, g, s.residual)))) - x
        free = unbound(X, s)
        settled = s.free is None or float((free - s.free).norm()) == 0
        trial: list[Vec] = []  # the last point of a search, and its gradient

        def watched(at: Vec) -> tuple[float, Vec]:
            value, slope = objective(at)
            trial[:] = at, slope
            return value, slope

        def along(direction: Vec) -> tuple[Vec, float, Vec, float] | DescentStatus:
            slope = float(direction @ g)
            return search(watched, s, direction, slope, s.value, curvature=False, X=X) if slope < 0 else DescentStatus.LINE_SEARCH

        d, found = _two_metric(s, free, pairs, plain), DescentStatus.LINE_SEARCH
        for direction in (d, plain) if settled else (plain, d):
            found = along(direction)
            if direction is d and isinstance(found, DescentStatus):  # the memory starts anew
                pairs = Pairs.empty(self.memory, x, pairs.scale)
                if found is DescentStatus.LINE_SEARCH and trial:
                    # with what the refused trial shows: at a kink, the way across it
                    pairs = pairs.add(trial[0] - x, trial[1] - g, trial[1])
                    found = along(_two_metric(s, free, pairs, plain))
            if not isinstance(found, DescentStatus) or found is DescentStatus.NONFINITE:
                break
        if isinstance(found, DescentStatus):
            return replace(s, memory=pairs, reason=found)
        new, value, g, t = found
        norm = residual(X, new, g)
        return s.moved(new, value, g, norm, pairs.add(new - x, g - s.gradient, g, t, longest(new, g, norm), free), free=free)


def unbound(X: ConvexSet, s: Descent) -> Vec:
    """One where an entry may move, zero where it binds: within `near` of a bound of X and pushed outwards (Bertsekas 1982)."""
    size = 1.0 + float(s.x.max_norm())
    near = max(min(1e-3 * size, s.residual), 1e3 * torch.finfo(s.x.dtype).eps * size)  # rounding x moves it by less
    inward = X.project(s.x - s.gradient.map(torch.sign) * near) - s.x
    return inward.map(lambda t: (t.abs() >= 0.99 * near).to(t.dtype))


def _two_metric(s: Descent, free: Vec, pairs: Pairs, plain: Vec) -> Vec:
    """-H g on the free entries, H made from the pairs restricted to them; `plain`, the projected gradient step, on the others."""
    g = s.gradient
    wanted = pairs.restricted(free).solve(g.like(t * f for t, f in zip(g.leaves, free.leaves)))
    return g.like(torch.where(f > 0, -w, p) for f, w, p in zip(free.leaves, wanted.leaves, plain.leaves))


def _with_pairs(
    method: LBFGS | ProjectedLBFGS, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None
) -> Descent:
    """The first state of a method with curvature pairs, which may come from an earlier minimisation."""
    value, g = objective(x)
    norm = residual(X, x, g)
    known = memory if isinstance(memory, Pairs) and memory.S.shape == (method.memory, x.size) else None
    pairs = known or Pairs.empty(method.memory, x, method.first / max(norm, 1.0))
    return Descent(k=0, x=x, value=value, gradient=g, residual=norm, memory=pairs, recent=(), reason=sane(value, norm))
