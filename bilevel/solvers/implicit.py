"""Implicit: implicit differentiation with adaptive accuracy (Pedregosa 2016).

Problem
    min over x in X of f(x, y), y = argmin { g(x, y) : y in Y }, g twice differentiable with one minimiser, at least near y.

Reformulation
    Phi(x) = f(x, y(x));   grad Phi = f_x - g_xy v,  g_yy v = f_y; on a set Y v lives in the tangent of Y at y

Algorithm (one outer step)
    (1) for each trial x:  y <- argmin over Y of g(x, .), from the last y, to |y - P_Y(y - g_y)| <= theta min(1, R) / gain
                           v <- solution of g_yy v = f_y, from the last v, to a residual theta min(1, R) / 10
                           Phi = f(x, y) - v'g_y,  grad Phi = f_x - g_xy v
    (2) x <- one step of the outer method on Phi (L-BFGS; projected on a set X), R = |x - P_X(x - grad Phi)|
    (3) where the line search fails or R no longer falls: theta <- theta / 10, then 1e-6 theta, and Phi is evaluated again
    (4) stop if R <= tol

Notation
    f upper, g lower, theta the inner accuracy, gain >= 1 the change of grad Phi that a unit of |g_y| makes, as measured.

References
    Pedregosa: Hyperparameter optimization with approximate gradient, arXiv 1602.02355. There the accuracies are a sequence fixed
    in advance; here they follow R. The corrected value, the warm starts and the search are this library's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.solver import Solver
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
from ..reformulations.hyperobjective import Hyperobjective, Response

PATIENCE = 50  # outer steps without a smaller R after which the inner accuracy is raised
STILL = 1e-8  # a relative step; without a smaller R it counts as a fifth of the patience: x is at a kink
TIGHTEST = 1e-6  # times theta
BLAMED = 1e-3  # of R: a smaller change of the gradient, by ten times the accuracy, is not why the search failed
UNSOLVED = (DescentStatus.UNBOUNDED, DescentStatus.MAX_STEPS, DescentStatus.LINE_SEARCH)
LOWER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, **dict.fromkeys(UNSOLVED, Status.LOWER_UNSOLVED)}
UPPER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.UNBOUNDED}
LINEAR_FAILED = {LinearStatus.LEAST_SQUARES: Status.SINGULAR, LinearStatus.NEGATIVE_CURVATURE: Status.LOWER_UNSOLVED}


@solver_state("ImplicitState")
class ImplicitState:
    """Where the minimisation of Phi stands."""

    k: int  # completed outer steps
    x: Vec
    response: Response  # y, v and the lower method's memory
    outer: Descent  # the outer method's own state
    theta: float  # inner accuracy
    best: float  # smallest R seen
    gain: float  # |change of grad Phi| that a unit of |g_y| makes, as measured
    stale: int  # steps since R last fell
    evaluations: int  # of Phi and grad Phi
    lower: float  # |y - P_Y(y - g_y)|
    linear: float  # |f_y - g_yy v|
    outcome: Status


@dataclass(frozen=True, kw_only=True)
class Implicit(Solver[BilevelOracle, ImplicitState]):
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
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    inverse: LinearSolver | AdjointMethod = CG()
    outer: Method = LBFGS()
    lower: Method = NewtonCG()
    theta: Fraction = 0.01
    max_outer: Steps = 1000
    max_inner: Steps = 10_000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: BilevelOracle, start: Point) -> ImplicitState:
        phi = self._phi(oracle, Response(start.y, start.y.zeros(), None, Diagonal.blank(start.y)), self.theta, math.inf, 0.0)
        outer = self.outer.suited(oracle.X).init(phi, oracle.X, start.x)
        blank = ImplicitState(
            0, start.x, phi.response, outer, self.theta, math.inf, 0.0, 0, 0, math.inf, math.inf, Status.RUNNING
        )
        return self._read(blank, phi, outer)

    def step(self, oracle: BilevelOracle, state: ImplicitState) -> ImplicitState:
        s = replace(state, k=state.k + 1)
        phi = self._phi(oracle, s.response, s.theta, s.best, s.gain)
        moved = self.outer.suited(oracle.X).step(phi, oracle.X, s.outer)  # (1), (2)
        new = self._read(s, phi, moved)
        still = float((moved.x - s.x).norm()) <= STILL * (1.0 + float(s.x.norm()))
        new = replace(new, stale=0 if moved.residual < 0.9 * s.best else s.stale + (PATIENCE // 5 if still else 1))
        if new.outcome != Status.RUNNING or (moved.reason is DescentStatus.RUNNING and new.stale <= PATIENCE):
            return new
        if new.theta > self.theta * TIGHTEST:
            theta = 0.1 * new.theta if new.theta == self.theta else TIGHTEST * self.theta
            again = self._again(oracle, replace(new, theta=theta, stale=0))  # (3)
            if float((again.outer.gradient - moved.gradient).norm()) > BLAMED * moved.residual or again.outcome != Status.RUNNING:
                return again
            new = again
        return replace(new, outcome=Status.LINE_SEARCH if moved.reason is DescentStatus.LINE_SEARCH else Status.PRECISION)

    def terminate(self, oracle: BilevelOracle, state: ImplicitState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: ImplicitState) -> Point:
        level = Lower(oracle, state.x, state.response.diagonal.faded())  # the last trial's y may be of another x
        y = level.minimised(self.lower.suited(oracle.Y), state.response.y, 0.1 * self.tolerance, max_steps=self.max_inner).x
        return Point(state.x, y)

    def monitor(self, state: ImplicitState) -> dict[str, float]:
        return {"upper": state.outer.value, "residual": state.outer.residual, "lower": state.lower, "linear": state.linear}

    def notes(self, state: ImplicitState) -> tuple[str, ...]:
        if state.outcome in (Status.PRECISION, Status.LINE_SEARCH) and state.outer.residual > 1e3 * self.tolerance:
            return ("The gradient of the hyper-objective may jump here: where y reaches a face of Y, or g has a kink.",)
        return ()

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _phi(self, oracle: BilevelOracle, response: Response, theta: float, best: float, gain: float) -> Hyperobjective:
        lower = self.lower.suited(oracle.Y)
        return Hyperobjective(oracle, lower, self.inverse, response, theta, best, gain, self.max_inner)

    def _read(self, s: ImplicitState, phi: Hyperobjective, outer: Descent) -> ImplicitState:
        """The state with what the outer method and the hyper-objective now hold, and the verdict."""
        found = phi.answer
        if found is None:
            return replace(s, outer=outer)
        new = replace(
            s,
            x=outer.x,
            outer=outer,
            response=phi.response,
            best=phi.best,
            gain=phi.gain,
            evaluations=s.evaluations + phi.evaluations,
            lower=found.lower,
            linear=found.linear,
        )
        status = LOWER_FAILED.get(found.reason) or UPPER_FAILED.get(outer.reason) or Status.RUNNING
        if status is Status.RUNNING:
            status = LINEAR_FAILED.get(found.linear_reason, status)
        if status is Status.RUNNING and outer.residual <= self.tolerance:  # (4)
            status = Status.CONVERGED
        return replace(new, outcome=status)

    def _again(self, oracle: BilevelOracle, s: ImplicitState) -> ImplicitState:
        """Evaluate afresh at x, more accurately. The outer memory is kept."""
        phi, method = self._phi(oracle, s.response, s.theta, s.best, s.gain), self.outer.suited(oracle.X)
        return self._read(s, phi, method.init(phi, oracle.X, s.x, s.outer.memory))
