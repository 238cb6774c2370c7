"""FixedPoint: the lower solution as the fixed point y = T(x, y) of a map, and the derivative of that.

    w = T_y' w + f_y,      grad Phi = f_x + T_x' w

by the iteration w <- T_y' w + f_y, and by GMRES on (I - T_y') w = f_y where that contracts too slowly. T need not be a gradient
step, nor T_y symmetric: a preconditioned step, a sweep over blocks, a projected step.

References: Grazzi, Franceschi, Pontil and Salzo, arXiv 2006.16218; Saad and Schultz 1986 (GMRES).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from constrained.core.derivatives.constraint import Constraint
from constrained.core.derivatives.leaves import shaped
from constrained.core.options import Steps
from constrained.core.vec import Tree, Vec, leaves_by_path
from constrained.linear import CG, LinearStatus, Operator
from constrained.linear.gmres import gmres

from .adjoint import Adjoint, AdjointMethod, LevelsAt, Wanted, adjoint

LOOK = 3  # plain iterations before their rate is believed


@dataclass(frozen=True, kw_only=True)
class FixedPoint(AdjointMethod):
    """Implicit differentiation of y = T(x, y): grad Phi = f_x + T_x' w with (I - T_y') w = f_y.

    map: T, a function of (x, y) as the problem's functions get them, in torch, that returns y's structure; an nn.Module comes as
    the dict of its parameters. The lower solution must be a fixed point of T: |y - T(x, y)| is looked at. A gradient inside T
    needs `torch.enable_grad()` and `create_graph=True`, or a formula. The residual is |f_y - (I - T_y') w|.

    Iterates while at most `memory` iterations remain at the rate seen; else restarted GMRES with `memory` vectors. max_steps:
    products with T_y' in all. Where I - T_y' is singular it ends with SINGULAR or STALLED; where T repels and CG finds negative
    curvature of g_yy, with NEGATIVE_CURVATURE: y is no minimiser. A map that attracts to such a y (Newton's) does not show it.

    >>> import bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: (y**2).sum(), lambda x, y: ((y - 3 * x) ** 2).sum()
    >>> problem = bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one)
    >>> bilevel.hypergradient(problem, one, inverse=FixedPoint(map=lambda x, y: y - 0.3 * (y - 3 * x))).value
    tensor([18., 18.], dtype=torch.float64)

    Source: arXiv 2006.16218; the change to GMRES is this library's.
    """

    map: Callable[[Tree, Tree], Tree]
    memory: Steps = 50
    max_steps: Steps = 1000

    def at(self, here: LevelsAt, wanted: Wanted, *, start: Vec | None = None) -> Adjoint:
        x, y, b = here.x, here.y, here.f_y
        step = Constraint("map", self._flat(y), here.oracle.calls)
        out = shaped(self.map(x.tree(), y.tree()), y, "FixedPoint: map") - y

        def product(w: Vec) -> Vec:
            return w - step.vjp((x, y), w.ravel())[1]

        tol, limit = wanted.of(b), self.max_steps
        w, reason, spent, slow = contract(product, b, b if start is None else start, tol, self.memory, limit)
        repels = False
        if slow:
            w, reason, more, repels = gmres(product, b, w, tol, self.memory, limit - spent)
            spent += more
        cross, back = step.vjp((x, y), w.ravel())
        residual = float((b + back - w).norm())
        if not (math.isfinite(residual) and bool(cross.finite())):
            reason = LinearStatus.NONFINITE
        elif repels:
            curved = adjoint(here.lower, b, tol, solver=CG(), face=here.face)
            spent += curved.products
            reason = curved.reason if curved.reason is LinearStatus.NEGATIVE_CURVATURE else reason
        elif residual <= tol:
            reason = LinearStatus.SOLVED
        return Adjoint(here, w, cross, float(w @ out), residual, float(b.norm()), reason, spent + 1, float(out.norm()))

    def _flat(self, y: Vec) -> Callable[[Tree, Tree], Tensor]:
        """T as a function with one row of entries, in y's order."""
        paths = y.paths()

        def flat(x: Tree, y: Tree) -> Tensor:
            out: dict[str, Any] = leaves_by_path(self.map(x, y))
            return torch.cat([out[path].reshape(-1) for path in paths])

        return flat


def contract(product: Operator, b: Vec, w: Vec, tol: float, patience: int, limit: int) -> tuple[Vec, LinearStatus, int, bool]:
    """w <- w + r, r <- r - A r from r = b - A w: the iteration for A = I - T_y'. True: more than `patience` steps remain."""
    r, spent = b - product(w), 1
    norm = float(r.norm())
    while norm > tol and spent < limit:
        w, r, spent = w + r, r - product(r), spent + 1
        norm, old = float(r.norm()), norm
        rate = norm / old
        if not math.isfinite(norm):
            return w, LinearStatus.NONFINITE, spent, False
        if spent > LOOK and norm > tol and (rate >= 1 or math.log(max(tol, 1e-300) / norm) < patience * math.log(rate)):
            return w, LinearStatus.MAX_STEPS, spent, True
    return w, LinearStatus.SOLVED if norm <= tol else LinearStatus.MAX_STEPS, spent, False
