"""The default choice of a solver, registered on `constrained.core.run.default_solver`."""

from __future__ import annotations

from constrained.core.errors import Unsuitable
from constrained.core.run import default_solver
from constrained.core.solver import Feature, Solver

from .problem import BilevelProblem
from .solvers.penalty import Penalty


@default_solver.register
def _(problem: BilevelProblem) -> Solver:
    for solver in (Penalty,):
        if not solver.lacks(problem.features):
            return solver()
    handled = Penalty.supports
    raise Unsuitable(f"solve: no solver of this version handles {(problem.features & ~handled).words()}")
