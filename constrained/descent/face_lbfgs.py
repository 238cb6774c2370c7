"""L-BFGS along the faces of a convex set, for sets that are cheap to project on but are no boxes: planes, polyhedra.

    p = w - P(w - grad f)           the projected gradient: on a face, where the same constraints bind, the gradient along it
    w <- P(w + t d),  d = -H p      H from the pairs (w+ - w, p+ - p), which lie in the face too

Near a solution with strict complementarity the face is found after a few steps, and the method is L-BFGS in its plane. Where d
fails, d = -p without memory is a descent direction: grad f'p >= |p|^2. The large part of grad f that the constraints hold never
enters an inner product, so that residuals far below sqrt(eps) are reached.

References: Burke and Moré 1988 (identification of faces); Hager and Zhang 2006 (polyhedral sets).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.options import Positive, Steps
from ..core.vec import Vec
from ..sets import ConvexSet
from .curvature_pairs import Pairs, longest
from .lbfgs import LBFGS
from .line_search import search
from .method import Descent, DescentStatus, Method, ValueAndGradient


@dataclass(frozen=True, kw_only=True)
class FaceLBFGS(Method):
    """Limited-memory BFGS on the projected gradient, along the face of any projectable set.

    p = w - P(w - g);  w <- P(w + t d), d = -H p, with f <= f(w) + 1e-4 p'(P(w + t d) - w).

    memory: curvature pairs kept. first: the first step, where there is no memory yet, has length first min(|g|, 1).

    Source: see the module.

    >>> import torch
    >>> from constrained import Halfspace
    >>> from constrained.descent import minimise
    >>> far = lambda x: (float((x.leaves[0] - 3).square().sum()), x.like([2 * (x.leaves[0] - 3)]))
    >>> minimise(FaceLBFGS(), far, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9, X=Halfspace([1.0, 0.0], 1.0)).x.tree()
    tensor([1.0000, 3.0000], dtype=torch.float64)
    """

    memory: Steps = 20
    first: Positive = 1.0

    def for_set(self, X: ConvexSet) -> Method:
        return LBFGS(memory=self.memory, first=self.first).for_set(X) if X.entrywise else self

    def init(self, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        start = LBFGS(memory=self.memory, first=self.first).init(along(objective, X), X, X.project(x), memory)
        return replace(start, residual=float(start.gradient.norm()))

    def step(self, objective: ValueAndGradient, X: ConvexSet, s: Descent) -> Descent:
        pairs, reduced = s.memory, along(objective, X)
        assert isinstance(pairs, Pairs)
        found = DescentStatus.LINE_SEARCH
        for known in (pairs, Pairs.empty(self.memory, s.x, pairs.scale)):
            d = -known.solve(s.gradient)
            slope = float(d @ s.gradient)
            if slope < 0:
                found = search(reduced, s, d, slope, s.value, curvature=False, X=X)
            if not isinstance(found, DescentStatus) or found is DescentStatus.NONFINITE:
                break
            pairs = known
        if isinstance(found, DescentStatus):
            return replace(s, memory=pairs, reason=found)
        x, value, p, t = found
        return s.moved(x, value, p, float(p.norm()), known.add(x - s.x, p - s.gradient, p, t, longest(x, p, float(p.norm()))))


def along(objective: ValueAndGradient, X: ConvexSet) -> ValueAndGradient:
    """The objective with its projected gradient."""

    def reduced(x: Vec) -> tuple[float, Vec]:
        value, g = objective(x)
        return value, x - X.project(x - g)

    return reduced
