"""Implicit differentiation: grad Phi(x) = f_x - g_xy v with g_yy v = f_y at y = argmin over Y of g(x, .).

On a set Y the system lives in the tangent of Y at y (`constrained.sets.tangent`): (T g_yy T + C) v = T f_y. Nothing is returned
without its residuals: an unsolved lower level, a singular or an indefinite lower Hessian give a status.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from constrained.core.arguments import expect
from constrained.core.errors import OptionError
from constrained.core.options import NonNegative
from constrained.core.problem import Point, Problem
from constrained.core.status import Feature, Status
from constrained.core.vec import Tree
from constrained.linear import CG, LinearSolver, LinearStatus

from ..lower.solution import solve_lower
from .adjoint import SUPPORTS, Adjoint, AdjointMethod, LevelsAt, Wanted, differentiate

UNSOLVED = {LinearStatus.MAX_STEPS: Status.MAX_STEPS, LinearStatus.STALLED: Status.STALLED}


@dataclass(frozen=True)
class Hypergradient:
    """`value`, structured like x; `linear_residual` = |T f_y - (T g_yy T + C) v| / |T f_y|; `lower_residual` =
    |y - P_Y(y - g_y)|; `status`; `y`, where it was taken, a start for the next one; `fun`, f(x, y).

    CONVERGED: both residuals are within the tolerance. LOWER_UNSOLVED: y is not a minimiser to the tolerance, or g_yy has
    negative curvature there. SINGULAR: f_y is not in the range of g_yy, so no hypergradient exists; `value` is then the
    least-norm least-squares one. MAX_STEPS, STALLED, PRECISION: the linear solve ended above its tolerance, at its step limit,
    without progress, by round-off. NONFINITE: a derivative is NaN or infinite. `message` has the figures.
    """

    value: Tree
    linear_residual: float
    lower_residual: float
    status: Status
    message: str
    y: Tree
    fun: float


def hypergradient(
    problem: Problem,
    x: Tree,
    y: Tree | None = None,
    *,
    tol: float = 1e-10,
    inverse: LinearSolver | AdjointMethod | None = None,
    seed: int = 0,
) -> Hypergradient:
    """grad Phi(x) = f_x - g_xy v, g_yy v = f_y, at y, with its residuals and a status.

    x, y structured like the problem's variables; y=None solves the lower level first, from the problem's y. tol: absolute for
    |y - P_Y(y - g_y)|, relative to |f_y| for the linear system; values under 100 eps of the dtype are raised to it. inverse: how
    v is found; None: CG(), and Minres() where that meets a singular matrix; Minres(), Direct(), Neumann(), FixedPoint(map=...),
    Unrolled(), which starts its own steps at y; StochasticNeumann(), which takes mini-batches, drawn by `seed`, for the Hessian
    and all of the data for the rest. For deterministic problems else, whose lower level has no constraints but a set Y; where y
    leaves a face of Y as x moves, Phi has a kink, and the value is its derivative on one side. Raises Unsuitable for the
    others, ProblemError for a start that does not fit and for data without a full batch.

    >>> import torch, bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: (y**2).sum(), lambda x, y: ((y - 3 * x) ** 2).sum()
    >>> problem = bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one)
    >>> bilevel.hypergradient(problem, one).value
    tensor([18., 18.], dtype=torch.float64)

    Source: implicit function theorem; Pedregosa 2016, arXiv 1602.02355.
    """
    expect("tol", tol, NonNegative)
    inverse = CG() if inverse is None else inverse
    if not isinstance(inverse, (LinearSolver, AdjointMethod)):
        raise OptionError(f"inverse: expected a LinearSolver such as CG() or an AdjointMethod, got {inverse!r:.60}")
    own = isinstance(inverse, AdjointMethod)
    if not isinstance(problem, Problem) or Feature.LOWER not in problem.features:
        raise OptionError(f"problem: expected a BilevelProblem, got {type(problem).__name__}")
    problem.require("hypergradient", SUPPORTS | Feature.SAMPLES if own and inverse.samples else SUPPORTS)
    drawn = Feature.SAMPLES in problem.features
    whole: Any = problem.full_batch() if drawn else problem
    oracle: Any = whole.oracle()
    start = whole.begin(oracle, Point(x, y))
    if not drawn:
        whole.try_second_order(oracle, start, "a hypergradient")
    xs, ys = start.x, start.y
    floor = 100 * torch.finfo(ys.dtype).eps
    tol = max(tol, floor)
    if y is None and not (own and inverse.moves):
        known = problem.closed_form(start.x)
        ys = known if known is not None else solve_lower(oracle, xs, ys, tol).x
    sampled: Any = problem.oracle(seed) if drawn else None
    here = LevelsAt.of(oracle, xs, ys, sampled=sampled)
    return judged(differentiate(inverse, here, Wanted(tol, relative=tol)), tol, floor)


def judged(found: Adjoint, tol: float, floor: float) -> Hypergradient:
    """The hypergradient with its residuals and what they say."""
    here, value, reasons = found.here, found.gradient, []
    lower_residual, linear_residual = here.residual, found.residual / found.scale if found.scale > 0 else 0.0
    curvature = float(here.lower.yy(here.y).norm())  # |g_yy y|: the scale at which g_y can be told from zero
    status = Status.CONVERGED
    finite = bool(value.finite()) and all(map(math.isfinite, (lower_residual, linear_residual, found.gap)))
    if not finite or found.reason is LinearStatus.NONFINITE:
        status = Status.NONFINITE
    elif lower_residual > max(tol, floor * curvature):
        status = Status.LOWER_UNSOLVED
        reasons.append(f"|g_y| = {lower_residual:.1e}, wanted {tol:.1e}")
    elif found.gap > math.sqrt(floor) * (1.0 + float(here.y.norm())):
        status = Status.LOWER_UNSOLVED
        reasons.append(f"y is no fixed point of the map, which moves it by {found.gap:.1e}")
    elif found.reason is LinearStatus.NEGATIVE_CURVATURE:
        status = Status.LOWER_UNSOLVED
        reasons.append("g_yy has negative curvature at y, which is therefore no minimiser")
    elif found.reason in (LinearStatus.LEAST_SQUARES, LinearStatus.SINGULAR):
        status = Status.SINGULAR
        reasons.append(f"the part of f_y outside the range of g_yy is {linear_residual:.1e} of it")
    elif linear_residual > 10 * tol:
        status = UNSOLVED.get(found.reason, Status.PRECISION)
        reasons.append(f"linear residual {linear_residual:.1e}, wanted {tol:.1e}")
    sentence = "The hypergradient is within the tolerance." if status is Status.CONVERGED else status.value
    message = " ".join([sentence, *[f"({reason})" for reason in reasons]])
    return Hypergradient(value.tree(), linear_residual, lower_residual, status, message, here.y.tree(), here.value)
