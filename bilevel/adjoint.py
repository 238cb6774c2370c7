"""The adjoint system of implicit differentiation: v with g_yy v = f_y, on the tangent of Y where Y is a set.

    (T g_yy T + C) v = T f_y,      grad Phi = f_x - g_xy v

T and C as in `constrained/tangent.py`; on the whole space T = I and C = 0. Any `LinearSolver` may find v.
"""

from __future__ import annotations

from dataclasses import replace

from constrained.core.vec import Vec
from constrained.diagonal import Diagonal
from constrained.linear import CG, LinearSolution, LinearSolver, Minres, Reason, System
from constrained.tangent import FREE, Tangent

from .oracle import LevelAt


def system(lower: LevelAt, like: Vec, face: Tangent = FREE, diagonal: Diagonal | None = None) -> System:
    """T g_yy T + C + (I - T): the last part makes it regular and changes nothing for vectors in the range of T."""
    if face.whole:
        yy = lower.yy if diagonal is None else diagonal.watching(lower.yy)
        return System(yy, like.size, products=lower.yy_batch, like=like, inverse=None if diagonal is None else diagonal.inverse())

    def product(v: Vec) -> Vec:
        along = face.project(v)
        bent = face.project(lower.yy(along)) + (v - along)
        return bent if face.bend is None else bent + face.bend(along)

    return System(product, like.size, like=like)


def adjoint(
    lower: LevelAt,
    f_y: Vec,
    tol: float,
    *,
    solver: LinearSolver | None = None,
    start: Vec | None = None,
    face: Tangent = FREE,
    diagonal: Diagonal | None = None,
) -> LinearSolution:
    """v with |T f_y - (T g_yy T + C) v| <= tol. By CG where no solver is given, and MINRES where CG meets a singular matrix."""
    b = face.project(f_y)
    start = None if start is None else face.project(start)
    first = solver if solver is not None else CG()
    A = system(lower, f_y, face, diagonal)
    prepared = first.init(A)
    found = first.solve(prepared, b, tol=tol, start=start)
    found = replace(found, products=found.products + prepared.spent)
    if not isinstance(first, CG) or found.reason in (Reason.SOLVED, Reason.NONFINITE, Reason.NEGATIVE_CURVATURE):
        return found
    minres = Minres()
    other = minres.solve(minres.init(A), b, tol=tol)
    other = replace(other, products=other.products + found.products)
    return other if other.reason is Reason.LEAST_SQUARES or other.residual < found.residual else found
