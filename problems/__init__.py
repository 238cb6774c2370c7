"""The zoo: bilevel and constrained problems with sources, known solutions and recommended solvers.

`ZOO` maps names to the functions that make them.
"""

from collections.abc import Callable

from .cleaning import hyper_cleaning
from .constrained_instance import ConstrainedInstance
from .cutest import cutest
from .exponential import exponential
from .hyper_representation import hyper_representation
from .instance import Instance, Recommended
from .logistic import logistic
from .lv_hba import FAMILY as LV_HBA
from .maid import denoising, least_squares
from .pde import poisson_control
from .penalties import logistic_penalties
from .quadratic import quadratic
from .recurrent_regulariser import recurrent_regulariser
from .reweighting import reweighting_logistic, reweighting_noise
from .reweighting_decoder import reweighting_lm, reweighting_text
from .sparse import elastic_net, lasso
from .text_cleaning import text_cleaning
from .toy import pl_toy
from .tuning import ridge_1, ridge_50

ZOO: dict[str, Callable[..., Instance]] = {
    "cutest": cutest,
    "elastic-net": elastic_net,
    "denoising": denoising,
    "exponential": exponential,
    "hyper-cleaning": hyper_cleaning,
    "hyper-representation": hyper_representation,
    "lasso": lasso,
    "logistic": logistic,
    "logistic-penalties": logistic_penalties,
    **LV_HBA,
    "maid-least-squares": least_squares,
    "pl-toy": pl_toy,
    "poisson-control": poisson_control,
    "quadratic": quadratic,
    "recurrent-regulariser": recurrent_regulariser,
    "reweighting-lm": reweighting_lm,
    "reweighting-logistic": reweighting_logistic,
    "reweighting-noise": reweighting_noise,
    "reweighting-text": reweighting_text,
    "ridge-1": ridge_1,
    "ridge-50": ridge_50,
    "text-cleaning": text_cleaning,
}

__all__ = [
    "ZOO",
    "ConstrainedInstance",
    "Instance",
    "Recommended",
    "cutest",
    "elastic_net",
    "exponential",
    "hyper_cleaning",
    "hyper_representation",
    "lasso",
    "logistic",
    "logistic_penalties",
    "pl_toy",
    "poisson_control",
    "quadratic",
    "recurrent_regulariser",
    "reweighting_lm",
    "reweighting_logistic",
    "reweighting_noise",
    "reweighting_text",
    "ridge_1",
    "ridge_50",
    "text_cleaning",
]
