"""What the author of a solver, a set or an optimizer imports, in one line.

>>> from constrained.extend import Positive, Solver, solver_state
"""

from .core.derivatives.function import Function
from .core.optimizers import InPlace, Optimizer, OptState
from .core.options import Fraction, Growth, Momentum, NonNegative, Options, Positive, Schedule, Steps, at
from .core.problem import Multipliers, Oracle, Point, Problem
from .core.solver import Solver
from .core.states import solver_state, state_enum
from .core.status import Feature, Status
from .core.vec import Vec, copy
from .descent import DescentStatus, Method, minimise
from .linear import LinearSolution, LinearSolver, LinearStatus, System
from .oracle import ConstrainedOracle
from .sets import ConvexSet

__all__ = [
    "ConstrainedOracle",
    "ConvexSet",
    "DescentStatus",
    "Feature",
    "Fraction",
    "Function",
    "Growth",
    "InPlace",
    "LinearSolution",
    "LinearSolver",
    "LinearStatus",
    "Method",
    "Momentum",
    "Multipliers",
    "NonNegative",
    "OptState",
    "Optimizer",
    "Options",
    "Oracle",
    "Point",
    "Positive",
    "Problem",
    "Schedule",
    "Solver",
    "Status",
    "Steps",
    "System",
    "Vec",
    "at",
    "copy",
    "minimise",
    "solver_state",
    "state_enum",
]
