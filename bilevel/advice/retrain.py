"""What a lower level that starts anew makes of an upper variable: warm starts can hide upper information in y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from constrained.core.errors import OptionError
from constrained.core.problem import Point
from constrained.core.result import Result
from constrained.core.status import Feature
from constrained.core.vec import Tree

from ..lower.solution import solve_lower
from ..problem import BilevelProblem


@dataclass(frozen=True)
class Retrained:
    """`warm` = f(x, y) of the result; `cold` = f(x, y') with `y`' the lower solution reached from the problem's own start;
    `lower` = |y' - P_Y(y' - g_y)|.
    """

    warm: float
    cold: float
    y: Tree
    lower: float


def retrain(result: Result, *, start: Tree | None = None, tol: float | None = None, max_steps: int = 10_000) -> Retrained:
    """Solve the lower level at result.x again from a cold start, and the upper value there beside the warm one.

    start: of the lower variable; None: the problem's. tol: on |y - P_Y(y - g_y)|, the result's tolerance if None; max_steps: of
    L-BFGS (projected on boxes, spectral projected gradients on other sets). Mini-batches are replaced by all of the data.
    Equal values say that x alone carries the answer; a much larger `cold` says that y does (several lower solutions). Raises
    OptionError for a result of a problem that is not bilevel, Unsuitable for constraints on the lower level.

    >>> import torch, bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(), lambda x, y: (y[0] + y[1] - x.sum()) ** 2
    >>> problem = bilevel.BilevelProblem(upper=f, lower=g, x=one, y=torch.tensor([5.0, -3.0], dtype=torch.float64))
    >>> found = retrain(bilevel.solve(problem, bilevel.Penalty()))
    >>> round(found.warm, 4), found.cold > 30
    (1.0, True)

    Source: Vicol et al., arXiv 2212.14032, on warm and cold starts.
    """
    problem: Any = result.problem
    if not isinstance(problem, BilevelProblem):
        raise OptionError(f"result: expected one of a BilevelProblem, got {type(problem).__name__}")
    problem.require("retrain", ~(Feature.LOWER_EQUALITY | Feature.LOWER_INEQUALITY | Feature.LIVE))
    whole = problem.full_batch() if Feature.SAMPLES in problem.features else problem
    oracle = whole.oracle()
    at = whole.begin(oracle, Point(result.x, problem.y if start is None else start))
    found = solve_lower(oracle, at.x, at.y, tol if tol is not None else result.solver.tolerance, max_steps=max_steps)
    y = found.x.tree()
    return Retrained(result.fun, float(oracle.f.value((at.x, found.x))), y, found.residual)
