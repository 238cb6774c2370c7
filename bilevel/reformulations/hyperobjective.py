"""The hyper-objective Phi(x) = f(x, y(x)), y(x) = argmin over Y of g(x, .), and its gradient by implicit differentiation.

    grad Phi = f_x - g_xy v,  (T g_yy T + C) v = T f_y         T, C: the tangent of Y at y (`adjoint.py`)
    Phi      = f(x, y) - v'T g_y + O(|T g_y|^2)                the value of an inexact y, corrected to first order

Both solves start where the last ones ended. Pedregosa 2016, arXiv 1602.02355, for inexact solves with summable errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from constrained.core.states import solver_state
from constrained.core.vec import Vec
from constrained.descent import DescentStatus, Method, Reformulation, residual
from constrained.descent.curvature_pairs import Pairs
from constrained.linear import LinearSolver, LinearStatus
from constrained.linear.diagonal import Diagonal

from ..hypergradients.adjoint import AdjointMethod, LevelsAt, Wanted, differentiate
from ..lower.solution import Lower
from ..oracle import BilevelOracle
from .accuracy import floor, tightened

LINEAR = 0.1  # share of the inner accuracy below which the linear residual is kept


@solver_state("Response")
class Response:
    """The lower solution y at the last x, the adjoint v there, and what the lower method remembers."""

    y: Vec
    v: Vec
    memory: Pairs | float | None
    diagonal: Diagonal  # of g_yy, which preconditions both solves


@dataclass
class Answer:
    """What one evaluation found: Phi, grad Phi, |y - P_Y(y - g_y)|, |T f_y - (T g_yy T + C) v|, and why the solves ended."""

    value: float
    gradient: Vec
    lower: float
    linear: float
    reason: DescentStatus
    linear_reason: LinearStatus


class Hyperobjective(Reformulation):
    """Phi and grad Phi as a function of x for `descent`. `response` and `best` are read back by who keeps them.

    lower: the method for y. inverse: finds v. theta: |g_y| is kept below theta min(1, R) / gain, R the smallest residual of Phi
    seen and `gain` the change of the gradient that a unit of |g_y| was seen to make (0: not yet measured), and the linear
    residual below a tenth of that. max_inner: steps of one lower minimisation.
    """

    def __init__(
        self,
        oracle: BilevelOracle,
        lower: Method,
        inverse: LinearSolver | AdjointMethod,
        response: Response,
        theta: float,
        best: float,
        gain: float,
        max_inner: int,
    ):
        self.oracle, self.lower, self.inverse, self.response = oracle, lower, inverse, response
        self.set = oracle.X
        self.theta, self.best, self.gain, self.max_inner = theta, best, gain, max_inner
        self.evaluations = 0
        self.answer: Answer | None = None  # of the last call

    def __call__(self, x: Vec) -> tuple[float, Vec]:
        self.evaluations += 1
        level = Lower(self.oracle, x, self.response.diagonal.faded())
        before: tuple[float, Vec] | None = None  # inner tolerance and gradient of the evaluation before

        def evaluate(tol: float) -> float:
            nonlocal before
            found = self.answer = self.at(level, tol)
            r = residual(self.set, x, found.gradient)
            if not math.isfinite(r) or found.reason is not DescentStatus.CONVERGED:
                return math.nan
            if before is not None:  # two evaluations show what an inner error does to the gradient
                self.gain = max(self.gain, float((found.gradient - before[1]).norm()) / before[0])
            before = tol, found.gradient
            return r

        r = tightened(evaluate, lambda r: self.wanted(r, x), floor(x), unmeasured=lambda: self.gain <= 0)
        self.best = min(self.best, r)
        assert self.answer is not None
        return self.answer.value, self.answer.gradient

    def wanted(self, r: float, x: Vec) -> float:
        """The inner residual that leaves an error of theta R in the gradient."""
        return max(self.theta * min(1.0, self.best, r) / max(1.0, self.gain), floor(x))

    def at(self, level: Lower, tol: float) -> Answer:
        oracle, x, old = self.oracle, level.x, self.response
        y, memory, reason = old.y, old.memory, None
        if not (isinstance(self.inverse, AdjointMethod) and self.inverse.moves):
            solved = level.minimised(self.lower, y, tol, max_steps=self.max_inner, memory=memory)
            y, memory, reason = solved.x, solved.memory, solved.reason
        here = LevelsAt.of(oracle, x, y, level.at(y))
        found = differentiate(self.inverse, here, Wanted(tol, LINEAR * tol), start=old.v, diagonal=level.diagonal)
        self.response, lower = Response(found.here.y, found.v, memory, level.diagonal), found.here.residual
        if found.reason is LinearStatus.NONFINITE:
            reason = DescentStatus.NONFINITE
        elif reason is None:
            reason = DescentStatus.CONVERGED if lower <= tol else DescentStatus.MAX_STEPS
        return Answer(found.value, found.gradient, lower, found.residual, reason, found.reason)
