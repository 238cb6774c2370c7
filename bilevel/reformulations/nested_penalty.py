"""The penalised hyper-objective psi_sigma and its gradient, by warm-started inner minimisations.

    psi_sigma(x) = (min_y [sigma f + g](x, y) - min_z g(x, z)) / sigma
    grad psi_sigma = f_x(x, y_sigma) + (g_x(x, y_sigma) - g_x(x, z)) / sigma

With Richardson, 2 psi_{sigma/2} - psi_sigma, whose bias is O(sigma^2); z is shared. The inner problems are written as
sigma f + g, so that their step sizes do not depend on sigma. Kwon, Kwon, Wright, Nowak, arXiv 2309.01753.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from constrained.core.states import solver_state
from constrained.core.vec import Vec
from constrained.descent import DescentStatus, Method, Minimum, Pairs, Reformulation, minimise, residual

from ..oracle import BilevelOracle
from .accuracy import floor, tightened


@solver_state("Inner")
class Inner:
    """A minimiser of sigma f + g at the last x (sigma = 0: of g), and its method's memory."""

    sigma: float
    y: Vec
    memory: Pairs | float | None


@dataclass
class Solved:
    """An inner minimiser with what the surrogate needs of it: f, g there and d/dx (sigma f + g)."""

    inner: Inner
    f: float
    g: float
    x_gradient: Vec
    residual: float
    reason: DescentStatus


def penalty(sigma: float, richardson: bool) -> tuple[tuple[float, float], ...]:
    """(weight, sigma) of each psi in the surrogate."""
    return ((-1.0, sigma), (2.0, sigma / 2)) if richardson else ((1.0, sigma),)


class NestedPenalty(Reformulation):
    """psi~ as a function of x for `descent`. Holds the inner minimisers of the last call: read them back with `inner`.

    theta: the inner residuals are kept below theta sigma min(1, R), R the smallest residual of psi~ seen, so that the error of
    the gradient is a fraction theta of it. max_inner: steps of one inner minimisation.
    """

    def __init__(
        self,
        oracle: BilevelOracle,
        method: Method,
        inner: tuple[Inner, ...],
        sigma: float,
        richardson: bool,
        theta: float,
        best: float,
        max_inner: int,
    ):
        self.oracle, self.method, self.theta, self.best, self.max_inner = oracle, method, theta, best, max_inner
        self.set = oracle.X
        self.terms = penalty(sigma, richardson)
        self.smallest = min(s for _, s in self.terms)
        self.inner = inner  # (z, one y for each term)
        self.upper = self.lower = float("nan")  # f(x, y), g(x, z) of the last call
        self.found = math.nan, oracle.variables["x"]  # value and gradient of the last evaluation

    def __call__(self, x: Vec) -> tuple[float, Vec]:
        known, least = self.best, floor(x)

        def evaluate(tol: float) -> float:
            self.found = self.at(x, tol)
            return residual(self.set, x, self.found[1])

        def wanted(r: float) -> float:
            return max(self.theta * self.smallest * min(1.0, known, r), least)

        self.best = min(known, tightened(evaluate, wanted, least))
        return self.found

    def at(self, x: Vec, tol: float) -> tuple[float, Vec]:
        """psi~ and its gradient, with z and one y_sigma for each term found to a residual tol."""
        z = inner_minimum(self.oracle, self.method, x, self.inner[0], tol, self.max_inner)
        value, grad, solved = 0.0, None, [z]
        for (weight, sigma), start in zip(self.terms, self.inner[1:]):
            y = inner_minimum(self.oracle, self.method, x, replace(start, sigma=sigma), tol, self.max_inner)
            solved.append(y)
            value += weight * (y.f + (y.g - z.g) / sigma)
            part = (y.x_gradient - z.x_gradient) * (weight / sigma)
            grad = part if grad is None else grad + part
        self.inner = tuple(one.inner for one in solved)
        self.upper, self.lower = solved[-1].f, z.g
        bad = [one.reason for one in solved if one.reason in (DescentStatus.NONFINITE, DescentStatus.UNBOUNDED)]
        self.reason = bad[0] if bad else DescentStatus.CONVERGED
        assert grad is not None
        return value, grad


def inner_minimum(oracle: BilevelOracle, method: Method, x: Vec, start: Inner, tol: float, max_steps: int) -> Solved:
    """argmin over Y of sigma f + g at x, from the last minimiser. d/dx comes with each evaluation's backward."""
    sigma = start.sigma
    last: dict[str, tuple[list[Tensor], list[Vec], Vec]] = {}

    def objective(w: Vec) -> tuple[float, Vec]:
        if sigma:
            values, grads = oracle.penalised(sigma, x, w, wrt=(0, 1))
        else:
            value, grads = oracle.g.gradient((x, w), wrt=(0, 1))
            values = [value]
        last["call"] = (values, grads, w)
        total = sigma * float(values[0]) + float(values[1]) if sigma else float(values[0])
        return total, grads[1]

    found: Minimum = minimise(method, objective, start.y, tol=tol, X=oracle.Y, max_steps=max_steps, memory=start.memory)
    if last["call"][2] is not found.x:  # the search ended elsewhere than where it looked last
        objective(found.x)
    values, grads, _ = last["call"]
    f, g = (float(values[0]), float(values[1])) if sigma else (0.0, float(values[0]))
    return Solved(Inner(sigma, found.x, found.memory), f, g, grads[0], found.residual, found.reason)
