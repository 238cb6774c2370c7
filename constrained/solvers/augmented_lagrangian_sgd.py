"""AugmentedLagrangianSGD: the method of multipliers with an objective known by mini-batches.

Problem
    min f(x) subject to c(x) = 0, h(x) <= 0, x in X; f known by mini-batches xi, c and h exactly.

Reformulation
    A(x; lam, mu, rho) = f + lam'c + rho/2 |c|^2 + 1/(2 rho) sum_i (max(0, mu_i + rho h_i)^2 - mu_i^2)

Algorithm
    (1) x <- P_X(x - gamma grad A(x; xi)),  gamma = 1 / (2 L sqrt(1 + k / n)), n the steps of the first round
    (2) x averaged over the last half of the round, and over the last half of the run
    at the end of a round, with a the average over its last half:
    (3) lam <- lam + rho c(a),  mu <- max(0, mu + rho h(a))
    (4) where the violation (c(a), max(h(a), -mu/rho)), mu and rho of before (3), is more than `progress` of the last one and
        keeps its direction (cosine > 1/2), rho <- growth rho
    (5) x <- a; L measured at a; the next round is longer

    A violation that changes its direction from round to round is noise, which a larger rho would only pass on to lam. The first
    rho makes the curvature of the penalty that of f, or |grad f| / (1 + |x|) where this is more (f may be linear), so that the
    penalty does not slow (1) down. A round is 1.1 times as long as the one before, sqrt(growth) times where rho grew.
    answer: (the average over the last half of the run, lam, mu)

Notation
    c equality, h inequality, lam and mu >= 0 their multipliers, L the largest curvature of f plus rho times that of
    |(c, h)|^2 / 2; in the state first = n, gamma = 1 / (2 L), recent and average = the averages of (2).

References
    Bertsekas: Constrained Optimization and Lagrange Multiplier Methods, 1982; Polyak and Juditsky 1992 (averages of steps
    that shrink like k^-1/2). Rounds, the measured L and the test of direction are this library's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..augmented_objective import AugmentedObjective, inequality
from ..core.derivatives.objective import Draw
from ..core.optimizers import TailAverage
from ..core.options import Fraction, Growth, Positive, Steps
from ..core.problem import Multipliers, Point
from ..core.solver import Solver
from ..core.states import solver_state
from ..core.status import Feature, Status
from ..core.vec import Vec
from ..linear.spectrum import curvature
from ..oracle import ConstrainedOracle

LARGEST = 1e20  # of multipliers
PENALTY = 1e8  # times the first rho, beyond which it is not raised
SHORT, LONG = 50, 1000  # steps of the first round
LONGER = 1.1  # a round over the one before
GROWTH = 1e10  # of |x| over its start, beyond which the run has diverged


@solver_state("AugmentedLagrangianSGDState")
class AugmentedLagrangianSGDState:
    """The point, its averages, the multipliers and the round at hand."""

    k: int
    x: Vec
    recent: TailAverage  # of the round
    average: TailAverage  # of the run
    lam: Tensor
    mu: Tensor
    rho: float
    most: float  # that rho may be
    gamma: float  # before it shrinks with k
    first: int  # steps of the first round
    length: float  # of this one
    end: int  # the k at which it ends
    violated: Tensor  # (c, max(h, -mu / rho)) at the end of the last one
    value: Tensor  # A on the last batch
    scale: float  # 1 + the norm of the start


@dataclass(frozen=True, kw_only=True)
class AugmentedLagrangianSGD(Solver[ConstrainedOracle, AugmentedLagrangianSGDState]):
    """Method of multipliers on mini-batches: projected stochastic gradient steps, multipliers after every round of them.

    x <- P(x - gamma grad A(x; batch)); after a round lam <- lam + rho c and mu <- max(0, mu + rho h) at the average of its last
    half. First order only.

    round: steps of the first round, later ones are longer; None is about an epoch, 50 to 1000 steps. rho: penalty at the
    start; None makes its curvature that of f. growth: of rho, where a round brought the violation to no less than
    `progress` of what it was, in the same direction. The step is 1 / (2 L), shrinking like k^-1/2, with L measured at the
    start and after every round by 20 gradients. The answer is x averaged over the last half of the run. Nothing to tune but
    `max_steps`, which must be given.

    >>> import constrained
    >>> rows = 0.1 * torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> problem = constrained.ConstrainedProblem(
    ...     objective=lambda x, batch: ((x - 1 - batch) ** 2).sum(1).mean(), equality=lambda x: x.sum(),
    ...     data=constrained.core.data.MiniBatches(rows - rows.mean(0), 16), x=torch.zeros(2, dtype=torch.float64))
    >>> constrained.solve(problem, max_steps=1000).residuals()["feasibility"] < 1e-2
    True

    Source: Bertsekas 1982; see the module for the rest.
    """

    supports: ClassVar[Feature] = Feature.SAMPLES | Feature.EQUALITY | Feature.INEQUALITY | Feature.X_SET | Feature.NO_HVP
    requires: ClassVar[Feature] = Feature(0)
    stochastic: ClassVar[bool] = True

    tol: Positive | None = None
    round: Steps | None = None
    rho: Positive | None = None
    growth: Growth = 4.0
    progress: Fraction = 0.5

    def init(self, oracle: ConstrainedOracle, start: Point) -> AugmentedLagrangianSGDState:
        x, given, draw = start.x, start.multipliers or Multipliers(), oracle.f.draw(0)
        c, h = oracle.tape(x, draw).c, inequality(oracle, x)
        lam = torch.zeros_like(c) if given.equality is None else torch.as_tensor(given.equality).to(c)
        mu = torch.zeros_like(h) if given.inequality is None else torch.as_tensor(given.inequality).to(h).clamp(min=0)
        f, penalty = _curvatures(oracle, x, draw)
        steep = max(f, float(oracle.tape(x, draw).gradient.norm()) / (1.0 + float(x.norm())))  # f may be linear
        even = steep / penalty if steep > 0 and penalty > 0 else 1.0
        rho = self.rho or (even if 0 < even < math.inf else 1.0)  # curvatures overflow where a function does
        epoch = getattr(oracle.f.sampler, "steps_per_epoch", SHORT)
        length = self.round or min(-(-SHORT // epoch) * epoch, LONG)
        average, nothing = TailAverage.of(x), torch.zeros((), dtype=torch.float64, device=x.device)
        return AugmentedLagrangianSGDState(
            k=0,
            x=x,
            recent=average,
            average=average,
            lam=lam,
            mu=mu,
            rho=rho,
            most=PENALTY * rho,
            gamma=_safe(f + rho * penalty),
            first=length,
            length=float(length),
            end=length,
            violated=torch.zeros_like(torch.cat([c, h])),
            value=nothing,
            scale=1.0 + float(x.norm()),
        )

    def step(self, oracle: ConstrainedOracle, state: AugmentedLagrangianSGDState) -> AugmentedLagrangianSGDState:
        s = state
        # one projected gradient step on A(.; lam, mu, rho), f on a fresh batch
        value, grad = AugmentedObjective(oracle, s.lam, s.mu, s.rho, oracle.f.draw(s.k))(s.x)
        x = oracle.X.project(s.x.add(grad, -s.gamma / math.sqrt(1 + s.k / s.first)))  # (1)
        value = torch.full_like(s.value, value)
        new = replace(s, k=s.k + 1, x=x, recent=s.recent.add(x), average=s.average.add(x), value=value)  # (2)
        return self._turn(oracle, new) if new.k == s.end else new

    def _turn(self, oracle: ConstrainedOracle, s: AugmentedLagrangianSGDState) -> AugmentedLagrangianSGDState:
        """The multipliers, the penalty and the step of the next round, at the average of the one that ends."""
        a, draw = oracle.X.project(s.recent.mean), oracle.f.draw(s.k)
        c, h = oracle.tape(a, draw).c, inequality(oracle, a)
        violated = torch.cat([c, torch.maximum(h, -s.mu / s.rho)])
        now, before = float(violated.norm()), float(s.violated.norm())
        slow, same = now > self.progress * before, float(violated @ s.violated) > 0.5 * now * before
        rho = min(self.growth * s.rho, s.most) if slow and same else s.rho  # (4)
        length = max(LONGER, math.sqrt(rho / s.rho)) * s.length  # the step shrinks as rho grows
        f, penalty = _curvatures(oracle, a, draw)
        return replace(
            s,
            x=a,  # (5)
            recent=TailAverage.of(a),
            lam=(s.lam + s.rho * c).clamp(-LARGEST, LARGEST),  # (3)
            mu=(s.mu + s.rho * h).clamp(0, LARGEST),  # (3)
            rho=rho,
            gamma=_safe(f + rho * penalty),  # (5)
            length=length,  # (5)
            end=s.k + int(length),
            violated=violated,
        )

    def terminate(self, oracle: ConstrainedOracle, state: AugmentedLagrangianSGDState) -> Status:
        return Status.DIVERGED if float(state.x.norm()) > GROWTH * state.scale else Status.RUNNING

    def answer(self, oracle: ConstrainedOracle, state: AugmentedLagrangianSGDState) -> Point:
        lam = state.lam if oracle.c is not None else None
        return Point(oracle.X.project(state.average.mean), None, Multipliers(lam, state.mu if oracle.h is not None else None))

    def monitor(self, state: AugmentedLagrangianSGDState) -> dict[str, float | Tensor]:
        watched = {"augmented": state.value, "feasibility": state.violated.norm(), "rho": state.rho, "gamma": state.gamma}
        return watched if state.k else {}


def _curvatures(oracle: ConstrainedOracle, x: Vec, draw: Draw) -> tuple[float, float]:
    """The largest curvatures at x of f on a batch and of |(c, h)|^2 / 2, all inequalities counted as active."""

    def f(u: Vec) -> Vec:
        return u.unravel(oracle.tape(u, draw).gradient)

    def penalty(u: Vec) -> Vec:
        tape = oracle.tape(u, draw)
        grad = tape.vjp(tape.c)
        return u.unravel(grad if oracle.h is None else grad + oracle.h.vjp((u,), inequality(oracle, u))[0].ravel())

    return curvature(f, oracle.X, x), curvature(penalty, oracle.X, x)


def _safe(most: float) -> float:
    """The step for a largest curvature that one batch showed: half of 1 / L, since others may show more."""
    return 0.5 / most if most > 0 else 1.0
