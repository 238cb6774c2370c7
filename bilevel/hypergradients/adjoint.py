"""The adjoint system of implicit differentiation: v with g_yy v = f_y, on the tangent of Y where Y is a set.

    (T g_yy T + C) v = T f_y,      grad Phi = f_x - g_xy v

T and C as in `constrained/sets/tangent.py`; on the whole space T = I and C = 0. Any `LinearSolver` may find v; an `AdjointMethod`
goes another way: `StochasticNeumann` (neumann.py), `FixedPoint` (fixed_point.py), `Unrolled` (unrolled.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch

from constrained.core.options import Options
from constrained.core.status import Feature
from constrained.core.vec import Vec
from constrained.descent import residual
from constrained.linear import CG, LinearSolution, LinearSolver, LinearStatus, Minres, Operator, System
from constrained.linear.diagonal import Diagonal
from constrained.sets.tangent import FREE, Tangent, tangent

from ..oracle import BilevelOracle, LevelAt


# -- where, how well, and what was found ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LevelsAt:
    """Both levels at (x, y): f and its gradient, g with its products, the tangent of Y.

    sampled: where fresh draws of g come from, from the number `draw` on; None: g has no draws, or none are wanted.
    """

    oracle: BilevelOracle
    x: Vec
    y: Vec
    lower: LevelAt
    value: float
    f_x: Vec
    f_y: Vec
    sampled: BilevelOracle | None = None
    draw: int = 0

    @classmethod
    def of(
        cls, oracle: BilevelOracle, x: Vec, y: Vec, lower: LevelAt | None = None, sampled: BilevelOracle | None = None
    ) -> LevelsAt:
        """`lower`: g at (x, y), where it is known."""
        value, (f_x, f_y) = oracle.f.gradient((x, y), None, (0, 1))
        return cls(oracle, x, y, lower or oracle.g.at(x, y), float(value), f_x, f_y, sampled)

    @cached_property
    def face(self) -> Tangent:
        return tangent(self.oracle.Y, self.y - self.lower.y)

    @property
    def residual(self) -> float:
        """|y - P_Y(y - g_y)|."""
        return residual(self.oracle.Y, self.y, self.lower.y)


@dataclass(frozen=True)
class Wanted:
    """Accuracy: |y - P_Y(y - g_y)| <= lower, and the linear residual <= max(linear, relative |b|), b the right-hand side."""

    lower: float
    linear: float = 0.0
    relative: float = 0.0

    def of(self, b: Vec) -> float:
        return max(self.linear, self.relative * float(b.norm()))


@dataclass(frozen=True)
class Adjoint:
    """The derivative of y's response: grad Phi = f_x + cross.

    here: where, which an AdjointMethod may have moved. v: the adjoint, a start for the next solve. cross: -g_xy v, or what
    takes its place. shift: -v'T g_y, the first-order change of f as y becomes the solution. residual: of the linear system, and
    scale, the norm of its right-hand side. gap: how far y is from a fixed point, where that is another question.
    """

    here: LevelsAt
    v: Vec
    cross: Vec
    shift: float
    residual: float
    scale: float
    reason: LinearStatus
    products: int
    gap: float = 0.0

    @property
    def value(self) -> float:
        return self.here.value + self.shift

    @property
    def gradient(self) -> Vec:
        return self.here.f_x + self.cross


class AdjointMethod(Options):
    """Options of a way to differentiate y(x). `moves`: it solves the lower level itself, from the y that it is given; `samples`:
    it takes fresh draws of g.
    """

    moves: ClassVar[bool] = False
    samples: ClassVar[bool] = False

    def at(self, here: LevelsAt, wanted: Wanted, *, start: Vec | None = None) -> Adjoint:
        """The adjoint at a point, to the accuracy `wanted` or as near as there is, with the reason. `start`: the v before."""
        raise NotImplementedError


def differentiate(
    inverse: LinearSolver | AdjointMethod,
    here: LevelsAt,
    wanted: Wanted,
    *,
    start: Vec | None = None,
    diagonal: Diagonal | None = None,
) -> Adjoint:
    """The adjoint by either kind of inverse. `diagonal` of g_yy preconditions linear solvers and learns from them."""
    if isinstance(inverse, AdjointMethod):
        return inverse.at(here, wanted, start=start)
    b = here.face.project(here.f_y)
    found = adjoint(here.lower, here.f_y, wanted.of(b), solver=inverse, start=start, face=here.face, diagonal=diagonal)
    return read(here, found)


def read(here: LevelsAt, found: LinearSolution) -> Adjoint:
    """What a solution of (T g_yy T + C) v = T f_y says about the gradient."""
    v, project = found.x, here.face.project
    shift, scale = -float(v @ project(here.lower.y)), float(project(here.f_y).norm())
    return Adjoint(here, v, -here.lower.xy(v), shift, found.residual, scale, found.reason, found.products)


# -- the system -------------------------------------------------------------------------------------------------------------
def adjoint_system(lower: LevelAt, like: Vec, face: Tangent = FREE, diagonal: Diagonal | None = None) -> System:
    """T g_yy T + C + (I - T): the last part makes it regular and changes nothing for vectors in the range of T."""
    if face.whole:
        yy = lower.yy if diagonal is None else diagonal.watching(lower.yy)
        return System(yy, like.size, products=lower.yy_batch, like=like, inverse=None if diagonal is None else diagonal.inverse())
    return System(on_tangent(lower.yy, face), like.size, like=like)


def on_tangent(yy: Operator, face: Tangent) -> Operator:
    """v -> (T H T + C + I - T) v for v -> H v."""
    if face.whole:
        return yy

    def product(v: Vec) -> Vec:
        along = face.project(v)
        q = face.project(yy(along)) + (v - along)
        return q if face.bend is None else q + face.bend(along)

    return product


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
    """v with |T f_y - (T g_yy T + C) v| <= tol. By CG where no solver is given, and MINRES where CG meets a singular matrix.

    Solvers that do not mind an indefinite matrix end with NEGATIVE_CURVATURE here too, where what they know shows it: y is no
    minimiser then.
    """
    b = face.project(f_y)
    start = None if start is None else face.project(start)
    first = solver if solver is not None else CG()
    A = adjoint_system(lower, f_y, face, diagonal)
    prepared = first.init(A)
    found = first.solve(prepared, b, tol=tol, start=start)
    found = replace(found, products=found.products + prepared.spent)
    if not isinstance(first, CG):
        return replace(found, reason=LinearStatus.NEGATIVE_CURVATURE) if indefinite(found, b) else found
    if found.reason in (LinearStatus.SOLVED, LinearStatus.NONFINITE, LinearStatus.NEGATIVE_CURVATURE):
        return found
    minres = Minres()
    other = minres.solve(minres.init(A), b, tol=tol)
    other = replace(other, products=other.products + found.products)
    return other if other.reason is LinearStatus.LEAST_SQUARES or other.residual < found.residual else found


def indefinite(found: LinearSolution, b: Vec) -> bool:
    """A solution of A v = b shows a negative eigenvalue of A: by a direction, the inertia, or v'A v = v'b - v'r < 0."""
    if found.direction is not None or (found.inertia is not None and found.inertia[1] > 0):
        return True
    rounding = 100 * torch.finfo(b.dtype).eps * float(b.norm())
    return float(found.x @ b) < -(found.residual + rounding) * float(found.x.norm())


SUPPORTS = Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.UPPER_EQUALITY | Feature.UPPER_INEQUALITY
