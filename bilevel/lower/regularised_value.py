"""The regularised value of a constrained lower level, and the gap that vanishes exactly at its solutions.

    v(x, y, z) = min over th in Y, max over la in Z of  g(x, th) + la'h(x, th) + |th - y|^2 / (2 gamma1) - |la - z|^2 / (2 gamma2)
    v_x = g_x(x, th) + J_x(x, th)'la,     v_y = (y - th) / gamma1,     v_z = (la - z) / gamma2     at the saddle (th, la)

with h the constraints, equalities first, and Z = [-r, r] for these, [0, r] for inequalities. The maximiser over la is
la = P_Z(z + gamma2 h(x, th)), so that the saddle is one smooth strongly convex minimisation over th: of an augmented Lagrangian.
g - v >= 0 where (x, y) satisfies the constraints, and = 0 iff y solves the lower level with multipliers z.

Source: arXiv 2401.16164, section 2; the elimination of la is the proximal method of multipliers (Rockafellar 1976).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained.core.states import solver_state
from constrained.core.vec import Vec
from constrained.descent import DescentStatus, Method, Minimum, minimise
from constrained.descent.curvature_pairs import Pairs
from constrained.descent.newton_cg import Differenced, NewtonCG

from ..oracle import BilevelOracle
from .constraints import LowerConstraints

SLOW = 0.5  # of violation and complementarity after one saddle more
STEPS = 3_000  # of the inner method, for one solution: some six times what was ever seen to lead to one
PATIENCE = 5  # saddles in a row that round-off ended and that are no better


@solver_state("Saddle")
class Saddle:
    """The saddle at the last (x, y, z), and what the inner method remembers."""

    theta: Vec
    y: Vec
    memory: Pairs | float | None


@dataclass
class RegularisedValue:
    """v = lagrangian + rest with its gradients; the saddle; |th - P_Y(th - L_th)|; why the minimisation ended."""

    lagrangian: float  # g + la'h at (x, th)
    rest: float
    lagrangian_y: Vec  # its gradient in th
    x: Vec
    y: Vec
    z: Tensor
    multipliers: Tensor  # la
    saddle: Saddle
    residual: float
    reason: DescentStatus
    steps: int


def lower_value(
    oracle: BilevelOracle,
    rows: LowerConstraints,
    gammas: tuple[float, float],
    method: Method,
    at: tuple[Vec, Vec, Tensor],
    start: Saddle,
    tol: float,
    max_steps: int,
) -> RegularisedValue:
    """v at (x, y, z), from the saddle of the last call moved along with y. A step is one gradient of g and one J'la."""
    (x, y, z), (gamma1, gamma2) = at, gammas
    last: dict[str, tuple[Vec, Vec, Vec, Tensor, float, float]] = {}

    def lagrangian(th: Vec) -> tuple[float, Vec]:
        value, (g_x, g_y) = oracle.g.gradient((x, th), wrt=(0, 1))
        h = rows.value(x, th)
        la = rows.clipped(z + gamma2 * h)
        a_x, a_y = rows.vjp(x, th, la)
        apart, moved = th - y, la - z
        plain, own_y = float(value) + float(la @ h), g_y + a_y
        rest = float(apart @ apart) / (2 * gamma1) - float(moved @ moved) / (2 * gamma2)
        last["call"] = th, g_x + a_x, own_y, la, plain, rest
        return plain + rest, own_y.add(apart, 1 / gamma1)

    begin = oracle.Y.project(start.theta + (y - start.y))
    objective = Differenced(lagrangian) if isinstance(method, NewtonCG) else lagrangian
    found: Minimum = minimise(method, objective, begin, tol=tol, X=oracle.Y, max_steps=max_steps, memory=start.memory)
    if last["call"][0] is not found.x:  # the search ended elsewhere than where it looked last
        lagrangian(found.x)
    th, v_x, own_y, la, plain, rest = last["call"]
    kept = Saddle(th, y, found.memory)
    v_y, v_z = (y - th) / gamma1, (la - z) / gamma2
    return RegularisedValue(plain, rest, own_y, v_x, v_y, v_z, la, kept, found.residual, found.reason, found.steps)


@dataclass(frozen=True)
class LowerSolution:
    """A point of S(x) with the multipliers of the scaled rows, and |(L_y, violation and complementarity)| there."""

    y: Vec
    multipliers: Tensor
    residual: float
    reason: DescentStatus


def solve_constrained_lower(
    oracle: BilevelOracle, rows: LowerConstraints, x: Vec, y: Vec, z: Tensor, tol: float, *, method: Method, max_steps: int = 100
) -> LowerSolution:
    """argmin over y in Y of g(x, y) under the lower constraints, from (y, z): (y, z) <- the saddle of the regularised Lagrangian,
    with gamma1 and gamma2 growing (proximal method of multipliers). Of several solutions one next to y.
    """
    saddle, gammas, waited, missed, left = Saddle(y, y, None), (1.0, 1.0), 0, float("inf"), STEPS
    floor = 30 * torch.finfo(y.dtype).eps
    largest = torch.finfo(y.dtype).eps ** -0.5
    best = LowerSolution(y, z, float("inf"), DescentStatus.MAX_STEPS)
    for _ in range(max_steps):
        found = lower_value(oracle, rows, gammas, method, (x, y, z), saddle, max(0.1 * tol, floor), left)
        y, z, saddle = found.saddle.theta, found.multipliers, found.saddle
        missed, before, left = float(found.z.norm()), missed, left - found.steps
        residual = float(found.y.norm()) + missed + found.residual
        better = not residual >= best.residual
        waited = 0 if better else waited + (found.reason is DescentStatus.PRECISION)
        if better:
            best = LowerSolution(y, z, residual, DescentStatus.CONVERGED if residual <= tol else DescentStatus.MAX_STEPS)
        if residual <= tol or found.reason in (DescentStatus.NONFINITE, DescentStatus.UNBOUNDED):
            return best if residual <= tol else LowerSolution(y, z, residual, found.reason)
        if waited > PATIENCE or left <= 0:  # to and fro within rounding, or too slow
            return best
        gammas = grown(gammas, missed > max(SLOW * before, 0.1 * tol), largest)
    return best


def grown(gammas: tuple[float, float], slow: bool, largest: float) -> tuple[float, float]:
    """The next (gamma1, gamma2). gamma2 makes the inner problem ill-conditioned: past 10 only where they crawl."""
    gamma1, gamma2 = gammas
    return min(10 * gamma1, 1e4), min(10 * gamma2, largest) if gamma2 < 10 or slow else gamma2
