"""Minimise a smooth function over a set.

method            Method, its state `Descent`, `minimise` to a residual, and why it ended
lbfgs, spg        LBFGS and ProjectedLBFGS, SPG
face_lbfgs        L-BFGS along the faces of a set
newton_cg         Newton's method with conjugate gradients
line_search       the search that they share
curvature_pairs   the memory of L-BFGS
reformulation     a problem written as one objective
"""

from ..core.moved import forward_names
from .curvature_pairs import Pairs
from .face_lbfgs import FaceLBFGS
from .lbfgs import LBFGS, ProjectedLBFGS
from .method import Descent, DescentStatus, Method, Minimum, ValueAndGradient, minimise, residual
from .newton_cg import NewtonCG
from .reformulation import Reformulation
from .spg import SPG

__all__ = [
    "LBFGS",
    "SPG",
    "Descent",
    "DescentStatus",
    "FaceLBFGS",
    "Method",
    "Minimum",
    "NewtonCG",
    "Pairs",
    "ProjectedLBFGS",
    "Reformulation",
    "ValueAndGradient",
    "minimise",
    "residual",
]

forward_names(__name__, {"Reason": "constrained.descent:DescentStatus", "Objective": "constrained.descent:ValueAndGradient"})
