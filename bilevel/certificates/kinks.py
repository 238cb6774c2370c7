"""Is there a way down on the other side of a kink of Phi?

    kink    the slope -s'grad Phi of another smooth piece, s a step of length 1 in X along which Phi was seen to fall; or, where
            it is more, its share of |f_x| + |g_xy v|, the terms of grad Phi, which is the same in all units

Phi has a kink where an entry of y is at a bound of Y that it neither needs nor leaves, its multiplier g_y being 0. Each choice of
these entries, held or free, is a smooth piece of Phi; `residuals` takes the piece that y happens to be on. Here the pieces with
all of them free and all of them held are tried: a short step down the piece, y solved for anew, f compared. Sets that project
entry by entry. Lengths are in the sizes of x and y and in their ways from the start: no unit changes what is found.
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
from ..oracle import BilevelOracle, LevelAt
from . import lower_kkt
from .derivatives import twice
from .residuals import by_implicit_differentiation

EDGE = 1e-4  # of the size of y: how far from a bound, either side, the entries are that may change sides
LENGTHS = (1e-4, 1e-3)  # of the size of x: steps that are tried
GAIN = 0.25  # of what the slope promises
SOLVED = 1e-6  # of the lower residual after a step, to which y is solved for


def kink(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float]:
    """kink, where there is a way down; nothing elsewhere."""
    Y = oracle.Y
    if Y.whole or not Y.entrywise or y.size > UNKNOWNS or lower_kkt.has_lower_constraints(oracle) or not twice(oracle, x, y):
        return {}
    lower = by_implicit_differentiation(oracle, x, y)[1]
    inside, weak = _sides(oracle, y, lower)
    if not any(bool(entries.any()) for entries in weak):
        return {}
    f, (f_x, f_y) = oracle.f.gradient((x, y), None, (0, 1))
    value, eps = float(f), finfo(x.dtype).eps
    worst = 0.0
    for free in ([a | b for a, b in zip(inside, weak)], [a & ~b for a, b in zip(inside, weak)]):
        mask = y.like(entries.to(leaf.dtype) for entries, leaf in zip(free, y.leaves))
        face = Tangent(lambda v, mask=mask: v.times(mask))
        v = adjoint(lower, f_y, eps**0.75 * float(f_y.norm()), face=face)
        response = lower.xy(v.x)
        gradient, terms = f_x - response, float(f_x.norm()) + float(response.norm())
        if math.isfinite(v.residual) and 0 < terms < math.inf and bool(gradient.finite()):
            slope = _fall(oracle, (x, y), gradient, value)
            worst = max(worst, slope, slope / terms)
    return {"kink": worst} if worst > 0 else {}


def _size(v: Vec, start: Vec) -> float:
    """The larger of |v| and |v - start|, entry by entry; 1 where both are 0."""
    return max(float(v.max_norm()), float((v - start).max_norm())) or 1.0


def _sides(oracle: BilevelOracle, y: Vec, lower: LevelAt) -> tuple[list[Tensor], list[Tensor]]:
    """Entries off their bounds; and those at one that they leave, or are beyond without it, by no more than EDGE: for these a
    Newton step with the curvature along all such multipliers, as long as the multiplier makes it.
    """
    edge = EDGE * _size(y, oracle.variables["y"])
    up, down = (oracle.Y.project(y.map(lambda t, s=s: t + s * edge)) - y for s in (1.0, -1.0))
    near = [(a < 0.999 * edge) | (b > -0.999 * edge) for a, b in zip(up.leaves, down.leaves)]
    fixed = [a - b < 0.999 * edge for a, b in zip(up.leaves, down.leaves)]
    g = lower.y.like(leaf * entries for leaf, entries in zip(lower.y.leaves, near))
    along, square = float(g @ lower.yy(g)), float(g @ g)
    most = edge * along / square if square > 0 else math.inf  # of a multiplier
    weak = [a & ~b & (leaf.abs() <= most) for a, b, leaf in zip(near, fixed, g.leaves)]
    return [~entries for entries in near], weak


def _fall(oracle: BilevelOracle, at: tuple[Vec, Vec], gradient: Vec, value: float) -> float:
    """The slope down the gradient, where a step gains a quarter of what it promises, y solved for at its end; else 0."""
    x, y = at
    for length in LENGTHS:
        step = reachable(oracle.X, x, gradient, length * _size(x, oracle.variables["x"]))
        promised, noise = -float(gradient @ step), ROUNDING * finfo(x.dtype).eps * abs(value)
        if promised <= 0:
            return 0.0
        there = x + step
        tol = SOLVED * residual(oracle.Y, y, oracle.g.grad_y(there, y))
        w = Lower(oracle, there, Diagonal.blank(y)).minimised(NewtonCG().for_set(oracle.Y), y, tol, max_steps=1000).x
        if value - float(oracle.f.value((there, w))) > max(GAIN * promised, noise):
            return promised / float(step.norm())
    return 0.0
