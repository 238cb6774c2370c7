"""Minimise a smooth function over a set: `LBFGS` on the whole space, `ProjectedLBFGS` on boxes, `SPG` on any projectable set.

    objective : Vec -> (value: float, gradient: Vec)

`NewtonCG` (newton_cg.py) is a fourth method, for objectives with Hessian-vector products.

A method is options plus pure `init` and `step`; `minimise` runs them to a tolerance on the residual |x - P(x - grad)|
(2-norm) and returns a `Minimum` with that residual and a `Reason`. Memory (curvature pairs, step length) may be carried from
one minimisation to the next, which is what makes sequences of nearly equal problems cheap.

References: Liu and Nocedal 1989 (L-BFGS); Byrd, Nocedal and Schnabel 1994 (compact form); Lewis and Overton 2013 (bracketing
weak-Wolfe search); Hager and Zhang 2005 (approximate Wolfe test); Bertsekas 1982 (two-metric projection); Birgin,
Martinez and Raydan 2000 (SPG2).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .core.options import Options, Positive, Steps
from .core.states import solver_state
from .core.vec import Vec
from .pairs import Pairs
from .sets import ConvexSet, Everywhere

Objective = Callable[[Vec], tuple[float, Vec]]
ARMIJO, CURVATURE = 1e-4, 0.9
PATIENCE = 100  # steps without a lower value or residual
FAR = 1e15  # times 1 + |x| at the start: no minimum is looked for beyond
NOISE = 1e3  # units of eps |f| within which two values count as equal and slopes decide


class Reason(enum.Enum):
    """Why a minimisation ended."""

    RUNNING = "Running."
    CONVERGED = "The residual is within the tolerance."
    MAX_STEPS = "Stopped at the step limit."
    PRECISION = "Round-off limits further progress."
    LINE_SEARCH = "The line search found no lower point along a descent direction."
    UNBOUNDED = "The objective decreases without bound."
    NONFINITE = "The objective returned NaN or infinity."


@solver_state("Descent")
class Descent:
    """x, its value, gradient and residual; `k` steps; the method's memory; `recent` values (SPG); the reason's name; the entries
    that were `free` in the last step (ProjectedLBFGS, NewtonCG on a box).
    """

    k: int
    x: Vec
    value: float
    gradient: Vec
    residual: float
    memory: Pairs | float | None
    recent: tuple[float, ...]
    reason: str
    free: Vec | None = None

    @property
    def why(self) -> Reason:
        return Reason[self.reason]


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended; `memory` may be handed to the next one."""

    x: Vec
    value: float
    gradient: Vec
    residual: float
    reason: Reason
    steps: int
    memory: Pairs | float | None


def residual(X: ConvexSet, x: Vec, gradient: Vec) -> float:
    """|x - P_X(x - gradient)|, zero exactly at a stationary point."""
    return float(gradient.norm()) if X.whole else float((x - X.project(x - gradient)).norm())


