"""LVHBA: the value-function penalty method for lower levels with coupled constraints, after Yao, Yu, Zeng and Zhang (2024).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y, h(x, y) = 0 or <= 0 };  C = {(x, y) in X x Y : constraints}
    convex, g convex in y, with multipliers at its solutions.

Reformulation
    v(x, y, z) = min over th in Y, max over la in Z of g(x, th) + la'h(x, th) + |th - y|^2 / (2 gamma1) - |la - z|^2 / (2 gamma2),
    Z = [0, r] (inequalities), [-r, r] (equalities). On C x Z:  g - v >= 0, and = 0 iff y in S(x) and z are its multipliers.
    The bilevel problem is  min f + c (g - v) over C x Z  as c -> infinity, with error O(1/c); grad v needs no Hessian.

Algorithm (tuning-free; c starts at 1, rows of the constraints normalised)
    (1) for each trial (x, y, z): th, la <- the saddle there: la = P_Z(z + gamma2 h(x, th)), th by an inner minimisation,
        warm-started, to a residual theta min(1, R) / max(c, 1)
    (2) w = (x, y, z) <- one step on phi = (f + c (g - v)) / max(c, 1) over C x Z: L-BFGS along the faces of the set
        (`face_lbfgs.py`), in the plane where C is affine; where its line search fails or R no longer falls, theta <- theta / 10
    (3) when R = max(c, 1) |w - P(w - grad phi)| <= max(tol, 4 / c^2) / 20, or theta is at its end and the smallest R was within
        ten times that:  w_e <- the parabola in 1/c through the last three
        such w, at 0, or w itself where 2 |g - v| <= (tol / 10)^2;  b = the change of its (x, y) since the last c
    (4) where b <= 10 tol, or 2 |g - v| <= (tol / 10)^2: stay at c until R <= tol / 20, then stop;
        else c <- 10 c, and from c = 100 on w <- P(the line through the last two w, at the new 1/c); the run ends where c would
        pass `largest`, or where b has grown at c >= 1e4, as round-off does
    answer: x_e, and the lower solution reached from (y_e, z_e) by the proximal method of multipliers

Where it stands
    (1) `lower_value` in lower/regularised_value.py, called by phi, `LagrangianGap` in reformulations/lagrangian_gap.py;
    (2) `descended` in reformulations/continuation.py, parabola and line `Path` in reformulations/extrapolation.py, the rest here

Notation
    f upper, g lower, h both kinds of constraints, c the penalty weight, z = multipliers (lambda's copy in the paper), P on C x Z,
    R in (1) the smallest one at this c (`best`), theta the inner accuracy. In the state guess = w_e = (x_e, y_e, z_e), bias = b,
    gap = g - v, and th is `saddle.theta`.

References
    Yao, Yu, Zeng, Zhang: Constrained bi-level optimization: proximal Lagrangian value function approach and Hessian-free
    algorithm, ICLR 2024, arXiv 2401.16164. Everything but the reformulation and its gradient is this library's; `LVHBASingleLoop`
    is the published iteration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, Descent, Method
from constrained.descent.face_lbfgs import FaceLBFGS
from constrained.sets import ConvexSet

from ..lower.coupled_set import Coupled, coupled, join
from ..lower.regularised_value import Saddle, solve_constrained_lower
from ..oracle import BilevelOracle
from ..reformulations import older_files
from ..reformulations.accuracy import answer_tolerance
from ..reformulations.continuation import Continuation, Stage, verdict
from ..reformulations.extrapolation import GROWTH, Path
from ..reformulations.lagrangian_gap import CoupledWithMultipliers, LagrangianGap, flat, parts

SURE = 10.0  # b bounds the error of the extrapolation before, which this one divides by GROWTH at least


@solver_state("LVHBAState")
class LVHBAState(Stage):
    """Where the continuation stands; `outer` moves w = (x, y, z), one tensor."""

    x: Vec  # the parts of w
    y: Vec
    z: Tensor  # multipliers of the normalised rows
    c: float  # penalty weight
    saddle: Saddle  # (1), with the inner method's memory
    path: Path  # w at the ends of the c before
    guess: Vec  # w extrapolated
    bias: float  # b
    gap: float  # g - v
    upper: float  # f

    @staticmethod
    def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
        """From 0.1.0, which kept the variables and the parts of the outer method's state apart."""
        return older_files.stage_of_lv_hba(fields)


