"""The solver that `solve` uses for a constrained problem when none is given."""

from __future__ import annotations

from .core.errors import Unsuitable
from .core.run import default_solver
from .core.solver import Solver
from .core.status import Feature
from .interior.program import sparse
from .kkt import beside, lost_twice
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
    oracle = problem.oracle().remember()
    for solver in (InteriorPoint, SketchedNewton, AugmentedLagrangian, AugmentedLagrangianSGD):
        second = solver in (InteriorPoint, SketchedNewton)
        if solver.lacks(problem.features) or (second and _lost_twice(oracle)):
            continue
        if solver is InteriorPoint and not _fits(problem, oracle):
            continue
        return solver()
    handled = SketchedNewton.supports | AugmentedLagrangianSGD.supports
    raise Unsuitable(f"solve: no solver of this version handles {(problem.features & ~handled).words()}")


# What goes wrong in either, the start will say.
def _lost_twice(oracle: ConstrainedOracle) -> bool:
    """Products with the Hessian of the Lagrangian were tried, and are not to be had."""
    try:
        return bool(lost_twice(oracle, oracle.variables["x"]))
    except Exception:
        return False


def _fits(problem: ConstrainedProblem, oracle: ConstrainedOracle) -> bool:
    """X bounds entries, and K is no larger than it should be."""
    if not (oracle.X.whole or oracle.X.entrywise):
        return False
    bounded = bool(problem.features & (Feature.INEQUALITY | Feature.X_SET))
    try:
        tape = oracle.stacked(beside(oracle, oracle.variables["x"]))
        if len(tape.x) + tape.m <= (DENSE if bounded else SMALL):
            return True
        own = all(c.own.jacobian is not None for c in oracle.rows)  # else J is not even asked for: it would be dense
        return bounded and own and (tape.J.sparse or not tape.m) and sparse(tape)
    except Exception:
        return True
