"""Penalty: nested penalty continuation with Richardson extrapolation, after Kwon, Kwon, Wright and Nowak (2023).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y };  the lower level may have several solutions (the best for f
    is meant), must satisfy a proximal error bound (strongly convex, PL, ...).

Reformulation
    psi_s(x) = (min_y [s f + g](x, y) - min_z g(x, z)) / s  ->  min_{y in S(x)} f(x, y)  as s -> 0, with bias O(s);
    psi~ = 2 psi_{s/2} - psi_s has bias O(s^2).

Algorithm (tuning-free deterministic form; s starts at 1)
    (1) for each trial x:  z, y_s, y_{s/2} <- minimisers of g, s f + g, (s/2) f + g, from the last ones, to a residual
        theta (s/2) min(1, R)
    (2) x <- one step of the outer method on psi~ (L-BFGS; projected on a set X); where its line search fails or R no longer
        falls, theta <- theta / 10
    (3) when R = |x - P_X(x - grad psi~)| <= max(tol, s^2 / 10) / 2:  bias b = 4/3 |grad psi~_{s/2} - grad psi~_s|
    (4) stop if b + R <= tol; where b <= tol / 2 already, stay at s until R <= tol / 2;
        else s <- s clip(sqrt(tol / (4 b)), 0.01, 0.5), not below 4 sqrt(eps). The run ends where s can shrink no further and,
        with the x of the s before, where b no longer falls at s <= eps^(1/3): round-off
    answer: x, and the lower solution reached by minimising g(x, .) from 2 y_{s/2} - y_s

Where it stands
    (1) `NestedPenalty.at` in reformulations/nested_penalty.py, (2) `descended` in reformulations/continuation.py, the rest here

Notation
    f upper, g lower, s = sigma (the papers' sigma; F2SA's 1/lambda), R the residual of psi~, in (1) the smallest seen (`best`),
    theta the inner accuracy; inner = (z, y_s, y_{s/2}).
    With richardson=False psi_s stands for psi~, y_s for what is extrapolated, and b = 2 |grad psi_{s/2} - grad psi_s|.

With a fixed `sigma` the point solves the surrogate psi_sigma and not the bilevel problem, which regularises: an exact
hypergradient can overfit a small validation set. Such a run ends with MAX_STEPS and says so in its notes.

References
    Kwon, Kwon, Wright, Nowak: On penalty methods for nonconvex bilevel optimization, arXiv 2309.01753. The continuation, the
    extrapolation and all tolerances are this library's, not the paper's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any, ClassVar

import torch

from constrained.core.optimizers import Optimizer, OptState, ScalarAdam
from constrained.core.options import Fraction, Positive, Steps, at
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec, copy
from constrained.descent import LBFGS, Descent, Method, residual

from ..lower.solution import solve_lower
from ..oracle import BilevelOracle
from ..reformulations.accuracy import answer_tolerance
from ..reformulations.continuation import LOWER, Continuation, Stage, verdict
from ..reformulations.nested_penalty import Inner, NestedPenalty, inner_minimum, penalty


@solver_state("PenaltyState")
class PenaltyState(Stage):
    """Where the continuation stands."""

    sigma: float
    inner: tuple[Inner, ...]  # z, then one minimiser a penalty
    bias: float  # last measured b
    stage: Vec  # x at the end of the stage before
    upper: float  # f at the penalised y
    lower: float  # g at z

    @property
    def x(self) -> Vec:
        return self.outer.x

    @staticmethod
    def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
        """0.1.0 kept x and psi~ twice."""
        return {name: value for name, value in fields.items() if name not in ("x", "value")}

    @staticmethod
    def successor(fields: Mapping[str, Any]) -> type | None:
        """In 0.1.0 a state with an Optimizer's memory was of this class too."""
        return PenaltyDescentState if isinstance(fields["outer"], dict) else None


