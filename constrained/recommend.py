"""The solver that `solve` uses for a constrained problem when none is given."""

from __future__ import annotations

from .core.errors import Unsuitable
from .core.run import default_solver
from .core.solver import Solver
from .core.status import Feature
from .kkt import lost_twice
from .oracle import ConstrainedOracle
from .problem import ConstrainedProblem
from .solvers.augmented_lagrangian import AugmentedLagrangian
from .solvers.augmented_lagrangian_sgd import AugmentedLagrangianSGD
from .solvers.interior_point import InteriorPoint
from .solvers.sketched_newton import SketchedNewton

SMALL, DENSE = 300, 2000  # n + m up to which a dense system is the least work; up to which inequalities are worth one


@default_solver.register
def _(problem: ConstrainedProblem) -> Solver:
    """InteriorPoint where K is small, sparse, or has bounds and inequalities that nothing else takes to second order;
    SketchedNewton for larger equalities; AugmentedLagrangian without second derivatives.
    """
    oracle = problem.oracle()
    for solver in (InteriorPoint, SketchedNewton, AugmentedLagrangian, AugmentedLagrangianSGD):
        second = solver in (InteriorPoint, SketchedNewton)
        if solver.lacks(problem.features) or (second and _lost_twice(oracle)):
            continue
        if solver is InteriorPoint and not _fits(problem, oracle):
            continue
        return solver()
    handled = SketchedNewton.supports | AugmentedLagrangianSGD.supports
    raise Unsuitable(f"solve: no solver of this version handles {(problem.features & ~handled).words()}")


def _fits(problem: ConstrainedProblem, oracle: ConstrainedOracle) -> bool:
    """X bounds entries, and K is no larger than it should be. What goes wrong, the start will say."""
    if not (oracle.X.whole or oracle.X.entrywise):
        return False
    try:
        tape = oracle.stacked(oracle.X.project(oracle.variables["x"]))
        if tape.J.sparse:
            return bool(problem.features & (Feature.INEQUALITY | Feature.X_SET))
    except Exception:
        return True
    size = len(tape.x) + tape.m
    return size <= (DENSE if problem.features & (Feature.INEQUALITY | Feature.X_SET) else SMALL)


def _lost_twice(oracle: ConstrainedOracle) -> bool:
    """Products with the Hessian of the Lagrangian were tried, and are not to be had. What else goes wrong, the start will say."""
    try:
        return bool(lost_twice(oracle, oracle.variables["x"]))
    except Exception:
        return False
