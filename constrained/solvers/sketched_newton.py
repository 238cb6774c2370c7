"""SketchedNewton: Newton steps on the KKT conditions by randomized inner solves, globalised by an exact augmented Lagrangian.

Problem
    min f(x) subject to c(x) = 0, f and c twice differentiable, m <= n.

Reformulation
    L = f + lam'c, g = grad_x L, b = -(g, c). The merit function, for the pair (x, lam):
    A(x, lam) = f + lam'c + eta1/2 |c|^2 + eta2/2 |g|^2
    grad A    = (g, c) + eta2 K0 (g, 0) + eta1 (J'c, 0),        K0 = [[H, J'], [J, 0]], H = hess_xx L

Algorithm (one outer step)
    (1) B = H + shift I, positive definite on the null space of J: shift 0 where H is so already, else xi + |H|_F; where H is
        nearly singular there, a tiny shift is tried first. Beyond 300 unknowns, where this is not known: 0, then growing shifts.
        K = [[B, J'], [J, -gamma I]], gamma > 0 only where J has no full rank, or, beyond 300 unknowns, with any shift
    (2) K z = b inexactly:  |b - K z| <= theta delta (s / |K|) |b|, s an estimate of the smallest singular value of K, delta the
        accuracy, theta = min(1, sqrt |b|) (superlinear) or 1
    (3) D = grad A' z, or more by what the residual of (2) hides; while D > -eta2/2 |b|^2:  eta1 <- nu^2 eta1, eta2 <- eta2 / nu,
        delta <- delta / nu^4, and (2) goes on; where eta1 > 1e8 or eta2 < 1e-8, any D < 0 will do
    (4) alpha = 1, 1/2, 1/4, ... until A(x + alpha dx, lam + alpha dlam) <= A + alpha beta D
    (5) (x, lam) <- (x, lam) + alpha z

Safeguards (`robust`)
    Where (3) or (4) fails with every B, or x is stationary for |c|^2 and infeasible, |c|^2 is minimised: the loop goes on from a
    point with less violation, or ends as LOCALLY_INFEASIBLE. Where the residual does not fall for long, the same from the start:
    a second attempt. Where z keeps c and B was shifted, alpha = 10, 100, ... is tried too, which tells unbounded problems.

Where it stands
    (1) shifts.py, (2) accuracy.py, (3) `_direction` with the slope in merit.py, (4) merit.py, the safeguards restoration.py; all
    in constrained/newton

Notation
    xi, beta, nu, theta, delta, eta1, eta2 as in the paper; J is its G, Psi and Upsilon of its accuracy rule are in accuracy.py.
    s and |K| are `smallest` and `largest` of a linear solution; D is `slope`; z = (dx, dlam); lam and c have their rows scaled.

References
    Hong, Na, Mahoney, Kolar: Constrained optimization via exact augmented Lagrangian and randomized iterative sketching, ICML
    2023, arXiv 2305.18379. Deviations: H and not hess f in grad A (the merit function's true gradient); the tiny shift, gamma,
    the restoration, row scaling and the rule of `EstimatedAccuracy` are this library's. `SketchedNewton.paper()` leaves them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..core.derivatives.tape import Lagrangian
from ..core.options import Fraction, Positive, Steps
from ..core.problem import Multipliers, Point
from ..core.solver import Solver
from ..core.states import solver_state
from ..core.status import Feature, Status
from ..core.vec import Vec
from ..linear import LinearSolver
from ..linear.auto import AutoLinear
from ..linear.sketch import Gaussian
from ..newton.accuracy import Accuracy, EstimatedAccuracy, PaperAccuracy, Situation
from ..newton.iterate import Iterate
from ..newton.kkt_system import DENSE, kkt_system
from ..newton.merit import Merit, backtrack, expand
from ..newton.restoration import restart, stationary
from ..newton.shifts import Modification, indefinite, modifications
from ..oracle import ConstrainedOracle

HALVINGS, FEW = 60, 2  # of the step length; of a tentative step's
STUCK = 3  # steps in a row at stationary points of |c|^2 before the restoration
PATIENCE = 100  # steps without a tenth less residual before the second attempt, and before the end
RESTORATIONS = 50
ETA1, ETA2 = 1e8, 1e-8  # limits of the penalties


@solver_state("SketchedNewtonState")
class SketchedNewtonState:
    """The pair, the merit function's penalties, the accuracy; what was found at the pair; what the safeguards count."""

    k: int
    x: Vec
    lam: Tensor  # of the scaled rows
    rows: Tensor  # scale of each row of c
    eta1: float
    eta2: float
    delta: float
    residual: float  # |(g, c)|, unscaled
    violation: float  # |c|, unscaled
    value: float  # f
    products: int  # of the KKT matrix, so far
    stuck: int  # steps in a row at points stationary for |c|^2, and infeasible
    restored: int  # calls of the restoration
    start: Vec  # for a second attempt
    best: float  # smallest residual, of a tenth less at least
    waited: int  # steps since
    attempts: int
    outcome: Status