@dataclass(frozen=True, kw_only=True)
class Penalty(Continuation[PenaltyState, NestedPenalty]):
    """Penalty method by continuation, without second derivatives and without anything to tune.

    psi~ = 2 psi_{s/2} - psi_s,  psi_s(x) = (min_y [s f + g] - min_z g) / s;  s shrinks until the measured bias is below tol.

    tol: on the residuals (None: 1e-6 in float64, 1e-3 in float32). sigma: None is the continuation; a number fixes the penalty
    and the answer then solves a regularised surrogate. richardson: extrapolate. outer: LBFGS() (ProjectedLBFGS where X is a
    Box, SPG on other sets); `PenaltyDescent` takes an Optimizer. inner: the same for the lower variable. theta: inner accuracy
    relative to the outer residual. max_outer: outer steps. max_inner: steps of one inner minimisation.

    A step costs, for each trial point of the outer method, three inner minimisations (two without Richardson); each of their
    iterations is one gradient of g, or one of f and one of g. No second derivatives.

    >>> Penalty(sigma=10.0, richardson=False, max_outer=30).sigma
    10.0

    Source: arXiv 2309.01753; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.NO_HVP

    tol: Positive | None = None
    sigma: Positive | None = None
    richardson: bool = True
    outer: Method = LBFGS()
    inner: Method = LBFGS()
    theta: Fraction = 0.1
    max_outer: Steps = 1000
    max_inner: Steps = 10_000

    def __new__(cls, **options: Any) -> Any:
        """With an Optimizer as `outer` this was 0.1.0's name of `PenaltyDescent`; it goes with the next release."""
        if not isinstance(options.get("outer"), Optimizer):
            return super().__new__(cls, **options)
        warnings.warn("Penalty(outer=an Optimizer) is now PenaltyDescent(outer=...)", DeprecationWarning, stacklevel=2)
        options = {name: value for name, value in options.items() if name != "sigma" or value is not None}
        return PenaltyDescent(**{"sigma": 1.0, **options})

    @property
    def exact(self) -> bool:
        return self.sigma is None

    def init(self, oracle: BilevelOracle, start: Point) -> PenaltyState:
        inf, sigma = math.inf, self.sigma or 1.0
        blank = PenaltyState(
            k=0,
            outer=Descent.blank(start.x),
            theta=self.theta,
            residual=inf,
            best=inf,
            stale=0,
            outcome=Status.RUNNING,
            sigma=sigma,
            inner=tuple(Inner(s, start.y, None) for s in (0.0, *(s for _, s in penalty(sigma, self.richardson)))),
            bias=inf,
            stage=start.x,
            upper=inf,
            lower=inf,
        )
        return self.refreshed(oracle, blank)

    def next_stage(self, oracle: BilevelOracle, s: PenaltyState) -> PenaltyState:
        """psi~ is minimised at this penalty: measure the bias, stop or shrink the penalty."""
        if self.sigma is not None:
            return replace(s, outcome=Status.MAX_STEPS)
        bias, inner = self._bias(oracle, s)  # (3)
        new, eps = replace(s, bias=bias, inner=inner), torch.finfo(s.x.dtype).eps
        if bias + s.residual <= self.tolerance:  # (4)
            return replace(new, outcome=Status.CONVERGED)
        if bias <= self.tolerance / 2:
            return new  # (4): now R has to fall below tol / 2
        if bias >= s.bias and s.sigma <= eps ** (1 / 3):  # (4): round-off over sigma: the stage before was better
            return replace(new, outer=replace(s.outer, x=s.stage), outcome=Status.PRECISION)
        sigma = s.sigma * min(max(math.sqrt(0.25 * self.tolerance / bias), 0.01), 0.5)  # (4)
        sigma = max(sigma, 4 * math.sqrt(eps))  # so that every penalty, the one that measures the bias too, is >= sqrt(eps)
        if sigma > 0.9 * s.sigma:  # (4): no further
            return replace(new, outcome=Status.PRECISION)
        terms = penalty(sigma, self.richardson)
        inner = (inner[0], *(replace(one, sigma=smaller) for one, (_, smaller) in zip(inner[1:], terms)))
        return self.refreshed(oracle, replace(new, sigma=sigma, inner=inner, theta=self.theta, stale=0, stage=s.x))

    def answer(self, oracle: BilevelOracle, state: PenaltyState) -> Point:
        return lower_answer(oracle, state.x, state.inner, self.tolerance)

    def monitor(self, state: PenaltyState) -> dict[str, float]:
        return {"upper": state.upper, "lower": state.lower, "residual": state.residual, "sigma": state.sigma}

    def notes(self, state: PenaltyState) -> tuple[str, ...]:
        if self.sigma is None and state.outcome == Status.PRECISION and state.bias > self.tolerance:
            return (
                f"The penalty cannot shrink further, its bias is {state.bias:.1e}: round-off, or a kink of the hyper-objective.",
            )
        if self.sigma is None:
            return ()
        return (FIXED.format(self.sigma),)

    # -- the stage --------------------------------------------------------------------------------------------------------
    def objective(self, oracle: BilevelOracle, s: PenaltyState) -> NestedPenalty:
        """(1): psi~ at s.sigma."""
        method = self.inner.for_set(oracle.Y)
        return NestedPenalty(oracle, method, s.inner, s.sigma, self.richardson, s.theta, s.best, self.max_inner)

    def read(self, oracle: BilevelOracle, s: PenaltyState, objective: NestedPenalty, outer: Descent) -> PenaltyState:
        return replace(
            s,
            outer=outer,
            residual=outer.residual,
            best=objective.best,
            outcome=verdict(objective.reason, outer.reason),
            inner=objective.inner,
            upper=objective.upper,
            lower=objective.lower,
        )

    def enough(self, s: PenaltyState) -> float:
        """(3), (4): R at which the bias is measured."""
        if self.sigma is not None:
            return self.tolerance
        return (self.tolerance if s.bias <= self.tolerance / 2 else max(self.tolerance, 0.1 * s.sigma**2)) / 2

    def _bias(self, oracle: BilevelOracle, s: PenaltyState) -> tuple[float, tuple[Inner, ...]]:
        """(3): b, by one more inner minimisation at half the smallest penalty; and the inner minimisers, refined."""
        terms = penalty(s.sigma, self.richardson)
        small = terms[-1][1] / 2
        tol = max(s.theta * small * min(1.0, s.best), 30 * torch.finfo(s.x.dtype).eps)
        half = replace(copy(s.inner[-1]), sigma=small)
        z, *ys = [inner_minimum(oracle, self.inner.for_set(oracle.Y), s.x, one, tol, self.max_inner) for one in (*s.inner, half)]
        grads = [(y.x_gradient - z.x_gradient) * (1 / y.inner.sigma) for y in ys]  # of psi_s, psi_{s/2}, psi_{s/4}
        # grad psi~_{s/2} - grad psi~_s = (2 grad psi_{s/4} - grad psi_{s/2}) - (2 grad psi_{s/2} - grad psi_s)
        bias = grads[2] * 2 - grads[1] * 3 + grads[0] if self.richardson else (grads[1] - grads[0]) * 1.5
        return 4 / 3 * float(bias.norm()), (z.inner, *(y.inner for y in ys[:-1]))


