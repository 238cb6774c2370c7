"""The filter line search: a trial point is progress where it reduces the violation or the barrier function.

theta = |C|_1, phi = barrier function, D = its slope along the step. A trial point is accepted where no pair of the filter
dominates it, and

    phi <= phi_k + ARMIJO alpha D                                         where alpha (-D)^2.3 > theta_k^1.1, theta_k small
    theta <= (1 - GAMMA_THETA) theta_k   or   phi <= phi_k - GAMMA_PHI theta_k      elsewhere; then the pair joins the filter

Source: Waechter and Biegler, On the implementation of an interior-point filter line-search algorithm, Math. Program. 106, 2006,
sections 2.3 and 2.4. Correction of second order: at the first trial, while it reduces theta and is no longer than the step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from .iterate import Iterate
from .newton import Newton, Step
from .program import EPS, Array, Values

GAMMA_THETA, GAMMA_PHI = 1e-5, 1e-8
S_THETA, S_PHI = 1.1, 2.3
ARMIJO = 1e-4
SMALL, LARGE = 1e-4, 1e4  # times max(1, theta at the start): where D counts, and what no trial may exceed
SHARE, SHORTEST = 0.05, 1e-12  # of the usual least step length; of any
CORRECTIONS = 4


@dataclass(frozen=True)
class Limits:
    """Bounds of theta by its value at the start."""

    start: float

    @property
    def small(self) -> float:
        return SMALL * max(1.0, self.start)

    @property
    def large(self) -> float:
        return LARGE * max(1.0, self.start)


def dominated(pairs: Array, theta: float, phi: float) -> bool:
    """A pair of the filter has no more of both."""
    if not len(pairs):
        return False
    slack = 10 * EPS * abs(phi)
    return bool(((theta >= pairs[:, 0]) & (phi - slack >= pairs[:, 1])).any())


def joined(pairs: Array, theta: float, phi: float) -> Array:
    """The filter with what the point at hand forbids from now on, without pairs that this makes idle."""
    new = np.array([[(1 - GAMMA_THETA) * theta, phi - GAMMA_PHI * theta]])
    idle = (pairs[:, 0] >= new[0, 0]) & (pairs[:, 1] >= new[0, 1])
    return np.concatenate([pairs[~idle], new])


@dataclass(frozen=True)
class Accepted:
    """The trial point, its step (corrected or not), the length; whether the pair of before joins the filter."""

    at: Values
    step: Step
    alpha: float
    joins: bool


@dataclass(frozen=True)
class Search:
    """One line search: along a step from an iterate."""

    newton: Newton
    step: Step
    pairs: Array
    limits: Limits

    def run(self, longest: float, tau: float) -> Accepted | None:
        """From the longest step down by halves; None where no length above the least one is accepted."""
        it, first = self.newton.it, True
        alpha, least = longest, self.shortest()
        while alpha >= least:
            trial = self.moved(self.step, alpha)
            if np.array_equal(trial.x, it.at.x) and np.array_equal(trial.s, it.at.s):  # phi's slack would accept it for ever
                return None
            if trial.finite:
                joins = self.accepts(trial, alpha)
                if joins is not None and trial.smooth:
                    return Accepted(trial, self.step, alpha, joins)
                if first and trial.theta >= it.at.theta > 0:
                    corrected = self.corrected(trial, alpha, tau)
                    if corrected is not None:
                        return corrected
            alpha, first = 0.5 * alpha, False
        return None

    @functools.cached_property
    def D(self) -> float:
        return self.newton.slope(self.step)

    @property
    def blind(self) -> bool:
        """The decrease of phi that the step promises is less than its round-off."""
        return abs(self.D) <= 10 * EPS * abs(self.newton.it.phi(self.newton.mu))

    def moved(self, step: Step, alpha: float) -> Values:
        at, p = self.newton.it.at, self.newton.it.at.program
        return p.at(p.clipped(at.x + alpha * step.dx), at.s + alpha * step.ds)

    def phi(self, at: Values) -> float:
        return at.phi(self.newton.mu)

    def shortest(self) -> float:
        theta, D = self.newton.it.at.theta, self.D
        least = GAMMA_THETA
        if D < 0:
            least = min(least, GAMMA_PHI * theta / -D)
            if theta <= self.limits.small:
                least = min(least, theta**S_THETA / (-D) ** S_PHI)
        return max(SHARE * least, SHORTEST)

    def accepts(self, trial: Values, alpha: float) -> bool | None:
        """Whether the pair of the iterate joins the filter; None: the trial is refused."""
        theta, phi = self.newton.it.at.theta, self.newton.it.phi(self.newton.mu)
        there, D, slack = self.phi(trial), self.D, 10 * EPS * abs(phi)
        if not math.isfinite(there) or trial.theta > self.limits.large or dominated(self.pairs, trial.theta, there):
            return None
        by_slope = D < 0 and theta <= self.limits.small and alpha * (-D) ** S_PHI > theta**S_THETA
        if by_slope:
            return False if there <= phi + ARMIJO * alpha * D + slack else None
        less = trial.theta <= (1 - GAMMA_THETA) * theta or there <= phi - GAMMA_PHI * theta + slack
        return True if less else None

    def corrected(self, trial: Values, alpha: float, tau: float) -> Accepted | None:
        """Steps to where the constraints' curvature was seen to lead."""
        it, C, theta = self.newton.it, alpha * self.newton.it.at.C + trial.C, trial.theta
        for _ in range(CORRECTIONS):
            step = self.newton.step(C)
            longer = np.linalg.norm(step.dx - self.step.dx) > np.linalg.norm(self.step.dx)
            if not step.finite or longer:
                return None
            length = longest(it, step, tau)
            there = self.moved(step, length)
            if not there.finite:
                return None
            joins = self.accepts(there, alpha)
            if joins is not None and there.smooth:
                return Accepted(there, step, length, joins)
            if there.theta > 0.99 * theta:
                return None
            C, theta = length * C + there.C, there.theta
        return None


def longest(it: Iterate, step: Step, tau: float) -> float:
    """The length up to 1 that keeps 1 - tau of every distance to a bound."""
    if not it.at.program.bounded:
        return 1.0
    return min(reach(it.dl, step.dx, tau), reach(it.du, -step.dx, tau), reach(it.at.s, step.ds, tau))


def longest_dual(it: Iterate, steps: tuple[Array, Array, Array], tau: float) -> float:
    """The same of z."""
    return min(reach(z, dz, tau) for z, dz in zip((it.zl, it.zu, it.zs), steps))


def advanced(newton: Newton, step: Step, alpha: float, tau: float, at: Values) -> Iterate:
    """x, s and lam moved by alpha, z by a length of its own."""
    it, lam = newton.it, newton.it.lam + alpha * step.dlam
    if not at.program.bounded:
        return Iterate(at, lam, it.zl, it.zu, it.zs)
    dz = newton.bounds(step)
    dual = longest_dual(it, dz, tau)
    z = (one + dual * d for one, d in zip((it.zl, it.zu, it.zs), dz))
    return Iterate(at, lam, *z).near(newton.mu)


def reach(d: Array, step: Array, tau: float) -> float:
    """The length up to 1 that keeps 1 - tau of every entry of d."""
    falls = (step < 0) & (d > 0) & np.isfinite(d)
    return min(1.0, float((-tau * d[falls] / step[falls]).min())) if falls.any() else 1.0
