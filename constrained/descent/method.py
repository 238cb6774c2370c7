"""Minimise a smooth function over a set: `LBFGS` on the whole space, `ProjectedLBFGS` on boxes, `SPG` on any projectable set.

    objective : Vec -> (value: float, gradient: Vec)

`NewtonCG` (newton_cg.py) is a fourth method, for objectives with Hessian-vector products.

A method is options plus pure `init` and `step`; `minimise` runs them to a tolerance on the residual |x - P(x - grad)|
(2-norm) and returns a `Minimum` with that residual and a `DescentStatus`. Memory (curvature pairs, step length) may be carried
from one minimisation to the next, which is what makes sequences of nearly equal problems cheap.

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

from ..core.options import Options
from ..core.states import solver_state, state_enum
from ..core.vec import Vec
from ..sets import ConvexSet, Everywhere
from .curvature_pairs import Pairs

ValueAndGradient = Callable[[Vec], tuple[float, Vec]]
PATIENCE = 100  # steps without a lower value or residual
FAR = 1e15  # times 1 + |x| at the start: no minimum is looked for beyond


@state_enum
class DescentStatus(enum.Enum):
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
    """x, its value, gradient and residual; `k` steps; the method's memory; `recent` values (SPG); its status; the entries
    that were `free` in the last step (ProjectedLBFGS, NewtonCG on a box).
    """

    k: int
    x: Vec
    value: float
    gradient: Vec
    residual: float
    memory: Pairs | float | None
    recent: tuple[float, ...]
    reason: DescentStatus
    free: Vec | None = None

    def moved(
        self,
        x: Vec,
        value: float,
        gradient: Vec,
        residual: float,
        memory: Pairs | float,
        *,
        recent: tuple[float, ...] = (),
        free: Vec | None = None,
    ) -> Descent:
        """The state after a step to x; NONFINITE where its value or residual is."""
        return Descent(
            k=self.k + 1,
            x=x,
            value=value,
            gradient=gradient,
            residual=residual,
            memory=memory,
            recent=recent,
            reason=sane(value, residual),
            free=free,
        )

    @staticmethod
    def blank(x: Vec) -> Descent:
        """At x, where nothing was evaluated yet."""
        return Descent(0, x, math.inf, x.zeros(), math.inf, None, (), DescentStatus.RUNNING)


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended; `memory` may be handed to the next one."""

    x: Vec
    value: float
    gradient: Vec
    residual: float
    reason: DescentStatus
    steps: int
    memory: Pairs | float | None


def residual(X: ConvexSet, x: Vec, gradient: Vec) -> float:
    """|x - P_X(x - gradient)|, zero exactly at a stationary point."""
    if X.whole:
        return float(gradient.norm())
    plain, eps = float((x - X.project(x - gradient)).norm()), torch.finfo(x.dtype).eps
    if not any(bool(((g != 0) & (g.abs() < 10 * eps * v.abs())).any()) for g, v in zip(gradient.leaves, x.leaves)):
        return plain
    # x - gradient is x to rounding in some entry. A longer step is not, and |x - P(x - t g)| / t falls with t.
    longer = eps**-0.5
    return max(plain, float((x - X.project(x.add(gradient, -longer))).norm()) / longer)


class Method(Options):
    """A descent method: options with pure `init` and `step`.

    `for_set(X)` is the method itself, or another that X allows; `with_target(tol)` the method for a minimisation that ends at
    tol.
    """

    def init(self, objective: ValueAndGradient, X: ConvexSet, x: Vec, memory: Pairs | float | None = None) -> Descent:
        raise NotImplementedError

    def step(self, objective: ValueAndGradient, X: ConvexSet, s: Descent) -> Descent:
        raise NotImplementedError

    def for_set(self, X: ConvexSet) -> Method:
        raise NotImplementedError

    def with_target(self, tol: float) -> Method:
        return self


def minimise(
    method: Method,
    objective: ValueAndGradient,
    x: Vec,
    *,
    tol: float,
    max_steps: int = 10_000,
    X: ConvexSet | None = None,
    memory: Pairs | float | None = None,
) -> Minimum:
    """Run `method` from x until the residual is at most `tol`, or a reason ends it.

    >>> from constrained import LBFGS
    >>> target = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> def bowl(x):
    ...     r = x.leaves[0] - target
    ...     return float(r @ r), x.like([2 * r])
    >>> minimise(LBFGS(), bowl, Vec.of(torch.zeros(2, dtype=torch.float64)), tol=1e-9).reason.name
    'CONVERGED'
    """
    X = X or Everywhere()
    method = method.for_set(X).with_target(tol)
    s, eps = method.init(objective, X, x, memory), torch.finfo(x.dtype).eps
    low, best, waited, far = s.value, s.residual, 0, FAR * (1.0 + float(s.x.norm()))
    size = abs(s.value)
    while s.reason is DescentStatus.RUNNING and s.residual > tol and s.k < max_steps:
        s = method.step(objective, X, s)
        better = s.value < low - 10 * eps * (abs(low) + eps * size) or s.residual < 0.9 * best
        low, best, waited = min(low, s.value), min(best, s.residual), 0 if better else waited + 1
        if waited > PATIENCE:  # steps to and fro within rounding
            s = replace(s, reason=DescentStatus.PRECISION)
        if float(s.x.norm()) > far:  # where the start has no digits any more, and still falling
            s = replace(s, reason=DescentStatus.UNBOUNDED)
    ended = DescentStatus.MAX_STEPS if s.reason is DescentStatus.RUNNING else s.reason
    reason = DescentStatus.CONVERGED if s.residual <= tol else ended
    return Minimum(x=s.x, value=s.value, gradient=s.gradient, residual=s.residual, reason=reason, steps=s.k, memory=s.memory)


def sane(value: float, norm: float) -> DescentStatus:
    """RUNNING where both are finite, else NONFINITE."""
    return DescentStatus.RUNNING if math.isfinite(value) and math.isfinite(norm) else DescentStatus.NONFINITE
