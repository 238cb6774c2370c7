"""What no unit of f, c, h or x changes: which share of the improvement since the start may still be missing.

    stationarity   (g'(x - P_X(x - t g)) / 2 + |lam|'|c| + mu'|h| - r) / (|f(x0) - f(x)| + |lam|'|c(x0)| + mu'max(h(x0), 0))
                   1e-8 of what f changes over the way |x - x0| is added below, for starts that are as low as the answer
    feasibility    the largest of |c_i(x)| / s_i and max(h_i(x), 0) / s_i

g the gradient of the Lagrangian, t such that the step is as long as the way |x - x0| from the start: where f is a convex
quadratic with its minimum within that distance, no point is better by more than half the slope. Where the curvature along the
step says that the minimum is further away, that distance counts; where the step gains no more than round-off, `decrease` looks
further. r is round-off, 100 eps (|f| + |grad f| (|x| + |x - x0|)). s_i is the change of the constraint since the start, or
|grad c_i| max(|x|, |x - x0|) where that is more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import kkt
from .core.derivatives.constraint import Constraint
from .core.derivatives.finite_differences import direction
from .core.problem import Multipliers
from .core.vec import Vec
from .oracle import ConstrainedOracle
from .sets import ConvexSet

ROUNDING = 100.0  # times eps
TRIAL = 0.01  # of the step, where the curvature is looked at
SEEN = 100.0  # times round-off
FURTHEST = 1e3  # steps: no minimum is looked for beyond
SMALL = 1e-5  # a share that needs no second thought
FLAT = 1e-8  # of what f changes over the way from the start: less than that is no improvement
DENSE = 1_000_000  # entries of a Jacobian, up to which its rows are measured


def share(missing: float, rounding: float, whole: float) -> float:
    """(missing - rounding) / whole; 0 where nothing is missing beyond round-off, infinite where nothing was gained yet."""
    if missing != missing:
        return math.nan
    left = max(0.0, missing - rounding)
    return 0.0 if left == 0 else left / whole if whole > 0 else math.inf


def reachable(X: ConvexSet, x: Vec, gradient: Vec, distance: float) -> Vec:
    """P_X(x - t gradient) - x with t such that it is `distance` long, or as long as X has it: the length is free of units."""
    norm = float(gradient.norm())
    if norm == 0 or distance == 0 or not math.isfinite(norm):
        return x.zeros()
    t = distance / norm
    if X.whole:
        return gradient * -t
    step = X.project(x.add(gradient, -t)) - x
    for _ in range(8):  # entries at a bound take up t and do not move
        far = float(step.norm())
        if far >= 0.5 * distance:
            break
        t *= min(max(distance / far, 2.0), 1e3) if far > 0 else 1e3
        longer = X.project(x.add(gradient, -t)) - x
        if float(longer.norm()) <= 1.01 * far and far > 0:
            break
        step = longer
    return step


def decrease(
    X: ConvexSet, x: Vec, gradient: Vec, distance: float, rounding: float, slope_at: Callable[[Vec], Vec | None]
) -> float:
    """Half the slope of a step of `distance`, or of one to the minimum of the parabola along it, if that is further.

    Where that is no more than `rounding`, as it is at the start, where the distance is 0: half of what a step gains that is so
    long that one would see it, if the slope at its end is still more than half. slope_at: the gradient at another point.
    """
    step = reachable(X, x, gradient, distance)
    slope = -float(gradient @ step)
    if slope > rounding:
        there = slope_at(x.add(step, TRIAL))
        if there is None or not bool(there.finite()):
            return 0.5 * slope
        bend = float((there - gradient) @ step) / TRIAL
        return 0.5 * slope * (1.0 if bend <= 0 else min(max(slope / bend, 1.0), FURTHEST))
    norm = float(gradient.norm())
    far, visible = SEEN * rounding / norm if norm > 0 else 0.0, 0.0
    if norm > 0 and rounding == 0:  # f = 0 at the origin: any step would be seen
        return math.inf if float(reachable(X, x, gradient, 1.0).norm()) > 0 else 0.0
    for _ in range(4 if norm > 0 else 0):
        step = reachable(X, x, gradient, far)
        visible = -float(gradient @ step)
        if visible >= 0.1 * SEEN * rounding:
            break
        far *= min(SEEN * rounding / visible, 1e6) if visible > 0 else 1e6
    if visible < 0.1 * SEEN * rounding:  # what is left of the gradient is blocked by X
        return slope
    there = slope_at(x + step)
    return 0.5 * visible if there is not None and -float(there @ step) > 0.5 * visible else slope


def shares(oracle: ConstrainedOracle, x: Vec, given: Multipliers, start: Vec) -> dict[str, float]:
    """stationarity and feasibility, as above; of the multipliers given and the least-squares ones, those that make it least."""
    found = _shares(oracle, x, given, start)
    if not found["stationarity"] <= 1e-3 and (oracle.c is not None or oracle.h is not None) and _estimable(oracle, x):
        other = _shares(oracle, x, Multipliers(), start)
        return other if other["stationarity"] < found["stationarity"] else found
    return found


def _estimable(oracle: ConstrainedOracle, x: Vec) -> bool:
    """Least-squares multipliers take a dense Jacobian that is small enough."""
    tape = oracle.stacked(x, oracle.f.draw(0))
    return x.size * (tape.m + 1) <= DENSE and not tape.J.sparse


def _shares(oracle: ConstrainedOracle, x: Vec, given: Multipliers, start: Vec) -> dict[str, float]:
    draw, eps = oracle.f.draw(0), torch.finfo(x.dtype).eps
    here = oracle.stacked(x, draw)
    m, c, h = oracle.parted(here)
    f, f0 = float(here.value), float(oracle.f.value((start,), draw))
    c0 = _rows(oracle.c, start).to(x.dtype).double()
    values = [c[:0] if h is None else h, _rows(oracle.h, start)]
    if (given.equality is None and oracle.c is not None) or (given.inequality is None and oracle.h is not None):
        given = kkt.multipliers(oracle, x)
    lam = torch.zeros_like(c) if given.equality is None else given.equality.double().reshape(-1)
    mu = values[0].new_zeros(len(values[0])) if given.inequality is None else given.inequality.double().reshape(-1)

    weights = torch.cat([lam, mu]).to(here.c)

    def slope_at(at: Vec) -> Vec:
        return at.unravel(oracle.stacked(at, draw).gradient_of_lagrangian(weights))

    way, size = float((x - start).norm()), float(x.norm())
    multiplied = float(lam.abs() @ c.abs() + mu @ values[0].abs())
    gained = abs(f0 - f) + float(lam.abs() @ c0.abs() + mu @ values[1].clamp(min=0))
    terms = abs(f) + float(torch.linalg.vector_norm(here.gradient.double())) * (size + way)
    rounding = ROUNDING * eps * terms
    # Here first, where f and c were evaluated last.
    violated = _violation(oracle, x, torch.cat([c, values[0]]), torch.cat([c0, values[1]]), m, max(size, way))
    gradient = x.unravel(kkt.gradient_of_lagrangian(here, weights))
    missing = decrease(oracle.X, x, gradient, way, rounding, slope_at) + multiplied
    if missing > SMALL * gained:  # of nothing, where f is as low at the start: then what f changes at all over that distance
        u = direction(x, torch.Generator().manual_seed(3))
        values = (float(oracle.f.value((oracle.X.project(x.add(u, t * way)),), draw)) for t in (1.0, -1.0))
        gained += FLAT * next((abs(value - f) for value in values if math.isfinite(value)), 0.0)
    return {"stationarity": share(missing, rounding, gained), "feasibility": violated}


def _rows(part: Constraint | None, x: Vec) -> Tensor:
    return torch.zeros(0, dtype=torch.float64, device=x.device) if part is None else part.value((x,))


def _violation(oracle: ConstrainedOracle, x: Vec, values: Tensor, before: Tensor, m: int, size: float) -> float:
    if not len(values):
        return 0.0
    violated = torch.cat([values[:m].abs(), values[m:].clamp(min=0)])
    scale = (values - before).abs()
    if x.size * len(values) <= DENSE:
        scale = torch.maximum(scale, oracle.stacked(x, oracle.f.draw(0)).J.row_norms() * size)
    else:  # by differences along random directions: of a row's gradient they see its length times a normal number
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            u = x.map(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t))
            at = x.add(u, TRIAL * size / x.size**0.5)
            moved = oracle.stacked(at, oracle.f.draw(0)).c.double()
            scale = torch.maximum(scale, (moved - values).abs() * (x.size**0.5 / TRIAL))
    return max(share(v, 0.0, s) for v, s in zip(violated.tolist(), scale.tolist()))
