"""solve_many: many starts of one problem, or many problems of one shape, in one run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from ..core.arguments import expect
from ..core.choice import default_solver, suit, tolerance
from ..core.deadline import OutOfTime, within
from ..core.derivatives.leaves import no_inference_mode
from ..core.errors import NonFiniteStart, OptionError
from ..core.options import Count
from ..core.result import Result
from ..core.run import Seconds, solve
from ..core.solver import Solver
from ..core.status import Status
from ..core.vec import Tree
from ..problem import ConstrainedProblem
from ..solvers.interior_point import InteriorPoint
from .results import Results, not_begun
from .side_by_side import SideBySide, WrongDerivatives
from .starts import Given, Unequal, batch, given, look, unfit


def solve_many(
    problem: ConstrainedProblem | Callable[[Tree], ConstrainedProblem],
    starts: Any = None,
    solver: Solver[Any, Any] | None = None,
    *,
    parameters: Any = None,
    tol: float | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
) -> Results:
    """Solve one problem from many starts, or many problems of one shape, side by side: a call of each function serves all.

    starts: a tensor, array or tree like the problem's x with a leading axis, or a list of starts; of Points or Results, whose
    multipliers make warm starts. parameters: tensors (a tree of them) with a leading axis; then `problem` is a function of one of
    them that returns a ConstrainedProblem; `starts` may be left out. solver, tol: as in `solve`; the functions
    are batched by `torch.func.vmap` where the solver is an InteriorPoint, the default of small problems. Where they cannot be
    (branches on x, numpy, own derivatives, mini-batches, bounds made of parameters), the problems are solved one after another,
    which a note says. max_steps: of each. max_seconds: of all together.

    Returns a sequence of `Result`s in the order of the starts, with `x`, `fun`, `success` stacked, and `best()`. A start where a
    function is not finite ends as NONFINITE; the others go on.

    Raises ProblemError for starts and parameters that do not fit, and where no start has finite values; else as `solve`.

    >>> from constrained import Box, ConstrainedProblem
    >>> two = torch.full((1,), 2.0, dtype=torch.float64)
    >>> wave = ConstrainedProblem(objective=lambda x: (3 * x).sin().sum() + 0.1 * (x**2).sum(), x=two, X=Box(-4, 4))
    >>> found = solve_many(wave, torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None])
    >>> bool(found.success.all()), round(found.best().fun, 3)
    (True, -0.973)
    >>> def nearest(p):
    ...     return ConstrainedProblem(objective=lambda x: ((x - p) ** 2).sum(), equality=lambda x: x.sum() - 1, x=0 * p)
    >>> solve_many(nearest, parameters=torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=torch.float64)).x
    tensor([[ 0.5000,  0.5000],
            [ 1.5000, -0.5000]], dtype=torch.float64)
    """
    began = time.perf_counter()
    max_steps, max_seconds = expect("max_steps", max_steps, Count | None), expect("max_seconds", max_seconds, Seconds | None)
    if solver is not None and not isinstance(solver, Solver):
        raise OptionError(f"solver: expected a Solver, got {solver!r:.60}")
    no_inference_mode()
    lanes = given(problem, starts, parameters)
    one = lanes.problem
    tol = tolerance(one, tol if tol is not None or solver is None else solver.tol)
    chosen: Solver[Any, Any] = default_solver(one) if solver is None else solver
    suit(one, chosen)
    chosen = dataclasses.replace(chosen, tol=tol)  # pyright: ignore[reportArgumentType]
    why = unfit(chosen, lanes)
    if not why and isinstance(chosen, InteriorPoint):
        with torch.no_grad():
            found = _side_by_side(lanes, chosen, max_steps, max_seconds, began)
        if isinstance(found, Results):
            return found
        why = found
    return _one_by_one(lanes, chosen, max_steps, max_seconds, began, why)


def _side_by_side(
    lanes: Given, solver: InteriorPoint, max_steps: int | None, max_seconds: float | None, began: float
) -> Results | str:
    """Or why not."""
    try:
        with within(max_seconds):
            oracle, checked = look(lanes)
    except OutOfTime:
        return "no time was left"
    try:
        whole = batch(lanes, oracle, checked)
    except Unequal as reason:
        return str(reason)
    except Exception as error:  # the functions' own, and whatever `vmap` meets; one by one, they say it again
        words = str(error).splitlines()
        return f"called for all lanes at once, the functions raised {type(error).__name__}: {words[0][:100] if words else ''}"
    steps = solver.max_outer if max_steps is None else max_steps
    try:
        return SideBySide(lanes, whole, oracle, solver, steps, max_seconds, began).run()
    except WrongDerivatives:
        return "first derivatives near an answer are not those of the values"


def _one_by_one(
    lanes: Given, solver: Solver[Any, Any], max_steps: int | None, max_seconds: float | None, began: float, why: str
) -> Results:
    found: list[Result] = []
    refused: list[NonFiniteStart] = []
    stopped = False
    for i, (problem, start) in enumerate(zip(lanes.problems, lanes.starts)):
        seconds = time.perf_counter() - began
        left = None if max_seconds is None else max(0.0, max_seconds - seconds)
        try:
            if stopped:
                one = not_begun(problem, solver, start, Status.STOPPED, Status.STOPPED.value, seconds)
            else:
                one = solve(problem, solver, start=lanes.point(i), max_steps=max_steps, max_seconds=left)
        except NonFiniteStart as error:
            refused.append(error)
            one = not_begun(problem, solver, start, Status.NONFINITE, f"{error}.", seconds)
        stopped = stopped or one.status is Status.STOPPED
        found.append(dataclasses.replace(one, notes=(*one.notes, f"Solved one after another: {why}.")))
    if len(refused) == len(found):
        raise refused[0]
    return Results(found, time.perf_counter() - began)
