"""Convex sets by their projections, and what derivatives through a projection need.

base            ConvexSet, and constants beside a variable
simple          Everywhere, Box, Ball, Simplex, Affine, Halfspace
product         Product: one set for each part of a variable
intersections   BoxHyperplane, CvxpySet
tangent         the tangent of a set at a point
"""

from ..core.moved import forward_names
from .base import ConvexSet, expect_set
from .intersections import BoxHyperplane, CvxpySet
from .product import Product
from .simple import Affine, Ball, Box, Everywhere, Halfspace, Simplex
from .tangent import has_tangent, tangent

__all__ = [
    "Affine",
    "Ball",
    "Box",
    "BoxHyperplane",
    "ConvexSet",
    "CvxpySet",
    "Everywhere",
    "Halfspace",
    "Product",
    "Simplex",
    "expect_set",
    "has_tangent",
    "tangent",
]

forward_names(__name__, {"_Constant": "constrained.sets.base:Constant"})  # in pickles of 0.1.0
