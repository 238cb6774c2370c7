"""SketchedNewton: Newton steps on the KKT conditions by randomized inner solves, globalised by an exact augmented Lagrangian.

Problem
    min f(x) subject to c(x) = 0, f and c twice differentiable, m <= n.

Reformulation
    L = f + lam'c, g = grad_x L, b = -(g, c). The merit function, for the pair (x, lam):
    A(x, lam) = f + lam'c + eta1/2 |c|^2 + eta2/2 |g|^2
    grad A    = (g, c) + eta2 K0 (g, 0) + eta1 (J'c, 0),        K0 = [[H, J'], [J, 0]], H = hess_xx L

Algorithm (one outer step)
    (1) B = H + shift I, positive definite on the null space of J: shift 0; where the reduced Hessian is nearly singular a tiny
        one is tried first; else xi + |H|_F.  K = [[B, J'], [J, -gamma I]], gamma > 0 only where J has no full rank
    (2) K z = b inexactly:  |b - K z| <= theta delta (s / |K|) |b|, s an estimate of the smallest singular value of K, delta the
        accuracy, theta = min(1, sqrt |b|) (superlinear) or 1
    (3) D = grad A' z; while D > -eta2/2 |b|^2:  eta1 <- nu^2 eta1, eta2 <- eta2 / nu, delta <- delta / nu^4, and (2) goes on
    (4) alpha = 1, 1/2, 1/4, ... until A(x + alpha dx, lam + alpha dlam) <= A + alpha beta D
    (5) (x, lam) <- (x, lam) + alpha z

    Where (3) or (4) fails, or x is stationary for |c|^2 and infeasible, |c|^2 is minimised (`restoration.py`): the loop goes on
    from a point with less violation, or ends as LOCALLY_INFEASIBLE.

Notation
    xi, beta, nu, theta, delta, eta1, eta2 as in the paper; J is its G, Psi and Upsilon of its accuracy rule are in `accuracy.py`.

References
    Hong, Na, Mahoney, Kolar: Constrained optimization via exact augmented Lagrangian and randomized iterative sketching, ICML
    2023, arXiv 2305.18379. Deviations: H and not hess f in grad A (the merit function's true gradient); the tiny shift, gamma,
    the restoration, row scaling and the rule of `EstimatedAccuracy` are this library's. `SketchedNewton.paper()` leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import kkt
from ..core.derivatives.tape import Lagrangian, Tape
from ..core.options import Fraction, Positive, Steps
from ..core.problem import Multipliers, Point
from ..core.solver import Solver
from ..core.states import solver_state
from ..core.status import Feature, Status
from ..core.vec import Vec
from ..linear import LinearSolution, LinearSolver, LinearStatus
from ..linear.auto import AutoLinear
from ..linear.sketch import Gaussian
from ..newton.accuracy import Accuracy, EstimatedAccuracy, PaperAccuracy, Situation
from ..newton.kkt_system import kkt_system
from ..newton.restoration import STATIONARY, Violation, restore
from ..oracle import ConstrainedOracle

HALVINGS = 60
PATIENCE = 100  # steps without a tenth less residual before the second attempt, and before the end
DENSE = 300  # unknowns n + m up to which H and J are formed, with the eigenvalues of the reduced Hessian and the rank of J
ETA1, ETA2 = 1e8, 1e-8  # limits of the penalties


@solver_state("SketchedNewtonState")
class SketchedNewtonState:
    """The pair, the merit function's penalties, the accuracy."""

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


