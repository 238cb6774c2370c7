"""The solvers of constrained problems, one file a method; `__all__` is the one list of them."""

from .augmented_lagrangian import AugmentedLagrangian
from .augmented_lagrangian_sgd import AugmentedLagrangianSGD
from .interior_point import InteriorPoint
from .ipopt import Ipopt
from .pounce import Pounce
from .scipy_solvers import SLSQP, TrustConstr
from .sketched_newton import SketchedNewton
from .uno import Uno

__all__ = [
    "SLSQP",
    "AugmentedLagrangian",
    "AugmentedLagrangianSGD",
    "InteriorPoint",
    "Ipopt",
    "Pounce",
    "SketchedNewton",
    "TrustConstr",
    "Uno",
]
