"""Bounds on the errors of Phi(x) = f(x, y(x)) and of its gradient, where the lower level and the linear system are inexact.

Known
    y near y(x), v near the solution of g_yy v = f_y, d = f_x - g_xy v;  e = |g_y| / mu >= |y - y(x)|, r = |f_y - g_yy v|

Bounds
    |f(x, y) - Phi(x)| <= w     = |f_y| e + L_f e^2 / 2
    |d - grad Phi(x)|  <= omega = (f_xy + M_B |v|) e + (B + M_B e) ((L_f + M_H |v|) e + r) / mu

    The second, with stars at y(x):  d - grad Phi = (f_x - f_x*) - (g_xy - g_xy*) v - g_xy* (v - v*),  where
    g_yy* (v - v*) = (f_y - f_y*) - (g_yy - g_yy*) v - (f_y - g_yy v)  and  |g_xy*| <= B + M_B e.

Constants
    mu            strong convexity of g(x, .): the least Ritz value of g_yy at y by a Lanczos sweep, unless it is given
    B, L_f, f_xy  |g_xy|, |f_yy|, |f_xy| at (x, y) by power iterations
    M_B, M_H      rates at which g_xy v / |v| and g_yy v / |v| change with y: from products with v at both ends of the last
                  lower minimisations, the largest of late

    The vectors of all four iterations are followed from point to point, so that a few products a point do. All but a given mu
    are estimates, mu from above and the norms from below: w and omega are bounds as good as they are.

References
    Salehi, Mukherjee, Roberts, Ehrhardt: An adaptively inexact first-order method for bilevel optimization with application to
    hyperparameter learning, arXiv 2308.10098. There omega has eps >= e and delta >= r in their place, |f_y| / mu for |v|, and
    f does not depend on x; the part of L_f and the estimates of the constants are this library's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from constrained.core.derivatives.finite_differences import direction
from constrained.core.derivatives.objective import Linearization
from constrained.core.status import Status
from constrained.core.vec import Vec
from constrained.descent import DescentStatus, Method, Minimum, minimise
from constrained.descent.curvature_pairs import Pairs
from constrained.linear import CG, LinearStatus, System
from constrained.linear.spectrum import Lowest, lowest, lowest_from_scratch, operator_norm

from ..oracle import BilevelOracle

SWEEP = 4  # products of a Lanczos sweep at a new point
FADE = 0.9  # of M_B and M_H from point to point, so that they may fall
CORRECTIONS = 3  # of a lower solution where mu there turns out smaller
ROUGH = 1e6  # units of rounding: a lower residual above them that is ten times too large is no round-off
LOWER_FAILED = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.LOWER_UNSOLVED}
LINEAR_FAILED = {
    LinearStatus.NONFINITE: Status.NONFINITE,
    LinearStatus.SINGULAR: Status.SINGULAR,
    LinearStatus.NEGATIVE_CURVATURE: Status.LOWER_UNSOLVED,
}


@dataclass(frozen=True)
class Constants:
    """Of f and g near a point."""

    mu: float
    vectors: tuple[Vec, ...]  # four, followed for mu, |g_xy|, |f_yy|, |f_xy|
    norms: tuple[float, float, float]  # |g_xy|, |f_yy|, |f_xy|
    rates: tuple[float, float]  # M_B, M_H

    @classmethod
    def blank(cls, y: Vec, mu: float | None) -> Constants:
        """Before any point was looked at, with the mu that is given."""
        vectors = tuple(direction(y, torch.Generator().manual_seed(seed)) for seed in range(4))
        return cls(1.0 if mu is None else mu, vectors, (0.0, 0.0, 0.0), (0.0, 0.0))

    def width(self, f_y: Vec, error: float) -> float:
        """w, how far f(x, y) may be from Phi(x) where |y - y(x)| <= error."""
        return float(f_y.norm()) * error + 0.5 * self.norms[1] * error * error

    def omega(self, v: Vec, error: float, residual: float) -> float:
        """How far d may be from grad Phi where |y - y(x)| <= error and |f_y - g_yy v| <= residual."""
        (B, L_f, f_xy), (M_B, M_H), size = self.norms, self.rates, float(v.norm())
        return (f_xy + M_B * size) * error + (B + M_B * error) * ((L_f + M_H * size) * error + residual) / self.mu


@dataclass(frozen=True, kw_only=True)
class LowerPoint:
    """A lower solution at one x, with both levels' derivatives there."""

    x: Vec
    start: Vec  # where its search began
    found: Minimum
    g: Linearization
    constants: Constants  # mu is that of (x, y), the others are as they were at the point before
    failed: Status  # RUNNING, or why no gradient can be had here
    value: float  # f(x, y)
    f_x: Vec
    f_y: Vec

    @property
    def y(self) -> Vec:
        return self.found.x

    @property
    def error(self) -> float:
        """e."""
        return self.found.residual / self.constants.mu

    @property
    def width(self) -> float:
        """w."""
        return self.constants.width(self.f_y, self.error)

    def yy(self, v: Vec) -> Vec:
        return self.g.product(v, 1, 1)


