"""NewtonCG: truncated Newton for objectives with Hessian-vector products, on the whole space and on boxes.

    d: CG on H d = -g until |H d + g| <= min(1/2, sqrt|g|) |g| or p'Hp <= 0;   x <- P(x + t d)

On a box, while the entries that may move are not those of the last step, CG ends where it makes slow progress: the face is
about to change, and H may be singular on it.

References: Dembo and Steihaug 1983 (the forcing term and negative curvature); Bertsekas 1982 (two-metric projection);
Moré and Toraldo 1991 (slow progress).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch

from ..core.errors import Unsuitable
from ..core.options import NonNegative, Positive
from ..core.vec import Vec
from ..linear import Operator
from ..sets import ConvexSet
from .curvature_pairs import LONGER, Pairs, longest, straight
from .lbfgs import unbound
from .line_search import search
from .method import Descent, DescentStatus, Method, ValueAndGradient, residual, sane
from .spg import SPG

SLOW = 0.3  # of the largest decrease in one run of CG: a smaller one ends it while the free entries change
FAR = 10.0  # times 1 + |x|: the longest step along a direction without positive curvature


@runtime_checkable
class SecondOrder(Protocol):
    """An objective with second derivatives. `products` is asked for at points where the objective was evaluated."""

    def __call__(self, x: Vec) -> tuple[float, Vec]:
        """Value and gradient."""
        ...

    def products(self, x: Vec) -> Operator:
        """v -> H(x) v."""
        ...


@runtime_checkable
class Explicit(SecondOrder, Protocol):
    """One that may have its Hessian as a matrix."""

    def newton(self, x: Vec, gradient: Vec) -> Vec | None:
        """d that makes g'd + d'(H + w I) d / 2 least with x + d in the set, w >= 0 so that this is convex. None: no matrix."""
        ...


class Differenced:
    """An objective of first derivatives as a `SecondOrder` one: H v from a forward difference of its gradients, one a product."""

    def __init__(self, objective: ValueAndGradient):
        self.objective = objective
        self.last: tuple[Vec, Vec] | None = None  # a point and the gradient there

    def __call__(self, x: Vec) -> tuple[float, Vec]:
        value, gradient = self.objective(x)
        self.last = x, gradient
        return value, gradient

    def products(self, x: Vec) -> Operator:
        gradient = self.last[1] if self.last is not None and self.last[0] is x else self(x)[1]
        step = math.sqrt(torch.finfo(x.dtype).eps) * (1.0 + float(x.norm()))

        def product(v: Vec) -> Vec:
            h = step / max(float(v.norm()), torch.finfo(v.dtype).tiny)
            return (self.objective(x.add(v, h))[1] - gradient) / h

        return product


@dataclass(frozen=True, kw_only=True)
class NewtonCG(Method):
    """Truncated Newton: d from conjugate gradients on H d = -g to |H d + g| <= min(1/2, sqrt|g|) |g|.

    x <- x + t d with the search of LBFGS; a step t = 1 costs one evaluation. Where CG meets a direction p of negative
    curvature it ends, and the step follows p too, as far as the curvature -p'Hp would allow if it were positive, at most
    10 (1 + |x|). So it does where the curvature along p is none to rounding and the function falls. On sets that
    project each entry alone, CG runs on the entries that do not bind, and x <- P(x + t d), d = -a g on the binding ones, a the
    first step length of CG. On other sets SPG takes its place. Where the objective has `newton`, its d takes CG's place: from
    factors of H, on boxes the least of the whole quadratic. Raises Unsuitable where the objective has no `products`.

    preconditioner: v -> M v with M symmetric positive definite, about H^-1. first: length of the first step on binding entries.
    target: the residual at which the minimisation ends, so that CG is not asked for less than half of it; `minimise` sets it.

    >>> from constrained.descent import minimise
    >>> class Bowl:
    ...     def __call__(self, x):
    ...         return float((x - 3.0 * ONE) @ (x - 3.0 * ONE)), 2 * (x - 3.0 * ONE)
    ...     def products(self, x):
    ...         return lambda v: 2 * v
    >>> ONE = Vec.of(torch.ones(2, dtype=torch.float64))
    >>> minimise(NewtonCG(), Bowl(), ONE.zeros(), tol=1e-9).x.tree().round(decimals=6)
    tensor([3., 3.], dtype=torch.float64)

    Source: Dembo and Steihaug 1983; Bertsekas 1982; the length along negative curvature is this library's.
    """

    preconditioner: Callable[[Vec], Vec] | None = None
    first: Positive = 1.0
    target: NonNegative = 0.0

    def for_set(self, X: ConvexSet) -> Method:
        return self if X.entrywise else SPG(first=self.first)

    def with_target(self, tol: float) -> Method:
        return replace(self, target=tol)

    def init(self, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        if not isinstance(objective, SecondOrder):
            raise Unsuitable(f"NewtonCG: {objective!r:.80} has no method products(x) -> (v -> H v)")
        x = X.project(x)
        value, g = objective(x)
        norm = residual(X, x, g)
        length = memory if isinstance(memory, float) else self.first / max(norm, 1.0)
        return Descent(k=0, x=x, value=value, gradient=g, residual=norm, memory=length, recent=(), reason=sane(value, norm))

    def step(self, objective: ValueAndGradient, X: ConvexSet, s: Descent) -> Descent:
        assert isinstance(s.memory, float)
        free, length = None if X.whole else unbound(X, s), s.memory
        d = objective.newton(s.x, s.gradient) if isinstance(objective, Explicit) and self.preconditioner is None else None
        if d is None:
            settled = free is None or s.free is None or float((free - s.free).norm()) == 0
            d, first = self._direction(cast(SecondOrder, objective).products(s.x), s, free, settled)
            length = first or length
            if free is not None:
                d = d - _at(s.gradient, free.map(lambda t: 1 - t)) * length
        if not math.isfinite(float(d @ s.gradient)):
            return replace(s, reason=DescentStatus.NONFINITE)
        found = DescentStatus.PRECISION
        for direction in (d, s.gradient * -length):  # once more along the gradient before giving up
            slope = float(direction @ s.gradient)
            if slope < 0:
                found = search(objective, s, direction, slope, s.value, curvature=X.whole, X=None if X.whole else X)
            if not isinstance(found, DescentStatus) or found is DescentStatus.UNBOUNDED:
                break
        if isinstance(found, DescentStatus):
            return replace(s, memory=length, reason=found)
        x, value, g, t = found
        norm = residual(X, x, g)
        if straight(x - s.x, g - s.gradient, g):
            length = min(LONGER * t * length, longest(x, g, norm))
        return s.moved(x, value, g, norm, length, free=free)

    def _direction(self, product: Operator, s: Descent, free: Vec | None, settled: bool) -> tuple[Vec, float]:
        """d on the free entries (None: all of them), and the first step length of CG; 0 where that was not positive. Not
        settled: CG ends where it makes slow progress.
        """
        inverse, eps = self.preconditioner, torch.finfo(s.x.dtype).eps
        low = math.sqrt(eps)  # shares of the largest curvature, and of the gradient, below which there may be none
        r = -s.gradient if free is None else _at(-s.gradient, free)
        d, p, first, largest, best = s.x.zeros(), None, 0.0, 0.0, 0.0
        norm = start = float(r.norm())
        if s.k and inverse is None and isinstance(s.memory, float):
            largest = 1 / s.memory  # seen at the last step
        tol, rz, old = max(min(0.5, math.sqrt(norm)) * norm, 0.5 * self.target), 0.0, 1.0
        for _ in range(2 * s.x.size + 10):
            if not norm > tol:
                break
            z = r if inverse is None else inverse(r) if free is None else _at(inverse(r), free)
            rz, old = norm * norm if inverse is None else float(r @ z), rz
            p = z if p is None else z.add(p, rz / old)
            q = product(p)
            if free is not None:
                q = _at(q, free)
            square, curvature = float(p @ p), float(p @ q)
            if not math.isfinite(curvature):
                return d * math.nan, 0.0
            largest = max(largest, abs(curvature) / square)
            alpha = rz / abs(curvature) if abs(curvature) > eps * largest * square else math.inf
            far = FAR * (1.0 + float(s.x.norm())) / math.sqrt(square)
            if curvature < 0 or (curvature <= low * largest * square and alpha > far):
                # Bent down, or as good as flat; then it counts where more of the gradient is left than rounding leaves.
                d = d.add(p, min(alpha, far)) if alpha <= far or norm > low * start else d
                break
            first = first or alpha
            d, r = d.add_(p, alpha), r.add(q, -alpha)
            norm, best = float(r.norm()), max(best, alpha * rz)
            if not settled and alpha * rz <= SLOW * best:
                break
        return d, first


def _at(v: Vec, free: Vec) -> Vec:
    """v on the free entries, zero on the others."""
    return v.like(leaf * mask for leaf, mask in zip(v.leaves, free.leaves))
