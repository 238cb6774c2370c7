"""The default choice of a solver, registered on `constrained.core.run.default_solver`."""

from __future__ import annotations

from constrained.core.errors import Unsuitable
from constrained.core.run import default_solver
from constrained.core.solver import Solver

from .problem import BilevelProblem
from .solvers.penalty import Penalty
from .solvers.penalty_sgd import PenaltySGD


@default_solver.register
def _(problem: BilevelProblem) -> Solver:
    for solver in (Penalty, PenaltySGD):
        if not solver.lacks(problem.features):
            return solver()
    handled = Penalty.supports | PenaltySGD.supports
    raise Unsuitable(f"solve: no solver of this version handles {(problem.features & ~handled).words()}")
