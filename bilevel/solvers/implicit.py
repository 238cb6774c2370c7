"""Implicit: implicit differentiation with adaptive accuracy (Pedregosa 2016).

Problem
    min over x in X of f(x, y), y = argmin { g(x, y) : y in Y }, g twice differentiable with one minimiser, at least near y.

Reformulation
    Phi(x) = f(x, y(x));   grad Phi = f_x - g_xy v,  g_yy v = f_y; on a set Y v lives in the tangent of Y at y

Algorithm (one outer step)
    (1) for each trial x:  y <- argmin over Y of g(x, .), from the last y, to |y - P_Y(y - g_y)| <= theta min(1, R) / gain
                           v <- solution of g_yy v = f_y, from the last v, to a residual of a tenth of that
                           Phi = f(x, y) - v'g_y,  grad Phi = f_x - g_xy v
    (2) x <- one step of the outer method on Phi (L-BFGS; projected on a set X), R = |x - P_X(x - grad Phi)|
    (3) where the line search fails or R no longer falls: theta <- theta / 10, the second time 1e-6 of the first theta, and Phi is
        evaluated again; the run ends the third time, or where that changes grad Phi by no more than R / 1000
    (4) stop if R <= tol

Where it stands
    (1) `Hyperobjective` in reformulations/hyperobjective.py, v `differentiate` in hypergradients/adjoint.py; (2) and the tests
    of (3) `descended` in reformulations/continuation.py, the rest here

Notation
    f upper, g lower, theta the inner accuracy, gain the change of grad Phi that a unit of |g_y| makes, as measured, 1 at least;
    R in (1) the smallest seen (`best`). In the state response = (y, v) with what their methods remember.

References
    Pedregosa: Hyperparameter optimization with approximate gradient, arXiv 1602.02355. There the accuracies are a sequence fixed
    in advance; here they follow R. The corrected value, the warm starts and the search are this library's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, Descent, DescentStatus, Method
from constrained.descent.newton_cg import NewtonCG
from constrained.linear import CG, LinearSolver, LinearStatus
from constrained.linear.diagonal import Diagonal

from ..hypergradients.adjoint import AdjointMethod
from ..lower.solution import Lower
from ..oracle import BilevelOracle
from ..reformulations.continuation import Continuation, Stage, verdict
from ..reformulations.hyperobjective import Hyperobjective, Response

STILL = 1e-8  # a relative step; without a smaller R it counts as a fifth of the patience: x is at a kink
BLAMED = 1e-3  # of R: a smaller change of the gradient, by ten times the accuracy, is not why the search failed
UNSOLVED = (DescentStatus.MAX_STEPS, DescentStatus.LINE_SEARCH)
LINEAR = {LinearStatus.LEAST_SQUARES: Status.SINGULAR, LinearStatus.NEGATIVE_CURVATURE: Status.LOWER_UNSOLVED}


@solver_state("ImplicitState")
class ImplicitState(Stage):
    """Where the minimisation of Phi stands."""

    response: Response  # y, v and the lower method's memory
    gain: float  # |change of grad Phi| that a unit of |g_y| makes, as measured
    evaluations: int  # of Phi and grad Phi
    lower: float  # |y - P_Y(y - g_y)|
    linear: float  # |f_y - g_yy v|

    @property
    def x(self) -> Vec:
        return self.outer.x

    @staticmethod
    def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
        """0.1.0 kept x twice, and R in `outer` alone."""
        return {**{name: value for name, value in fields.items() if name != "x"}, "residual": fields["outer"].residual}


@dataclass(frozen=True, kw_only=True)
class Implicit(Continuation[ImplicitState, Hyperobjective]):
    """Implicit differentiation: full precision where the lower level has one smooth solution, nothing to tune.

    grad Phi = f_x - g_xy v with g_yy v = f_y at y = argmin over Y of g(x, .); where Y is a set, on its tangent at y.

    inverse: how v is found: CG() (MINRES where g_yy is singular), Minres(), Direct(), Neumann(), FixedPoint(map=...), or
    Unrolled(), which takes the steps on y too. outer: LBFGS() (ProjectedLBFGS where X is a Box, SPG on other sets). lower: the
    method for y, NewtonCG() (SPG on sets that are no boxes) or LBFGS(). theta: inner accuracy relative to the outer residual.
    max_outer: outer steps; max_inner: steps of one lower minimisation.

    A step costs one hypergradient a trial point of the outer method: a lower minimisation and a linear solve.

    >>> import torch, bilevel
    >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> problem = bilevel.BilevelProblem(
    ...     upper=lambda x, y: ((y - a) ** 2).sum() + 0.1 * (x**2).sum(),
    ...     lower=lambda x, y: ((y - x) ** 2).sum() + 0.5 * (y**2).sum(),
    ...     x=torch.zeros(2, dtype=torch.float64), y=torch.zeros(2, dtype=torch.float64))
    >>> result = bilevel.solve(problem, Implicit(), tol=1e-9)
    >>> result.status.name, result.x.round(decimals=6)
    ('CONVERGED', tensor([1.2245, 2.4490], dtype=torch.float64))

    Source: arXiv 1602.02355; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET
    curved: ClassVar[bool] = True

    tol: Positive | None = None
    inverse: LinearSolver | AdjointMethod = CG()
    outer: Method = LBFGS()
    lower: Method = NewtonCG()
    theta: Fraction = 0.01
    max_outer: Steps = 1000
    max_inner: Steps = 10_000

    def init(self, oracle: BilevelOracle, start: Point) -> ImplicitState:
        blank = ImplicitState(
            k=0,
            outer=Descent.blank(start.x),
            theta=self.theta,
            residual=math.inf,
            best=math.inf,
            stale=0,
            outcome=Status.RUNNING,
            response=Response(start.y, start.y.zeros(), None, Diagonal.blank(start.y)),
            gain=0.0,
            evaluations=0,
            lower=math.inf,
            linear=math.inf,
        )
        return self.refreshed(oracle, blank)

    def enough(self, s: ImplicitState) -> float:
        """(4): there is one stage."""
        return self.tolerance

    def next_stage(self, oracle: BilevelOracle, s: ImplicitState) -> ImplicitState:
        return replace(s, outcome=Status.CONVERGED)  # (4)

    def counted(self, before: ImplicitState, after: ImplicitState) -> ImplicitState:
        """(3): steps since R last fell; where x stays, each counts for several."""
        if after.residual < 0.9 * before.best:
            return replace(after, stale=0)
        still = float((after.x - before.x).norm()) <= STILL * (1.0 + float(before.x.norm()))
        return replace(after, stale=before.stale + (self.patience // 5 if still else 1))

    def tighter(self, theta: float) -> float:
        """(3): the next theta."""
        return 0.1 * theta if theta == self.theta else self.tightest * self.theta

    def helped(self, before: ImplicitState, after: ImplicitState) -> bool:
        """(3): grad Phi changed enough."""
        change = float((after.outer.gradient - before.outer.gradient).norm())
        return change > BLAMED * before.outer.residual or after.outcome is not Status.RUNNING

    def answer(self, oracle: BilevelOracle, state: ImplicitState) -> Point:
        level = Lower(oracle, state.x, state.response.diagonal.faded())  # the last trial's y may be of another x
        y = level.minimised(self.lower.for_set(oracle.Y), state.response.y, 0.1 * self.tolerance, max_steps=self.max_inner).x
        return Point(state.x, y)

    def monitor(self, state: ImplicitState) -> dict[str, float]:
        return {"upper": state.outer.value, "residual": state.outer.residual, "lower": state.lower, "linear": state.linear}

    def notes(self, state: ImplicitState) -> tuple[str, ...]:
        if state.outcome in (Status.PRECISION, Status.LINE_SEARCH) and state.outer.residual > 1e3 * self.tolerance:
            return ("The gradient of the hyper-objective may jump here: where y reaches a face of Y, or g has a kink.",)
        return ()

    # -- the stage --------------------------------------------------------------------------------------------------------
    def objective(self, oracle: BilevelOracle, s: ImplicitState) -> Hyperobjective:
        """(1): Phi, solved inside to theta."""
        lower = self.lower.for_set(oracle.Y)
        return Hyperobjective(oracle, lower, self.inverse, s.response, s.theta, s.best, s.gain, self.max_inner)

    def read(self, oracle: BilevelOracle, s: ImplicitState, objective: Hyperobjective, outer: Descent) -> ImplicitState:
        found = objective.answer
        if found is None:  # the search ended before it looked anywhere
            return replace(s, outer=outer)
        reason = DescentStatus.UNBOUNDED if found.reason in UNSOLVED else found.reason
        status = verdict(reason, outer.reason)
        if status is Status.RUNNING:
            status = LINEAR.get(found.linear_reason, status)
        if status is Status.RUNNING and outer.residual <= self.tolerance:  # (4)
            status = Status.CONVERGED
        return replace(
            s,
            outer=outer,
            residual=outer.residual,
            best=objective.best,
            outcome=status,
            response=objective.response,
            gain=objective.gain,
            evaluations=s.evaluations + objective.evaluations,
            lower=found.lower,
            linear=found.linear,
        )
