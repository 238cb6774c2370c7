"""VPBGD and GPBGD: penalty-based bilevel gradient descent (Shen and Chen 2023), in both variables at once.

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y }; g(x, .) need not be convex: the Polyak-Lojasiewicz inequality
    (for sets Y an error bound) is enough. GPBGD: Y the whole space, and second derivatives.

Reformulation
    F(x, y) = f + gamma p with p >= 0, p = 0 where y solves the lower level: p = g - v, v(x) = min over Y of g(x, .) (VPBGD), or
    p = |g_y|^2 / 2 (GPBGD). A minimiser u = (x, y) of F is O(1 / gamma) away from a solution.

Algorithm (tuning-free form; gamma starts at 1)
    (1) VPBGD, for each trial u: z <- minimiser of g(x, .), from the last z, to a residual theta R / gamma
    (2) u <- one step of the outer method on F / max(gamma, 1) over X x Y (L-BFGS; projected on sets); if its line search fails,
        theta <- theta / 10
    (3) when R = |u - P(u - grad F)| <= max(tol / 3, min(0.05 / gamma, 5 / gamma^2)):  u_e <- the parabola in 1 / gamma through
        the last three such u, at 0
    (4) where u_e has settled: stop if |x_e - P_X(x_e - grad Phi)| <= 0.8 tol at y_e, solved to the end
    (5) gamma <- 10 gamma, and u <- the same parabola at 1 / gamma
    answer: (x_e, the lower solution reached by minimising g(x_e, .) from y_e)

Notation
    f upper, g lower, gamma the penalty (Kwon's 1 / sigma), z the paper's omega, R the residual of F, theta the inner accuracy.

GPBGD can end at a point where g_y lies in the null space of g_yy and is not zero: such a run ends as LOWER_UNSOLVED, and its y is
the point that it stuck at.

References
    Shen, Chen: On penalty-based bilevel gradient descent method, arXiv 2302.05185. Theirs is F (with p = |g_y|^2 in GPBGD), on
    which they take fixed steps at a fixed gamma (`pbgd_fixed.py`); the rest is this library's.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, Descent, DescentStatus, Method, residual

from ..hypergradients.adjoint import adjoint
from ..lower.solution import solve_lower
from ..oracle import BilevelOracle
from ..reformulations.accuracy import answer_tolerance
from ..reformulations.joint_penalty import GradientNorm, JointDescent, JointPenalty, ValueGap, joined, joint, joint_set, split
from ..reformulations.nested_penalty import Inner, NestedPenalty

GROWTH = 10.0  # of gamma
LARGEST = 1e7  # gamma; at most eps^(-1/2), beyond which rounding over gamma shows
PATIENCE = 200  # outer steps without a smaller F or R after which the inner accuracy is raised
SETTLED = 30.0  # times tol: a change of u_e below which the hypergradient there is worth its price
LOWER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.LOWER_UNSOLVED}
UPPER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.UNBOUNDED}


@solver_state("PBGDState")
class PBGDState:
    """Where the continuation stands."""

    k: int  # completed outer steps
    gamma: float
    z: Inner  # VPBGD: the minimiser of g(x, .), and the inner method's memory
    outer: JointDescent  # x, y and the outer method's own state
    theta: float  # inner accuracy
    residual: float  # R at (x, y)
    best: float  # smallest R / max(gamma, 1) seen
    low: float  # smallest F seen at this gamma
    stale: int  # steps since F or R last fell
    stages: int  # values of gamma done
    x_end: Vec  # u at the end of the last stage
    y_end: Vec
    x_line: Vec  # extrapolated from the last two stages
    y_line: Vec
    x_found: Vec  # u_e
    y_found: Vec
    reached: float  # |x_e - P_X(x_e - grad Phi)|, where it was looked at
    upper: float  # f
    gap: float  # p
    outcome: Status


@dataclass(frozen=True, kw_only=True)
class Continuation(Solver[BilevelOracle, PBGDState]):
    """What the two share: gamma grows, and the path of the minimisers of f + gamma p is followed and extrapolated."""

    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    gamma: Positive = 1.0
    outer: Method = LBFGS(memory=100)
    max_outer: Steps = 10_000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: BilevelOracle, start: Point) -> PBGDState:
        x, y, inf, nan = start.x, start.y, math.inf, math.nan
        outer = JointDescent(0, x, y, inf, x.zeros(), y.zeros(), inf, None, (), DescentStatus.RUNNING, None)
        blank = PBGDState(
            k=0,
            gamma=self.gamma,
            z=Inner(0.0, y, None),
            outer=outer,
            theta=self._theta,
            residual=inf,
            best=inf,
            low=inf,
            stale=0,
            stages=0,
            x_end=x,
            y_end=y,
            x_line=x,
            y_line=y,
            x_found=x,
            y_found=y,
            reached=inf,
            upper=nan,
            gap=nan,
            outcome=Status.RUNNING,
        )
        return self._again(oracle, blank)

    def step(self, oracle: BilevelOracle, state: PBGDState) -> PBGDState:
        new = replace(state, k=state.k + 1)
        return self._descend(oracle, new) if state.residual > self._enough(state.gamma) else self._next_stage(oracle, new)

    def terminate(self, oracle: BilevelOracle, state: PBGDState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: PBGDState) -> Point:
        s = state
        x, y = (s.x_found, s.y_found) if s.stages > 1 else (s.outer.x, s.outer.y)
        if s.outcome == Status.LOWER_UNSOLVED:  # to solve it now would hide that x was found at another y
            return Point(x, y)
        tol = answer_tolerance(self.tolerance, y)
        return Point(x, solve_lower(oracle, x, y, tol).x)

    def monitor(self, state: PBGDState) -> dict[str, float]:
        return {"upper": state.upper, "gap": state.gap, "residual": state.residual, "gamma": state.gamma}

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    @property
    def _theta(self) -> float:
        """Inner accuracy at the start of a stage; 0 where there is no inner minimisation."""
        return 0.0

    @abstractmethod
    def _objective(self, oracle: BilevelOracle, s: PBGDState) -> JointPenalty:
        """(f + gamma p) / max(gamma, 1) with what the state knows."""

    @abstractmethod
    def _reached(self, oracle: BilevelOracle, s: PBGDState) -> float:
        """|x_e - P_X(x_e - grad Phi(x_e))|, estimated; infinite where y_e solves no lower level."""

    def _ended(self, oracle: BilevelOracle, s: PBGDState) -> Status:
        """The verdict where gamma may not grow further."""
        return Status.PRECISION

    def _enough(self, gamma: float) -> float:
        return max(self.tolerance / 3, min(0.05 / gamma, 5 / gamma**2))

    def _descend(self, oracle: BilevelOracle, s: PBGDState) -> PBGDState:
        """One outer step; where the line search fails or R no longer falls, a tenth of theta, and then a larger gamma."""
        F = self._objective(oracle, s)  # (1)
        method = self.outer.suited(F.set)
        moved = method.step(F, F.set, joined(s.outer))  # (2)
        better = moved.residual < 0.9 * s.best or moved.value < s.low - 10 * torch.finfo(moved.x.dtype).eps * abs(s.low)
        new = replace(self._read(s, F, moved), low=min(s.low, moved.value), stale=0 if better else s.stale + 1)
        if new.outcome != Status.RUNNING or (moved.reason is DescentStatus.RUNNING and new.stale <= PATIENCE):
            return new
        if new.theta > self._theta * 1e-4:
            return self._again(oracle, replace(new, theta=0.1 * new.theta, stale=0))  # (2)
        if new.residual <= 10 * self._enough(new.gamma):
            return self._next_stage(oracle, new)
        return replace(new, outcome=Status.LINE_SEARCH if moved.reason is DescentStatus.LINE_SEARCH else Status.PRECISION)

    def _next_stage(self, oracle: BilevelOracle, s: PBGDState) -> PBGDState:
        """f + gamma p is minimised: extrapolate, stop or let gamma grow."""
        u, u_end, u_line = joint(s.outer.x, s.outer.y), joint(s.x_end, s.y_end), joint(s.x_line, s.y_line)
        line = u + (u - u_end) / (GROWTH - 1) if s.stages else u  # (3)
        bend = (line - u_line) / (GROWTH**2 - 1) if s.stages > 1 else u.zeros()
        U = joint_set(oracle)
        (x, y), (x_line, y_line), (x_e, y_e) = u.tree(), line.tree(), U.project(line + bend).tree()
        new = replace(s, stages=s.stages + 1, x_end=x, y_end=y, x_line=x_line, y_line=y_line, x_found=x_e, y_found=y_e)
        if s.stages > 1 and float(bend.norm()) <= SETTLED * self.tolerance * (1.0 + float(u.norm())):
            new = replace(new, reached=self._reached(oracle, new))  # (4)
            if new.reached <= 0.8 * self.tolerance:
                return replace(new, outcome=Status.CONVERGED)
        gamma = GROWTH * s.gamma  # (5)
        if gamma > min(LARGEST, torch.finfo(x.dtype).eps ** -0.5):
            return replace(new, outcome=self._ended(oracle, new))
        x, y = U.project(u.lerp(line + bend, 1 - 1 / GROWTH) - bend * ((GROWTH - 1) / GROWTH**3)).tree()
        fresh = replace(s.outer, x=x, y=y)
        new = replace(new, gamma=gamma, theta=self._theta, best=math.inf, low=math.inf, stale=0, outer=fresh)
        return self._again(oracle, new)

    def _again(self, oracle: BilevelOracle, s: PBGDState) -> PBGDState:
        """Evaluate afresh at (x, y): at the start, and where gamma or the accuracy changed. The outer memory is kept."""
        F = self._objective(oracle, s)
        u = joint(s.outer.x, s.outer.y)
        return self._read(s, F, self.outer.suited(F.set).init(F, F.set, u, s.outer.memory))

    def _read(self, s: PBGDState, F: JointPenalty, outer: Descent) -> PBGDState:
        """The state with what the outer method and the objective now hold."""
        status = LOWER_FAILED.get(F.reason) or UPPER_FAILED.get(outer.reason) or Status.RUNNING
        R, z = F.residual(outer), F.z if isinstance(F, ValueGap) else s.z
        new = replace(s, z=z, outer=split(outer), residual=R, best=F.best)
        return replace(new, upper=F.upper, gap=F.gap, outcome=status)


@dataclass(frozen=True, kw_only=True)
class VPBGD(Continuation):
    """Penalty-based gradient descent on the value gap: x and y at once, without second derivatives and without anything to tune.

    F = f + gamma (g(x, y) - min over Y of g(x, .)), gamma = 1, 10, ...; the minimisers are extrapolated to gamma = infinity.

    tol: on the residuals (None: 1e-6 in float64, 1e-3 in float32). gamma: the penalty at the start. outer: LBFGS()
    (ProjectedLBFGS on boxes, SPG on other sets); inner: the same for z. theta: inner accuracy relative to R. max_outer: outer
    steps; max_inner: steps of one inner minimisation.

    A step costs, for each trial point, one gradient of f, one of g, and a minimisation of g(x, .) from the last z. No second
    derivatives. Beside `Penalty`: better where the lower level has many solutions and f decides between them, dearer where x
    has few entries.

    >>> import torch, bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: ((y - 2) ** 2 + (x - 1) ** 2).sum(), lambda x, y: ((y - x) ** 2).sum()
    >>> result = bilevel.solve(bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one), VPBGD())
    >>> result.status.name, result.x.round(decimals=5)
    ('CONVERGED', tensor([1.5000, 1.5000], dtype=torch.float64))

    Source: arXiv 2302.05185; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.NO_HVP

    inner: Method = LBFGS()
    theta: Fraction = 0.1
    max_inner: Steps = 10_000

    @property
    def _theta(self) -> float:
        return self.theta

    def _objective(self, oracle: BilevelOracle, s: PBGDState) -> ValueGap:
        return ValueGap(oracle, s.gamma, s.best, self.inner.suited(oracle.Y), s.z, s.theta, self.max_inner)

    def _reached(self, oracle: BilevelOracle, s: PBGDState) -> float:
        """By 2 psi_sigma - psi_{2 sigma}, sigma so small that its bias, O(sigma^2), is a hundredth of tol."""
        x, y, smallest = s.x_found, s.y_found, 4 * torch.finfo(s.x_found.dtype).eps ** 0.5
        sigma = max(min(1 / s.gamma, 0.1 * math.sqrt(self.tolerance)), smallest)
        slope = (s.y_end - y) * (sigma * s.gamma)
        starts = (s.z, Inner(2 * sigma, oracle.Y.project(y + slope * 2), None), Inner(sigma, oracle.Y.project(y + slope), None))
        method = self.inner.suited(oracle.Y)
        psi = NestedPenalty(oracle, method, starts, 2 * sigma, True, self.theta, self.tolerance, self.max_inner)
        return residual(oracle.X, x, psi(x)[1])


