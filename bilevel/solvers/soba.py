"""SOBA: the single loop of Dagreou, Ablin, Vaiter and Moreau (2022), in which x, y and the linear system move together.

Problem
    min over x in X of f(x, y), y = argmin g(x, .), g strongly convex in y, f and g known by mini-batches xi, zeta.

Reformulation
    grad Phi = f_x - g_xy v,  g_yy v = f_y. With y and v as variables all three directions are sums over samples.

Algorithm 1 (step k), every right-hand side at the old (x, y, v) and on the same xi and zeta
    (1) y <- y - rho g_y(x, y; zeta)
    (2) v <- v - rho (g_yy(x, y; zeta) v - f_y(x, y; xi))                                  from v = 0
    (3) x <- P_X(x - alpha (f_x(x, y; xi) - g_xy(x, y; zeta) v))
    (4) x averaged over the last half;  answer: (that average, y)

Notation
    f, g = the paper's F, G; v has the opposite sign there; alpha = its gamma. `here` is g at (x, y; zeta): here.y = g_y,
    here.yy(v) = g_yy v, here.xy(v) = g_xy v.

References
    arXiv 2201.13409, Algorithm 1 with the directions of SOBA. X and the average are this library's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from constrained.core.optimizers import TailAverage
from constrained.core.options import Positive, Power, Schedule, at
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Status
from constrained.core.vec import Vec

from ..oracle import BilevelOracle
from ..single_loop import AveragedLoop, curvature_for, grown, nothing, size, step_size


@solver_state("SOBAState")
class SOBAState:
    """x and its average, y, and the solution of the linear system."""

    k: int
    x: Vec
    y: Vec
    v: Vec  # near the solution of g_yy v = f_y
    average: TailAverage
    curvature: float  # the largest of g_yy at the start, where `rho` comes from it
    scale: float  # 1 + the norm of the start
    steepest: Tensor  # the largest |f_y| so far
    upper: Tensor  # f(x, y) on the last batch
    lower: Tensor  # g(x, y) on the last batch


@dataclass(frozen=True, kw_only=True)
class SOBA(AveragedLoop[SOBAState]):
    """SOBA: one stochastic step of x, y and the linear system at a time.

    y by rho g_y, v by rho (g_yy v - f_y), x by alpha (f_x - g_xy v), all from the point before.

    rho: step of y and v; None is 1 / (2 L) with L the largest curvature of g, measured at the start by 10 gradients. alpha: step
    of x. It takes two mini-batch gradients a step, one product with g_yy and one with g_xy. The answer is x averaged over the
    last half with the last y. A run ends at `max_steps`, which must be given.

    Not tuning-free: rho must stay below 2 / L, and alpha small enough for y and v to follow x.

    >>> SOBA(alpha=0.05).rho is None
    True

    Source: arXiv 2201.13409, Algorithm 1; see the module for the deviations.
    """

    curved: ClassVar[bool] = True

    alpha: Positive | Schedule = Power(0.1, 0.5)
    rho: Positive | Schedule | None = None

    def init(self, oracle: BilevelOracle, start: Point) -> SOBAState:
        x, y = start.x, start.y
        return SOBAState(
            k=0,
            x=x,
            y=y,
            v=y.zeros(),
            average=TailAverage.of(x),
            curvature=curvature_for(oracle, start, self.rho),
            scale=size(x, y),
            steepest=nothing(y),
            upper=nothing(y),
            lower=nothing(y),
        )

    def step(self, oracle: BilevelOracle, state: SOBAState) -> SOBAState:
        f, g, X, k, x, y, v = oracle.f, oracle.g, oracle.X, state.k, state.x, state.y, state.v
        alpha, rho = at(self.alpha, k), step_size(self.rho, k, 0.5 / state.curvature)

        upper, (f_x, f_y) = f.gradient((x, y), f.draw(k), (0, 1))
        here = g.at(x, y, g.draw(k))
        y = y.add(here.y, -rho)  # (1)
        x = X.project(x.add(f_x - here.xy(v), -alpha))  # (3), with the v before
        v = v.add(here.yy(v) - f_y, -rho)  # (2)
        steepest, average = torch.maximum(state.steepest, f_y.norm()), state.average.add(x)  # (4)
        return replace(state, k=k + 1, x=x, y=y, v=v, average=average, steepest=steepest, upper=upper, lower=here.value)

    def copies(self, state: SOBAState) -> tuple[Vec, ...]:
        return (state.y,)

    def terminate(self, oracle: BilevelOracle, state: SOBAState) -> Status:
        status = super().terminate(oracle, state)
        return status if status.done else grown(state.scale + float(state.steepest), state.v)
