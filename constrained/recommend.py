"""The solver that `solve` uses for a constrained problem when none is given, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

from .core.choice import Recommendation
from .core.errors import OptionError, Unsuitable
from .core.run import default_solver
from .core.solver import Solver
from .core.status import Feature
from .core.vec import Vec
from .interior.program import sparse
from .kkt import beside, lost_twice
from .oracle import ConstrainedOracle
from .problem import ConstrainedProblem
from .solvers.augmented_lagrangian import AugmentedLagrangian
from .solvers.augmented_lagrangian_sgd import AugmentedLagrangianSGD
from .solvers.interior_point import InteriorPoint
from .solvers.sketched_newton import SketchedNewton

SMALL, DENSE = 300, 2000  # n + m up to which a dense system is the least work; up to which inequalities are worth one
WHY: dict[type[Solver], str] = {
    InteriorPoint: "Second derivatives, and a system of f and all rows that is small or sparse: Newton's steps by its factors.",
    SketchedNewton: "Second derivatives, and equalities alone, many: Newton's steps by products with their system.",
    AugmentedLagrangian: "No second derivatives, a set that bounds no single entries, or a large system without sparse matrices: "
    "the method of multipliers.",
    AugmentedLagrangianSGD: "Batches are drawn: a stochastic method of multipliers, which needs max_steps.",
}
QUICKER = "Pounce is installed: with sparse derivatives and cheap functions of numpy, Pounce() takes about 0.4 of the time."


def recommend(problem: ConstrainedProblem) -> Recommendation:
    """What `solve(problem)` uses, and why; and which solver of other people, where it is installed, would be quicker.

    Raises Unsuitable where no solver of this version handles the problem.

    >>> import torch
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> print(recommend(ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: x.sum() - 1, x=x)))
    InteriorPoint(tol=None, mu=0.1, max_outer=1000)
      Second derivatives, and a system of f and all rows that is small or sparse: Newton's steps by its factors.
    """
    if not isinstance(problem, ConstrainedProblem):
        raise OptionError(f"problem: expected a ConstrainedProblem, got {type(problem).__name__}")
    solver, oracle = _chosen(problem)
    quicker = (QUICKER,) if isinstance(solver, InteriorPoint) and find_spec("pounce") and _compiled(oracle) else ()
    return Recommendation(solver, (WHY[type(solver)], *quicker))


@default_solver.register
def _(problem: ConstrainedProblem) -> Solver:
    return _chosen(problem)[0]


def _chosen(problem: ConstrainedProblem) -> tuple[Solver, ConstrainedOracle]:
    """InteriorPoint where K is small, sparse, or has bounds and inequalities that nothing else takes to second order;
    SketchedNewton for larger equalities; AugmentedLagrangian without second derivatives. With what was evaluated on the way.
    """
    oracle = problem.oracle().remember()
    near = functools.cache(lambda: beside(oracle, oracle.variables["x"]))  # second derivatives are tried there
    for solver in (InteriorPoint, SketchedNewton, AugmentedLagrangian, AugmentedLagrangianSGD):
        second = solver in (InteriorPoint, SketchedNewton)
        if solver.lacks(problem.features) or (second and _lost_twice(oracle, near)):
            continue
        if solver is InteriorPoint and not _fits(problem, oracle, near):
            continue
        return solver(), oracle
    handled = SketchedNewton.supports | AugmentedLagrangianSGD.supports
    raise Unsuitable(f"solve: no solver of this version handles {(problem.features & ~handled).words()}")


def _compiled(oracle: ConstrainedOracle) -> bool:
    """Values and derivatives are no torch code, and sparse: what is left is the solver's own work."""
    if any(part.own.torch for part in oracle.functions):
        return False
    try:
        return sparse(oracle.stacked(beside(oracle, oracle.variables["x"])))
    except Exception:
        return False


# What goes wrong in either, the start will say.
def _lost_twice(oracle: ConstrainedOracle, near: Callable[[], Vec]) -> bool:
    """Products with the Hessian of the Lagrangian were tried, and are not to be had."""
    try:
        return bool(lost_twice(oracle, near()))
    except Exception:
        return False


def _fits(problem: ConstrainedProblem, oracle: ConstrainedOracle, near: Callable[[], Vec]) -> bool:
    """X bounds entries, and K is no larger than it should be."""
    if not (oracle.X.whole or oracle.X.entrywise):
        return False
    bounded = bool(problem.features & (Feature.INEQUALITY | Feature.X_SET))
    try:
        tape = oracle.stacked(near())
        if len(tape.x) + tape.m <= (DENSE if bounded else SMALL):
            return True
        own = all(c.own.jacobian is not None for c in oracle.rows)  # else J is not even asked for: it would be dense
        return bounded and own and (tape.J.sparse or not tape.m) and sparse(tape)
    except Exception:
        return True
