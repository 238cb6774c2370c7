"""How good a point is, from the problem alone. Nothing here knows which solver made it.

    lower        |y - P_Y(y - g_y)|
    upper        |x - P_X(x - grad Phi)|, grad Phi = f_x - g_xy v with v the least-norm solution of g_yy v = f_y; on a set Y
                 in the tangent of Y at y
    optimism     |f_y - g_yy v|, only where g_yy is singular and the system inconsistent: among several lower solutions, how
                 far y is, to first order, from the one that f prefers
    linear       |f_y - g_yy v|, only where the system could not be solved for another reason (negative curvature, so that y
                 is no minimiser; round-off): `upper` then says little
    constraints  the largest violation of the constraints and of X and Y
    lower_gap    g(x, y) minus the lowest value found from several starts (certify only; `lower_gap.py`)

Absolute 2-norms, unscaled. Where second derivatives are missing, y has more than 1e5 entries or lives in a set without a known
tangent, grad Phi is estimated by the penalty method and the key is `upper_estimate`, infinite where a large lower level is too
far from solved. Problems with mini-batches are judged on their whole data set; on the first batch of a stream, which has none,
and of a problem with a live y, of which there is `lower` alone: the keys then end in `_estimate`.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from constrained.core.live import LiveVec
from constrained.core.problem import Multipliers
from constrained.core.vec import Vec
from constrained.descent import LBFGS, minimise, residual
from constrained.linear import LinearSolution, LinearStatus
from constrained.sets.tangent import has_tangent, tangent

from ..hypergradients.adjoint import adjoint
from ..lower.solution import UNKNOWNS, solve_lower
from ..oracle import BilevelOracle, LevelAt
from . import lower_kkt
from .derivatives import twice

STEPS = 100  # on a lower level of more than UNKNOWNS unknowns, after which its solution is given up


def residuals(oracle: BilevelOracle, x: Vec, y: Vec, multipliers: Multipliers | None = None) -> dict[str, float]:
    """lower, upper (or upper_estimate), optimism or linear, constraints at (x, y)."""
    found = {}
    if isinstance(y, LiveVec):  # too large for more
        return {"lower": float(oracle.g.grad_y(x, y).norm())}
    if lower_kkt.has_lower_constraints(oracle):
        found = lower_kkt.residuals(oracle, x, y, multipliers)
    elif (second := _by_second_derivatives(oracle, x, y)) is not None:
        found = second
    else:
        found["lower"] = residual(oracle.Y, y, oracle.g.grad_y(x, y))
        gradient = penalised_estimate(oracle, x, y)
        found["upper_estimate"] = math.inf if gradient is None else residual(oracle.X, x, gradient)
    worst = violation(oracle, x, y)
    if worst is not None:
        found["constraints"] = worst
    return found


def _by_second_derivatives(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float] | None:
    """lower, upper, optimism or linear; None where g has no second derivatives, or too many."""
    if not has_tangent(oracle.Y) or not twice(oracle, x, y):
        return None
    gradient, lower, v, size = by_implicit_differentiation(oracle, x, y)
    found = {"lower": residual(oracle.Y, y, lower.y)}
    found["upper"] = residual(oracle.X, x, gradient) if math.isfinite(v.residual) else math.nan
    if v.reason is LinearStatus.LEAST_SQUARES:
        found["optimism"] = v.residual
    elif v.reason is not LinearStatus.SOLVED and not v.residual <= 1e-3 * size:
        found["linear"] = v.residual
    return found


def by_implicit_differentiation(oracle: BilevelOracle, x: Vec, y: Vec) -> tuple[Vec, LevelAt, LinearSolution, float]:
    """grad Phi = f_x - g_xy v; g at (x, y); v, the least-norm solution of g_yy v = f_y; |f_y|."""
    memory = oracle.memory  # residuals ask here, and the measures of progress where y needs no polish
    key = None if memory is None else memory.key("hypergradient", (x, y))
    if memory is None or key is None:
        return _by_implicit_differentiation(oracle, x, y)
    found = memory.graph(key)
    if found is None:
        found = _by_implicit_differentiation(oracle, x, y)
        memory.hold(key, found)
    return found


def _by_implicit_differentiation(oracle: BilevelOracle, x: Vec, y: Vec) -> tuple[Vec, LevelAt, LinearSolution, float]:
    f_x, f_y = oracle.f.grad(x, y)
    lower, size = oracle.g.at(x, y), float(f_y.norm())
    v = adjoint(lower, f_y, torch.finfo(y.dtype).eps ** 0.75 * size, face=tangent(oracle.Y, y - lower.y))
    return f_x - lower.xy(v.x), lower, v, size


def renamed(found: dict[str, float], sampled: Collection[str]) -> dict[str, float]:
    """With `_estimate` at the end of each name whose figure depends on a level in `sampled`: judged on one batch of its data."""

    def depends(name: str) -> bool:
        on = {"lower": {"lower_data"}, "lower_gap": {"lower_data"}, "constraints": set()}
        return bool(on.get(name, {"upper_data", "lower_data"}) & set(sampled))

    return {f"{name.removesuffix('_estimate')}_estimate" if depends(name) else name: value for name, value in found.items()}


def violation(oracle: BilevelOracle, x: Vec, y: Vec) -> float | None:
    """The largest violation of any constraint or set; None where there is none."""
    parts = []
    for name, constraint in oracle.constraints.items():
        value = constraint.value((x, y))
        parts.append(float((value.abs() if name.endswith("_equality") else value).max().clamp(min=0)) if value.numel() else 0.0)
    parts += [float(s.distance(v)) for s, v in ((oracle.X, x), (oracle.Y, y)) if not s.whole]
    return max(parts) if parts else None


def penalised_estimate(oracle: BilevelOracle, x: Vec, y: Vec) -> Vec | None:
    """grad psi extrapolated to sigma = 0 from three small penalties (2309.01753, and Richardson twice): no second derivatives.

    None where a large y is so far from a lower solution that `STEPS` steps do not find one.
    """
    steps = STEPS if y.size > UNKNOWNS else 10_000
    sigma = torch.finfo(y.dtype).eps ** 0.2
    tol = max(1e-8 * sigma, 30 * torch.finfo(y.dtype).eps)
    lower = solve_lower(oracle, x, y, tol, max_steps=steps)
    if y.size > UNKNOWNS and lower.residual > tol:
        return None
    z = lower.x
    _, (g_x,) = oracle.g.gradient((x, z), wrt=(0,))

    def at(s: float) -> Vec:
        def penalised(w: Vec) -> tuple[float, Vec]:
            (f, g), (grad,) = oracle.penalised(s, x, w)
            return s * float(f) + float(g), grad

        w = minimise(LBFGS(), penalised, z, tol=tol, X=oracle.Y, max_steps=steps).x
        _, (h_x,) = oracle.penalised(s, x, w, wrt=(0,))
        return (h_x - g_x) / s

    return (at(sigma / 4) * 8 - at(sigma / 2) * 6 + at(sigma)) / 3
