"""Is y a global minimiser of the lower level, and of several the best for f?

    lower_gap   g(x, y) minus the lowest value that can be found
    tie         f(x, y) minus the least f of the other minimisers that were found with this lowest value, where that is positive

The lower level is solved again from y, from the starts at hand and from random points around y. Where g_yy is the same at all of
them and positive semidefinite, g(x, .) is a convex quadratic: y alone is solved from, since all minimisers have one value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from constrained.core.derivatives.finite_differences import direction
from constrained.core.vec import Vec
from constrained.descent.newton_cg import NewtonCG
from constrained.linear.diagonal import Diagonal

from ..hypergradients.adjoint import adjoint_system
from ..lower.solution import Lower, solve_lower
from ..oracle import BilevelOracle
from . import lower_kkt
from .derivatives import twice

DENSE = 1000  # up to which g_yy is formed
ROUNDING = 1e3  # times eps: values of g that are equal
APART = 1e-3  # times the spread of the starts: another minimiser
RESTARTS = (1.0, 2.0, 4.0)  # distances of the random starts, each taken to both sides of y


def lower_gap(oracle: BilevelOracle, x: Vec, y: Vec, starts: Sequence[Vec]) -> dict[str, float]:
    """lower_gap, and tie where there is one, by re-solves from y, the given starts and random points around y."""
    here = float(oracle.g.value((x, y)))
    rng = np.random.default_rng(0)
    spread = max(1.0, float(y.norm()) / max(1.0, y.size**0.5))
    around = []
    for far in RESTARTS:
        step = y.map(lambda t: torch.as_tensor(rng.normal(size=t.shape), dtype=t.dtype, device=t.device))
        around += [y.add(step, far * spread), y.add(step, -far * spread)]
    tol = 1e6 * torch.finfo(y.dtype).eps
    everywhere = [oracle.Y.project(w) for w in [y, *starts, *around]]
    if lower_kkt.has_lower_constraints(oracle):
        return {"lower_gap": lower_kkt.lower_gap(oracle, x, y, everywhere[1:])}
    if not twice(oracle, x, y):
        found = [solve_lower(oracle, x, w, tol, max_steps=1000) for w in everywhere]
    else:
        level = Lower(oracle, x, Diagonal.blank(y))
        found = [level.minimised(NewtonCG(), everywhere[0], tol, max_steps=1000)]
        if not convex_quadratic(oracle, x, [y, *starts, *around]):
            found += [level.minimised(NewtonCG(), w, tol, max_steps=1000) for w in everywhere[1:]]
    best = min(one.value for one in found)
    gap = {"lower_gap": max(0.0, here - best)}
    equal = ROUNDING * torch.finfo(y.dtype).eps * max(abs(best), abs(here))
    others = [one.x for one in found if one.value <= best + equal and float((one.x - y).norm()) > APART * spread]
    if others and here <= best + equal:
        f = float(oracle.f.value((x, y)))
        tie = f - min(float(oracle.f.value((x, w))) for w in others)
        if tie > ROUNDING * torch.finfo(y.dtype).eps * abs(f):
            gap["tie"] = tie
    return gap


def convex_quadratic(oracle: BilevelOracle, x: Vec, points: Sequence[Vec]) -> bool:
    """g_yy v for a random v is the same at all points, to rounding, and g_yy positive semidefinite; False beyond `DENSE`."""
    y = points[0]
    if y.size > DENSE:
        return False
    v, eps, first = direction(y, torch.Generator().manual_seed(0)), torch.finfo(y.dtype).eps, None
    for point in points:
        at = oracle.g.at(x, point)
        first = first or (at, at.yy(v))
        if not float((at.yy(v) - first[1]).norm()) <= 1e3 * eps * float(first[1].norm()):
            return False
    assert first is not None
    H, _ = adjoint_system(first[0], y).dense()
    shift = 100 * eps * y.size * H.diagonal().abs().max()
    return bool(torch.linalg.cholesky_ex(H + shift * torch.eye(y.size, dtype=H.dtype, device=H.device)).info == 0)
