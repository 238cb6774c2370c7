"""F2SA: the fully first-order stochastic approximation of Kwon, Kwon, Wright and Nowak (2023).

Problem
    min over x in X of f(x, y), y = argmin g(x, .), g strongly convex in y, f and g known by mini-batches xi, zeta.

Reformulation
    L_lam(x, y, z) = f(x, y) + lam (g(x, y) - g(x, z)), minimised over y and maximised over z, with a multiplier lam that grows:
    the bias of its minimiser over x is O(1 / lam).

Algorithm (step k)
    for t = 0 .. T - 1
        (1) z <- P_Y(z - gamma_k g_y(x, z; zeta))
        (2) y <- P_Y(y - alpha_k (f_y(x, y; xi) + lam_k g_y(x, y; zeta)))
    (3) x <- P_X(x - ratio alpha_k (f_x(x, y; xi) + lam_k (g_x(x, y; zeta) - g_x(x, z; zeta))))     with the last pass's y, z, xi
        and zeta, y and z as they were before their steps
    (4) lam_{k+1} = lam_k + delta_k
    (5) x averaged over the last half;  answer: (that average, z)

Notation
    ratio = the paper's xi, which is a batch here; T = inner; lam = 1 / sigma of the other penalty methods. g_xz, g_z = g_x, g_y
    at z; g_x, g_y those at y.

References
    arXiv 2301.10945. Deviations: (3) takes the x-gradients of the last pass of (1) and (2), before their updates, so that one
    two-argument backward a function serves both (the paper evaluates them once more); y and z share the batch zeta, so that
    its noise cancels in (3); sets and the average are this library's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from constrained.core.optimizers import TailAverage
from constrained.core.options import NonNegative, Positive, Power, Schedule, Steps, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature
from constrained.core.vec import Vec

from ..oracle import BilevelOracle
from ..single_loop import AveragedLoop, SingleLoop, nothing, size


@solver_state("F2SAState")
class F2SAState:
    """x and its average, the two lower copies, the multiplier."""

    k: int
    x: Vec
    y: Vec  # near the minimiser of f / lam + g
    z: Vec  # near the minimiser of g
    lam: float
    average: TailAverage
    scale: float  # 1 + the norm of the start
    upper: Tensor  # f(x, y) on the last batch
    lower: Tensor  # g(x, z) on the last batch


@dataclass(frozen=True, kw_only=True)
class F2SA(AveragedLoop[F2SAState]):
    """Fully first-order stochastic approximation: plain gradient steps on f + lam (g(., y) - g(., z)) with a growing lam.

    z by gamma_k g_y, y by alpha_k (f_y + lam_k g_y), x by ratio alpha_k (f_x + lam_k (g_x(y) - g_x(z))), lam by delta_k.

    alpha, gamma: step sizes; the defaults decay with the paper's exponents 5/7 and 4/7. lam: the multiplier at the start; delta:
    its growth, by default so that lam grows like k^(1/7); 0 keeps it. ratio: of the step of x to that of y. inner: steps of y
    and z a step of x. With the default inner=1 it takes three mini-batch gradients a step, first order only, and 3 `inner` in
    general. The answer is x averaged over the last half with the last z. A run ends at `max_steps`, which must be given.

    Not tuning-free: alpha lam must stay below 2 / (largest curvature of g), gamma too, or y and z diverge; a lam that grows
    faster than alpha falls diverges in the end. `PenaltySGD` scales its steps by itself.

    >>> F2SA(ratio=0.5).alpha(0)
    0.1

    Source: arXiv 2301.10945; see the module for the deviations.
    """

    supports: ClassVar[Feature] = SingleLoop.supports | Feature.Y_SET | Feature.NO_HVP | Feature.LIVE
    monitored: ClassVar[tuple[str, ...]] = ("upper", "lower", "lam")

    alpha: Positive | Schedule = Power(0.1, 5 / 7)
    gamma: Positive | Schedule = Power(0.5, 4 / 7)
    lam: Positive = 5.0
    delta: NonNegative | Schedule = Power(1.0, 6 / 7)
    ratio: Positive = 1.0
    inner: Steps = 1

    def init(self, oracle: BilevelOracle, start: Point) -> F2SAState:
        x, y = start.x, start.y
        return F2SAState(
            k=0,
            x=x,
            y=y.clone(),  # each copy with memory of its own: steps write into them
            z=y,
            lam=float(self.lam),
            average=TailAverage.of(x),
            scale=size(x, y),
            upper=nothing(y),
            lower=nothing(y),
        )

    def step(self, oracle: BilevelOracle, state: F2SAState) -> F2SAState:
        f, g, X, Y = oracle.f, oracle.g, oracle.X, oracle.Y
        k, x, y, z, lam = state.k, state.x, state.y, state.z, state.lam
        alpha, gamma = at(self.alpha, k), at(self.gamma, k)
        d, upper, lower = x, state.upper, state.lower
        for n in range(k * self.inner, (k + 1) * self.inner):
            xi, zeta = f.draw(n), g.draw(n)
            last = n == (k + 1) * self.inner - 1
            wrt = (0, 1) if last else (1,)
            # Gradients in y are large: z and y take each, then it is let go. f and g are taken at the y before.
            lower, (*g_xz, g_z) = g.gradient((x, z), zeta, wrt)
            z = Y.project(z.add_(g_z, -gamma))  # (1)
            del g_z
            _, (*g_x, g_y) = g.gradient((x, y), zeta, wrt)
            upper, (*f_x, f_y) = f.gradient((x, y), xi, wrt)
            y = Y.project(y.add_(f_y, -alpha).add_(g_y, -alpha * lam))  # (2)
            del f_y, g_y
            if last:
                d = f_x[0] + (g_x[0] - g_xz[0]) * lam  # (3)
        x = X.project(x.add(d, -self.ratio * alpha))  # (3)
        lam = lam + at(self.delta, k)  # (4)
        return replace(state, k=k + 1, x=x, y=y, z=z, lam=lam, average=state.average.add(x), upper=upper, lower=lower)  # (5)

    def copies(self, state: F2SAState) -> tuple[Vec, ...]:
        return state.y, state.z
