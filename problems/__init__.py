"""The zoo: bilevel and constrained problems with sources, known solutions and recommended solvers.

`ZOO` maps names to the functions that make them.
"""

from collections.abc import Callable

from .cleaning import hyper_cleaning
from .constrained_instance import ConstrainedInstance
from .cutest import cutest
from .exponential import exponential
from .instance import Instance, Recommended
from .logistic import logistic
from .lv_hba import FAMILY as LV_HBA
from .maid import denoising, least_squares
from .pde import poisson_control
from .penalties import logistic_penalties
from .quadratic import quadratic
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
    "lasso": lasso,
    "logistic": logistic,
    "logistic-penalties": logistic_penalties,
    **LV_HBA,
    "maid-least-squares": least_squares,
    "pl-toy": pl_toy,
    "poisson-control": poisson_control,
    "quadratic": quadratic,
    "ridge-1": ridge_1,
    "ridge-50": ridge_50,
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
    "lasso",
    "logistic",
    "logistic_penalties",
    "pl_toy",
    "poisson_control",
    "quadratic",
    "ridge_1",
    "ridge_50",
    "text_cleaning",
]