@dataclass(frozen=True, kw_only=True)
class SketchedNewton(Solver[ConstrainedOracle, SketchedNewtonState]):
    """Newton's method on the KKT conditions of equality-constrained problems, with an exact augmented Lagrangian as its merit.

    z from [[H + shift I, J'], [J, -gamma I]] z = -(grad L, c), then backtracking on f + lam'c + eta1/2 |c|^2 + eta2/2 |grad L|^2.

    linear_solver: how z is found; the default chooses by size and structure; `Sketch()`, `Gaussian()`, `Kaczmarz()` are the
    paper's family. accuracy: how exactly, `EstimatedAccuracy()` or
    `PaperAccuracy()`. superlinear: tighten with the residual. eta1, eta2, delta:
    penalties and accuracy at the start; delta=None: 0.1 up to n + m = 300, where steps are dearer than products, else 0.5. xi:
    shift of an indefinite reduced Hessian, on top of |H|_F; beta: of the sufficient decrease; nu: growth of the penalties.
    scaling: rows of c at the start with gradients above 100 are scaled down. robust: tiny shift, regularisation and
    restoration. max_outer: outer steps.

    A step costs one evaluation, one Hessian (or the products of the linear solver) and one evaluation with gradient a trial.

    >>> from constrained import ConstrainedProblem, solve
    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    >>> hs6 = ConstrainedProblem(objective=lambda x: (1 - x[0]) ** 2, equality=lambda x: 10 * (x[1] - x[0] ** 2), x=x)
    >>> solve(hs6, SketchedNewton()).status.name
    'CONVERGED'

    Source: arXiv 2305.18379; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.EQUALITY
    requires: ClassVar[Feature] = Feature(0)

    tol: Positive | None = None
    linear_solver: LinearSolver = AutoLinear()
    accuracy: Accuracy = EstimatedAccuracy()
    superlinear: bool = True
    eta1: Positive = 1.0
    eta2: Positive = 0.1
    delta: Fraction | None = None
    xi: Positive = 0.1
    beta: Fraction = 0.1
    nu: Positive = 1.5
    scaling: bool = True
    robust: bool = True
    max_outer: Steps = 1000

    @classmethod
    def paper(cls) -> SketchedNewton:
        """The published setting: one Gaussian vector a sketch, the paper's accuracy rule, to |(g, c)| <= 1e-4."""
        return cls(tol=1e-4, linear_solver=Gaussian(), accuracy=PaperAccuracy(), superlinear=False, scaling=False, robust=False)

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: ConstrainedOracle, start: Point) -> SketchedNewtonState:
        x = start.x
        tape = oracle.tape(x)
        n, m = len(tape.x), tape.m
        given = start.multipliers.equality if start.multipliers is not None else None
        rows = torch.ones_like(tape.c)
        if self.scaling and m and n + m <= DENSE:
            rows = (100.0 / tape.jacobian.abs().amax(1).clamp(min=100.0)).clamp(min=1e-8)
        lam = torch.zeros_like(tape.c) if given is None else torch.as_tensor(given).to(tape.c) / rows
        blank = SketchedNewtonState(
            k=0,
            x=x,
            lam=lam,
            rows=rows,
            eta1=self.eta1,
            eta2=self.eta2,
            delta=self._first_delta(n + m),
            residual=math.inf,
            violation=math.inf,
            value=math.inf,
            products=0,
            stuck=0,
            restored=0,
            start=x,
            best=math.inf,
            waited=0,
            attempts=1,
            outcome=Status.RUNNING,
        )
        return self._moved(blank, Iterate.at(oracle, x, lam, rows))

    def step(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> SketchedNewtonState:
        at = oracle.tape(state.x).lagrangian(state.rows * state.lam)
        here = Iterate.of(at, state.lam, state.rows)
        s = replace(state, k=state.k + 1, stuck=self._stuck(at, here, state))
        if self.robust and (s.stuck > STUCK or s.waited > PATIENCE):
            return self._elsewhere(oracle, s, here)
        if not here.finite:
            return replace(s, outcome=Status.NONFINITE)
        for modification in modifications(at, here, xi=self.xi, robust=self.robust):  # (1)
            # K z = b, as exactly as it takes for z to be a direction of sufficient descent
            found = self._direction(s, at, here, modification, oracle.f.seed)  # (2), (3)
            if found is None or (modification.tentative and found.state.eta1 > s.eta1):
                continue
            # the first alpha = 1, 1/2, 1/4, ... with A(alpha) <= A + alpha beta D
            new, z, halvings = found.state, found.z, FEW if modification.tentative else HALVINGS
            there = backtrack(oracle, found.merit, here, z, found.slope, beta=self.beta, halvings=halvings)  # (4)
            if there is Status.NONFINITE:
                return replace(new, outcome=Status.NONFINITE)
            if isinstance(there, Iterate):
                moved = self._moved(new, there)  # (5)
                further = self.robust and modification.shift > 0 and moved.outcome is Status.RUNNING
                return self._moved(new, expand(oracle, found.merit, here, there, z)) if further else moved
        return self._restored(oracle, s, here) if self.robust else replace(s, outcome=Status.DEGENERATE)

    def revisit(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> bool:
        oracle.tape(state.x)
        return True

    def terminate(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> Status:
        return state.outcome

    def answer(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> Point:
        return Point(state.x, None, Multipliers(equality=state.rows * state.lam))

    def monitor(self, state: SketchedNewtonState) -> dict[str, float]:
        return {"objective": state.value, "residual": state.residual, "feasibility": state.violation, "products": state.products}

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _first_delta(self, unknowns: int) -> float:
        return self.delta if self.delta is not None else 0.1 if unknowns <= DENSE else 0.5

    def _system(self, s: SketchedNewtonState, at: Lagrangian, here: Iterate, modification: Modification, seed: int) -> Situation:
        """K z = b, ready to be solved."""
        K = kkt_system(at, s.rows, shift=modification.shift, gamma=modification.gamma, dense=here.dense)
        return Situation(
            solver=self.linear_solver,
            prepared=self.linear_solver.init(K),
            b=Vec.of(here.b),
            generator=torch.Generator().manual_seed(_seed(seed, s.k)),
            at=at,
            rows=s.rows,
            shift=modification.shift,
            eta1=s.eta1,
            eta2=s.eta2,
            beta=self.beta,
            xi=self.xi,
            enough=0.0 if here.dense else 0.1 * self.tolerance,
        )

    def _direction(
        self, s: SketchedNewtonState, at: Lagrangian, here: Iterate, modification: Modification, seed: int
    ) -> Direction | None:
        """(2), (3) with one K. None: K has the wrong inertia, or z is no direction of descent for any penalties."""
        situation, norm_b = self._system(s, at, here, modification, seed), float(here.b.norm())
        theta = min(1.0, norm_b**0.5) if self.superlinear else 1.0
        new, known = replace(s, products=s.products + situation.prepared.spent), None
        while True:
            situation, merit = replace(situation, eta1=new.eta1, eta2=new.eta2), Merit(new.eta1, new.eta2)
            delta = self.accuracy.delta(situation, new.delta)
            # z with |b - K z| <= theta delta (s / |K|) |b|, from the z of the last accuracy on
            found = self.accuracy.solve(situation, theta * delta, start=known)  # (2)
            z, known = found.x.ravel(), found.x
            new = replace(new, delta=delta, products=new.products + found.products)
            if not bool(z.isfinite().all()) or (not here.dense and indefinite(found, len(here.c))):
                return None
            slope = merit.slope(here, z, modification, found.residual)  # (3)
            if slope <= -0.5 * new.eta2 * norm_b * norm_b:
                return Direction(z, slope, merit, new)
            if new.eta1 > ETA1 or new.eta2 < ETA2:  # any descent is good enough
                return Direction(z, slope, merit, new) if slope < 0 else None
            new = replace(new, eta1=self.nu**2 * new.eta1, eta2=new.eta2 / self.nu, delta=new.delta / self.nu**4)  # (3)

    def _moved(self, s: SketchedNewtonState, there: Iterate) -> SketchedNewtonState:
        """(5), and the verdict there, on unscaled quantities."""
        residual, violation = there.residual, there.violation
        outcome = Status.RUNNING
        if residual <= self.tolerance:
            outcome = Status.CONVERGED
        elif violation <= 1e-6 and (there.value < -1e20 or float(there.x.norm()) > 1e15):
            outcome = Status.UNBOUNDED
        better = residual <= 0.9 * s.best
        return replace(
            s,
            x=there.x,
            lam=there.lam,
            residual=residual,
            violation=violation,
            value=there.value,
            best=residual if better else s.best,
            waited=0 if better else s.waited + 1,
            outcome=outcome,
        )

    # -- safeguards -------------------------------------------------------------------------------------------------------
    def _stuck(self, at: Lagrangian, here: Iterate, s: SketchedNewtonState) -> int:
        """Steps in a row at points that are stationary for |c|^2 and not feasible."""
        return s.stuck + 1 if s.violation > self.tolerance and stationary(at.tape, here) else 0

    def _elsewhere(self, oracle: ConstrainedOracle, s: SketchedNewtonState, here: Iterate) -> SketchedNewtonState:
        """Where Newton's steps lead nowhere: restored from x, or the second attempt; STALLED after that."""
        if s.stuck > STUCK:
            return self._restored(oracle, s, here)
        if s.attempts > 1 or s.violation <= self.tolerance:
            return replace(s, outcome=Status.STALLED)
        return self._restarted(oracle, replace(s, attempts=2, waited=0, best=math.inf), here, s.start, share=1e-3)

    def _restored(self, oracle: ConstrainedOracle, s: SketchedNewtonState, here: Iterate) -> SketchedNewtonState:
        """From x on with less violation, or the verdict where there is none to reduce, or it was reduced often enough."""
        if s.violation <= self.tolerance:
            return replace(s, outcome=Status.PRECISION if s.residual <= 1e3 * self.tolerance else Status.LINE_SEARCH)
        if s.restored >= RESTORATIONS:
            return replace(s, outcome=Status.STALLED)
        return self._restarted(oracle, s, here, s.x, share=0.1)

    def _restarted(
        self, oracle: ConstrainedOracle, s: SketchedNewtonState, here: Iterate, start: Vec, *, share: float
    ) -> SketchedNewtonState:
        """From where the restoration of `start` ended, with the penalties and the accuracy of a first step; or the verdict."""
        found = restart(oracle, here, start, violation=s.violation, share=share, tol=self.tolerance)
        if found.iterate is None:
            return replace(s, outcome=found.outcome)
        if found.outcome is not Status.RUNNING:
            return replace(self._moved(s, found.iterate), outcome=found.outcome)
        delta = self._first_delta(len(here.b))
        fresh = replace(s, eta1=self.eta1, eta2=self.eta2, delta=delta, restored=s.restored + 1)
        return self._moved(fresh, found.iterate)


@dataclass(frozen=True)
class Direction:
    """What (2) and (3) end with: z, the slope D of the merit function along it, and the state with the penalties they took."""

    z: Tensor
    slope: float
    merit: Merit
    state: SketchedNewtonState


def _seed(seed: int, k: int) -> int:
    """Of the sketches of step k."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