@solver_state("PenaltyDescentState")
class PenaltyDescentState:
    """x, the inner minimisers at the x before, and the optimizer's memory."""

    k: int  # completed steps
    x: Vec
    inner: tuple[Inner, ...]  # z, then one minimiser a penalty
    outer: OptState  # the optimizer's own state
    residual: float  # R at the x before
    best: float  # smallest R seen
    upper: float  # f at the penalised y
    lower: float  # g at z
    outcome: Status

    @staticmethod
    def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
        """From 0.1.0's PenaltyState."""
        return {field.name: fields[field.name] for field in dataclass_fields(PenaltyDescentState)}


@dataclass(frozen=True, kw_only=True)
class PenaltyDescent(Solver[BilevelOracle, PenaltyDescentState]):
    """Descent on psi~ at a fixed penalty by an optimizer's steps: for a loop with a schedule, such as Adam's.

    x <- P_X(the optimizer's step along grad psi~(x)),  psi~ = 2 psi_{s/2} - psi_s, s = sigma, or psi_s without Richardson

    The point solves the surrogate and not the bilevel problem, which regularises. sigma: the penalty. outer: an Optimizer such
    as ScalarAdam(lr=...). The other options as in `Penalty`. A step costs three inner minimisations (two without Richardson). It
    ends at max_outer.

    >>> from bilevel import ScalarAdam
    >>> PenaltyDescent(sigma=0.01, outer=ScalarAdam(lr=0.1)).sigma
    0.01

    Source: arXiv 2309.01753, the double loop with exact inner solutions.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.NO_HVP
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    sigma: Positive = 0.1
    richardson: bool = True
    outer: Optimizer = ScalarAdam()
    inner: Method = LBFGS()
    theta: Fraction = 0.1
    max_outer: Steps = 1000
    max_inner: Steps = 10_000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    @property
    def exact(self) -> bool:
        return False

    def init(self, oracle: BilevelOracle, start: Point) -> PenaltyDescentState:
        sigmas = (0.0, *(s for _, s in penalty(self.sigma, self.richardson)))
        return PenaltyDescentState(
            k=0,
            x=start.x,
            inner=tuple(Inner(s, start.y, None) for s in sigmas),
            outer=self.outer.init(start.x),
            residual=math.inf,
            best=math.inf,
            upper=math.inf,
            lower=math.inf,
            outcome=Status.RUNNING,
        )

    def step(self, oracle: BilevelOracle, state: PenaltyDescentState) -> PenaltyDescentState:
        s, method = state, self.inner.for_set(oracle.Y)
        psi = NestedPenalty(oracle, method, s.inner, self.sigma, self.richardson, self.theta, s.best, self.max_inner)
        _, grad = psi(s.x)
        x, outer = self.outer.update(s.x, grad.leaves, s.outer, at(self.outer.lr, s.k))
        return PenaltyDescentState(
            k=s.k + 1,
            x=oracle.X.project(x),
            inner=psi.inner,
            outer=outer,
            residual=residual(oracle.X, s.x, grad),
            best=psi.best,
            upper=psi.upper,
            lower=psi.lower,
            outcome=LOWER.get(psi.reason, Status.RUNNING),
        )

    def terminate(self, oracle: BilevelOracle, state: PenaltyDescentState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: PenaltyDescentState) -> Point:
        return lower_answer(oracle, state.x, state.inner, self.tolerance)

    def monitor(self, state: PenaltyDescentState) -> dict[str, float]:
        return {"upper": state.upper, "lower": state.lower, "residual": state.residual, "sigma": self.sigma}

    def notes(self, state: PenaltyDescentState) -> tuple[str, ...]:
        return (FIXED.format(self.sigma),)


FIXED = "sigma is fixed at {:g}: the point solves the surrogate psi_sigma, not the bilevel problem itself."


def lower_answer(oracle: BilevelOracle, x: Vec, inner: tuple[Inner, ...], tol: float) -> Point:
    """(x, the lower solution reached from the extrapolated penalised y): among several, the one that f prefers."""
    _, *ys = (one.y for one in inner)
    y = ys[1] * 2 - ys[0] if len(ys) > 1 else ys[0]
    return Point(x, solve_lower(oracle, x, oracle.Y.project(y), answer_tolerance(tol, y)).x)
