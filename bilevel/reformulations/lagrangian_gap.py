"""phi = (f + c (g - v)) / max(c, 1), v the regularised value of the constrained lower level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained.core.vec import Vec
from constrained.descent import Method

from ..lower.constraints import Rows
from ..lower.regularised_value import Saddle, Value, lower_value
from ..oracle import BilevelOracle


@dataclass
class Gap:
    """phi = (f + c (g - v)) / max(c, 1) with its parts at one (x, y, z)."""

    value: float
    x: Vec
    y: Vec
    z: Tensor
    upper: float  # f
    gap: float  # g - v
    at: Value


def penalised_gap(
    oracle: BilevelOracle,
    rows: Rows,
    gammas: tuple[float, float],
    method: Method,
    at: tuple[Vec, Vec, Tensor],
    start: Saddle,
    c: float,
    tol: float,
    max_steps: int,
) -> Gap:
    """phi at (x, y, z) in C x Z; the saddle to a residual tol. One gradient of f and one of g more than the saddle takes."""
    x, y, _ = at
    upper, (f_x, f_y) = oracle.f.gradient((x, y), wrt=(0, 1))
    lower, (g_x, g_y) = oracle.g.gradient((x, y), wrt=(0, 1))
    v = lower_value(oracle, rows, gammas, method, at, start, tol, max_steps)
    weight, small = c / max(c, 1.0), 1 / max(c, 1.0)
    # l = g + la'c at y minus the same at th: two large numbers, of which c times the difference counts. Where that is
    # round-off, the trapezoid rule along y - th is exact to third order and keeps its digits. Rounding of c is no violation.
    la, eps = v.multipliers, torch.finfo(y.dtype).eps
    values = rows.value(x, y)
    noise = 1e2 * eps * (1 + float(x.norm()) + float(y.norm()))
    fall = float(lower) + float(la @ values) - v.lagrangian
    size = abs(float(lower)) + abs(v.lagrangian) + float(la.abs().sum())
    smooth = 0.5 * float((g_y + rows.vjp(x, y, la)[1] + v.lagrangian_y) @ (y - v.saddle.theta))
    fall = smooth if abs(smooth - fall) <= 1e3 * eps * size else fall
    slack = torch.where(values.abs() > noise, values, 0.0)
    gap = fall - float(la @ slack) - v.rest
    return Gap(
        float(upper) * small + weight * gap,
        f_x * small + (g_x - v.x) * weight,
        f_y * small + (g_y - v.y) * weight,
        -weight * v.z,
        float(upper),
        gap,
        v,
    )