@dataclass(frozen=True, kw_only=True)
class GPBGD(Continuation):
    """Penalty-based gradient descent on the lower gradient: x and y at once, no inner minimisation and nothing to tune.

    F = f + gamma |g_y|^2 / 2, gamma = 1, 10, ...; the minimisers are extrapolated to gamma = infinity.

    tol: on the residuals (None: 1e-6 in float64, 1e-3 in float32). gamma: the penalty at the start. outer: LBFGS()
    (ProjectedLBFGS on boxes, SPG on other sets). max_outer: outer steps.

    A step costs, for each trial point, one gradient of f, one of g and one product with each of g_yy and g_xy. F can be
    stationary where g_y is in the null space of g_yy and is not zero: the run then ends as LOWER_UNSOLVED.

    >>> import torch, bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: ((y - 2) ** 2 + (x - 1) ** 2).sum(), lambda x, y: ((y - x) ** 2).sum()
    >>> result = bilevel.solve(bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one), GPBGD())
    >>> result.status.name, result.x.round(decimals=5)
    ('CONVERGED', tensor([1.5000, 1.5000], dtype=torch.float64))

    Source: arXiv 2302.05185; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET

    def _objective(self, oracle: BilevelOracle, s: PBGDState) -> GradientNorm:
        return GradientNorm(oracle, s.gamma, s.best)

    def _reached(self, oracle: BilevelOracle, s: PBGDState) -> float:
        """By the adjoint at x_e and the lower solution next to y_e."""
        if self._stuck(oracle, s):
            return math.inf
        x, y = s.x_found, s.y_found
        y = solve_lower(oracle, x, y, answer_tolerance(self.tolerance, y)).x
        here, (f_x, f_y) = oracle.g.at(x, y), oracle.f.grad(x, y)
        v = adjoint(here, f_y, 0.1 * self.tolerance)
        return residual(oracle.X, x, f_x - here.xy(v.x))

    def _ended(self, oracle: BilevelOracle, s: PBGDState) -> Status:
        return Status.LOWER_UNSOLVED if self._stuck(oracle, s) else Status.PRECISION

    def _stuck(self, oracle: BilevelOracle, s: PBGDState) -> bool:
        """y_e is so far from a lower solution that minimising g from there would go to another place."""
        return not float(oracle.g.grad_y(s.x_found, s.y_found).norm()) <= math.sqrt(self.tolerance)