@dataclass(frozen=True, kw_only=True)
class LVHBA(Continuation[LVHBAState, LagrangianGap]):
    """Penalty continuation on the proximal Lagrangian value function, for lower constraints that couple x and y; nothing to tune.

    min f + c (g - v) over C x Z,  v(x, y, z) = min over th max over la of the regularised lower Lagrangian;  c = 1, 10, 100, ...

    tol: on the residuals (None: 1e-6 in float64, 1e-3 in float32). gamma1, gamma2: regularisation in y and in the multipliers. r:
    bound on the multipliers of the normalised rows; the result says so where one reaches it. outer: the method for (x, y, z);
    inner: for th
    (ProjectedLBFGS where Y is a box, SPG on other sets). theta: inner accuracy relative to the outer residual. largest: limit of
    c. max_outer: outer steps. max_inner: steps of one inner minimisation. coupled: the set C as one of {"x": ..., "y": ...}, such
    as a `CvxpySet`, where its projection should not be found from the constraints.

    A step costs, for each trial point, one gradient of f, one of g, and one inner minimisation, each iteration of which is one
    gradient of g and one product with the constraints' Jacobian. No second derivatives.

    The lower multipliers come back as `result.multipliers.lower`, {"equality": ..., "inequality": ...}, of the
    problem's own rows.

    >>> LVHBA(r=1e4).gamma1
    1.0

    Source: arXiv 2401.16164; see the module for the deviations.
    """

    supports: ClassVar[Feature] = (
        Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.LOWER_EQUALITY | Feature.LOWER_INEQUALITY
    )
    tightest: ClassVar[float] = 1e-4

    tol: Positive | None = None
    gamma1: Positive = 1.0
    gamma2: Positive = 1.0
    r: Positive = 1e3
    outer: Method = FaceLBFGS()
    inner: Method = LBFGS()
    theta: Fraction = 0.1
    largest: Positive = 1e7
    max_outer: Steps = 5000
    max_inner: Steps = 10_000
    coupled: ConvexSet | None = None

    def init(self, oracle: BilevelOracle, start: Point) -> LVHBAState:
        found = self._coupled(oracle)
        x, y = found.pair.split(found.C.project(Vec.of(join(start.x, start.y))).leaves[0])
        z = found.rows.start(start.multipliers).to(found.rows.low)
        w = flat(x, y, z)
        blank = LVHBAState(
            k=0,
            outer=Descent.blank(w),
            theta=self.theta,
            residual=math.inf,
            best=math.inf,
            stale=0,
            outcome=Status.RUNNING,
            x=x,
            y=y,
            z=z,
            c=1.0,
            saddle=Saddle(y, y, None),
            path=Path.at(w),
            guess=w,
            bias=math.inf,
            gap=math.inf,
            upper=math.inf,
        )
        return self.refreshed(oracle, blank)

    def enough(self, s: LVHBAState) -> float:
        """(3), (4): R at which w is extrapolated."""
        last = s.bias <= SURE * self.tolerance or self._closed(s)
        return 0.05 * (self.tolerance if last else max(self.tolerance, 4.0 / s.c**2))

    def spent(self, oracle: BilevelOracle, s: LVHBAState) -> LVHBAState | None:
        # The smallest R counts: phi only falls, while R goes up and down on the way.
        return self.next_stage(oracle, s, spent=True) if s.best <= 10 * self.enough(s) else None

    def next_stage(self, oracle: BilevelOracle, s: LVHBAState, spent: bool = False) -> LVHBAState:
        """phi is minimised at this c, to rounding if `spent`: extrapolate, stop or grow c."""
        w, set = s.outer.x, self._coupled(oracle)
        path = s.path.then(w)
        guess = w if self._closed(s) else path.limit()  # (3)
        (change,) = (guess - s.guess).leaves
        bias = float(change[: len(change) - sum(set.rows.count)].double().norm()) if s.path.stages else math.inf
        new = replace(s, guess=guess, bias=bias)
        if bias <= SURE * self.tolerance or self._closed(s):  # (4)
            return replace(new, outcome=Status.CONVERGED) if spent or s.residual <= self.enough(new) else new
        if s.c * GROWTH > self.largest or (bias > s.bias and s.c >= 1e4):  # (4): round-off times c: the stage before was better
            return replace(new, guess=s.guess if bias > s.bias else guess, outcome=Status.PRECISION)
        ahead = CoupledWithMultipliers(set).project(path.ahead_by_line() if s.c >= 100 else w)  # (4)
        outer = replace(s.outer, x=ahead)
        later = replace(new, outer=outer, c=GROWTH * s.c, path=path, theta=self.theta, stale=0, best=math.inf)
        return self.refreshed(oracle, later)

    def answer(self, oracle: BilevelOracle, state: LVHBAState) -> Point:
        set, s = self._coupled(oracle), state
        x, y, z = parts(set, CoupledWithMultipliers(set).project(s.guess if s.path.stages else s.outer.x))
        x, y = oracle.X.project(x), oracle.Y.project(y)
        tol = answer_tolerance(self.tolerance, y)
        found = solve_constrained_lower(oracle, set.rows, x, y, z, tol, method=self.inner.for_set(oracle.Y))
        return Point(x, found.y, set.rows.report(found.multipliers))

    def monitor(self, state: LVHBAState) -> dict[str, float]:
        return {"upper": state.upper, "gap": state.gap, "residual": state.residual, "c": state.c}

    def notes(self, state: LVHBAState) -> tuple[str, ...]:
        found = []
        if bool((state.z.abs() >= 0.99 * self.r).any()):
            found.append(f"A lower multiplier reached r = {self.r:g}: no multipliers exist, or r must be larger.")
        if state.outcome is Status.PRECISION and math.isfinite(state.bias):
            found.append(f"c cannot grow further; the last change of the extrapolated point is {state.bias:.1e}.")
        return tuple(found)

    # -- the stage --------------------------------------------------------------------------------------------------------
    def objective(self, oracle: BilevelOracle, s: LVHBAState) -> LagrangianGap:
        """(1): phi at s.c."""
        gammas, inner = (self.gamma1, self.gamma2), self.inner.for_set(oracle.Y)
        return LagrangianGap(oracle, self._coupled(oracle), gammas, inner, s.saddle, s.c, s.theta, s.best, self.max_inner)

    def read(self, oracle: BilevelOracle, s: LVHBAState, objective: LagrangianGap, outer: Descent) -> LVHBAState:
        w = objective.inside(outer.x)
        x, y, z = parts(objective.coupled, w)
        return replace(
            s,
            outer=replace(outer, x=w),
            residual=objective.scale * outer.residual,
            best=objective.best,
            outcome=verdict(objective.reason, outer.reason),
            x=x,
            y=y,
            z=z,
            saddle=objective.saddle,
            gap=objective.gap,
            upper=objective.upper,
        )

    def _coupled(self, oracle: BilevelOracle) -> Coupled:
        return coupled(oracle, self.r, self.coupled)

    def _closed(self, s: LVHBAState) -> bool:
        """The lower level is solved at this c already, to within the tolerance."""
        return abs(2 * s.gap) <= (0.1 * self.tolerance) ** 2
