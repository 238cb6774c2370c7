"""The solvers of bilevel problems, one file a method; `__all__` is the one list of them.

From it come the exports of `bilevel`, the command line's names, the pages of `diagnose` and of the reference, and the tables of
the tests.
"""

from .bo_rep import BORep
from .f2sa import F2SA
from .implicit import Implicit
from .kwon import KwonDoubleLoop, KwonSingleLoop
from .lv_hba import LVHBA
from .lv_hba_single import LVHBASingleLoop
from .maid import MAID
from .pbgd import GPBGD, VPBGD
from .pbgd_fixed import GPBGDFixedStep, VPBGDFixedStep
from .penalty import Penalty, PenaltyDescent
from .penalty_sgd import PenaltySGD
from .scalebio import ScaleBiO
from .soba import SOBA
from .stocbio import StocBiO

__all__ = [
    "F2SA",
    "GPBGD",
    "LVHBA",
    "MAID",
    "SOBA",
    "VPBGD",
    "BORep",
    "GPBGDFixedStep",
    "Implicit",
    "KwonDoubleLoop",
    "KwonSingleLoop",
    "LVHBASingleLoop",
    "Penalty",
    "PenaltyDescent",
    "PenaltySGD",
    "ScaleBiO",
    "StocBiO",
    "VPBGDFixedStep",
]
