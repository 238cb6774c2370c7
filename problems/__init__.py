"""The zoo: bilevel and constrained problems with sources, known solutions and recommended solvers.

`ZOO` maps names to the functions that make them.
"""

from collections.abc import Callable

from . import moved as moved  # old names of modules
from .cleaning.problem import hyper_cleaning
from .control import optimal_control
from .coupled import FAMILY as LV_HBA
from .cutest import cutest
from .discs import discs
from .exponential import exponential
from .images import denoising, least_squares
from .instance import ConstrainedInstance, Instance, Recommended
from .logistic import logistic
from .obstacle import obstacle
from .pde import poisson_control
from .portfolio import portfolio
from .quadratic import quadratic
from .reweighting.decoder import reweighting_lm, reweighting_text
from .reweighting.problem import reweighting_logistic, reweighting_noise
from .spring import spring
from .texts.cleaning import text_cleaning
from .texts.hyper_representation import hyper_representation
from .texts.recurrent_regulariser import recurrent_regulariser
from .toy import pl_toy
from .traps import trap
from .tuning.logistic import logistic_penalties
from .tuning.ridge import ridge_1, ridge_50
from .tuning.sparse import elastic_net, lasso

ZOO: dict[str, Callable[..., Instance]] = {
    "cutest": cutest,
    "elastic-net": elastic_net,
    "denoising": denoising,
    "discs": discs,
    "exponential": exponential,
    "hyper-cleaning": hyper_cleaning,
    "hyper-representation": hyper_representation,
    "lasso": lasso,
    "logistic": logistic,
    "logistic-penalties": logistic_penalties,
    **LV_HBA,
    "maid-least-squares": least_squares,
    "obstacle": obstacle,
    "optimal-control": optimal_control,
    "pl-toy": pl_toy,
    "poisson-control": poisson_control,
    "portfolio": portfolio,
    "quadratic": quadratic,
    "recurrent-regulariser": recurrent_regulariser,
    "reweighting-lm": reweighting_lm,
    "reweighting-logistic": reweighting_logistic,
    "reweighting-noise": reweighting_noise,
    "reweighting-text": reweighting_text,
    "ridge-1": ridge_1,
    "ridge-50": ridge_50,
    "spring": spring,
    "text-cleaning": text_cleaning,
    "trap": trap,
}

__all__ = [
    "ZOO",
    "ConstrainedInstance",
    "Instance",
    "Recommended",
    "cutest",
    "discs",
    "elastic_net",
    "exponential",
    "hyper_cleaning",
    "hyper_representation",
    "lasso",
    "logistic",
    "logistic_penalties",
    "obstacle",
    "optimal_control",
    "pl_toy",
    "poisson_control",
    "portfolio",
    "quadratic",
    "recurrent_regulariser",
    "reweighting_lm",
    "reweighting_logistic",
    "reweighting_noise",
    "reweighting_text",
    "ridge_1",
    "ridge_50",
    "spring",
    "text_cleaning",
    "trap",
]
