"""PenaltySGD: the penalty method as one stochastic loop, after Kwon, Kwon, Wright and Nowak (2023).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y }, f and g known by mini-batches xi, zeta.

Reformulation
    psi_s(x) = min_y max_z f(x, y) + (g(x, y) - g(x, z)) / s, at a fixed s or along a schedule: its minimiser differs from the
    bilevel one by O(s), and the noise of its gradient grows like 1/s.

Algorithm (step k), every gradient at the old (x, y, z)
    (1) m_z <- b m_z + (1 - b) g_y(x, z; zeta)
        m_y <- b m_y + (1 - b) (s f_y(x, y; xi) + g_y(x, y; zeta)) / (1 + s)
    (2) d   <- f_x(x, y; xi) + (g_x(x, y; zeta) - g_x(x, z; zeta)) / s        both copies on the same zeta: the noise cancels
    (3) z <- P_Y(z - gamma m_z),  y <- P_Y(y - gamma m_y)
    (4) x <- P_X(optimizer's step along d), after `warmup` steps
    (5) x averaged over the last half;  answer: (that average, z)

Notation
    s = sigma, b = momentum; f_y, g_y at y, g_z = g_y at z; f_x, g_x at y, g_xz = g_x at z. (1) and (2) come from one two-argument
    backward a copy.

References
    arXiv 2309.01753, Algorithm 2 with plain momentum instead of STORM; F2SA, arXiv 2301.10945, is its ancestor. The scaling by
    1 + s, the warm-up, the optimizer for x and the average are this library's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from constrained.core.optimizers import Optimizer, OptState, ScalarAdam, TailAverage
from constrained.core.options import Count, Momentum, Positive, Power, Schedule, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature
from constrained.core.vec import Vec

from ..oracle import BilevelOracle
from ..single_loop import AveragedLoop, SingleLoop, largest_curvature, nothing, size, step_size


@solver_state("PenaltySGDState")
class PenaltySGDState:
    """The two lower copies, their averaged directions, and x with its optimizer and average."""

    k: int
    x: Vec
    y: Vec  # near the minimiser of sigma f + g
    z: Vec  # near the minimiser of g
    m_y: Vec
    m_z: Vec
    outer: OptState
    average: TailAverage
    gamma: float  # where it is estimated
    scale: float  # 1 + the norm of the start
    upper: Tensor  # f(x, y) on the last batch
    lower: Tensor  # g(x, z) on the last batch


@dataclass(frozen=True, kw_only=True)
class PenaltySGD(AveragedLoop[PenaltySGDState]):
    """Single-loop stochastic penalty method: three mini-batch gradients a step, first order only.

    x - along f_x(y) + (g_x(y) - g_x(z)) / sigma, y along (sigma f_y + g_y) / (1 + sigma), z along g_y.

    sigma: penalty; smaller is less biased and noisier. gamma: step of y and z; None is 1 / (largest curvature of g, measured at
    the start by 10 gradients). momentum: weight of the past directions. outer: the optimizer of x. warmup: steps during which x
    is frozen. The answer is x averaged over the last half with the last z. Not tuning-free: `sigma` and the learning rate of
    `outer` are choices; a run ends at `max_steps`, which must be given.

    >>> PenaltySGD(sigma=10.0, gamma=1.0).momentum
    0.9

    Source: arXiv 2309.01753, Algorithm 2; see the module for the deviations.
    """

    supports: ClassVar[Feature] = SingleLoop.supports | Feature.Y_SET | Feature.NO_HVP

    sigma: Positive | Schedule = Power(0.3, 0.5)
    gamma: Positive | Schedule | None = None
    momentum: Momentum = 0.9
    outer: Optimizer = ScalarAdam(lr=Power(0.1, 0.5), betas=(0.9, 0.99))
    warmup: Count = 50

    def init(self, oracle: BilevelOracle, start: Point) -> PenaltySGDState:
        x, y = start.x, start.y
        return PenaltySGDState(
            k=0,
            x=x,
            y=y,  # each copy with memory of its own: steps write into them
            z=y.clone(),
            m_y=y.zeros(),
            m_z=y.zeros(),
            outer=self.outer.init(x),
            average=TailAverage.of(x),
            gamma=1.0 / largest_curvature(oracle, x, y) if self.gamma is None else 0.0,
            scale=size(x, y),
            upper=nothing(y),
            lower=nothing(y),
        )

    def step(self, oracle: BilevelOracle, state: PenaltySGDState) -> PenaltySGDState:
        f, g, X, Y, k = oracle.f, oracle.g, oracle.X, oracle.Y, state.k
        x, y, z, m_y, m_z, b = state.x, state.y, state.z, state.m_y, state.m_z, self.momentum
        sigma, gamma = at(self.sigma, k), step_size(self.gamma, k, state.gamma)
        xi, zeta = f.draw(k), g.draw(k)
        frozen = k < self.warmup
        wrt = (1,) if frozen else (0, 1)

        # Gradients in y are large: each goes into its average and is let go before the next one is made.
        w = (1 - b) / (1 + sigma)  # of g_y in m_y; that of f_y is sigma w, and b + sigma w + w = 1
        upper, (*f_x, f_y) = f.gradient((x, y), xi, wrt)
        m_y = m_y.lerp_(f_y, sigma * w / (1 - w))  # (1), times 1 - w in the next line of (1)
        del f_y
        _, (*g_x, g_y) = g.gradient((x, y), zeta, wrt)
        m_y = m_y.lerp_(g_y, w)  # (1)
        del g_y
        lower, (*g_xz, g_z) = g.gradient((x, z), zeta, wrt)
        m_z = m_z.lerp_(g_z, 1 - b)  # (1)
        del g_z
        y, z = Y.project(y.add_(m_y, -gamma)), Y.project(z.add_(m_z, -gamma))  # (3)
        new = replace(state, k=k + 1, y=y, z=z, m_y=m_y, m_z=m_z, upper=upper, lower=lower)
        if frozen:
            return new
        d = f_x[0] + (g_x[0] - g_xz[0]) / sigma  # (2)
        x, outer = self.outer.update(x, d.leaves, state.outer, at(self.outer.lr, k - self.warmup))  # (4)
        x = X.project(x)  # (4)
        return replace(new, x=x, outer=outer, average=state.average.add(x))  # (5)

    def copies(self, state: PenaltySGDState) -> tuple[Vec, ...]:
        return state.y, state.z
