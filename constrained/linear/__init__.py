"""Linear systems A v = b by products with A: solvers with an init/solve split, a reason, and residuals computed from the system.

system          System, LinearSolver, LinearSolution, and why a solve ended
cg, minres      symmetric systems, semidefinite and indefinite
projected_cg    KKT systems, on the kernel of the constraints
direct          factorisations
neumann, gmres  series and minimal residuals of contractions
sketch          random sketches
auto, cost      the choice between them, from what a product costs
spectrum        extreme eigenvalues and norms
diagonal        a diagonal estimated from the products made anyway
"""

from ..core.moved import forward_names
from .auto import AutoLinear
from .cg import CG
from .direct import Direct
from .minres import Minres
from .neumann import Neumann
from .projected_cg import ProjectedCG
from .sketch import Gaussian, Kaczmarz, Sketch
from .system import LinearSolution, LinearSolver, LinearStatus, Operator, System

__all__ = [
    "CG",
    "AutoLinear",
    "Direct",
    "Gaussian",
    "Kaczmarz",
    "LinearSolution",
    "LinearSolver",
    "LinearStatus",
    "Minres",
    "Neumann",
    "Operator",
    "ProjectedCG",
    "Sketch",
    "System",
]

forward_names(__name__, {"Reason": "constrained.linear:LinearStatus", "Product": "constrained.linear:Operator"})
