"""StocBiO: the double loop with a stochastic Neumann series of Ji, Yang and Liang (2021).

Problem
    min over x in X of f(x, y), y = argmin g(x, .), g strongly convex in y, f and g known by mini-batches xi, zeta.

Reformulation
    grad Phi = f_x - g_xy v,  v = nu sum_{q <= Q} (I - nu g_yy)^q f_y, which tends to the solution of g_yy v = f_y as Q grows.

Algorithm 2 (step k; D inner steps, Q terms)
    for t = 0 .. D - 1
        (1) y <- y - gamma g_y(x, y; zeta)                                                 from the last step's y
    (2) r = s = f_y(x, y; xi), then Q times  r <- r - nu g_yy(x, y; zeta) r,  s <- s + r;   v = nu s
    (3) x <- P_X(x - alpha (f_x(x, y; xi) - g_xy(x, y; zeta) v))
    (4) x averaged over the last half;  answer: (that average, y)

Notation
    alpha, gamma, nu = the paper's beta, alpha, eta; D, Q = inner, terms; zeta is a fresh batch wherever it stands. `here` is g at
    (x, y; zeta): here.yy(v) = g_yy v, here.xy(v) = g_xy v.

References
    arXiv 2010.07962, Algorithm 2. Deviations: all batches have the size that the sampler gives, where the paper's shrink along
    (2); X and the average are this library's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from constrained.core.optimizers import TailAverage
from constrained.core.options import Positive, Schedule, Steps, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.vec import Vec

from ..oracle import BilevelOracle
from ..single_loop import AveragedLoop, curvature_for, nothing, size, step_size


@solver_state("StocBiOState")
class StocBiOState:
    """x and its average, y."""

    k: int
    draws: int  # batches of g used so far
    x: Vec
    y: Vec
    average: TailAverage
    curvature: float  # the largest of g_yy at the start, where a step size comes from it
    scale: float  # 1 + the norm of the start
    upper: Tensor  # f(x, y) on the last batch


@dataclass(frozen=True, kw_only=True)
class StocBiO(AveragedLoop[StocBiOState]):
    """StocBiO: a few stochastic gradient steps of y, then a hypergradient by a stochastic Neumann series.

    y by gamma g_y, v = nu sum_q (I - nu g_yy)^q f_y with a fresh batch each factor, x by alpha (f_x - g_xy v).

    alpha, gamma, nu: steps of x, of y and of the series; None is 1 / (2 L) for gamma and nu, with L the largest curvature
    of g, measured at the start by 10 gradients. inner: steps of y a step of x. terms: products with g_yy a step. The answer is
    x averaged over the last half with the last y. A run ends at `max_steps`, which must be given.

    A step takes one gradient of f and `inner` of g, `terms` products with g_yy and one with g_xy, and with mini-batches one more
    gradient of g for each product; without them one for all.

    Not tuning-free: gamma and nu must stay below 2 / L, alpha below about 2 / (largest curvature of Phi). The series falls short
    by a share (1 - nu mu)^(terms + 1), mu the smallest eigenvalue of g_yy. `BORep` is for Phi without a largest curvature.

    >>> StocBiO(alpha=0.05).terms
    10

    Source: arXiv 2010.07962, Algorithm 2; see the module for the deviations.
    """

    curved: ClassVar[bool] = True
    monitored: ClassVar[tuple[str, ...]] = ("upper",)

    alpha: Positive | Schedule = 0.1
    gamma: Positive | Schedule | None = None
    nu: Positive | Schedule | None = None
    inner: Steps = 5
    terms: Steps = 10

    def init(self, oracle: BilevelOracle, start: Point) -> StocBiOState:
        x, y = start.x, start.y
        return StocBiOState(
            k=0,
            draws=0,
            x=x,
            y=y,
            average=TailAverage.of(x),
            curvature=curvature_for(oracle, start, self.nu, self.gamma),
            scale=size(x, y),
            upper=nothing(y),
        )

    def step(self, oracle: BilevelOracle, state: StocBiOState) -> StocBiOState:
        f, g, X = oracle.f, oracle.g, oracle.X
        k, n, x, y, L = state.k, state.draws, state.x, state.y, state.curvature
        alpha = at(self.alpha, k)
        gamma = step_size(self.gamma, k, 0.5 / L)
        nu = step_size(self.nu, k, 0.5 / L)

        for t in range(n, n + self.inner):
            y = y.add(g.grad_y(x, y, g.draw(t)), -gamma)  # (1)
        n += self.inner
        upper, (f_x, f_y) = f.gradient((x, y), f.draw(k), (0, 1))
        r = s = f_y  # (2)
        here = g.at(x, y, g.draw(n))
        for q in range(n + 1, n + 1 + self.terms):
            r = r.add(here.yy(r), -nu)  # (2)
            s = s + r  # (2)
            here = g.at(x, y, g.draw(q)) if g.random else here
        v = s * nu  # (2)
        x = X.project(x.add(f_x - here.xy(v), -alpha))  # (3)
        n += 1 + self.terms
        return replace(state, k=k + 1, draws=n, x=x, y=y, average=state.average.add(x), upper=upper)  # (4)

    def copies(self, state: StocBiOState) -> tuple[Vec, ...]:
        return (state.y,)
