"""Penalty: nested penalty continuation with Richardson extrapolation, after Kwon, Kwon, Wright and Nowak (2023).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y };  the lower level may have several solutions (the best for f
    is meant), must satisfy a proximal error bound (strongly convex, PL, ...).

Reformulation
    psi_s(x) = (min_y [s f + g](x, y) - min_z g(x, z)) / s  ->  min_{y in S(x)} f(x, y)  as s -> 0, with bias O(s);
    psi~ = 2 psi_{s/2} - psi_s has bias O(s^2).

Algorithm (tuning-free deterministic form; s starts at 1)
    (1) z, y_s, y_{s/2} <- minimisers of g, s f + g, (s/2) f + g at x, warm-started, to a residual theta (s/2) min(1, R)
    (2) x <- one step of the outer method on psi~ (L-BFGS; projected on a set X); if its line search fails, theta <- theta/10
    (3) when R = |x - P_X(x - grad psi~)| <= max(tol, s^2/10) / 2:  bias b = 4/3 |grad psi~_{s/2} - grad psi~_s|
    (4) stop if b + R <= tol, else s <- s clip(sqrt(tol / (4 b)), 0.01, 0.5)
    answer: the lower solution reached by minimising g(x, .) from 2 y_{s/2} - y_s

Notation
    f upper, g lower, s = sigma (the papers' sigma; F2SA's 1/lambda), R the residual of psi~, theta the inner accuracy.

With a fixed `sigma` the point solves the surrogate psi_sigma and not the bilevel problem, which regularises: an exact
hypergradient can overfit a small validation set. Such a run ends with MAX_STEPS and says so in its notes.

References
    Kwon, Kwon, Wright, Nowak: On penalty methods for nonconvex bilevel optimization, arXiv 2309.01753. The continuation, the
    extrapolation and all tolerances are this library's, not the paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from constrained.core.optimizers import Optimizer, OptState
from constrained.core.options import Fraction, Positive, Steps, at
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec, copy
from constrained.descent import LBFGS, Descent, DescentStatus, Method, residual

from ..lower.solution import solve_lower
from ..oracle import BilevelOracle
from ..reformulations.accuracy import answer_tolerance
from ..reformulations.nested_penalty import Inner, NestedPenalty, inner_minimum, penalty

PATIENCE = 50  # outer steps without a smaller R after which the inner accuracy is raised
LOWER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.LOWER_UNSOLVED}
UPPER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.UNBOUNDED}


@solver_state("PenaltyState")
class PenaltyState:
    """Where the continuation stands."""

    k: int  # completed outer steps
    x: Vec
    sigma: float
    inner: tuple[Inner, ...]  # z, then one minimiser a penalty
    outer: Descent | OptState  # the outer method's own state
    theta: float  # inner accuracy
    residual: float  # R at x (an Optimizer: at the x before)
    best: float  # smallest R seen
    stale: int  # steps since R last fell
    bias: float  # last measured b
    stage: Vec  # x at the end of the stage before
    value: float  # psi~
    upper: float  # f at the penalised y
    lower: float  # g at z
    outcome: Status


@dataclass(frozen=True, kw_only=True)
class Penalty(Solver[BilevelOracle, PenaltyState]):
    """Penalty method by continuation, without second derivatives and without anything to tune.

    psi~ = 2 psi_{s/2} - psi_s,  psi_s(x) = (min_y [s f + g] - min_z g) / s;  s shrinks until the measured bias is below tol.

    tol: on the residuals (None: 1e-6 in float64, 1e-3 in float32). sigma: None is the continuation; a number fixes the penalty
    and the answer then solves a regularised surrogate. richardson: extrapolate. outer: LBFGS() (ProjectedLBFGS where X is a
    Box, SPG on other sets), or an Optimizer such as ScalarAdam(). inner: the same for the lower variable. theta: inner accuracy
    relative to the outer residual. max_outer: outer steps. max_inner: steps of one inner minimisation.

    A step costs, for each trial point of the outer method, three inner minimisations (two without Richardson); each of their
    iterations is one gradient of g, or one of f and one of g. No second derivatives.

    >>> Penalty(sigma=10.0, richardson=False, max_outer=30).sigma
    10.0

    Source: arXiv 2309.01753; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.NO_HVP
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    sigma: Positive | None = None
    richardson: bool = True
    outer: Method | Optimizer = LBFGS()
    inner: Method = LBFGS()
    theta: Fraction = 0.1
    max_outer: Steps = 1000
    max_inner: Steps = 10_000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    @property
    def exact(self) -> bool:
        return self.sigma is None

    def init(self, oracle: BilevelOracle, start: Point) -> PenaltyState:
        x, sigma, inf = start.x, self.sigma or 1.0, math.inf
        inner = tuple(Inner(s, start.y, None) for s in (0.0, *(s for _, s in penalty(sigma, self.richardson))))
        blank = PenaltyState(0, x, sigma, inner, {}, self.theta, inf, inf, 0, inf, x, inf, inf, inf, Status.RUNNING)
        if isinstance(self.outer, Method):
            return self._again(oracle, blank)
        return replace(blank, outer=self.outer.init(x))

    def step(self, oracle: BilevelOracle, state: PenaltyState) -> PenaltyState:
        if not isinstance(self.outer, Method):
            return self._optimizer_step(oracle, state)
        new = replace(state, k=state.k + 1)
        return self._descend(oracle, new) if state.residual > self._outer_tolerance(state) else self._next_stage(oracle, new)

    def _descend(self, oracle: BilevelOracle, s: PenaltyState) -> PenaltyState:
        """One outer step; where the line search fails or R no longer falls, a tenth of theta."""
        psi, method = self._surrogate(oracle, s), self.outer.suited(oracle.X)  # pyright: ignore[reportAttributeAccessIssue]
        moved = method.step(psi, oracle.X, s.outer)  # (1), (2)    # pyright: ignore[reportArgumentType]
        new = self._read(s, psi, moved)
        new = replace(new, stale=0 if new.residual < 0.9 * s.best else s.stale + 1)
        if new.outcome != Status.RUNNING or (moved.reason is DescentStatus.RUNNING and new.stale <= PATIENCE):
            return new
        if new.theta > self.theta * 1e-6:
            return self._again(oracle, replace(new, theta=0.1 * new.theta, stale=0))  # (2)
        return replace(new, outcome=Status.LINE_SEARCH if moved.reason is DescentStatus.LINE_SEARCH else Status.PRECISION)

    def _next_stage(self, oracle: BilevelOracle, s: PenaltyState) -> PenaltyState:
        """psi~ is minimised at this penalty: measure the bias, stop or shrink the penalty."""
        if self.sigma is not None:
            return replace(s, outcome=Status.MAX_STEPS)
        bias, inner = self._bias(oracle, s)  # (3)
        new, eps = replace(s, bias=bias, inner=inner), torch.finfo(s.x.dtype).eps
        if bias + s.residual <= self.tolerance:
            return replace(new, outcome=Status.CONVERGED)
        if bias <= self.tolerance / 2:
            return new  # now R has to fall below tol / 2
        if bias >= s.bias and s.sigma <= eps ** (1 / 3):  # round-off over sigma: the stage before was better
            return replace(new, x=s.stage, outcome=Status.PRECISION)
        sigma = s.sigma * min(max(math.sqrt(0.25 * self.tolerance / bias), 0.01), 0.5)  # (4)
        sigma = max(sigma, 4 * math.sqrt(eps))  # so that every penalty, the one that measures the bias too, is >= sqrt(eps)
        if sigma > 0.9 * s.sigma:
            return replace(new, outcome=Status.PRECISION)
        terms = penalty(sigma, self.richardson)
        inner = (inner[0], *(replace(one, sigma=smaller) for one, (_, smaller) in zip(inner[1:], terms)))
        return self._again(oracle, replace(new, sigma=sigma, inner=inner, theta=self.theta, stale=0, stage=s.x))

    def terminate(self, oracle: BilevelOracle, state: PenaltyState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: PenaltyState) -> Point:
        ys = [one.y for one in state.inner[1:]]
        y = ys[1] * 2 - ys[0] if self.richardson else ys[0]
        tol = answer_tolerance(self.tolerance, y)
        return Point(state.x, solve_lower(oracle, state.x, oracle.Y.project(y), tol).x)

    def monitor(self, state: PenaltyState) -> dict[str, float]:
        return {"upper": state.upper, "lower": state.lower, "residual": state.residual, "sigma": state.sigma}

    def notes(self, state: PenaltyState) -> tuple[str, ...]:
        if self.sigma is None and state.outcome == Status.PRECISION and state.bias > self.tolerance:
            return (
                f"The penalty cannot shrink further, its bias is {state.bias:.1e}: round-off, or a kink of the hyper-objective.",
            )
        if self.sigma is None:
            return ()
        return (f"sigma is fixed at {self.sigma:g}: the point solves the surrogate psi_sigma, not the bilevel problem itself.",)

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _surrogate(self, oracle: BilevelOracle, s: PenaltyState) -> NestedPenalty:
        return NestedPenalty(
            oracle, self.inner.suited(oracle.Y), s.inner, s.sigma, self.richardson, s.theta, s.best, self.max_inner
        )

    def _read(self, s: PenaltyState, psi: NestedPenalty, outer: Descent) -> PenaltyState:
        """The state with what the outer method and the surrogate now hold."""
        status = LOWER_FAILED.get(psi.reason) or UPPER_FAILED.get(outer.reason) or Status.RUNNING
        return replace(
            s,
            x=outer.x,
            inner=psi.inner,
            outer=outer,
            residual=outer.residual,
            best=psi.best,
            value=outer.value,
            upper=psi.upper,
            lower=psi.lower,
            outcome=status,
        )

    def _again(self, oracle: BilevelOracle, s: PenaltyState) -> PenaltyState:
        """Evaluate afresh at x: at the start, and where the penalty or the accuracy changed. The outer memory is kept."""
        psi, method = self._surrogate(oracle, s), self.outer.suited(oracle.X)  # pyright: ignore[reportAttributeAccessIssue]
        memory = s.outer.memory if isinstance(s.outer, Descent) else None
        return self._read(s, psi, method.init(psi, oracle.X, s.x, memory))

    def _outer_tolerance(self, s: PenaltyState) -> float:
        if self.sigma is not None:
            return self.tolerance
        return (self.tolerance if s.bias <= self.tolerance / 2 else max(self.tolerance, 0.1 * s.sigma**2)) / 2

    def _bias(self, oracle: BilevelOracle, s: PenaltyState) -> tuple[float, tuple[Inner, ...]]:
        """b, by one more inner minimisation at half the smallest penalty; and the inner minimisers, refined."""
        terms = penalty(s.sigma, self.richardson)
        small = terms[-1][1] / 2
        tol = max(s.theta * small * min(1.0, s.best), 30 * torch.finfo(s.x.dtype).eps)
        half = replace(copy(s.inner[-1]), sigma=small)
        z, *ys = [inner_minimum(oracle, self.inner.suited(oracle.Y), s.x, one, tol, self.max_inner) for one in (*s.inner, half)]
        psi = [(y.x_gradient - z.x_gradient) * (1 / y.inner.sigma) for y in ys]
        bias = psi[2] * 2 - psi[1] * 3 + psi[0] if self.richardson else (psi[1] - psi[0]) * 1.5
        return 4 / 3 * float(bias.norm()), (z.inner, *(y.inner for y in ys[:-1]))

    def _optimizer_step(self, oracle: BilevelOracle, s: PenaltyState) -> PenaltyState:
        """x <- P_X(optimizer's step along grad psi)."""
        assert isinstance(self.outer, Optimizer)
        assert isinstance(s.outer, dict)
        psi = self._surrogate(oracle, s)
        value, grad = psi(s.x)  # (1)
        x, outer = self.outer.update(s.x, grad.leaves, s.outer, at(self.outer.lr, s.k))  # (2)
        status = LOWER_FAILED.get(psi.reason, Status.RUNNING)
        return replace(
            s,
            k=s.k + 1,
            x=oracle.X.project(x),
            inner=psi.inner,
            outer=outer,
            residual=residual(oracle.X, s.x, grad),
            best=psi.best,
            value=value,
            upper=psi.upper,
            lower=psi.lower,
            outcome=status,
        )
