"""Papers reproduced: one file each. `PAPERS` maps names to the functions that make their pages."""

from collections.abc import Callable

from .bo_rep import bo_rep
from .lv_hba import lv_hba
from .maid import maid
from .page import Page
from .pbgd import pbgd
from .penalty import penalty
from .scalebio import scalebio
from .sketched_newton import sketched_newton

PAPERS: dict[str, Callable[..., Page]] = {
    "bo-rep": bo_rep,
    "lv-hba": lv_hba,
    "maid": maid,
    "pbgd": pbgd,
    "penalty": penalty,
    "scalebio": scalebio,
    "sketched-newton": sketched_newton,
}

__all__ = ["PAPERS", "Page"]
