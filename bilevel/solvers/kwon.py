"""KwonDoubleLoop and KwonSingleLoop: the two stochastic penalty methods of Kwon, Kwon, Wright and Nowak (2023).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y }, f and g known by mini-batches xi, zeta; s f + g satisfies a
    proximal error bound for all small s, so g may have several minimisers.

Reformulation
    psi_s(x) = min_y max_z f(x, y) + (g(x, y) - g(x, z)) / s, biased by O(s). Each lower problem is smoothed by its Moreau
    envelope: w_y minimises s f(x, w) + g(x, w) + |w - y|^2 / (2 rho) and w_z the same with s = 0, around slow centres y, z.

Algorithm 1, KwonDoubleLoop (step k; T inner steps, M batches)
    for t = 0 .. T - 1, on fresh batches
        (1) w_y <- P_Y(w_y - gamma (s f_y(x, w_y) + g_y(x, w_y) + (w_y - y) / rho))
            w_z <- P_Y(w_z - gamma (g_y(x, w_z) + (w_z - z) / rho))
    (2) y <- (1 - beta) y + beta w_y,   z <- (1 - beta) z + beta w_z
    (3) x <- P_X(x - alpha mean over M batches of [f_x(x, w_y) + (g_x(x, w_y) - g_x(x, w_z)) / s])

Algorithm 2, KwonSingleLoop (step k)
    (1), (2), (3) with T = M = 1, (1) and (3) both at the old (x, w_y, w_z), each of the six gradients replaced by its estimate d
    (4) d <- G(new; b) + (1 - eta) (d - G(old; b))      STORM: b is one fresh batch, the same at the new and the old point

Both
    (5) x averaged over the last half;  answer: (that average, w_z)

Notation
    s = sigma; w_y, w_z are the copies, y and z their centres; G any of f_x, f_y at w_y, g_x, g_y at w_y, g_x, g_y at w_z.
    h = s f + g: h_x and h_y are its gradients at w_y. In Algorithm 2 u, v_y, v_z are the new x, w_y, w_z; g_xz and g_z the
    estimates of g_x and g_y at w_z.

References
    arXiv 2309.01753, Algorithms 1 and 2. Deviations: both copies see the same zeta, so that its noise cancels in (3); the average
    is this library's, as are the default numbers. STORM: Cutkosky and Orabona, arXiv 1905.10018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from constrained.core.derivatives.objective import Draw
from constrained.core.optimizers import TailAverage
from constrained.core.options import Positive, Power, Schedule, Weight, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature
from constrained.core.vec import Vec

from ..oracle import BilevelOracle, Level
from ..single_loop import AveragedLoop, SingleLoop, nothing, size

Pair = tuple[Vec, Vec]  # d/dx, d/dy


@solver_state("DoubleLoopState")
class DoubleLoopState:
    """x with its average, the copies, their centres."""

    k: int
    draws: int  # batches used so far
    x: Vec
    w_y: Vec  # near the minimiser of sigma f + g + |. - y|^2 / (2 rho)
    w_z: Vec  # near the minimiser of g + |. - z|^2 / (2 rho)
    y: Vec
    z: Vec
    average: TailAverage
    scale: float  # 1 + the norm of the start
    upper: Tensor  # f(x, w_y) on the last batch
    lower: Tensor  # g(x, w_z) on the last batch


@dataclass(frozen=True, kw_only=True)
class KwonDoubleLoop(AveragedLoop[DoubleLoopState]):
    """Algorithm 1 of Kwon et al.: inner stochastic gradient steps on two prox-smoothed lower problems, large batches for x.

    w_y along s f_y + g_y + (w_y - y) / rho, w_z along g_y + (w_z - z) / rho, then x along f_x(w_y) + (g_x(w_y) - g_x(w_z)) / s.

    sigma, alpha, gamma: penalty, step of x, step of the copies. inner: T, steps of the copies a step of x; batches: M, batches of
    one gradient of x (the paper lets it grow like 1 / sigma^2); both rounded up. rho, beta: prox weight and how fast the centres
    follow. A step takes 3 (T + M) mini-batch gradients, first order only. The answer is x averaged over the last half with the
    last w_z. A run ends at `max_steps`, which must be given.

    Not tuning-free: gamma must stay below 2 / (largest curvature of s f + g, plus 1 / rho), alpha below about the same of psi_s.

    >>> KwonDoubleLoop(inner=5, batches=Power(1.0, -0.5)).sigma(0)
    0.3

    Source: arXiv 2309.01753, Algorithm 1; see the module for the deviations.
    """

    supports: ClassVar[Feature] = SingleLoop.supports | Feature.Y_SET | Feature.NO_HVP | Feature.LIVE

    sigma: Positive | Schedule = Power(0.3, 0.5)
    alpha: Positive | Schedule = 0.1
    gamma: Positive | Schedule = 0.5
    inner: Positive | Schedule = 10
    batches: Positive | Schedule = 1
    rho: Positive = 1.0
    beta: Weight | Schedule = 0.5

    def init(self, oracle: BilevelOracle, start: Point) -> DoubleLoopState:
        x, y = start.x, start.y
        return DoubleLoopState(
            k=0,
            draws=0,
            x=x,
            w_y=y.clone(),  # each copy with memory of its own: steps write into them
            w_z=y,
            y=y.plain().clone(),
            z=y.plain().clone(),
            average=TailAverage.of(x),
            scale=size(x, y),
            upper=nothing(y),
            lower=nothing(y),
        )

    def step(self, oracle: BilevelOracle, state: DoubleLoopState) -> DoubleLoopState:
        f, g, X, Y, rho = oracle.f, oracle.g, oracle.X, oracle.Y, self.rho
        k, n, x, w_y, w_z, y, z = state.k, state.draws, state.x, state.w_y, state.w_z, state.y, state.z
        sigma, alpha, gamma, beta = at(self.sigma, k), at(self.alpha, k), at(self.gamma, k), at(self.beta, k)
        T, M = math.ceil(at(self.inner, k)), math.ceil(at(self.batches, k))

        for t in range(n, n + T):
            xi, zeta = f.draw(t), g.draw(t)
            _, (h_y,) = oracle.penalised(sigma, x, w_y, xi, zeta)
            w_y = Y.project(w_y.lerp_(y, gamma / rho).add_(h_y, -gamma))  # (1)
            g_z = g.grad_y(x, w_z, zeta)
            w_z = Y.project(w_z.lerp_(z, gamma / rho).add_(g_z, -gamma))  # (1)
        y, z = y.lerp_(w_y, beta), z.lerp_(w_z, beta)  # (2)
        d, upper, lower = x.zeros(), state.upper, state.lower
        for m in range(n + T, n + T + M):
            xi, zeta = f.draw(m), g.draw(m)
            (upper, _), (h_x,) = oracle.penalised(sigma, x, w_y, xi, zeta, wrt=(0,))
            lower, (g_x,) = g.gradient((x, w_z), zeta, (0,))
            d = d + (h_x - g_x) / (sigma * M)  # (3)
        x = X.project(x - d * alpha)  # (3)
        return replace(
            state,
            k=k + 1,
            draws=n + T + M,
            x=x,
            w_y=w_y,
            w_z=w_z,
            y=y,
            z=z,
            average=state.average.add(x),  # (5)
            upper=upper,
            lower=lower,
        )

    def copies(self, state: DoubleLoopState) -> tuple[Vec, ...]:
        return state.w_y, state.w_z


@solver_state("SingleLoopState")
class SingleLoopState:
    """x with its average, the copies, their centres, and the estimates of the six gradients there."""

    k: int
    x: Vec
    w_y: Vec  # near the minimiser of sigma f + g + |. - y|^2 / (2 rho)
    w_z: Vec  # near the minimiser of g + |. - z|^2 / (2 rho)
    y: Vec
    z: Vec
    f_y: Pair  # of f at (x, w_y)
    g_y: Pair  # of g at (x, w_y)
    g_z: Pair  # of g at (x, w_z)
    average: TailAverage
    scale: float  # 1 + the norm of the start
    upper: Tensor  # f(x, w_y) on the last batch
    lower: Tensor  # g(x, w_z) on the last batch


@dataclass(frozen=True, kw_only=True)
class KwonSingleLoop(AveragedLoop[SingleLoopState]):
    """Algorithm 2 of Kwon et al.: one step of everything at a time, on gradients with STORM momentum.

    w_y along s f_y + g_y + (w_y - y) / rho, w_z along g_y + (w_z - z) / rho, x along f_x(w_y) + (g_x(w_y) - g_x(w_z)) / s, each
    gradient replaced by d <- G(new; b) + (1 - eta) (d - G(old; b)).

    sigma, alpha, gamma: penalty, step of x, step of the copies. eta: weight of the fresh gradient, 1 is none of the past. rho,
    beta: prox weight and how fast the centres follow. First order only; on mini-batches it takes six gradients a step, without
    them three gradients a step: STORM then changes nothing. The answer is x averaged over the last half with the last w_z. A
    run ends at `max_steps`, which must be given.

    Not tuning-free: gamma must stay below 2 / (largest curvature of s f + g, plus 1 / rho); alpha / sigma too large diverges.

    >>> KwonSingleLoop().eta(0)
    1.0

    Source: arXiv 2309.01753, Algorithm 2; see the module for the deviations.
    """

    supports: ClassVar[Feature] = SingleLoop.supports | Feature.Y_SET | Feature.NO_HVP

    sigma: Positive | Schedule = Power(0.3, 0.5)
    alpha: Positive | Schedule = 0.02
    gamma: Positive | Schedule = 0.5
    eta: Weight | Schedule = Power(1.0, 2 / 3)
    rho: Positive = 1.0
    beta: Weight | Schedule = 0.5

    def init(self, oracle: BilevelOracle, start: Point) -> SingleLoopState:
        f, g, x, y = oracle.f, oracle.g, start.x, start.y
        xi, zeta = f.draw(0), g.draw(0)
        upper, (f_x, f_y) = f.gradient((x, y), xi, (0, 1))
        lower, (g_x, g_y) = g.gradient((x, y), zeta, (0, 1))
        return SingleLoopState(
            k=0,
            x=x,
            w_y=y,
            w_z=y,
            y=y,
            z=y,
            f_y=(f_x, f_y),
            g_y=(g_x, g_y),
            g_z=(g_x, g_y),
            average=TailAverage.of(x),
            scale=size(x, y),
            upper=upper,
            lower=lower,
        )

    def step(self, oracle: BilevelOracle, state: SingleLoopState) -> SingleLoopState:
        f, g, X, Y, rho = oracle.f, oracle.g, oracle.X, oracle.Y, self.rho
        k, x, w_y, w_z, y, z = state.k, state.x, state.w_y, state.w_z, state.y, state.z
        sigma, alpha, gamma, beta = at(self.sigma, k), at(self.alpha, k), at(self.gamma, k), at(self.beta, k)
        (f_x, f_y), (g_x, g_y), (g_xz, g_z) = state.f_y, state.g_y, state.g_z

        u = X.project(x - (f_x + (g_x - g_xz) / sigma) * alpha)  # (3)
        v_y = Y.project(w_y - (f_y * sigma + g_y + (w_y - y) / rho) * gamma)  # (1)
        v_z = Y.project(w_z - (g_z + (w_z - z) / rho) * gamma)  # (1)
        y, z = y.lerp(v_y, beta), z.lerp(v_z, beta)  # (2)

        xi, zeta, eta = f.draw(k + 1), g.draw(k + 1), at(self.eta, k + 1)
        upper, at_f = storm(f, (u, v_y), (x, w_y), state.f_y, eta, xi)  # (4)
        _, at_y = storm(g, (u, v_y), (x, w_y), state.g_y, eta, zeta)  # (4)
        lower, at_z = storm(g, (u, v_z), (x, w_z), state.g_z, eta, zeta)  # (4)
        return replace(
            state,
            k=k + 1,
            x=u,
            w_y=v_y,
            w_z=v_z,
            y=y,
            z=z,
            f_y=at_f,
            g_y=at_y,
            g_z=at_z,
            average=state.average.add(u),  # (5)
            upper=upper,
            lower=lower,
        )

    def copies(self, state: SingleLoopState) -> tuple[Vec, ...]:
        return state.w_y, state.w_z

    def monitor(self, state: SingleLoopState) -> dict[str, float | Tensor]:
        return {"upper": state.upper, "lower": state.lower}  # at k = 0 too: `init` takes a batch


def storm(level: Level, new: Pair, old: Pair, d: Pair, eta: float, batch: Draw) -> tuple[Tensor, Pair]:
    """The value at `new`, and G(new) + (1 - eta) (d - G(old)) on one batch. Where G is exact, d is G(old) and nothing is left."""
    value, (x, y) = level.gradient(new, batch, (0, 1))
    if not level.random:
        return value, (x, y)
    _, (x_old, y_old) = level.gradient(old, batch, (0, 1))
    return value, (x + (d[0] - x_old) * (1 - eta), y + (d[1] - y_old) * (1 - eta))