@dataclass(frozen=True)
class Here:
    """A point: f, g = grad_x L and c there, its rows scaled."""

    value: float
    g: Tensor
    c: Tensor

    @property
    def b(self) -> Tensor:
        return -torch.cat([self.g, self.c])

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and bool(self.g.isfinite().all()) and bool(self.c.isfinite().all())


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
    linear_solver: LinearSolver = AutoLinear(measure=False)  # the same choice, and bits, every time
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
        given = start.multipliers.equality if start.multipliers is not None else None
        rows = torch.ones_like(tape.c)
        if self.scaling and tape.m and tape.m + len(tape.x) <= DENSE:
            rows = (100.0 / tape.jacobian.abs().amax(1).clamp(min=100.0)).clamp(min=1e-8)
        inf = math.inf
        lam = torch.zeros_like(tape.c) if given is None else torch.as_tensor(given).to(tape.c) / rows
        blank = SketchedNewtonState(
            0, x, lam, rows, self.eta1, self.eta2, self._delta(tape), inf, inf, inf, 0, 0, 0, x, inf, 0, 1, Status.RUNNING
        )
        return self._judged(blank, self._look(oracle, blank, x, lam))

    def step(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> SketchedNewtonState:
        at = oracle.tape(state.x).lagrangian(state.rows * state.lam)
        here = Here(float(at.tape.value), at.gradient, state.rows * at.tape.c)
        new = replace(state, k=state.k + 1, stuck=state.stuck + 1 if self._stuck(at, here, state) else 0)
        if self.robust and new.stuck > 3:
            return self._restored(oracle, new)
        if self.robust and new.waited > PATIENCE:
            return self._again(oracle, new)
        if not here.finite:
            return replace(new, outcome=Status.NONFINITE)
        for shift, gamma, last in self._modifications(at, here, new):
            moved = self._newton(oracle, new, at, here, shift, gamma, last)
            if moved is not None:
                return moved
        return self._restored(oracle, new) if self.robust else replace(new, outcome=Status.DEGENERATE)

    def terminate(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> Status:
        return state.outcome

    def answer(self, oracle: ConstrainedOracle, state: SketchedNewtonState) -> Point:
        return Point(state.x, None, Multipliers(equality=state.rows * state.lam))

    def monitor(self, state: SketchedNewtonState) -> dict[str, float]:
        return {"objective": state.value, "residual": state.residual, "feasibility": state.violation, "products": state.products}

    def _delta(self, tape: Tape) -> float:
        return self.delta if self.delta is not None else 0.1 if len(tape.x) + tape.m <= DENSE else 0.5

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _look(self, oracle: ConstrainedOracle, s: SketchedNewtonState, x: Vec, lam: Tensor) -> Here:
        tape = oracle.tape(x)
        return Here(float(tape.value), tape.gradient_of_lagrangian(s.rows * lam), s.rows * tape.c)

    def _merit(self, p: Here, lam: Tensor, s: SketchedNewtonState) -> float:
        """A = f + lam'c + eta1/2 |c|^2 + eta2/2 |g|^2."""
        g, c, lam = p.g.double(), p.c.double(), lam.double()
        return p.value + float(lam @ c) + 0.5 * s.eta1 * float(c @ c) + 0.5 * s.eta2 * float(g @ g)

    def _slope(self, p: Here, z: Tensor, shift: float, gamma: float, residual: float, s: SketchedNewtonState) -> float:
        """D = grad A' z without a product: K0 z = b - r - (shift dx, -gamma dlam), and r adds at most its norm."""
        g, c, z = p.g.double(), p.c.double(), z.double()
        dx, dlam = z[: len(g)], z[len(g) :]
        of_x, of_c = -g - shift * dx, -c + gamma * dlam  # the two parts of K0 z + r
        D = g @ dx + c @ dlam + s.eta2 * (g @ of_x) + s.eta1 * (c @ of_c)
        return float(D) + (s.eta2 * float(g.norm()) + s.eta1 * float(c.norm())) * residual

    def _modifications(self, at: Lagrangian, here: Here, s: SketchedNewtonState) -> Iterator[tuple[float, float, bool]]:
        """(1): pairs (shift, gamma) to try in turn, and whether the last has come."""
        n, m = len(here.g), len(here.c)
        b = float(here.b.norm())
        if n + m > DENSE and self.robust:
            yield 0.0, 0.0, True
            yield from ((1e-4 * 10.0**power, 1e-8, True) for power in range(12))
            return
        J, H = s.rows[:, None] * at.tape.jacobian, at.hessian
        _, values, V = torch.linalg.svd(J, full_matrices=True)
        largest = float(values.max()) if m else 0.0
        rank = int((values > 1e-6 * largest).sum())
        gamma = 1e-3 * min(1.0, b) if rank < m else 0.0
        Z = V[int((values > 1e-12 * largest).sum()) :].T  # null space of J
        size = float(H.norm())
        low = float(torch.linalg.eigvalsh(Z.T @ H @ Z)[0]) if Z.shape[1] else math.inf
        large = self.xi + size
        if not self.robust:
            if m and largest > 0 and float(values.min()) ** 2 < 1e-2:
                return  # the published code's "singular"
            yield (large if low < 1e-6 and m < n else 0.0), 0.0, True
        elif low < -1e-6 * size:
            yield large, gamma, True
        elif low <= 1e-6 * size:
            yield min(1e-2, b) * 1e-2 * size + 1e-8 * max(size, 1e-8), gamma, False
            yield large, gamma, True
        else:
            yield 0.0, gamma, True

    def _newton(
        self,
        oracle: ConstrainedOracle,
        s: SketchedNewtonState,
        at: Lagrangian,
        here: Here,
        shift: float,
        gamma: float,
        last: bool,
    ) -> SketchedNewtonState | None:
        """(2) to (5) with one B; None where it gives no good step."""
        found = self._direction(s, at, here, shift, gamma, oracle.f.seed)
        if found is None:
            return None
        z, D, new = found
        if not last and new.eta1 > s.eta1:
            return None
        moved = self._search(oracle, new, here, z, D, HALVINGS if last else 2)
        if moved is not None and shift > 0 and self.robust:
            return self._expand(oracle, new, here, z, moved)
        return moved

    def _direction(
        self, s: SketchedNewtonState, at: Lagrangian, here: Here, shift: float, gamma: float, seed: int
    ) -> tuple[Tensor, float, SketchedNewtonState] | None:
        """(2), (3): a direction of sufficient descent, its slope D, and the state with new penalties."""
        n, m, b = len(here.g), len(here.c), here.b
        prepared = self.linear_solver.init(kkt_system(at, s.rows, shift=shift, gamma=gamma, dense=n + m <= DENSE))
        generator = torch.Generator().manual_seed(_seed(seed, s.k))
        norm_b = float(b.norm())
        theta = min(1.0, norm_b**0.5) if self.superlinear else 1.0
        enough = 0.1 * self.tolerance if n + m > DENSE else 0.0
        new, start = replace(s, products=s.products + prepared.spent), None
        while True:
            situation = Situation(at, new.rows, shift, new.eta1, new.eta2, self.beta, self.xi, enough)
            delta = self.accuracy.delta(situation, new.delta)
            found = self.accuracy.solve(
                self.linear_solver, prepared, Vec.of(b), situation, theta * delta, generator=generator, start=start
            )
            new = replace(new, delta=delta, products=new.products + found.products)
            z = found.x.ravel()
            if not bool(z.isfinite().all()) or (n + m > DENSE and _indefinite(found, m)):
                return None
            D = self._slope(here, z, shift, gamma, found.residual, new)
            enough = -0.5 * new.eta2 * norm_b**2
            if enough >= D:
                return z, D, new
            if new.eta1 > ETA1 or new.eta2 < ETA2:
                return (z, D, new) if D < 0 else None
            new = replace(new, eta1=self.nu**2 * new.eta1, eta2=new.eta2 / self.nu, delta=new.delta / self.nu**4)
            start = found.x

    def _search(
        self, oracle: ConstrainedOracle, s: SketchedNewtonState, here: Here, z: Tensor, D: float, halvings: int
    ) -> SketchedNewtonState | None:
        """(4), (5)."""
        merit = self._merit(here, s.lam, s)
        slack = 50 * torch.finfo(s.x.dtype).eps * max(1.0, abs(merit))
        alpha, finite = 1.0, False
        for _ in range(halvings + 1):
            x, lam = self._moved(s, z, alpha)
            there = self._look(oracle, s, x, lam)
            trial = self._merit(there, lam, s)
            finite = there.finite
            if math.isfinite(trial) and trial <= merit + alpha * self.beta * D + slack:
                return self._judged(replace(s, x=x, lam=lam), there)
            alpha *= 0.5
        return None if finite else replace(s, outcome=Status.NONFINITE)

    def _expand(
        self, oracle: ConstrainedOracle, s: SketchedNewtonState, here: Here, z: Tensor, moved: SketchedNewtonState
    ) -> SketchedNewtonState:
        """Along a direction of no curvature that keeps c: ten times the step while the merit falls in proportion."""
        if float(here.c.norm()) > 1e-6 or moved.outcome != Status.RUNNING:
            return moved
        first, alpha = self._merit(here, s.lam, s), 1.0
        best = self._merit(self._look(oracle, s, moved.x, moved.lam), moved.lam, s)
        while best > -1e25:
            alpha *= 10.0
            x, lam = self._moved(s, z, alpha)
            there = self._look(oracle, s, x, lam)
            trial = self._merit(there, lam, s)
            if not (math.isfinite(trial) and trial - first <= 5 * (best - first) < 0):
                break
            best, moved = trial, self._judged(replace(s, x=x, lam=lam), there)
        return moved

    def _moved(self, s: SketchedNewtonState, z: Tensor, alpha: float) -> tuple[Vec, Tensor]:
        n = s.x.size
        return s.x.add(s.x.unravel(z[:n]), alpha), s.lam + alpha * z[n:]

    # -- verdicts, on unscaled quantities ---------------------------------------------------------------------------------
    def _judged(self, s: SketchedNewtonState, p: Here) -> SketchedNewtonState:
        c = p.c / s.rows
        residual, violation = kkt.norm(p.g, c), float(c.double().norm())
        outcome = Status.RUNNING
        if residual <= self.tolerance:
            outcome = Status.CONVERGED
        elif violation <= 1e-6 and (p.value < -1e20 or float(s.x.norm()) > 1e15):
            outcome = Status.UNBOUNDED
        better = residual <= 0.9 * s.best
        best, waited = (residual, 0) if better else (s.best, s.waited + 1)
        return replace(s, residual=residual, violation=violation, value=p.value, best=best, waited=waited, outcome=outcome)

    def _stuck(self, at: Lagrangian, here: Here, s: SketchedNewtonState) -> bool:
        """x is stationary for |c|^2 and not feasible."""
        if s.violation <= self.tolerance:
            return False
        return float(at.tape.vjp(s.rows * here.c).norm()) <= 1e-6 * float(here.c.norm())

    def _restored(self, oracle: ConstrainedOracle, s: SketchedNewtonState) -> SketchedNewtonState:
        """Less violation and least-squares multipliers, or the verdict."""
        if s.violation <= self.tolerance:
            return replace(s, outcome=Status.PRECISION if s.residual <= 1e3 * self.tolerance else Status.LINE_SEARCH)
        if s.restored >= 50:
            return replace(s, outcome=Status.STALLED)
        return self._from(oracle, s, restore(oracle, s.x, target=0.1 * s.violation, tol=self.tolerance))

    def _again(self, oracle: ConstrainedOracle, s: SketchedNewtonState) -> SketchedNewtonState:
        """The second attempt, from the start with its violation reduced first; STALLED after that."""
        if s.attempts > 1 or s.violation <= self.tolerance:
            return replace(s, outcome=Status.STALLED)
        found = restore(oracle, s.start, target=1e-3 * s.violation, tol=self.tolerance)
        return self._from(oracle, replace(s, attempts=2, waited=0, best=math.inf), found)

    def _from(self, oracle: ConstrainedOracle, s: SketchedNewtonState, found: Violation) -> SketchedNewtonState:
        """On from where the restoration ended, with least-squares multipliers; or the verdict."""
        stationary = found.violation > self.tolerance and found.slope <= STATIONARY
        if stationary or found.violation > 0.9 * s.violation:
            if not stationary:
                return replace(s, outcome=Status.STALLED)
            there = self._look(oracle, s, found.x, s.lam)
            return replace(self._judged(replace(s, x=found.x), there), outcome=Status.LOCALLY_INFEASIBLE)
        tape = oracle.tape(found.x)
        if not bool(tape.gradient.isfinite().all()):
            return replace(s, outcome=Status.NONFINITE)
        lam, _ = kkt.least_squares(s.rows[:, None] * tape.jacobian, tape.jacobian.new_zeros(0, len(tape.x)), tape.gradient, None)
        lam = lam if bool(lam.abs().max() <= 1e3) else torch.zeros_like(lam)
        s = replace(s, x=found.x, lam=lam, eta1=self.eta1, eta2=self.eta2, delta=self._delta(tape), restored=s.restored + 1)
        return self._judged(s, self._look(oracle, s, found.x, lam))


def _indefinite(found: LinearSolution, m: int) -> bool:
    """The linear solver met negative curvature on the null space of J: K then has more than m negative eigenvalues."""
    return found.reason is LinearStatus.NEGATIVE_CURVATURE or (found.inertia is not None and found.inertia[1] > m)


def _seed(seed: int, k: int) -> int:
    """Of the sketches of step k."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
