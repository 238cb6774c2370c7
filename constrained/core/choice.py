"""Which solver a problem gets, whether one fits, and to what tolerance."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from .arguments import expect
from .data import exact
from .errors import OptionError, Unsuitable
from .options import NonNegative
from .problem import Point, Problem
from .solver import Solver
from .status import Feature


@dataclass(frozen=True)
class Recommendation:
    """`solver`, and the `reasons` for it as sentences."""

    solver: Solver
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([repr(self.solver), *(f"  {reason}" for reason in self.reasons)])


@functools.singledispatch
def default_solver(problem: Any) -> Solver:
    """The solver that `solve(problem)` uses. Each package registers its own choice on this function."""
    raise OptionError(f"problem: expected a BilevelProblem or ConstrainedProblem, got {type(problem).__name__}")


@functools.singledispatch
def diagnosed(problem: Any, start: Point | None = None) -> Any:
    """What `problem.diagnose()` finds. The package that knows the solvers registers it."""
    raise OptionError(f"problem: expected a BilevelProblem, got {type(problem).__name__}")


def suit(problem: Problem, solver: Solver) -> None:
    """Raise Unsuitable, naming what the solver lacks and one that fits, where it cannot handle the problem."""
    lacks = solver.lacks(problem.features)
    if not lacks:
        return
    name = type(solver).__name__
    parts = []
    if problem.features & lacks:
        parts.append(f"{name} does not handle {(problem.features & lacks).words()}")
    if lacks & ~problem.features:
        parts.append(f"{name} needs {(lacks & ~problem.features).words()}")
    try:
        fits = f"{type(default_solver(problem).current()).__name__} does"
    except Unsuitable:
        fits = "no solver here does yet"
    advice = ""
    if Feature.SAMPLES in lacks & problem.features:
        streams = ", ".join(key for key, sampler in problem.samplers().items() if not exact(sampler))
        how = f"FullBatch(...) as {streams} (a stream has no full batch)" if streams else "problem.full_batch()"
        advice = f" Or give it all of the data at once: {how}."
    raise Unsuitable(f"solver: {'; '.join(parts)}; {fits}.{advice}")


def tolerance(problem: Problem, tol: float | None) -> float:
    """The tolerance of a run: what was asked for, or that of the dtype. Raises OptionError."""
    dtype = next(iter(problem.variables().values())).dtype
    floor = 100 * torch.finfo(dtype).eps
    value = tol
    if value is None:
        bilevel = Feature.LOWER in problem.features
        value = (1e-3 if bilevel else 1e-4) if dtype != torch.float64 else (1e-6 if bilevel else 1e-8)
        value = max(value, floor)  # half precision
    value = expect("tol", value, NonNegative)
    if value < floor:
        raise OptionError(f"tol: must be at least 100 eps of {dtype} ({floor:.1e}), got {value!r}")
    return float(value)
