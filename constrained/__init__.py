"""Constrained optimization: min f(x) subject to c(x) = 0, h(x) <= 0, x in X. The ground floor of `bilevel`.

problem = ConstrainedProblem(objective=f, equality=c, x=x0)
result = solve(problem)
result.x, result.multipliers, result.status, result.residuals()
"""

from . import recommend as recommend  # registers the default solver
from .accuracy import Estimated, Paper
from .autolinear import AutoLinear
from .core.run import iterate, solve
from .core.solver import Multipliers, Point, Status
from .core.vec import Vec
from .descent import LBFGS, SPG, ProjectedLBFGS
from .direct import Direct
from .face import FaceLBFGS
from .intersections import BoxHyperplane, CvxpySet
from .linear import CG, Minres, System
from .minimize import minimize
from .multistart import multistart
from .newton_cg import NewtonCG
from .polyhedron import Polyhedron
from .problem import ConstrainedProblem
from .projected import ProjectedCG
from .sets import Affine, Ball, Box, ConvexSet, Everywhere, Halfspace, Product, Simplex
from .sketch import Gaussian, Kaczmarz, Sketch
from .solvers.augmented_lagrangian import AugmentedLagrangian
from .solvers.augmented_lagrangian_sgd import AugmentedLagrangianSGD
from .solvers.reference import SLSQP, TrustConstr
from .solvers.sketched_newton import SketchedNewton

_BILEVEL = True  # lets `bilevel` tell this package from a user's own constrained.py

__all__ = [
    "CG",
    "LBFGS",
    "SLSQP",
    "SPG",
    "Affine",
    "AugmentedLagrangian",
    "AugmentedLagrangianSGD",
    "AutoLinear",
    "Ball",
    "Box",
    "BoxHyperplane",
    "ConstrainedProblem",
    "ConvexSet",
    "CvxpySet",
    "Direct",
    "Estimated",
    "Everywhere",
    "FaceLBFGS",
    "Gaussian",
    "Halfspace",
    "Kaczmarz",
    "Minres",
    "Multipliers",
    "NewtonCG",
    "Paper",
    "Point",
    "Polyhedron",
    "Product",
    "ProjectedCG",
    "ProjectedLBFGS",
    "Simplex",
    "Sketch",
    "SketchedNewton",
    "Status",
    "System",
    "TrustConstr",
    "Vec",
    "iterate",
    "minimize",
    "multistart",
    "solve",
]
