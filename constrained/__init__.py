"""Constrained optimization: the ground floor of `bilevel`. Solvers of constrained problems come here; sets, descent methods and
linear solvers are here already.
"""

from .core.run import iterate, solve
from .core.solver import Point, Status
from .core.vec import Vec
from .descent import LBFGS, SPG, ProjectedLBFGS, minimise
from .linear import CG, Minres
from .sets import Affine, Ball, Box, ConvexSet, Everywhere, Halfspace, Product, Simplex

_BILEVEL = True  # lets `bilevel` tell this package from a user's own constrained.py

__all__ = [
    "CG",
    "LBFGS",
    "SPG",
    "Affine",
    "Ball",
    "Box",
    "ConvexSet",
    "Everywhere",
    "Halfspace",
    "Minres",
    "Point",
    "Product",
    "ProjectedLBFGS",
    "Simplex",
    "Status",
    "Vec",
    "iterate",
    "minimise",
    "solve",
]
