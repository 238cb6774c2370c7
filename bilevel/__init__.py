"""Bilevel optimization: min over x of f(x, y) where y minimises g(x, .).

problem = BilevelProblem(upper=f, lower=g, x=x0, y=y0)
result = solve(problem)
result.x, result.status, result.residuals()
"""

import constrained as _constrained

if not hasattr(_constrained, "_BILEVEL"):  # a user's own constrained.py came first on sys.path
    _found = getattr(_constrained, "__file__", None) or next(iter(_constrained.__path__))  # a plain folder has no file
    raise ImportError(
        f"bilevel needs its own package 'constrained', but Python found {_found!r} first: "
        "rename that file, or run from another folder"
    )

from constrained.core.auto import Attempt, Auto
from constrained.core.callbacks import Checkpoint, EarlyStopping, History, Progress, StopWhen, TensorBoard
from constrained.core.choice import Recommendation
from constrained.core.data import FullBatch, MiniBatches, NoData
from constrained.core.derivatives.function import Function
from constrained.core.errors import (
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
from constrained.core.event import Event
from constrained.core.live import Live
from constrained.core.optimizers import SGD, AdamW, ScalarAdam
from constrained.core.options import Cosine, Power
from constrained.core.problem import Multipliers, Point
from constrained.core.result import Result
from constrained.core.run import iterate, solve
from constrained.core.sources import SourceBatches
from constrained.core.status import Feature, Status
from constrained.core.stream import Stream
from constrained.core.torch_optimizer import TorchOptimizer
from constrained.core.vec import Vec
from constrained.core.version import VERSION as __version__
from constrained.descent import LBFGS, SPG, FaceLBFGS, NewtonCG, ProjectedLBFGS
from constrained.linear import CG, Direct, Minres, Neumann, ProjectedCG
from constrained.multistart import multistart
from constrained.polyhedron import Polyhedron
from constrained.sets import Affine, Ball, Box, BoxHyperplane, ConvexSet, CvxpySet, Everywhere, Halfspace, Product, Simplex

from . import moved as moved  # old names of modules
from . import solvers
from .advice import measure as measure  # registers `problem.diagnose`
from .advice.memory import MemoryReport, MemoryWatch, memory
from .advice.plots import plot_weights
from .advice.recommend import recommend  # registers the default solver
from .advice.retrain import Retrained, retrain
from .blocks import LISA, AllBlocks, Cyclic
from .hypergradients.adjoint import AdjointMethod
from .hypergradients.fixed_point import FixedPoint
from .hypergradients.hypergradient import Hypergradient, hypergradient
from .hypergradients.stochastic_neumann import StochasticNeumann
from .hypergradients.unrolled import Unrolled
from .mixture import Mixture, per_source, softmax
from .problem import BilevelProblem
from .solvers import *  # noqa: F403  # the one list of them

__all__ = [
    "CG",
    "LBFGS",
    "LISA",
    "SGD",
    "SPG",
    "AdamW",
    "AdjointMethod",
    "Affine",
    "AllBlocks",
    "Attempt",
    "Auto",
    "Ball",
    "BilevelError",
    "BilevelProblem",
    "Box",
    "BoxHyperplane",
    "Checkpoint",
    "CheckpointError",
    "ConvexSet",
    "Cosine",
    "CvxpySet",
    "Cyclic",
    "Direct",
    "EarlyStopping",
    "Event",
    "Everywhere",
    "FaceLBFGS",
    "Feature",
    "FixedPoint",
    "FullBatch",
    "Function",
    "Halfspace",
    "History",
    "Hypergradient",
    "Live",
    "MemoryReport",
    "MemoryWatch",
    "MiniBatches",
    "Minres",
    "MissingExtra",
    "Mixture",
    "Multipliers",
    "Neumann",
    "NewtonCG",
    "NoData",
    "NonFiniteGradient",
    "NonFiniteStart",
    "OptionError",
    "OutputError",
    "Point",
    "Polyhedron",
    "Power",
    "ProblemError",
    "Product",
    "Progress",
    "ProjectedCG",
    "ProjectedLBFGS",
    "Recommendation",
    "Result",
    "Retrained",
    "ScalarAdam",
    "Simplex",
    "SolveFailed",
    "SourceBatches",
    "Status",
    "StochasticNeumann",
    "StopWhen",
    "Stream",
    "TensorBoard",
    "TorchOptimizer",
    "Unrolled",
    "Unsuitable",
    "Vec",
    "__version__",
    "hypergradient",
    "iterate",
    "memory",
    "multistart",
    "per_source",
    "plot_weights",
    "recommend",
    "retrain",
    "softmax",
    "solve",
]
__all__ += solvers.__all__
