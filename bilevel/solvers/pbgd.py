"""VPBGD and GPBGD: penalty-based bilevel gradient descent (Shen and Chen 2023), in both variables at once.

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y }; g(x, .) need not be convex: the Polyak-Lojasiewicz inequality
    (for sets Y an error bound) is enough. GPBGD: Y the whole space, and second derivatives.

Reformulation
    F(x, y) = f + gamma p with p >= 0, p = 0 where y solves the lower level: p = g - v, v(x) = min over Y of g(x, .) (VPBGD), or
    p = |g_y|^2 / 2 (GPBGD). A minimiser u = (x, y) of F is O(1 / gamma) away from a solution.

Algorithm (tuning-free form; gamma starts at 1)
    (1) VPBGD, for each trial u: z <- minimiser of g(x, .), from the last z, to a residual theta min(1, r)
    (2) u <- one step of the outer method on F / max(gamma, 1) over X x Y (L-BFGS; projected on sets); where its line search fails
        or neither r nor F falls any more, theta <- theta / 10
    (3) when R = |u - P(u - grad F)| <= max(tol / 3, min(0.05 / gamma, 5 / gamma^2)):  u_e <- P(the parabola in 1 / gamma through
        the last three such u, at 0)
    (4) where u_e has settled (the third u moved it by at most 30 tol (1 + |u|)): stop if |x_e - P_X(x_e - grad Phi)| <= 0.8 tol,
        grad Phi at the lower solution next to y_e: by 2 psi_s - psi_2s, s small (VPBGD), or by the adjoint (GPBGD)
    (5) gamma <- 10 gamma, and u <- P(the same parabola at 1 / gamma); beyond LARGEST the run ends
    answer: (x_e, the lower solution reached by minimising g(x_e, .) from y_e)

Where it stands
    (1) `ValueGap` in reformulations/joint_penalty.py, (2) `descended` in reformulations/continuation.py, the parabola `Path` in
    reformulations/extrapolation.py, psi_s `NestedPenalty` in reformulations/nested_penalty.py, the rest here

Notation
    f upper, g lower, gamma the penalty (Kwon's 1 / sigma), z the paper's omega, P on X x Y, R the residual of F and r that of
    F / max(gamma, 1), in (1) the smallest one at this gamma (`best`), theta the inner accuracy; Phi(x) = f at the lower solution.
    In the state found = u_e, reached = |x_e - P_X(x_e - grad Phi)|.

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
from typing import Any, ClassVar

import torch

from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, Descent, Method, residual

from ..hypergradients.adjoint import adjoint
from ..lower.solution import solve_lower
from ..oracle import BilevelOracle
from ..reformulations import older_files
from ..reformulations.accuracy import answer_tolerance
from ..reformulations.continuation import Continuation, Stage, verdict
from ..reformulations.extrapolation import GROWTH, Path
from ..reformulations.joint_penalty import GradientNorm, JointPenalty, ValueGap, apart, joint, joint_set
from ..reformulations.nested_penalty import Inner, NestedPenalty

LARGEST = 1e7  # gamma; at most eps^(-1/2), beyond which rounding over gamma shows
SETTLED = 30.0  # times tol: a change of u_e below which the hypergradient there is worth its price


@solver_state("PBGDState")
class PBGDState(Stage):
    """Where the continuation stands; `outer` moves u = (x, y)."""

    gamma: float
    z: Inner  # VPBGD: the minimiser of g(x, .), and the inner method's memory
    low: float  # smallest F seen at this gamma
    path: Path  # u at the ends of the last stages
    found: Vec  # u_e
    reached: float  # |x_e - P_X(x_e - grad Phi)|, where it was looked at
    upper: float  # f
    gap: float  # p

    @staticmethod
    def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
        """From 0.1.0, which kept x and y apart, and of the path its last end and the line through the last two."""
        return older_files.path_of_pbgd(fields)


class JointContinuation(Continuation[PBGDState, JointPenalty]):
    """What the two share: gamma grows, and the path of the minimisers of f + gamma p is followed and extrapolated."""

    patience = 200
    tightest = 1e-4
    gamma: Any

    def init(self, oracle: BilevelOracle, start: Point) -> PBGDState:
        u, inf = joint(start.x, start.y), math.inf
        blank = PBGDState(
            k=0,
            outer=Descent.blank(u),
            theta=self.theta,
            residual=inf,
            best=inf,
            stale=0,
            outcome=Status.RUNNING,
            gamma=self.gamma,
            z=Inner(0.0, start.y, None),
            low=inf,
            path=Path.at(u),
            found=u,
            reached=inf,
            upper=math.nan,
            gap=math.nan,
        )
        return self.refreshed(oracle, blank)

    def enough(self, s: PBGDState) -> float:
        """(3): R at which the stage ends."""
        return max(self.tolerance / 3, min(0.05 / s.gamma, 5 / s.gamma / s.gamma))

    def counted(self, before: PBGDState, after: PBGDState) -> PBGDState:
        """A smaller F is progress too."""
        eps = torch.finfo(after.outer.x.dtype).eps
        better = after.outer.residual < 0.9 * before.best or after.outer.value < before.low - 10 * eps * abs(before.low)
        return replace(after, low=min(before.low, after.outer.value), stale=0 if better else before.stale + 1)

    def spent(self, oracle: BilevelOracle, s: PBGDState) -> PBGDState | None:
        return self.next_stage(oracle, s) if s.residual <= 10 * self.enough(s) else None

    def next_stage(self, oracle: BilevelOracle, s: PBGDState) -> PBGDState:
        """f + gamma p is minimised: extrapolate, stop or let gamma grow."""
        u, U = s.outer.x, joint_set(oracle)
        path = s.path.then(u)
        new = replace(s, path=path, found=U.project(path.limit()))  # (3)
        if path.stages > 2 and float(path.bend.norm()) <= SETTLED * self.tolerance * (1.0 + float(u.norm())):  # (4)
            new = replace(new, reached=self.reached(oracle, new))
            if new.reached <= 0.8 * self.tolerance:
                return replace(new, outcome=Status.CONVERGED)
        gamma = GROWTH * s.gamma  # (5)
        if gamma > min(LARGEST, torch.finfo(u.dtype).eps ** -0.5):
            return replace(new, outcome=self.ended(oracle, new))
        outer = replace(s.outer, x=U.project(path.ahead()))  # (5)
        inf = math.inf
        return self.refreshed(oracle, replace(new, gamma=gamma, theta=self.theta, best=inf, low=inf, stale=0, outer=outer))

    def read(self, oracle: BilevelOracle, s: PBGDState, objective: JointPenalty, outer: Descent) -> PBGDState:
        return replace(
            s,
            outer=outer,
            residual=objective.residual(outer),
            best=objective.best,
            outcome=verdict(objective.reason, outer.reason),
            z=objective.z if isinstance(objective, ValueGap) else s.z,
            upper=objective.upper,
            gap=objective.gap,
        )

    def answer(self, oracle: BilevelOracle, state: PBGDState) -> Point:
        x, y = apart(state.found if state.path.stages > 1 else state.outer.x)
        if state.outcome is Status.LOWER_UNSOLVED:  # to solve it now would hide that x was found at another y
            return Point(x, y)
        return Point(x, solve_lower(oracle, x, y, answer_tolerance(self.tolerance, y)).x)

    def monitor(self, state: PBGDState) -> dict[str, float]:
        return {"upper": state.upper, "gap": state.gap, "residual": state.residual, "gamma": state.gamma}

    @abstractmethod
    def reached(self, oracle: BilevelOracle, s: PBGDState) -> float:
        """(4): |x_e - P_X(x_e - grad Phi(x_e))|, estimated; infinite where y_e solves no lower level."""

    def ended(self, oracle: BilevelOracle, s: PBGDState) -> Status:
        """The verdict where gamma may not grow further."""
        return Status.PRECISION


@dataclass(frozen=True, kw_only=True)
class VPBGD(JointContinuation):
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

    tol: Positive | None = None
    gamma: Positive = 1.0
    outer: Method = LBFGS(memory=100)
    inner: Method = LBFGS()
    theta: Fraction = 0.1
    max_outer: Steps = 10_000
    max_inner: Steps = 10_000

    def objective(self, oracle: BilevelOracle, s: PBGDState) -> ValueGap:
        """(1): F / max(gamma, 1), p = g - v."""
        return ValueGap(oracle, s.gamma, s.best, self.inner.for_set(oracle.Y), s.z, s.theta, self.max_inner)

    def reached(self, oracle: BilevelOracle, s: PBGDState) -> float:
        """By 2 psi_sigma - psi_{2 sigma}, sigma so small that its bias, O(sigma^2), is a hundredth of tol."""
        (x, y), smallest = apart(s.found), 4 * torch.finfo(s.found.dtype).eps ** 0.5
        sigma = max(min(1 / s.gamma, 0.1 * math.sqrt(self.tolerance)), smallest)
        slope = (apart(s.path.end)[1] - y) * (sigma * s.gamma)
        starts = (s.z, Inner(2 * sigma, oracle.Y.project(y + slope * 2), None), Inner(sigma, oracle.Y.project(y + slope), None))
        method = self.inner.for_set(oracle.Y)
        psi = NestedPenalty(oracle, method, starts, 2 * sigma, True, self.theta, self.tolerance, self.max_inner)
        return residual(oracle.X, x, psi(x)[1])


@dataclass(frozen=True, kw_only=True)
class GPBGD(JointContinuation):
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
    curved: ClassVar[bool] = True
    theta: ClassVar[float] = 0.0  # nothing is solved inside  # pyright: ignore[reportIncompatibleVariableOverride]

    tol: Positive | None = None
    gamma: Positive = 1.0
    outer: Method = LBFGS(memory=100)
    max_outer: Steps = 10_000

    def objective(self, oracle: BilevelOracle, s: PBGDState) -> GradientNorm:
        """F / max(gamma, 1), p = |g_y|^2 / 2."""
        return GradientNorm(oracle, s.gamma, s.best)

    def reached(self, oracle: BilevelOracle, s: PBGDState) -> float:
        """By the adjoint at x_e and the lower solution next to y_e."""
        if self._stuck(oracle, s):
            return math.inf
        x, y = apart(s.found)
        y = solve_lower(oracle, x, y, answer_tolerance(self.tolerance, y)).x
        here, (f_x, f_y) = oracle.g.at(x, y), oracle.f.grad(x, y)
        v = adjoint(here, f_y, 0.1 * self.tolerance)
        return residual(oracle.X, x, f_x - here.xy(v.x))

    def ended(self, oracle: BilevelOracle, s: PBGDState) -> Status:
        return Status.LOWER_UNSOLVED if self._stuck(oracle, s) else Status.PRECISION

    def _stuck(self, oracle: BilevelOracle, s: PBGDState) -> bool:
        """y_e is so far from a lower solution that minimising g from there would go to another place."""
        return not float(oracle.g.grad_y(*apart(s.found)).norm()) <= math.sqrt(self.tolerance)
