"""Constrained optimization: min f(x) subject to c(x) = 0, h(x) <= 0, x in X. The ground floor of `bilevel`.

problem = ConstrainedProblem(objective=f, equality=c, x=x0)
result = solve(problem)
result.x, result.multipliers, result.status, result.residuals()
"""

from . import moved as moved  # old names of modules
from . import recommend as recommend  # registers the default solver
from . import solvers
from .core.auto import Attempt, Auto
from .core.callbacks import Checkpoint, EarlyStopping, History, Progress, StopWhen, TensorBoard
from .core.data import FullBatch, MiniBatches, NoData
from .core.derivatives.function import Function
from .core.errors import (
    BilevelError,
    CheckpointError,
    MissingExtra,
    NonFiniteGradient,
    NonFiniteStart,
    OptionError,
    OutputError,
    ProblemError,
    SolveFailed,
    Unsuitable,
)
from .core.event import Event
from .core.moved import forward_names
from .core.optimizers import SGD, AdamW, ScalarAdam
from .core.options import Cosine, Power
from .core.problem import Multipliers, Point
from .core.result import Result
from .core.run import iterate, solve
from .core.sources import SourceBatches
from .core.status import Feature, Status
from .core.stream import Stream
from .core.torch_optimizer import TorchOptimizer
from .core.vec import Vec
from .core.version import VERSION as __version__
from .descent import LBFGS, SPG, FaceLBFGS, NewtonCG, ProjectedLBFGS
from .linear import CG, AutoLinear, Direct, Gaussian, Kaczmarz, Minres, Neumann, ProjectedCG, Sketch, System
from .many.results import Results
from .many.solve_many import solve_many
from .minimize import minimize
from .multistart import multistart
from .newton.accuracy import EstimatedAccuracy, PaperAccuracy
from .polyhedron import Polyhedron
from .problem import ConstrainedProblem
from .sets import Affine, Ball, Box, BoxHyperplane, ConvexSet, CvxpySet, Everywhere, Halfspace, Product, Simplex
from .solvers import *  # noqa: F403  # the one list of them

_BILEVEL = True  # lets `bilevel` tell this package from a user's own constrained.py

__all__ = [
    "CG",
    "LBFGS",
    "SGD",
    "SPG",
    "AdamW",
    "Affine",
    "Attempt",
    "Auto",
    "AutoLinear",
    "Ball",
    "BilevelError",
    "Box",
    "BoxHyperplane",
    "Checkpoint",
    "CheckpointError",
    "ConstrainedProblem",
    "ConvexSet",
    "Cosine",
    "CvxpySet",
    "Direct",
    "EarlyStopping",
    "EstimatedAccuracy",
    "Event",
    "Everywhere",
    "FaceLBFGS",
    "Feature",
    "FullBatch",
    "Function",
    "Gaussian",
    "Halfspace",
    "History",
    "Kaczmarz",
    "MiniBatches",
    "Minres",
    "MissingExtra",
    "Multipliers",
    "Neumann",
    "NewtonCG",
    "NoData",
    "NonFiniteGradient",
    "NonFiniteStart",
    "OptionError",
    "OutputError",
    "PaperAccuracy",
    "Point",
    "Polyhedron",
    "Power",
    "ProblemError",
    "Product",
    "Progress",
    "ProjectedCG",
    "ProjectedLBFGS",
    "Result",
    "Results",
    "ScalarAdam",
    "Simplex",
    "Sketch",
    "SolveFailed",
    "SourceBatches",
    "Status",
    "StopWhen",
    "Stream",
    "System",
    "TensorBoard",
    "TorchOptimizer",
    "Unsuitable",
    "Vec",
    "__version__",
    "iterate",
    "minimize",
    "multistart",
    "solve",
    "solve_many",
]
__all__ += solvers.__all__

forward_names(
    __name__,
    {rule: f"constrained:{rule}Accuracy" for rule in ("Estimated", "Paper")},
)