class Method(Options):
    """A descent method: options with pure `init` and `step`.

    `suited(X)` is the method itself, or another that X allows; `aimed(tol)` the method for a minimisation that ends at tol.
    """

    def init(self, objective: Objective, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        raise NotImplementedError

    def step(self, objective: Objective, X: ConvexSet, s: Descent) -> Descent:
        raise NotImplementedError

    def suited(self, X: ConvexSet) -> Method:
        raise NotImplementedError

    def aimed(self, tol: float) -> Method:
        return self


@dataclass(frozen=True, kw_only=True)
class LBFGS(Method):
    """Limited-memory BFGS with a weak-Wolfe search by bracketing and quadratic interpolation. The whole space only.

    d = -H g;  x <- x + t d with f(x + t d) <= f + 1e-4 t g'd and slope >= 0.9 g'd. Where values are equal to rounding the
    approximate Wolfe test decides by slopes, so that gradients far below sqrt(eps) are reached.

    memory: curvature pairs kept. first: length of the first step where there is no memory yet.
    """

    memory: Steps = 20
    first: Positive = 1.0

    def suited(self, X: ConvexSet) -> Method:
        return self if X.whole else ProjectedLBFGS(memory=self.memory, first=self.first).suited(X)

    def init(self, objective: Objective, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        return _with_pairs(self, objective, X, x, memory)

    def step(self, objective: Objective, X: ConvexSet, s: Descent) -> Descent:
        pairs = s.memory
        assert isinstance(pairs, Pairs)
        d = -pairs.solve(s.gradient)
        slope = float(d @ s.gradient)
        if not slope < 0:  # the memory is of another function: forget it
            pairs = Pairs.empty(self.memory, s.x, self.first / max(s.residual, 1.0))
            d = -pairs.solve(s.gradient)
            slope = float(d @ s.gradient)
        found = search(objective, s, d, slope, s.value, curvature=True)
        if isinstance(found, Reason):
            if pairs.count:  # once more along the gradient before giving up
                pairs = Pairs.empty(self.memory, s.x, pairs.scale)
                d = -pairs.solve(s.gradient)
                again = search(objective, s, d, float(d @ s.gradient), s.value, curvature=True)
                found = found if isinstance(again, Reason) else again
            if isinstance(found, Reason):
                return replace(s, memory=pairs, reason=found.name)
        x, value, g = found
        norm = float(g.norm())
        return Descent(s.k + 1, x, value, g, norm, pairs.add(x - s.x, g - s.gradient), (), _sane(value, norm).name)


@dataclass(frozen=True, kw_only=True)
class SPG(Method):
    """Nonmonotone spectral projected gradient (Birgin, Martinez and Raydan 2000, Algorithm SPG2) on any projectable set.

    d = P(x - lam g) - x;  x <- x + t d with f(x + t d) <= max of the last `window` values + 1e-4 t g'd;  lam = s's / s'y.

    window: values the search compares with (1 is monotone). first: length of the first step.

    >>> from constrained import Ball
    >>> far = lambda x: (float((x.leaves[0] - 3).square().sum()), x.like([2 * (x.leaves[0] - 3)]))
    >>> minimise(SPG(), far, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9, X=Ball(1.0)).x.tree()
    tensor([0.7071, 0.7071], dtype=torch.float64)
    """

    window: Steps = 10
    first: Positive = 1.0

    def suited(self, X: ConvexSet) -> Method:
        return self

    def init(self, objective: Objective, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        x = X.project(x)
        value, g = objective(x)
        norm = residual(X, x, g)
        lam = memory if isinstance(memory, float) else self.first / max(norm, 1.0)
        return Descent(0, x, value, g, norm, lam, (value,), _sane(value, norm).name)

    def step(self, objective: Objective, X: ConvexSet, s: Descent) -> Descent:
        lam = s.memory
        assert isinstance(lam, float)
        d = X.project(s.x.add(s.gradient, -lam)) - s.x
        slope = min(float(d @ s.gradient), -float(d @ d) / lam)  # never above -|d|^2 / lam but by rounding
        if not slope < 0:
            return replace(s, reason=Reason.PRECISION.name)
        found = search(objective, s, d, slope, max(s.recent), curvature=False)
        if isinstance(found, Reason):
            return replace(s, reason=found.name)
        x, value, g = found
        dx, dg = x - s.x, g - s.gradient
        ss, sy = float(dx @ dx), float(dx @ dg)
        lam = min(max(ss / sy, 1e-10), 1e10) if sy > 0 else min(10 * lam, 1e10)
        norm = residual(X, x, g)
        return Descent(s.k + 1, x, value, g, norm, lam, (*s.recent, value)[-self.window :], _sane(value, norm).name)


@dataclass(frozen=True, kw_only=True)
class ProjectedLBFGS(Method):
    """L-BFGS with two-metric projection (Bertsekas 1982) on a set that projects each entry alone: Box, Everywhere.

    Entries at a bound that the gradient pushes outwards move by the projected gradient, the free ones by -H g, H made from the
    curvature pairs restricted to them;  x <- P(x + t d), Armijo along the projected path. Where the free entries are not those
    of the last step, a spectral projected gradient step d = P(x - lam g) - x first: it finds the right face sooner.

    memory: curvature pairs kept. first: length of the first step where there is no memory yet.

    Source: Bertsekas 1982; the two phases after Hager and Zhang 2006.

    >>> from constrained import Box
    >>> far = lambda x: (float((x.leaves[0] - 3).square().sum()), x.like([2 * (x.leaves[0] - 3)]))
    >>> minimise(ProjectedLBFGS(), far, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9, X=Box(0, 1)).x.tree()
    tensor([1., 1.], dtype=torch.float64)
    """

    memory: Steps = 20
    first: Positive = 1.0

    def suited(self, X: ConvexSet) -> Method:
        return self if X.entrywise else SPG(first=self.first)

    def init(self, objective: Objective, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        return _with_pairs(self, objective, X, X.project(x), memory)

    def step(self, objective: Objective, X: ConvexSet, s: Descent) -> Descent:
        x, g, pairs = s.x, s.gradient, s.memory
        assert isinstance(pairs, Pairs)
        plain = X.project(x.add(g, -pairs.spectral)) - x
        free = unbound(X, s)
        settled = s.free is None or float((free - s.free).norm()) == 0
        trial: list[Vec] = []  # the last point of a search, and its gradient

        def watched(at: Vec) -> tuple[float, Vec]:
            value, slope = objective(at)
            trial[:] = at, slope
            return value, slope

        def along(direction: Vec) -> tuple[Vec, float, Vec] | Reason:
            slope = float(direction @ g)
            return search(watched, s, direction, slope, s.value, curvature=False, X=X) if slope < 0 else Reason.LINE_SEARCH

        d, found = _two_metric(s, free, pairs, plain), Reason.LINE_SEARCH
        for direction in (d, plain) if settled else (plain, d):
            found = along(direction)
            if direction is d and isinstance(found, Reason):  # the memory starts anew
                pairs = Pairs.empty(self.memory, x, pairs.scale)
                if found is Reason.LINE_SEARCH and trial:  # with what the refused trial shows: at a kink, the way across it
                    pairs = pairs.add(trial[0] - x, trial[1] - g)
                    found = along(_two_metric(s, free, pairs, plain))
            if not isinstance(found, Reason) or found is Reason.NONFINITE:
                break
        if isinstance(found, Reason):
            return replace(s, memory=pairs, reason=found.name)
        new, value, g = found
        norm = residual(X, new, g)
        return Descent(s.k + 1, new, value, g, norm, pairs.add(new - x, g - s.gradient), (), _sane(value, norm).name, free)


def unbound(X: ConvexSet, s: Descent) -> Vec:
    """One where an entry may move, zero where it binds: within `near` of a bound of X and pushed outwards (Bertsekas 1982)."""
    near = min(1e-3 * (1.0 + float(s.x.max_norm())), s.residual)
    inward = X.project(s.x - s.gradient.map(torch.sign) * near) - s.x
    return inward.map(lambda t: (t.abs() >= 0.999 * near).to(t.dtype))


def _two_metric(s: Descent, free: Vec, pairs: Pairs, plain: Vec) -> Vec:
    """-H g on the free entries, H made from the pairs restricted to them; `plain`, the projected gradient step, on the others."""
    g = s.gradient
    wanted = pairs.restricted(free).solve(g.like(t * f for t, f in zip(g.leaves, free.leaves)))
    return g.like(torch.where(f > 0, -w, p) for f, w, p in zip(free.leaves, wanted.leaves, plain.leaves))


def _with_pairs(
    method: LBFGS | ProjectedLBFGS, objective: Objective, X: ConvexSet, x: Vec, memory: Pairs | float | None
) -> Descent:
    """The first state of a method with curvature pairs, which may come from an earlier minimisation."""
    value, g = objective(x)
    norm = residual(X, x, g)
    known = memory if isinstance(memory, Pairs) and memory.S.shape == (method.memory, x.size) else None
    pairs = known or Pairs.empty(method.memory, x, method.first / max(norm, 1.0))
    return Descent(0, x, value, g, norm, pairs, (), _sane(value, norm).name)


def search(
    objective: Objective, s: Descent, d: Vec, slope: float, reference: float, *, curvature: bool, X: ConvexSet | None = None
) -> tuple[Vec, float, Vec] | Reason:
    """A step t along d from s.x: Armijo against `reference`, and the weak curvature test if asked. A point, or why not.

    With X: along the projected path P(s.x + t d). Where the slope changes by hardly less over a shorter step, the objective
    has a kink in it, and the next t is where the tangents at its ends cross.
    """
    eps = torch.finfo(s.x.dtype).eps
    low, high, t = 0.0, math.inf, 1.0
    kept: tuple[Vec, float, Vec] | None = None  # a point that passed Armijo but not curvature
    size, length = float(s.x.norm()), max(float(d.norm()), 1e-300)
    ratio, noise, broken, rise = size / length, 0.0, False, 0.0
    at_start = 0  # times in turn that the tangents crossed at s.x or before
    for _ in range(60):
        x = s.x.add(d, t)
        fall, across = t * slope, d * t  # what the slope at s.x promises for this step
        if X is not None:
            x = X.project(x)
            across = x - s.x
            fall, length = min(float(across @ s.gradient), 0.0), float(across.norm()) / t
            if length == 0:  # every entry is held
                break
        value, g = objective(x)
        tilt = fall + float((g - s.gradient) @ across)  # g'across has no digits where a binding gradient is large
        steps = min(size / max(t * length, 1e-300), 1e150)  # |x| in units of this step, whose square is a number
        # |tilt - fall| / step^2 is the curvature along d: rounding x alone moves a value by eps times that and |x|^2.
        noise = NOISE * eps * max(abs(s.value), abs(value)) + 100 * eps * abs(tilt - fall) * steps * steps
        if not (math.isfinite(value) and math.isfinite(tilt)):
            broken = True  # what bounds the step is a value that is not finite
            high, t = t, low + 0.1 * (t - low)
        elif value <= reference + ARMIJO * fall or (value <= s.value + noise and abs(tilt) <= 0.8 * -fall):
            if not curvature or tilt >= CURVATURE * fall:
                return x, value, g
            if value < -1e100:
                return Reason.UNBOUNDED
            low, kept = t, (x, value, g)
            t = 2 * t if high == math.inf else 0.5 * (low + high)
        else:
            broken = False
            # The minimiser of the parabola through f(0), f'(0), f(t), kept inside the bracket.
            above = value - s.value - fall
            guess = -0.5 * fall * t / above if above > 0 else 0.5 * t
            width, most = t - low, 0.5
            if abs(value - s.value) <= noise and tilt > fall:  # values say nothing here: the zero of the slopes' line
                guess, most = t * fall / (fall - tilt), 0.9
            guess = min(max(guess, low + 0.1 * width), low + most * width)
            before, rise = rise, (tilt - fall) / t
            kink = low == 0 and before > 0 and rise > before * math.sqrt(t / high)  # where f is smooth, rise falls like t
            if kink and abs(value - s.value) > noise:
                cross = t * (value - s.value - tilt) / (fall - tilt)
                guess, at_start = (min(cross, 0.99 * t), 0) if cross > 0 else (guess, at_start + 1)
            high, t = t, guess
        if at_start == 3 or high - low <= 4 * eps * ratio or (high < math.inf and high - low <= 1e-14 * high):
            break
    if curvature and kept is not None and high == math.inf:  # 2^60 times the step, and the slope is as steep as ever
        return Reason.UNBOUNDED
    if kept is not None and kept[1] < s.value:
        return kept
    if broken or not math.isfinite(s.value) or not math.isfinite(slope):
        return Reason.NONFINITE
    # Nothing lower, and what the slope promised is below what values can show: round-off.
    small = abs(slope) <= 10 * noise or s.residual <= 1e4 * eps * max(1.0, float(s.x.norm()))
    return Reason.PRECISION if small else Reason.LINE_SEARCH


def minimise(
    method: Method,
    objective: Objective,
    x: Vec,
    *,
    tol: float,
    max_steps: int = 10_000,
    X: ConvexSet | None = None,
    memory: Pairs | float | None = None,
) -> Minimum:
    """Run `method` from x until the residual is at most `tol`, or a reason ends it.

    >>> target = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> def bowl(x):
    ...     r = x.leaves[0] - target
    ...     return float(r @ r), x.like([2 * r])
    >>> minimise(LBFGS(), bowl, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9).reason.name
    'CONVERGED'
    """
    X = X or Everywhere()
    method = method.suited(X).aimed(tol)
    s, eps = method.init(objective, X, x, memory), torch.finfo(x.dtype).eps
    low, best, waited, far = s.value, s.residual, 0, FAR * (1.0 + float(s.x.norm()))
    size = abs(s.value)
    while s.why is Reason.RUNNING and s.residual > tol and s.k < max_steps:
        s = method.step(objective, X, s)
        better = s.value < low - 10 * eps * (abs(low) + eps * size) or s.residual < 0.9 * best
        low, best, waited = min(low, s.value), min(best, s.residual), 0 if better else waited + 1
        if waited > PATIENCE:  # steps to and fro within rounding
            s = replace(s, reason=Reason.PRECISION.name)
        if float(s.x.norm()) > far:  # where the start has no digits any more, and still falling
            s = replace(s, reason=Reason.UNBOUNDED.name)
    reason = Reason.CONVERGED if s.residual <= tol else s.why if s.why is not Reason.RUNNING else Reason.MAX_STEPS
    return Minimum(s.x, s.value, s.gradient, s.residual, reason, s.k, s.memory)


def _sane(value: float, norm: float) -> Reason:
    return Reason.RUNNING if math.isfinite(value) and math.isfinite(norm) else Reason.NONFINITE