def lower_point(
    oracle: BilevelOracle,
    x: Vec,
    start: Vec,
    constants: Constants,
    eps: float,
    method: Method,
    *,
    memory: Pairs | float | None,
    max_steps: int,
    measure: bool = True,
    first: bool = False,
) -> LowerPoint:
    """y with |g_y| / mu <= eps at x, from `start`.

    eps asks for |g_y| <= mu eps, and mu is known only at y: where it turns out smaller than at the point before, y is corrected.
    measure: mu, by a sweep; else the one in `constants` holds everywhere. first: no vector is near an eigenvector of mu yet.
    """
    tiny = torch.finfo(x.dtype).eps
    y, mu, vector, failed = start, constants.mu, constants.vectors[0], Status.RUNNING

    def objective(w: Vec) -> tuple[float, Vec]:
        value, (g_y,) = oracle.g.gradient((x, w), wrt=(1,))
        return float(value), g_y

    tries = 0
    while True:
        tries += 1
        found = minimise(method, objective, y, tol=max(mu * eps, 30 * tiny), max_steps=max_steps, memory=memory)
        y, memory = found.x, found.memory
        g = oracle.g.linearize((x, y))
        if measure:
            sweep = strong_convexity(g, vector, first)
            first, mu, vector = False, sweep.value, sweep.vector
            if not mu > 100 * tiny * sweep.largest:
                flat = abs(mu) <= 100 * tiny * sweep.largest
                failed = Status.NONFINITE if math.isnan(mu) else Status.SINGULAR if flat else Status.LOWER_UNSOLVED
                break
        if found.residual <= max(1.1 * mu * eps, 30 * tiny) or tries == CORRECTIONS:
            break
    value, (f_x, f_y) = oracle.f.gradient((x, y), None, (0, 1))
    failed = LOWER_FAILED.get(found.reason, failed)
    if failed is Status.RUNNING and found.residual > max(10 * mu * eps, ROUGH * tiny * (1.0 + float(y.norm()))):
        failed = Status.LOWER_UNSOLVED
    if not math.isfinite(float(value)):
        failed = Status.NONFINITE
    return LowerPoint(
        x=x,
        start=start,
        found=found,
        g=g,
        constants=replace(constants, mu=mu, vectors=(vector, *constants.vectors[1:])),
        failed=failed,
        value=float(value),
        f_x=f_x,
        f_y=f_y,
    )


def strong_convexity(g: Linearization, vector: Vec, first: bool) -> Lowest:
    """mu, from a vector near its eigenvector; from any vector, by more products, where it is the first."""

    def product(w: Vec) -> Vec:
        return g.product(w, 1, 1)

    return lowest_from_scratch(product, vector) if first else lowest(product, vector, SWEEP)


def constants_at(oracle: BilevelOracle, at: LowerPoint, v: Vec, rounds: int) -> Constants:
    """The constants at a new point: norms by `rounds` power iterations, rates by products with v at both ends of its search.

    v: the solution of g_yy v = f_y at the point before; that of this one is not known yet.
    """
    x, y, g, (first, b, c, h) = at.x, at.y, at.g, at.constants.vectors
    f = oracle.f.linearize((x, y))
    B, b = operator_norm(lambda w: g.product(w, 0, 1), lambda u: g.product(u, 1, 0), b, rounds)
    L_f, c = operator_norm(lambda w: f.product(w, 1, 1), lambda w: f.product(w, 1, 1), c, rounds)
    f_xy, h = operator_norm(lambda w: f.product(w, 0, 1), lambda u: f.product(u, 1, 0), h, rounds)
    M_B, M_H = (FADE * rate for rate in at.constants.rates)
    far, length = float((y - at.start).norm()), float(v.norm())
    if far > 1e-6 * (1.0 + float(y.norm())) and length > 0:  # over less, the difference of two products is round-off
        before = oracle.g.linearize((x, at.start))
        change_B, change_H = (float((g.product(v, row, 1) - before.product(v, row, 1)).norm()) for row in (0, 1))
        M_B, M_H = max(M_B, change_B / (far * length)), max(M_H, change_H / (far * length))
    return replace(at.constants, vectors=(first, b, c, h), norms=(B, L_f, f_xy), rates=(M_B, M_H))


@dataclass(frozen=True, kw_only=True)
class InexactGradient:
    """d at a lower point, with v and what is known of the errors."""

    v: Vec
    d: Vec
    residual: float  # r
    omega: float


def inexact_gradient(at: LowerPoint, constants: Constants, delta: float, *, start: Vec) -> InexactGradient | Status:
    """d = f_x - g_xy v, v by conjugate gradients from `start` on g_yy v = f_y to a residual delta; or why there is none."""
    solved = CG().solve(System(at.yy, at.y.size, like=at.y), at.f_y, tol=delta, start=start)
    if solved.reason in LINEAR_FAILED:
        return LINEAR_FAILED[solved.reason]
    d = at.f_x - at.g.product(solved.x, 0, 1)
    omega = constants.omega(solved.x, at.error, solved.residual)
    if not math.isfinite(float(d.norm()) + omega):
        return Status.NONFINITE
    return InexactGradient(v=solved.x, d=d, residual=solved.residual, omega=omega)
