"""Is there a way down on the other side of a kink of Phi?

    kink    |x - P_X(x - grad Phi)| for the grad Phi of another smooth piece, where a step along it was seen to gain

Phi has a kink where an entry of y is at a bound of Y that it neither needs nor leaves, its multiplier g_y being 0. Each choice of
these entries, held or free, is a smooth piece of Phi; `residuals` takes the piece that y happens to be on. Here the pieces with
all of them free and all of them held are tried: a short step down the piece, y solved for anew, f compared. Sets that project
entry by entry.
"""

from __future__ import annotations

import math

from torch import Tensor, finfo

from constrained.core.vec import Vec
from constrained.descent import residual
from constrained.descent.newton_cg import NewtonCG
from constrained.linear.diagonal import Diagonal
from constrained.progress import ROUNDING, reachable
from constrained.sets.tangent import Tangent

from ..hypergradients.adjoint import adjoint
from ..lower.solution import UNKNOWNS, Lower
from ..oracle import BilevelOracle
from . import lower_kkt
from .derivatives import twice
from .residuals import by_implicit_differentiation

EDGE = 1e-3  # of max(1, |y|): multipliers of entries that may change sides
LENGTHS = (1e-3, 1e-2)  # of max(1, |x|): steps that are tried
GAIN = 0.25  # of what the slope promises


def kink(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float]:
    """kink, where there is a way down; nothing elsewhere."""
    Y = oracle.Y
    if Y.whole or not Y.entrywise or y.size > UNKNOWNS or lower_kkt.has_lower_constraints(oracle) or not twice(oracle, x, y):
        return {}
    lower = by_implicit_differentiation(oracle, x, y)[1]
    edge = EDGE * max(1.0, float(y.max_norm()))
    inside, weak = _sides(oracle, y, lower.y, edge)
    if not any(bool(entries.any()) for entries in weak):
        return {}
    f, (f_x, f_y) = oracle.f.gradient((x, y), None, (0, 1))
    value, eps = float(f), finfo(x.dtype).eps
    worst = 0.0
    for free in ([a | b for a, b in zip(inside, weak)], [a & ~b for a, b in zip(inside, weak)]):
        mask = y.like(entries.to(leaf.dtype) for entries, leaf in zip(free, y.leaves))
        face = Tangent(lambda v, mask=mask: v.times(mask))
        v = adjoint(lower, f_y, eps**0.75 * float(f_y.norm()), face=face)
        gradient = f_x - lower.xy(v.x)
        size = residual(oracle.X, x, gradient) if math.isfinite(v.residual) and bool(gradient.finite()) else 0.0
        if size > worst and _falls(oracle, (x, y), gradient, value):
            worst = size
    return {"kink": worst} if worst > 0 else {}


def _sides(oracle: BilevelOracle, y: Vec, slope: Vec, edge: float) -> tuple[list[Tensor], list[Tensor]]:
    """Entries off their bounds, or needing none; and those at a bound (to `edge`) whose multiplier is no more than `edge`."""
    inside, weak = [], []
    up, down = (oracle.Y.project(y.map(lambda t, s=s: t + s * edge)) - y for s in (1.0, -1.0))
    for a, b, g in zip(up.leaves, down.leaves, slope.leaves):
        near = (a < 0.999 * edge) | (b > -0.999 * edge)
        fixed = a - b < 0.999 * edge
        weak.append(near & ~fixed & (g.abs() <= edge))
        inside.append(~near)
    return inside, weak


def _falls(oracle: BilevelOracle, at: tuple[Vec, Vec], gradient: Vec, value: float) -> bool:
    """A step down the gradient gains a quarter of what it promises, y solved for at its end."""
    x, y = at
    for length in LENGTHS:
        step = reachable(oracle.X, x, gradient, length * max(1.0, float(x.norm())))
        promised = -float(gradient @ step)
        noise = ROUNDING * finfo(x.dtype).eps * abs(value)
        there = x + step
        level = Lower(oracle, there, Diagonal.blank(y))
        w = level.minimised(NewtonCG().for_set(oracle.Y), y, 1e6 * finfo(y.dtype).eps, max_steps=1000).x
        if value - float(oracle.f.value((there, w))) > max(GAIN * promised, noise):
            return True
    return False
