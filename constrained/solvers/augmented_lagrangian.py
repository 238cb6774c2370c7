"""AugmentedLagrangian: the method of multipliers (Hestenes 1969, Powell 1969; Rockafellar 1973 for inequalities).

Problem
    min f(x) subject to c(x) = 0, h(x) <= 0, x in X; first derivatives, and second ones of the user's own or that `inner` takes.

Reformulation
    A(x; lam, mu, rho) = f + lam'c + rho/2 |c|^2 + 1/(2 rho) sum_i (max(0, mu_i + rho h_i)^2 - mu_i^2)

Algorithm (one outer step)
    (1) x <- a minimiser of A(.; lam, mu, rho) over X, from the last x, to |x - P_X(x - grad A)| <= omega
    (2) lam <- lam + rho c(x),  mu <- max(0, mu + rho h(x))
    (3) where the violation |(c, max(h, -mu/rho))|, mu and rho of before (2), is more than `progress` of the last one and than
        tol / 10:  rho <- growth rho
    (4) omega <- max(tol / 2, omega / 10)
    (5) stop if the residual of (1) and the violation are <= tol

    After (2) grad A is the gradient of the Lagrangian, so that the inner residual is the stationarity.

Notation
    c equality, h inequality, lam and mu >= 0 their multipliers.

References
    Bertsekas: Constrained Optimization and Lagrange Multiplier Methods, 1982; Nocedal and Wright: Numerical Optimization, section
    17.4, whose safeguards (bounded multipliers, limits of rho) are followed. The verdicts are this library's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..augmented_objective import AugmentedObjective, inequality
from ..core.options import Fraction, Growth, Positive, Steps
from ..core.problem import Multipliers, Point
from ..core.solver import Solver
from ..core.states import solver_state
from ..core.status import Feature, Status
from ..core.vec import Vec
from ..descent import LBFGS, DescentStatus, Method, NewtonCG, minimise
from ..descent.curvature_pairs import Pairs
from ..oracle import ConstrainedOracle

LARGEST = 1e20  # of multipliers
PENALTY = 1e12  # beyond which rho is not raised
STEEP = 1e-6  # |P(grad |violation|^2)| over the violation below which it is locally least


@solver_state("AugmentedLagrangianState")
class AugmentedLagrangianState:
    """The point, the multipliers, the penalty and the inner accuracy."""

    k: int
    x: Vec
    lam: Tensor
    mu: Tensor
    rho: float
    omega: float
    memory: Pairs | float | None  # of the inner method
    stationarity: float
    violation: float  # |(c, max(h, -mu / rho))|
    value: float
    inner_steps: int  # so far
    outcome: Status


@dataclass(frozen=True, kw_only=True)
class AugmentedLagrangian(Solver[ConstrainedOracle, AugmentedLagrangianState]):
    """Method of multipliers for equalities, inequalities and sets, on first derivatives; on second ones that the user gives.

    x minimises f + lam'c + rho/2 |c|^2 + 1/(2 rho) sum (max(0, mu + rho h)^2 - mu^2) over X; then lam <- lam + rho c and
    mu <- max(0, mu + rho h).

    inner: the method for x; None: NewtonCG() where each function is a `Function` with hessian= or hvp=, with factors of the
    matrices, dense or sparse, where all are; else LBFGS(), which is ProjectedLBFGS where X is a Box; on other sets SPG.
    NewtonCG() raises Unsuitable where a function lacks second derivatives. rho, growth: penalty at the start and its growth;
    progress: share to which a step must bring the violation, else rho grows. omega: inner accuracy at the start. max_outer:
    outer steps; max_inner: steps of one inner minimisation.

    >>> from constrained import ConstrainedProblem, solve
    >>> problem = ConstrainedProblem(
    ...     objective=lambda x: (x**2).sum(), inequality=lambda x: 1 - x[0], x=torch.zeros(2, dtype=torch.float64))
    >>> result = solve(problem, AugmentedLagrangian(), tol=1e-6)
    >>> result.status.name, result.x.round(decimals=4)
    ('CONVERGED', tensor([1., 0.], dtype=torch.float64))

    Source: Bertsekas 1982; Nocedal and Wright, section 17.4.
    """

    supports: ClassVar[Feature] = Feature.EQUALITY | Feature.INEQUALITY | Feature.X_SET | Feature.NO_HVP
    requires: ClassVar[Feature] = Feature(0)

    tol: Positive | None = None
    inner: Method | None = None
    rho: Positive = 10.0
    growth: Growth = 10.0
    progress: Fraction = 0.25
    omega: Positive = 0.1
    max_outer: Steps = 100
    max_inner: Steps = 10_000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: ConstrainedOracle, start: Point) -> AugmentedLagrangianState:
        x, given = start.x, start.multipliers or Multipliers()
        tape = oracle.tape(x)
        h = inequality(oracle, x)
        lam = torch.zeros_like(tape.c) if given.equality is None else torch.as_tensor(given.equality).to(tape.c)
        mu = torch.zeros_like(h) if given.inequality is None else torch.as_tensor(given.inequality).to(h).clamp(min=0)
        return AugmentedLagrangianState(
            k=0,
            x=x,
            lam=lam,
            mu=mu,
            rho=self.rho,
            omega=self.omega,
            memory=None,
            stationarity=math.inf,
            violation=math.inf,
            value=float(tape.value),
            inner_steps=0,
            outcome=Status.RUNNING,
        )

    def step(self, oracle: ConstrainedOracle, state: AugmentedLagrangianState) -> AugmentedLagrangianState:
        s, X = state, oracle.X
        augmented = AugmentedObjective(oracle, s.lam, s.mu, s.rho)
        tol = max(s.omega, 0.5 * self.tolerance)
        method = (self.inner or _suited(oracle)).for_set(X)
        # x minimises A(.; lam, mu, rho) over X, to the residual omega
        found = minimise(method, augmented, s.x, tol=tol, X=X, max_steps=self.max_inner, memory=s.memory)  # (1)
        x = found.x
        tape, h = oracle.tape(x), inequality(oracle, x)
        violated = torch.cat([tape.c, torch.maximum(h, -s.mu / s.rho)])
        lam = (s.lam + s.rho * tape.c).clamp(-LARGEST, LARGEST)  # (2)
        mu = (s.mu + s.rho * h).clamp(0, LARGEST)  # (2)
        violation = float(violated.double().norm())
        rho = s.rho if violation <= max(self.progress * s.violation, 0.1 * self.tolerance) else self.growth * s.rho  # (3)
        new = replace(
            s,
            k=s.k + 1,
            x=x,
            lam=lam,
            mu=mu,
            rho=min(rho, PENALTY),
            omega=max(0.5 * self.tolerance, 0.1 * s.omega),  # (4)
            memory=found.memory if rho == s.rho else None,
            stationarity=found.residual,
            violation=violation,
            value=float(tape.value),
            inner_steps=s.inner_steps + found.steps,
        )
        return replace(new, outcome=self._verdict(oracle, new, s, found.reason))

    def _verdict(
        self, oracle: ConstrainedOracle, new: AugmentedLagrangianState, old: AugmentedLagrangianState, reason: DescentStatus
    ) -> Status:
        if new.stationarity <= self.tolerance and new.violation <= self.tolerance:  # (5)
            return Status.CONVERGED
        if reason is DescentStatus.NONFINITE:
            return Status.NONFINITE
        if reason is DescentStatus.UNBOUNDED:
            return Status.UNBOUNDED
        if old.rho >= 1e6 and new.violation > self.tolerance and self._least(oracle, new):
            return Status.LOCALLY_INFEASIBLE
        if old.rho >= PENALTY or (old.omega <= self.tolerance and reason in (DescentStatus.PRECISION, DescentStatus.LINE_SEARCH)):
            settled = new.violation >= 0.9 * old.violation and new.stationarity >= 0.9 * old.stationarity
            return Status.PRECISION if settled or old.rho >= PENALTY else Status.RUNNING
        return Status.RUNNING

    def _least(self, oracle: ConstrainedOracle, s: AugmentedLagrangianState) -> bool:
        """The violation |(c, max(h, 0))| has no descent direction in X."""
        tape, h = oracle.tape(s.x), inequality(oracle, s.x).clamp(min=0)
        grad = tape.vjp(tape.c)
        if oracle.h is not None:
            grad = grad + oracle.h.vjp((s.x,), h)[0].ravel()
        size = float(torch.cat([tape.c, h]).norm())
        step = s.x.add(s.x.unravel(grad), -1.0 / max(size, 1e-300))
        return float((s.x - oracle.X.project(step)).norm()) <= STEEP

    def revisit(self, oracle: ConstrainedOracle, state: AugmentedLagrangianState) -> bool:
        oracle.tape(state.x)
        return True

    def terminate(self, oracle: ConstrainedOracle, state: AugmentedLagrangianState) -> Status:
        return state.outcome

    def answer(self, oracle: ConstrainedOracle, state: AugmentedLagrangianState) -> Point:
        lam = state.lam if oracle.c is not None else None
        return Point(state.x, None, Multipliers(lam, state.mu if oracle.h is not None else None))

    def monitor(self, state: AugmentedLagrangianState) -> dict[str, float]:
        watched = {"objective": state.value, "stationarity": state.stationarity, "feasibility": state.violation, "rho": state.rho}
        return watched if state.k else {}


def _suited(oracle: ConstrainedOracle) -> Method:
    """By the curvature that the user gives."""
    owns = [function.own for function in oracle.functions]
    return NewtonCG() if all(own.hessian is not None or own.hvp is not None for own in owns) else LBFGS()
