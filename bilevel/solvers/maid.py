"""MAID: the method of adaptive inexact descent (Salehi, Mukherjee, Roberts and Ehrhardt 2023).

Problem
    min over x of f(x, y), y = argmin of g(x, .), g strongly convex in y with second derivatives, f with second derivatives.

Reformulation
    Phi(x) = f(x, y(x)), grad Phi = f_x - g_xy v with g_yy v = f_y, known with the bounds of `hypergradients/error_bounds.py`:
    f - w <= Phi <= f + w,  |d - grad Phi| <= omega

Algorithm (one outer step from x with accuracies eps, delta and step alpha)
    (1) y <- lower solution with |g_y| / mu <= eps;  v <- CG on g_yy v = f_y to a residual delta;  d = f_x - g_xy v
    (2) while omega > (1 - eta) |d|:  eps, delta <- nu (eps, delta), and (1) again
    (3) stop if |d| + omega <= tol, which is looked at before (2)
    (4) x' = x - alpha d, y' its lower solution as in (1); accept if f' + w' + lam alpha |d|^2 <= f - w: Phi has fallen; else
        alpha <- rho alpha, and after `trials` failures eps, delta <- nu (eps, delta), and (1) again
    (5) before each trial: where w > margin alpha |d|^2 / 2, so that no step could be proven to pay, eps, delta <- nu (eps, delta)
        and (1) again; where eps in place of |g_y| / mu makes it so, eps <- nu eps
    (6) eps, delta <- relax (eps, delta);  alpha <- s's / s't with s, t the changes of x and d (growth alpha if s't <= 0)

    `MAID.paper()`: no (5); after `trials` failures in (4) trials + 1, and alpha as before; (6) is alpha <- growth alpha.

Notation
    f upper, g lower, d the paper's z, v its q; lam, rho, nu as there, growth and relax its rho and nu with bars.

References
    Salehi, Mukherjee, Roberts, Ehrhardt: An adaptively inexact first-order method for bilevel optimization with application to
    hyperparameter learning, arXiv 2308.10098. Deviations beside (5), (6): f may depend on x; omega; lam = share eta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from constrained.core.options import Fraction, Growth, Positive, Steps
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent import LBFGS, Method
from constrained.descent.curvature_pairs import Pairs

from ..hypergradients.error_bounds import Constants, LowerPoint, constants_at, inexact_gradient, lower_point
from ..lower.solution import solve_lower
from ..oracle import BilevelOracle
from ..reformulations.accuracy import answer_tolerance, floor

FIRST = 0.1  # eps and delta at the start
ROUNDS = 10  # of the power iterations at the start; later one a step
LONGEST = 100.0  # growth of alpha in one step


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
    def constants(self) -> Constants:
        return Constants(self.mu, self.vectors, self.norms, self.rates)

    @property
    def width(self) -> float:
        return self.constants.width(self.f_y, self.slope / self.mu)  # w


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
    curved: ClassVar[bool] = True
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    mu: Positive | None = None
    lower: Method = LBFGS()
    eta: Fraction = 1e-4
    share: Fraction = 0.5
    rho: Fraction = 0.5
    growth: Growth = 10 / 9
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
            searched=0,
            outcome=Status.RUNNING,
            **vars(Constants.blank(y, self.mu)),
        )
        s = self._differentiated(oracle, blank, self._lower_point(oracle, blank, x, first=True), ROUNDS)  # (1), (3)
        s = self._accurate(oracle, s)  # (2)
        return replace(s, alpha=1.0 / max(1.0, float(s.d.norm())))

    def step(self, oracle: BilevelOracle, state: MAIDState) -> MAIDState:
        """(1), (2) and (3) at x are done: by `init`, or at the end of the step that came to x."""
        s = replace(state, k=state.k + 1)
        while s.outcome is Status.RUNNING:
            alpha, failed = s.alpha, Status.RUNNING
            for _ in range(s.trials):
                # eps, delta <- nu (eps, delta) until a fall of Phi by a step alpha could be proven
                s = self._provable(oracle, s, alpha)  # (5)
                if s.outcome is not Status.RUNNING:
                    return s
                # x' = x - alpha d, accepted if f' + w' + lam alpha |d|^2 <= f - w
                trial = self._lower_point(oracle, s, s.x.add(s.d, -alpha))  # (4)
                s, failed = replace(s, searched=s.searched + 1), trial.failed
                fall = self.share * self.eta * alpha * float(s.d @ s.d)
                if failed is not Status.RUNNING:
                    alpha *= 0.1  # no gradient can be had there
                elif trial.value + trial.width + fall <= s.value - s.width:
                    relaxed = replace(s, eps=self.relax * s.eps, delta=self.relax * s.delta)  # (6)
                    new = self._differentiated(oracle, relaxed, trial, rounds=1)  # (1), (3)
                    new = self._accurate(oracle, new)  # (2)
                    return replace(new, alpha=self._longer(s, new, alpha))  # (6)
                else:
                    alpha *= self.rho  # (4)
            if failed is not Status.RUNNING:
                return replace(s, outcome=failed)
            s = replace(s, trials=s.trials + 1) if self.margin is None else replace(s, alpha=alpha)
            s = self._accurate(oracle, self._finer(oracle, s))  # (4)
        return s

    def terminate(self, oracle: BilevelOracle, state: MAIDState) -> Status:
        return state.outcome

    def answer(self, oracle: BilevelOracle, state: MAIDState) -> Point:
        return Point(state.x, solve_lower(oracle, state.x, state.y, answer_tolerance(self.tolerance, state.y)).x)

    def monitor(self, state: MAIDState) -> dict[str, float]:
        size = float(state.d.norm())
        return {"upper": state.value, "gradient": size, "omega": state.omega, "eps": state.eps, "alpha": state.alpha}

    # -- the parts of a step ----------------------------------------------------------------------------------------------
    def _lower_point(self, oracle: BilevelOracle, s: MAIDState, x: Vec, first: bool = False) -> LowerPoint:
        """The first part of (1): y with |g_y| / mu <= eps at x, from the last y."""
        most, measure = self.max_inner, self.mu is None
        return lower_point(
            oracle, x, s.y, s.constants, s.eps, method=self.lower, memory=s.memory, max_steps=most, measure=measure, first=first
        )

    def _differentiated(self, oracle: BilevelOracle, s: MAIDState, at: LowerPoint, rounds: int = 0) -> MAIDState:
        """The rest of (1) at a lower point: v to a residual delta, d, omega; and (3). rounds: 0, the constants are kept."""
        if at.failed is not Status.RUNNING:
            return replace(s, outcome=at.failed)
        known = constants_at(oracle, at, s.v, rounds) if rounds else at.constants
        s = replace(s, x=at.x, y=at.y, f_y=at.f_y, value=at.value, slope=at.found.residual, memory=at.found.memory, **vars(known))
        found = inexact_gradient(at, known, s.delta, start=s.v)
        if isinstance(found, Status):
            return replace(s, outcome=found)
        outcome = Status.CONVERGED if float(found.d.norm()) + found.omega <= self.tolerance else s.outcome  # (3)
        return replace(s, v=found.v, d=found.d, linear=found.residual, omega=found.omega, outcome=outcome)

    def _accurate(self, oracle: BilevelOracle, s: MAIDState) -> MAIDState:
        """(2)"""
        while s.outcome is Status.RUNNING and s.omega > (1 - self.eta) * float(s.d.norm()):
            s = self._finer(oracle, s)
        return s

    def _finer(self, oracle: BilevelOracle, s: MAIDState) -> MAIDState:
        """eps, delta <- nu (eps, delta), and (1), (3) again; the accuracies end at round-off."""
        if max(s.mu * s.eps, s.delta) <= floor(s.x):
            return replace(s, outcome=Status.PRECISION)
        s = replace(s, eps=self.nu * s.eps, delta=self.nu * s.delta)
        return self._differentiated(oracle, s, self._lower_point(oracle, s, s.x))

    def _provable(self, oracle: BilevelOracle, s: MAIDState, alpha: float) -> MAIDState:
        """(5): accuracies at which a step alpha could be proven to pay, here and, by eps, at the trial point."""
        while self.margin is not None and s.outcome is Status.RUNNING and s.mu * s.eps > floor(s.x):
            most = self.margin * alpha * float(s.d @ s.d) / 2
            if s.width > most:
                s = self._accurate(oracle, self._finer(oracle, s))
            elif s.constants.width(s.f_y, s.eps) > most:
                s = replace(s, eps=self.nu * s.eps)
            else:
                break
        return s

    def _longer(self, s: MAIDState, new: MAIDState, alpha: float) -> float:
        """(6): s's / s't, where spectral."""
        dx, dd = new.x - s.x, new.d - s.d
        ss, sd = float(dx @ dx), float(dx @ dd)
        return min(ss / sd, LONGEST * alpha) if self.spectral and sd > 0 else alpha * self.growth
