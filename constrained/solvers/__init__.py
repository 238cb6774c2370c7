"""The solvers of constrained problems, one file a method; `__all__` is the one list of them."""

from .augmented_lagrangian import AugmentedLagrangian
from .augmented_lagrangian_sgd import AugmentedLagrangianSGD
from .interior_point import InteriorPoint
from .reference import SLSQP, TrustConstr
from .sketched_newton import SketchedNewton

__all__ = ["SLSQP", "AugmentedLagrangian", "AugmentedLagrangianSGD", "InteriorPoint", "SketchedNewton", "TrustConstr"]
