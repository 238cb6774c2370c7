"""The solver that `solve` uses for a constrained problem when none is given."""

from __future__ import annotations

from .core.errors import Unsuitable
from .core.run import default_solver
from .core.solver import Solver
from .kkt import lost_twice
from .problem import ConstrainedProblem
from .solvers.augmented_lagrangian import AugmentedLagrangian
from .solvers.augmented_lagrangian_sgd import AugmentedLagrangianSGD
from .solvers.sketched_newton import SketchedNewton


@default_solver.register
def _(problem: ConstrainedProblem) -> Solver:
    for solver in (SketchedNewton, AugmentedLagrangian, AugmentedLagrangianSGD):
        if not solver.lacks(problem.features) and not (solver is SketchedNewton and _lost_twice(problem)):
            return solver()
    handled = SketchedNewton.supports | AugmentedLagrangianSGD.supports
    raise Unsuitable(f"solve: no solver of this version handles {(problem.features & ~handled).words()}")


def _lost_twice(problem: ConstrainedProblem) -> bool:
    """Products with the Hessian of the Lagrangian were tried, and are not to be had. What else goes wrong, the start will say."""
    oracle = problem.oracle()
    try:
        return bool(lost_twice(oracle, oracle.variables["x"]))
    except Exception:
        return False
