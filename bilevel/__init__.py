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
from constrained.core.data import FullBatch, MiniBatches, NoData
from constrained.core.function import Function
from constrained.core.live import Live
from constrained.core.loaders import Stream
from constrained.core.moments import SGD, AdamW, ScalarAdam
from constrained.core.options import Cosine, Power
from constrained.core.result import Result
from constrained.core.run import Event, iterate, solve
from constrained.core.solver import Feature, Multipliers, Point, Status
from constrained.core.sources import SourceBatches
from constrained.core.torch_optimizer import TorchOptimizer
from constrained.core.version import VERSION as __version__
from constrained.descent import LBFGS, SPG, ProjectedLBFGS
from constrained.face import FaceLBFGS
from constrained.intersections import BoxHyperplane, CvxpySet
from constrained.multistart import multistart
from constrained.newton_cg import NewtonCG
from constrained.polyhedron import Polyhedron
from constrained.sets import Affine, Ball, Box, Everywhere, Halfspace, Product, Simplex

from .adjoint import AdjointMethod
from .blocks import LISA, AllBlocks, Cyclic
from .fixed_point import FixedPoint
from .hypergradient import Hypergradient, hypergradient
from .memory import MemoryReport, MemoryWatch, memory
from .mixture import Mixture, per_source, softmax
from .neumann import Neumann, StochasticNeumann
from .plots import plot_weights
from .problem import BilevelProblem
from .recommend import Recommendation, recommend  # registers the default solver
from .retrain import Retrained, retrain
from .solvers.bo_rep import BORep
from .solvers.f2sa import F2SA
from .solvers.implicit import Implicit
from .solvers.kwon import KwonDoubleLoop, KwonSingleLoop
from .solvers.lv_hba import LVHBA
from .solvers.lv_hba_single import LVHBASingleLoop
from .solvers.maid import MAID
from .solvers.pbgd import GPBGD, VPBGD
from .solvers.pbgd_fixed import GPBGDFixedStep, VPBGDFixedStep
from .solvers.penalty import Penalty
from .solvers.penalty_sgd import PenaltySGD
from .solvers.scalebio import ScaleBiO
from .solvers.soba import SOBA
from .solvers.stocbio import StocBiO
from .unrolled import Unrolled

__all__ = [
    "F2SA",
    "GPBGD",
    "LBFGS",
    "LISA",
    "LVHBA",
    "MAID",
    "SGD",
    "SOBA",
    "SPG",
    "VPBGD",
    "AdamW",
    "AdjointMethod",
    "Affine",
    "AllBlocks",
    "Attempt",
    "Auto",
    "BORep",
    "Ball",
    "BilevelProblem",
    "Box",
    "BoxHyperplane",
    "Checkpoint",
    "Cosine",
    "CvxpySet",
    "Cyclic",
    "EarlyStopping",
    "Event",
    "Everywhere",
    "FaceLBFGS",
    "Feature",
    "FixedPoint",
    "FullBatch",
    "Function",
    "GPBGDFixedStep",
    "Halfspace",
    "History",
    "Hypergradient",
    "Implicit",
    "KwonDoubleLoop",
    "KwonSingleLoop",
    "LVHBASingleLoop",
    "Live",
    "MemoryReport",
    "MemoryWatch",
    "MiniBatches",
    "Mixture",
    "Multipliers",
    "Neumann",
    "NewtonCG",
    "NoData",
    "Penalty",
    "PenaltySGD",
    "Point",
    "Polyhedron",
    "Power",
    "Product",
    "Progress",
    "ProjectedLBFGS",
    "Recommendation",
    "Result",
    "Retrained",
    "ScalarAdam",
    "ScaleBiO",
    "Simplex",
    "SourceBatches",
    "Status",
    "StocBiO",
    "StochasticNeumann",
    "StopWhen",
    "Stream",
    "TensorBoard",
    "TorchOptimizer",
    "Unrolled",
    "VPBGDFixedStep",
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
