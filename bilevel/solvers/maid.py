"""MAID: the method of adaptive inexact descent (Salehi, Mukherjee, Roberts and Ehrhardt 2023).

Problem
    min over x of f(x, y), y = argmin of g(x, .), g strongly convex in y with second derivatives, f with second derivatives.

Reformulation
    Phi(x) = f(x, y(x)), grad Phi = f_x - g_xy v with g_yy v = f_y, known as d with |d - grad Phi| <= omega

Algorithm (one outer step from x with accuracies eps, delta and step alpha)
    (1) y <- lower solution with |g_y| / mu <= eps;  v <- CG on g_yy v = f_y to a residual delta;  d = f_x - g_xy v
    (2) while omega > (1 - eta) |d|:  eps, delta <- nu (eps, delta), and (1) again
    (3) stop if |d| + omega <= tol
    (4) x' = x - alpha d, y' its lower solution as in (1); accept if f' + w' + lam alpha |d|^2 <= f - w, else alpha <- rho alpha.
        w = |f_y| e + L_f e^2 / 2 with e = |g_y| / mu >= |y - y(x)|, so that f - w <= Phi(x) <= f + w: Phi has fallen
    (5) before each trial: where w > margin alpha |d|^2 / 2, so that no step could be proven to pay, eps, delta <- nu (eps, delta)
        and (1) again; where eps in place of e makes it so, eps <- nu eps
    (6) alpha <- s's / s't with s, t the changes of x and d (growth alpha if s't <= 0);  eps, delta <- relax (eps, delta)

    omega = (f_xy + M_B |v|) e + (B + M_B e) ((L_f + M_H |v|) e + |f_y - g_yy v|) / mu
    B = |g_xy|, L_f = |f_yy|, f_xy its norm, M_B and M_H the rates at which g_xy v / |v| and g_yy v / |v| change with y

    `MAID.paper()`: no (5); after `trials` failures in (4) eps, delta <- nu (eps, delta), trials + 1, and alpha as before; (6) is
    alpha <- growth alpha.

Notation
    f upper, g lower, d the paper's z, v its q; lam, rho, nu as there, growth and relax its rho and nu with bars.

How the constants are found: mu by a Lanczos sweep on g_yy at each new point (or the option), B, L_f and |f_xy| by power
iterations, all from the last vectors; M_B and M_H from products with v at both ends of the lower solves. All but an option mu are
estimates, so that omega is a bound as good as they are.

References
    Salehi, Mukherjee, Roberts, Ehrhardt: An adaptively inexact first-order method for bilevel optimization with application to
    hyperparameter learning, arXiv 2308.10098. Deviations beside (5), (6): f may depend on x; omega has the residuals reached in
    place of eps and delta, |v| for |f_y| / mu, and L_f in its first term; lam = share eta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from constrained.core.derivatives.finite_differences import direction
from constrained.core.derivatives.objective import Linearization
from constrained.core.options import Fraction, Positive, Steps
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, DescentStatus, Method, Minimum, minimise
from constrained.descent.curvature_pairs import Pairs
from constrained.linear import CG, LinearStatus, System
from constrained.linear.spectrum import Lowest, lowest, lowest_from_scratch, operator_norm

from ..lower.solution import solve_lower
from ..oracle import BilevelOracle
from ..reformulations.accuracy import answer_tolerance

SWEEP = 4  # products of a Lanczos sweep at a new point
ROUNDS = 10  # of the power iterations at the start; later one a step
FADE = 0.9  # of the rates of change from step to step, so that they may fall
FIRST = 0.1  # eps and delta at the start
CORRECTIONS = 3  # of a lower solution where mu there turns out smaller
LONGEST = 100.0  # growth of alpha in one step
ROUGH = 1e6  # units of rounding: a lower residual above them that is ten times too large is no round-off
LOWER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.LOWER_UNSOLVED}
LINEAR_FAILED = {
    LinearStatus.NONFINITE: Status.NONFINITE,
    LinearStatus.SINGULAR: Status.SINGULAR,
    LinearStatus.NEGATIVE_CURVATURE: Status.LOWER_UNSOLVED,
}


@solver_state("MAIDState")
class MAIDState:
    """The point, what is known there, the accuracies and the step."""

    k: int  # completed outer steps
    x: Vec
    y: Vec
    v: Vec
    d: Vec
    f_y: Vec
    value: float  # f(x, y)
    slope: float  # |g_y|
    linear: float  # |f_y - g_yy v|
    omega: float
    eps: float
    delta: float
    alpha: float
    trials: int
    memory: Pairs | float | None  # of the lower method
    mu: float
    vectors: tuple[Vec, ...]  # four, followed for mu, |g_xy|, |f_yy|, |f_xy|
    norms: tuple[float, float, float]  # |g_xy|, |f_yy|, |f_xy|
    rates: tuple[float, float]  # M_B, M_H
    searched: int  # trial points so far
    outcome: Status

    @property
    def width(self) -> float:
        return width(self.f_y, self.slope / self.mu, self.norms[1])


@dataclass
class Known:
    """The lower solution at one x, with derivatives there. start: where its search began."""

    x: Vec
    start: Vec
    found: Minimum
    g: Linearization
    mu: float
    vector: Vec  # near an eigenvector of mu
    failed: Status  # RUNNING, or why no gradient can be had here
    value: float
    f_x: Vec
    f_y: Vec

    @property
    def error(self) -> float:
        """A bound of |y - y(x)|."""
        return self.found.residual / self.mu


def width(f_y: Vec, error: float, L_f: float) -> float:
    """|f_y| e + L_f e^2 / 2, how far f(x, y) may be from f(x, y(x)) where |y - y(x)| <= e."""
    return float(f_y.norm()) * error + 0.5 * L_f * error**2


@dataclass(frozen=True, kw_only=True)
class MAID(Solver[BilevelOracle, MAIDState]):
    """Gradient descent on the hyper-objective from inexact lower solutions, whose accuracy and step length follow the progress.

    d = f_x - g_xy v with |g_yy v - f_y| <= delta at |y - y(x)| <= eps;  x <- x - alpha d with the fall of Phi proven by bounds.

    mu: strong convexity of g(x, .), where it is known for all x, a ridge for instance; None: measured at each point. lower: the
    method for y. eta: d is accepted where omega <= (1 - eta) |d|; share: lam = share eta. rho, growth: of alpha; nu, relax: of
    the accuracies; trials: of a line search before the accuracies are raised. margin: width of the bounds on Phi at which a
    trial begins, relative to alpha |d|^2; spectral: alpha from the curvature seen. max_outer: outer steps; max_inner: steps of
    one lower minimisation.

    A step costs one lower minimisation, one gradient of f, one of g and four products with g_yy for each trial point, and
    one solve by conjugate gradients with a few products more. `calls.by` of a result has the levels apart. For lower levels
    that are strongly convex on the whole space, and x without a set.

    >>> import torch, bilevel
    >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> problem = bilevel.BilevelProblem(
    ...     upper=lambda x, y: ((y - a) ** 2).sum() + 0.1 * (x**2).sum(),
    ...     lower=lambda x, y: ((y - x) ** 2).sum() + 0.5 * (y**2).sum(),
    ...     x=torch.zeros(2, dtype=torch.float64), y=torch.zeros(2, dtype=torch.float64))
    >>> result = bilevel.solve(problem, MAID())
    >>> result.status.name, result.x.round(decimals=5)
    ('CONVERGED', tensor([1.2245, 2.4490], dtype=torch.float64))

    Source: arXiv 2308.10098; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    mu: Positive | None = None
    lower: Method = LBFGS()
    eta: Fraction = 1e-4
    share: Fraction = 0.5
    rho: Fraction = 0.5
    growth: Positive = 10 / 9
    nu: Fraction = 0.5
    relax: Positive = 1.25
    trials: Steps = 5
    margin: Positive | None = 0.25
    spectral: bool = True
    max_outer: Steps = 10_000
    max_inner: Steps = 10_000

    @classmethod
    def paper(cls) -> MAID:
        """The published line search: failures alone raise the accuracies, and alpha grows by a factor."""
        return cls(margin=None, spectral=False)

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: BilevelOracle, start: Point) -> MAIDState:
        x, y, inf = start.x, start.y, math.inf
        blank = MAIDState(
            k=0,
            x=x,
            y=y,
            v=y.zeros(),
            d=x.zeros(),
            f_y=y.zeros(),
            value=inf,
            slope=inf,
            linear=inf,
            omega=inf,
            eps=FIRST,
            delta=FIRST,
            alpha=1.0,
            trials=self.trials,
            memory=None,
            mu=1.0 if self.mu is None else self.mu,
            vectors=tuple(direction(y, torch.Generator().manual_seed(seed)) for seed in range(4)),
            norms=(0.0, 0.0, 0.0),
            rates=(0.0, 0.0),
            searched=0,
            outcome=Status.RUNNING,
        )
        s = self._gradient(oracle, blank, self._solved(oracle, blank, x, first=True), ROUNDS)
        return replace(s, alpha=1.0 / max(1.0, float(s.d.norm())))

    def step(self, oracle: BilevelOracle, state: MAIDState) -> MAIDState:
        s = replace(state, k=state.k + 1)
        while s.outcome == Status.RUNNING:
            alpha, failed = s.alpha, Status.RUNNING
            for _ in range(s.trials):
                s = self._sharp(oracle, s, alpha)  # (5)
                if s.outcome != Status.RUNNING:
                    return s
                trial = self._solved(oracle, s, s.x.add(s.d, -alpha))  # (4)
                s, failed = replace(s, searched=s.searched + 1), trial.failed
                fall = self.share * self.eta * alpha * float(s.d @ s.d)
                if failed is not Status.RUNNING:
                    alpha *= 0.1
                elif trial.value + width(trial.f_y, trial.error, s.norms[1]) + fall <= s.value - s.width:
                    eased = replace(s, eps=self.relax * s.eps, delta=self.relax * s.delta)
                    new = self._gradient(oracle, eased, trial, 1)  # (1), (2), (3)
                    return replace(new, alpha=self._longer(s, new, alpha))  # (6)
                else:
                    alpha *= self.rho
            if failed is not Status.RUNNING:
                return replace(s, outcome=failed)
            s = self._finer(oracle, replace(s, trials=s.trials + 1) if self.margin is None else replace(s, alpha=alpha))
        return s

    def terminate(self, oracle: BilevelOracle, state: MAIDState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: MAIDState) -> Point:
        tol = answer_tolerance(self.tolerance, state.y)
        return Point(state.x, solve_lower(oracle, state.x, state.y, tol).x)

    def monitor(self, state: MAIDState) -> dict[str, float]:
        size = float(state.d.norm())
        return {"upper": state.value, "gradient": size, "omega": state.omega, "eps": state.eps, "alpha": state.alpha}

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _solved(self, oracle: BilevelOracle, s: MAIDState, x: Vec, first: bool = False) -> Known:
        """y with |g_y| / mu <= eps at x, from the last y; mu is that of x."""
        tiny = torch.finfo(x.dtype).eps
        y, mu, vector, memory, failed = s.y, s.mu, s.vectors[0], s.memory, Status.RUNNING

        def objective(w: Vec) -> tuple[float, Vec]:
            value, (g_y,) = oracle.g.gradient((x, w), wrt=(1,))
            return float(value), g_y

        tries = 0
        while True:
            tries += 1
            tol = max(mu * s.eps, 30 * tiny)
            found = minimise(self.lower, objective, y, tol=tol, max_steps=self.max_inner, memory=memory)
            y, memory = found.x, found.memory
            g = oracle.g.linearize((x, y))
            if self.mu is None:
                sweep = self._sweep(g, vector, first)
                first, mu, vector = False, sweep.value, sweep.vector
                if not mu > 100 * tiny * sweep.largest:
                    flat = abs(mu) <= 100 * tiny * sweep.largest
                    failed = Status.NONFINITE if math.isnan(mu) else Status.SINGULAR if flat else Status.LOWER_UNSOLVED
                    break
            if found.residual <= max(1.1 * mu * s.eps, 30 * tiny) or tries == CORRECTIONS:
                break
        value, (f_x, f_y) = oracle.f.gradient((x, y), None, (0, 1))
        failed = LOWER_FAILED.get(found.reason, failed)
        if failed is Status.RUNNING and found.residual > max(10 * mu * s.eps, ROUGH * tiny * (1.0 + float(y.norm()))):
            failed = Status.LOWER_UNSOLVED
        if not math.isfinite(float(value)):
            failed = Status.NONFINITE
        return Known(x, s.y, found, g, mu, vector, failed, float(value), f_x, f_y)

    def _sweep(self, g: Linearization, vector: Vec, first: bool) -> Lowest:
        def product(w: Vec) -> Vec:
            return g.product(w, 1, 1)

        return lowest_from_scratch(product, vector) if first else lowest(product, vector, SWEEP)

    def _gradient(self, oracle: BilevelOracle, s: MAIDState, at: Known, rounds: int = 0) -> MAIDState:
        """d and omega at a solved point, the accuracies raised until omega <= (1 - eta) |d|; the verdict."""
        if at.failed is not Status.RUNNING:
            return replace(s, outcome=at.failed)
        x, y, g, e = at.x, at.found.x, at.g, at.error
        s = replace(s, x=x, y=y, f_y=at.f_y, value=at.value, slope=at.found.residual, memory=at.found.memory, mu=at.mu)
        s = replace(s, vectors=(at.vector, *s.vectors[1:]))
        if rounds:
            s = self._constants(oracle, s, at, rounds)
        solved = CG().solve(System(lambda w: g.product(w, 1, 1), y.size, like=y), at.f_y, tol=s.delta, start=s.v)
        if solved.reason in LINEAR_FAILED:
            return replace(s, outcome=LINEAR_FAILED[solved.reason])
        d, v = at.f_x - g.product(solved.x, 0, 1), float(solved.x.norm())
        (B, L_f, f_xy), (M_B, M_H) = s.norms, s.rates
        omega = (f_xy + M_B * v) * e + (B + M_B * e) * ((L_f + M_H * v) * e + solved.residual) / at.mu
        size = float(d.norm())
        if not math.isfinite(size + omega):
            return replace(s, outcome=Status.NONFINITE)
        s = replace(s, v=solved.x, d=d, linear=solved.residual, omega=omega)
        if size + omega <= self.tolerance:
            return replace(s, outcome=Status.CONVERGED)  # (3)
        return s if omega <= (1 - self.eta) * size else self._finer(oracle, s)  # (2)

    def _finer(self, oracle: BilevelOracle, s: MAIDState) -> MAIDState:
        """(1) again at nu times the accuracies, which end at round-off."""
        floor = 30 * torch.finfo(s.x.dtype).eps
        if s.mu * s.eps <= floor and s.delta <= floor:
            return replace(s, outcome=Status.PRECISION)
        s = replace(s, eps=self.nu * s.eps, delta=self.nu * s.delta)
        return self._gradient(oracle, s, self._solved(oracle, s, s.x))

    def _sharp(self, oracle: BilevelOracle, s: MAIDState, alpha: float) -> MAIDState:
        """Accuracies at which a step alpha could be proven to pay: here, and eps for the trial point."""
        floor, L_f = 30 * torch.finfo(s.x.dtype).eps, s.norms[1]
        while self.margin is not None and s.outcome == Status.RUNNING and s.mu * s.eps > floor:
            most = self.margin * alpha * float(s.d @ s.d) / 2
            if s.width > most:
                s = self._finer(oracle, s)
            elif width(s.f_y, s.eps, L_f) > most:
                s = replace(s, eps=self.nu * s.eps)
            else:
                break
        return s

    def _longer(self, s: MAIDState, new: MAIDState, alpha: float) -> float:
        dx, dd = new.x - s.x, new.d - s.d
        ss, sd = float(dx @ dx), float(dx @ dd)
        return min(ss / sd, LONGEST * alpha) if self.spectral and sd > 0 else alpha * self.growth

    def _constants(self, oracle: BilevelOracle, s: MAIDState, at: Known, rounds: int) -> MAIDState:
        """|g_xy|, |f_yy|, |f_xy| followed to this point; the rates from what v's products did over the last lower solve."""
        x, y, g, v = at.x, at.found.x, at.g, s.v
        f = oracle.f.linearize((x, y))
        first, b, c, h = s.vectors
        B, b = operator_norm(lambda w: g.product(w, 0, 1), lambda u: g.product(u, 1, 0), b, rounds)
        L_f, c = operator_norm(lambda w: f.product(w, 1, 1), lambda w: f.product(w, 1, 1), c, rounds)
        f_xy, h = operator_norm(lambda w: f.product(w, 0, 1), lambda u: f.product(u, 1, 0), h, rounds)
        rates, far, length = [FADE * rate for rate in s.rates], float((y - at.start).norm()), float(v.norm())
        if far > 1e-6 * (1.0 + float(y.norm())) and length > 0:
            before = oracle.g.linearize((x, at.start))
            for row in (0, 1):
                change = float((g.product(v, row, 1) - before.product(v, row, 1)).norm())
                rates[row] = max(rates[row], change / (far * length))
        return replace(s, vectors=(first, b, c, h), norms=(B, L_f, f_xy), rates=(rates[0], rates[1]))
