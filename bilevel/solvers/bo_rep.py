"""BORep: bilevel optimization under unbounded smoothness, after Hao, Gong and Liu (2024).

Problem
    min over x in X of f(x, y), y = argmin g(x, .), g strongly convex in y, f and g known by mini-batches xi, zeta. The local
    Lipschitz constant of f's gradient may grow with the gradient, as in recurrent networks.

Reformulation
    grad Phi = f_x - g_xy v,  g_yy v = f_y. Each step of x has the length eta whatever the gradient's, so that y(x) moves little
    between two steps: y may be renewed every I steps only, inside a ball that is known in advance.

Algorithm (step k)
    (0) before the first step: y <- Epoch-SGD, epochs e = 0 .. E - 1 of 2^e T steps of (1) with gamma / 2^e, each in the ball of
        radius r / 2^(e/2) around its start and ending at the average of its points
    (1) every I steps, not at k = 0: c = y, then N times  y <- P_{|y - c| <= R}(y - gamma g_y(x, y; zeta));  y <- their average
    (2) v <- v - nu (g_yy(x, y; zeta) v - f_y(x, y; xi))                                   one Hessian-vector product
    (3) m <- beta m + (1 - beta) (f_x(x, y; xi) - g_xy(x, y; zeta) v)                      with the new v, from v = m = 0
    (4) x <- P_X(x - eta m / |m|)
    answer: (x, y)

Notation
    v = the paper's z, which is a lower copy elsewhere in this library. I, N, R = period, inner, radius; E, T, r = epochs,
    epoch_steps, epoch_radius; c = the y before. `here` is g at (x, y; zeta): here.yy(v) = g_yy v, here.xy(v) = g_xy v; `there`
    the same on a batch of its own (`independent`).

References
    arXiv 2401.09587, Algorithms 1 to 3: `paper()`. Its published code has no Epoch-SGD, no balls and no averages, and adds up
    the gradients of (1). Deviations of the default: (2) and (3) share their batches; no balls; eta decays. X is this library's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from constrained.core.options import Count, Momentum, Positive, Power, Schedule, Steps, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Status
from constrained.core.vec import Vec

from ..oracle import BilevelOracle
from ..single_loop import SingleLoop, curvature_for, grown, nothing, size, step_size

LONGEST = 0.1  # step of v where none is given
TINY = 1e-30  # a length of m that is none


@solver_state("BORepState")
class BORepState:
    """x and the direction of its steps, y, and the solution of the linear system."""

    k: int
    draws: int  # batches of g used so far
    x: Vec
    y: Vec
    v: Vec  # near the solution of g_yy v = f_y
    m: Vec  # average of hypergradients
    curvature: float  # the largest of g_yy at the start, where a step size comes from it
    scale: float  # 1 + the norm of the start
    steepest: Tensor  # the largest |f_y| so far
    upper: Tensor  # f(x, y) on the last batch
    linear: Tensor  # |g_yy v - f_y| on the last batch, before (2)


@dataclass(frozen=True, kw_only=True)
class BORep(SingleLoop[BORepState]):
    """BO-REP: normalised momentum for x, few steps of y, one product with g_yy and one with g_xy a step.

    x along m / |m|, m the average of f_x - g_xy v; v by one step on g_yy v = f_y; y by a few steps on g every few steps of x.
    For upper objectives whose curvature grows with their gradient, where a step along the gradient itself overflows, and for
    hypergradients of unknown size.

    eta: length of the step of x. beta: weight of the past in m. gamma, nu: steps of y and v; None is 1 / (2 L), for nu at most
    0.1, with L the largest curvature of g, measured at the start by 10 gradients. period, inner: `inner` steps of y, which end
    at their average, every `period` steps of x. radius: of the ball that these stay in; None is no ball. epochs, epoch_steps,
    epoch_radius: of the refinement of y before the first step, which takes (2^epochs - 1) `epoch_steps` gradients of g; 0 epochs
    is none. independent: hypergradients have batches of their own, for two more gradients. The answer is the last (x, y). A run
    ends at `max_steps`, which must be given.

    A step takes a gradient of each level, one product with g_yy and one with g_xy, and `inner` / `period` more gradients of g
    on average.

    Not tuning-free: x travels at most the sum of eta, 0.2 sqrt(steps) by default, and settles no better than to the last eta, a
    constant one never. nu must stay below 2 / L all along; where the lower Hessian is indefinite v may grow at any nu. A v that
    grows without bound ends as DIVERGED.

    >>> BORep(eta=Power(1.0, 0.5)).eta(3)
    0.5

    Source: arXiv 2401.09587, Algorithms 1 to 3; see the module for the deviations.
    """

    curved: ClassVar[bool] = True
    monitored: ClassVar[tuple[str, ...]] = ("upper", "linear")

    eta: Positive | Schedule = Power(0.1, 0.5)
    beta: Momentum = 0.9
    nu: Positive | Schedule | None = None
    gamma: Positive | Schedule | None = None
    period: Steps = 2
    inner: Steps = 3
    radius: Positive | None = None
    epochs: Count = 4
    epoch_steps: Steps = 10
    epoch_radius: Positive | None = None
    independent: bool = False

    @classmethod
    def paper(cls, *, eta: float = 0.01, gamma: float = 0.001, nu: float = 0.01, radius: float = 1.0) -> BORep:
        """The paper's algorithm: constant steps, balls, averages, a batch for each term.

        The steps are those of the authors' script for text classification; they publish no radius.
        """
        return cls(eta=eta, gamma=gamma, nu=nu, radius=radius, epoch_radius=radius, independent=True)

    def init(self, oracle: BilevelOracle, start: Point) -> BORepState:
        x, y, n = start.x, start.y, 0
        L = curvature_for(oracle, start, self.nu, self.gamma)
        gamma = step_size(self.gamma, 0, 0.5 / L)
        for e in range(self.epochs):
            steps, radius = 2**e * self.epoch_steps, self.epoch_radius and self.epoch_radius / 2 ** (e / 2)
            y = self._lower(oracle, x, y, gamma / 2**e, steps, radius, n)  # (0)
            n += steps
        return BORepState(
            k=0,
            draws=n,
            x=x,
            y=y,
            v=y.zeros(),
            m=x.zeros(),
            curvature=L,
            scale=size(x, start.y),
            steepest=nothing(y),
            upper=nothing(y),
            linear=nothing(y),
        )

    def step(self, oracle: BilevelOracle, state: BORepState) -> BORepState:
        f, g, X = oracle.f, oracle.g, oracle.X
        k, n, x, y, v, m, L = state.k, state.draws, state.x, state.y, state.v, state.m, state.curvature
        eta = at(self.eta, k)
        gamma = step_size(self.gamma, k, 0.5 / L)
        nu = step_size(self.nu, k, min(LONGEST, 0.5 / L))

        if k > 0 and k % self.period == 0:
            y, n = self._lower(oracle, x, y, gamma, self.inner, self.radius, n), n + self.inner  # (1)
        xi, zeta = (f.draw(2 * k), g.draw(n)) if self.independent else (f.draw(k), g.draw(n))
        upper, (f_x, f_y) = f.gradient((x, y), xi, (0, 1))
        here = there = g.at(x, y, zeta)
        n += 1
        if self.independent:  # for (3)
            f_x, there, n = f.grad_x(x, y, f.draw(2 * k + 1)), g.at(x, y, g.draw(n)), n + 1
        r = here.yy(v) - f_y
        v = v - r * nu  # (2)
        m = m.lerp(f_x - there.xy(v), 1 - self.beta)  # (3)
        x = X.project(x - m * (eta / m.norm().clamp(min=TINY)))  # (4)
        steepest = torch.maximum(state.steepest, f_y.norm())
        return replace(state, k=k + 1, draws=n, x=x, y=y, v=v, m=m, steepest=steepest, upper=upper, linear=r.norm())

    def copies(self, state: BORepState) -> tuple[Vec, ...]:
        return (state.y,)

    def terminate(self, oracle: BilevelOracle, state: BORepState) -> Status:
        status = super().terminate(oracle, state)
        return status if status.done else grown(state.scale + float(state.steepest), state.v)

    def _lower(self, oracle: BilevelOracle, x: Vec, c: Vec, gamma: float, steps: int, radius: float | None, n: int) -> Vec:
        """(1): the average of `steps` stochastic gradient steps on g from c, inside the ball around c."""
        g, y, mean = oracle.g, c, c
        for t in range(steps):
            y = y.add(g.grad_y(x, y, g.draw(n + t)), -gamma)
            if radius is not None:
                y = c + (y - c) * (radius / (y - c).norm().clamp(min=radius))  # the ball
            mean = mean.lerp(y, 1 / (t + 1))
        return mean
