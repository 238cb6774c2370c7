"""LVHBA: the value-function penalty method for lower levels with coupled constraints, after Yao, Yu, Zeng and Zhang (2024).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y, c(x, y) = 0 or <= 0 };  C = {(x, y) in X x Y : constraints}
    convex, g convex in y, with multipliers at its solutions.

Reformulation
    v(x, y, z) = min over th in Y, max over la in Z of g(x, th) + la'c(x, th) + |th - y|^2 / (2 gamma1) - |la - z|^2 / (2 gamma2),
    Z = [0, r] (inequalities), [-r, r] (equalities). On C x Z:  g - v >= 0, and = 0 iff y in S(x) and z are its multipliers.
    The bilevel problem is  min f + c (g - v) over C x Z  as c -> infinity, with error O(1/c); grad v needs no Hessian.

Algorithm 1, LVHBA (tuning-free; c starts at 1, rows of the constraints normalised)
    (1) th, la <- the saddle at (x, y, z): la = P_Z(z + gamma2 c(x, th)), th by an inner minimisation, warm-started, to a
        residual theta min(1, R / c)
    (2) (x, y, z) <- one step on phi = (f + c (g - v)) / max(c, 1) over C x Z: L-BFGS along the faces of the set
        (`face_lbfgs.py`), in the plane where C is affine; where its line search fails, theta <- theta / 10
    (3) when R = max(c, 1) |w - P(w - grad phi)| <= max(tol, 4 / c^2) / 20:  extrapolate w = (x, y, z) over the last three c
        to 1/c = 0;  b = the change of that since the last c
    (4) stop if b <= 10 tol; where already 2 (g - v) <= (tol / 10)^2, w needs no extrapolation: stay at c until R <= tol / 20;
        else c <- 10 c
    answer: the extrapolated x, and the lower solution reached from the extrapolated (y, z) by the proximal method of multipliers

Notation
    f upper, g lower, c the constraints and (with a value) their penalty weight, z = multipliers (lambda's copy in the paper).

References
    Yao, Yu, Zeng, Zhang: Constrained bi-level optimization: proximal Lagrangian value function approach and Hessian-free
    algorithm, ICLR 2024, arXiv 2401.16164. Everything but the reformulation and its gradient is this library's; `LVHBASingleLoop`
    is the published iteration.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, Descent, DescentStatus, Method, residual
from constrained.descent.curvature_pairs import Pairs
from constrained.descent.face_lbfgs import FaceLBFGS
from constrained.sets import ConvexSet, Everywhere

from ..lower.coupled_set import Coupled, coupled, join
from ..lower.regularised_value import Saddle, solve_constrained_lower
from ..oracle import BilevelOracle
from ..reformulations.accuracy import answer_tolerance
from ..reformulations.lagrangian_gap import penalised_gap

PATIENCE = 50  # outer steps without a smaller R after which the inner accuracy is raised
GROWTH = 10.0  # of c
SURE = 10.0  # b bounds the error of the extrapolation before, which this one divides by GROWTH at least
FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.UNBOUNDED}
LOWER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.LOWER_UNSOLVED}


@solver_state("LVHBAState")
class LVHBAState:
    """Where the continuation stands. w = (x, y, z) as one tensor."""

    k: int  # completed outer steps
    x: Vec
    y: Vec
    z: Tensor  # multipliers of the normalised rows
    c: float  # penalty weight
    saddle: Saddle  # (1), with the inner method's memory
    gradient: Tensor  # of phi in w
    value: float  # phi
    memory: Pairs | float | None  # of the outer method
    recent: tuple[float, ...]  # its last values
    free: Tensor | None  # the entries it moved freely
    theta: float  # inner accuracy
    residual: float  # R
    best: float  # smallest R at this c
    stale: int  # steps since R last fell
    gap: float  # g - v
    upper: float  # f
    stages: tuple[Tensor, ...]  # w at the ends of the last two c
    guess: Tensor  # w extrapolated
    bias: float  # b
    outcome: Status


class Penalised:
    """phi at c for `descent`: of w = (x, y, z) as one flat vector. Where C is affine, its gradient along C."""

    def __init__(self, solver: LVHBA, oracle: BilevelOracle, s: LVHBAState):
        self.solver, self.oracle, self.c, self.theta = solver, oracle, s.c, s.theta
        self.set, self.saddle, self.best = solver._set(oracle), s.saddle, s.best
        self.space: ConvexSet = Everywhere() if self.set.plane else Whole(self.set)
        self.gap = self.upper = math.nan
        self.reason = DescentStatus.CONVERGED

    def __call__(self, w: Vec) -> tuple[float, Vec]:
        floor = 30 * torch.finfo(w.dtype).eps
        known, scale = self.best, max(self.c, 1.0)
        tol = max(self.theta * min(1.0, known) / scale, floor)
        while True:
            value, grad = self._at(w, tol)
            r = scale * residual(self.space, w, grad)
            # As in the penalty method: R here may be far below what the accuracy was chosen for, so tighten by steps.
            wanted = max(self.theta * min(1.0, known, r) / scale, floor)
            if tol <= 10 * wanted or not math.isfinite(r):
                self.best = min(known, r)
                return value, grad
            tol = max(wanted, 0.01 * tol)

    def _at(self, w: Vec, tol: float) -> tuple[float, Vec]:
        one, set = self.solver, self.set
        x, y, z = split(set, self.inside(w.leaves[0]) if set.plane else w.leaves[0])
        gammas, inner = (one.gamma1, one.gamma2), one.inner.suited(self.oracle.Y)
        found = penalised_gap(self.oracle, set.rows, gammas, inner, (x, y, z), self.saddle, self.c, tol, one.max_inner)
        self.saddle, self.gap, self.upper = found.at.saddle, found.gap, found.upper
        self.reason = found.at.reason if found.at.reason in LOWER_FAILED else DescentStatus.CONVERGED
        both = join(found.x, found.y)
        return found.value, Vec.of(torch.cat([self.along(both), found.z.to(both)]))

    def inside(self, w: Tensor) -> Tensor:
        """w with its (x, y) projected on C."""
        cut = len(w) - sum(self.set.rows.count)
        return torch.cat([self.set.C.project(Vec.of(w[:cut])).leaves[0], w[cut:]])

    def along(self, both: Tensor) -> Tensor:
        """The part of a gradient in (x, y) that points along an affine C."""
        if not self.set.plane:
            return both
        flat = Vec.of(both)
        return (self.set.C.project(flat) - self.set.C.project(flat.zeros())).leaves[0]


class Whole(ConvexSet):
    """C x Z, of w as one flat vector."""

    def __init__(self, set: Coupled):
        super().__init__()
        self.set, self.entrywise = set, set.C.entrywise

    def project(self, v: Vec) -> Vec:
        flat = v.leaves[0]
        cut = len(flat) - sum(self.set.rows.count)
        inside = self.set.C.project(Vec.of(flat[:cut])).leaves[0]
        return v.like([torch.cat([inside, self.set.rows.clipped(flat[cut:].double()).to(flat)])])


def split(set: Coupled, w: Tensor) -> tuple[Vec, Vec, Tensor]:
    """w as x, y and z."""
    cut = len(w) - sum(set.rows.count)
    return *set.pair.split(w[:cut]), w[cut:].double()


@dataclass(frozen=True, kw_only=True)
class LVHBA(Solver[BilevelOracle, LVHBAState]):
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
    requires: ClassVar[Feature] = Feature.LOWER

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

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: BilevelOracle, start: Point) -> LVHBAState:
        set = self._set(oracle)
        x, y = set.pair.split(set.C.project(Vec.of(join(start.x, start.y))).leaves[0])
        z = set.rows.start(start.multipliers).to(set.rows.low)
        w, inf = torch.cat([join(x, y), z.to(x.dtype)]), math.inf
        blank = LVHBAState(
            0,
            x,
            y,
            z,
            1.0,
            Saddle(y, y, None),
            w,
            inf,
            None,
            (),
            None,
            self.theta,
            inf,
            inf,
            0,
            inf,
            inf,
            (),
            w,
            inf,
            Status.RUNNING,
        )
        return self._again(oracle, blank)

    def step(self, oracle: BilevelOracle, state: LVHBAState) -> LVHBAState:
        new = replace(state, k=state.k + 1)
        return self._descend(oracle, new) if state.residual > self._enough(state) else self._next_stage(oracle, new)

    def _descend(self, oracle: BilevelOracle, s: LVHBAState) -> LVHBAState:
        """One outer step; where the line search fails or R no longer falls, a tenth of theta."""
        phi = Penalised(self, oracle, s)
        moved = self.outer.suited(phi.space).step(phi, phi.space, self._outer(oracle, s))  # (1), (2)
        new = self._read(s, phi, moved)
        new = replace(new, stale=0 if new.residual < 0.9 * s.best else s.stale + 1)
        if new.outcome != Status.RUNNING or (moved.reason is DescentStatus.RUNNING and new.stale <= PATIENCE):
            return new
        if new.theta > self.theta * 1e-4:
            return self._again(oracle, replace(new, theta=0.1 * new.theta, stale=0))  # (2)
        if new.residual <= 10 * self._enough(new):  # round-off, close to the end of the stage
            return self._next_stage(oracle, new, spent=True)
        return replace(new, outcome=Status.LINE_SEARCH if moved.reason is DescentStatus.LINE_SEARCH else Status.PRECISION)

    def _next_stage(self, oracle: BilevelOracle, s: LVHBAState, spent: bool = False) -> LVHBAState:
        """phi is minimised at this c, to rounding if `spent`: extrapolate, stop or grow c."""
        w = torch.cat([join(s.x, s.y), s.z.to(s.x.dtype)])
        guess = w if self._closed(s) else extrapolated((*s.stages, w))  # (3)
        size = s.x.size + s.y.size
        bias = float((guess - s.guess)[:size].double().norm()) if s.stages else math.inf
        new = replace(s, guess=guess, bias=bias)
        if bias <= SURE * self.tolerance or self._closed(s):  # (4)
            return replace(new, outcome=Status.CONVERGED) if spent or s.residual <= self._enough(new) else new
        if s.c * GROWTH > self.largest or (bias > s.bias and s.c >= 1e4):  # round-off times c: the stage before was better
            return replace(new, guess=s.guess if bias > s.bias else guess, outcome=Status.PRECISION)
        ahead = w + (w - s.stages[-1]) / GROWTH if s.stages and s.c >= 100 else w  # where w(c) = w + a / c is at the next c
        x, y, z = split(self._set(oracle), Whole(self._set(oracle)).project(Vec.of(ahead)).leaves[0])
        inf = math.inf
        later = replace(new, x=x, y=y, z=z, c=GROWTH * s.c, stages=(*s.stages, w)[-2:], theta=self.theta, stale=0, best=inf)
        return self._again(oracle, later)

    def terminate(self, oracle: BilevelOracle, state: LVHBAState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: LVHBAState) -> Point:
        set, s = self._set(oracle), state
        w = s.guess if s.stages else torch.cat([join(s.x, s.y), s.z.to(s.x.dtype)])
        x, y, z = split(set, Whole(set).project(Vec.of(w)).leaves[0])
        x, y = oracle.X.project(x), oracle.Y.project(y)
        tol = answer_tolerance(self.tolerance, y)
        found = solve_constrained_lower(oracle, set.rows, x, y, z, tol, method=self.inner.suited(oracle.Y))
        return Point(x, found.y, set.rows.report(found.multipliers))

    def monitor(self, state: LVHBAState) -> dict[str, float]:
        return {"upper": state.upper, "gap": state.gap, "residual": state.residual, "c": state.c}

    def notes(self, state: LVHBAState) -> tuple[str, ...]:
        found = []
        if bool((state.z.abs() >= 0.99 * self.r).any()):
            found.append(f"A lower multiplier reached r = {self.r:g}: no multipliers exist, or r must be larger.")
        if state.outcome == Status.PRECISION and math.isfinite(state.bias):
            found.append(f"c cannot grow further; the last change of the extrapolated point is {state.bias:.1e}.")
        return tuple(found)

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _set(self, oracle: BilevelOracle) -> Coupled:
        return coupled(oracle, self.r, self.coupled)

    def _enough(self, s: LVHBAState) -> float:
        """R at which the stage ends."""
        last = s.bias <= SURE * self.tolerance or self._closed(s)
        return 0.05 * (self.tolerance if last else max(self.tolerance, 4.0 / s.c**2))

    def _closed(self, s: LVHBAState) -> bool:
        """The lower level is solved at this c already, to within the tolerance."""
        return abs(2 * s.gap) <= (0.1 * self.tolerance) ** 2

    def _outer(self, oracle: BilevelOracle, s: LVHBAState) -> Descent:
        """The outer method's state, of flat vectors."""
        w, scale = torch.cat([join(s.x, s.y), s.z.to(s.x.dtype)]), max(s.c, 1.0)
        free = None if s.free is None else Vec.of(s.free)
        gradient = Vec.of(s.gradient)
        return Descent(s.k, Vec.of(w), s.value, gradient, s.residual / scale, s.memory, s.recent, DescentStatus.RUNNING, free)

    def _read(self, s: LVHBAState, phi: Penalised, outer: Descent) -> LVHBAState:
        """The state with what the outer method and phi now hold."""
        w = phi.inside(outer.x.leaves[0]) if phi.set.plane else outer.x.leaves[0]
        x, y, z = split(phi.set, w)
        status = LOWER_FAILED.get(phi.reason) or FAILED.get(outer.reason) or Status.RUNNING
        return replace(
            s,
            x=x,
            y=y,
            z=z,
            saddle=phi.saddle,
            gradient=outer.gradient.leaves[0],
            value=outer.value,
            memory=outer.memory,
            recent=outer.recent,
            free=None if outer.free is None else outer.free.leaves[0],
            residual=max(s.c, 1.0) * outer.residual,
            best=phi.best,
            gap=phi.gap,
            upper=phi.upper,
            outcome=status,
        )

    def _again(self, oracle: BilevelOracle, s: LVHBAState) -> LVHBAState:
        """Evaluate afresh at w: at the start, and where c or the accuracy changed. The memories are kept."""
        phi = Penalised(self, oracle, s)
        w = Vec.of(torch.cat([join(s.x, s.y), s.z.to(s.x.dtype)]))
        return self._read(s, phi, self.outer.suited(phi.space).init(phi, phi.space, w, s.memory))


def extrapolated(stages: tuple[Tensor, ...]) -> Tensor:
    """The value at 1/c = 0 of the polynomial in 1/c through up to three stages, c growing by GROWTH."""
    order, found = 1, list(stages)
    while len(found) > 1:
        found = [b + (b - a) / (GROWTH**order - 1) for a, b in itertools.pairwise(found)]
        order += 1
    return found[-1]
