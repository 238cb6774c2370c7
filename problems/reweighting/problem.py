"""Sources with wrong labels: how much each is worth, learned from a few hundred clean rows.

    lower  g(x, w) = sum_i p_i(x) l_i(w), p = softmax(x), l_i(w) = mean cross-entropy of source i + 1e-3 |w|^2
    upper  f(w)    = mean cross-entropy of 300 clean rows
    start  x = 0, w = 0, float64

Logistic regression on rows N(0, I) of 20 features; 4,000 more rows test an answer. How sources that are equally good share
their weight is arbitrary: x is not unique.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel.mixture import Mixture
from bilevel.problem import BilevelProblem
from bilevel.solvers.penalty import Penalty
from bilevel.solvers.penalty_sgd import PenaltySGD
from bilevel.solvers.scalebio import ScaleBiO
from constrained.core.data import FullBatch, MiniBatches
from constrained.core.errors import OptionError
from constrained.core.optimizers import SGD, AdamW
from constrained.core.sources import SourceBatches

from ..arguments import placed, whole
from ..instance import Instance, Recommended
from .labelled_sources import DIMENSION, VALIDATION, Labels, Pair, entropies, labelled_sources
from .study import LabelStudy

SIX = (Labels(), Labels(), Labels(0.5), Labels(0.5), Labels(flipped=True), Labels(flipped=True))
TEN = tuple(Labels(min(1.0, 0.2 * i)) for i in range(10))
ROWS, STEPS = 300, 2000
SOURCE = "the data reweighting of Pan et al., arXiv 2406.19976 (ScaleBiO), on generated rows with logistic regression"


def reweighting_logistic(
    *,
    sizes: Sequence[int] = (ROWS,) * 6,
    batch: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """The weights of six sources of labelled rows: two clean, two with half of the labels random, two with all of them flipped.

    sizes: rows of each source. batch: rows of each source in a batch, and six times as many clean ones, at most all 300; None:
    all rows, deterministic. seed: of the rows.
    """
    return _labels("reweighting_logistic", SIX, sizes, batch, seed, dtype, device)


def reweighting_noise(
    *,
    batch: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """The weights of ten sources of 300 labelled rows: shares 0, .2, .4, .6, .8, 1, 1, 1, 1, 1 of their labels are random.

    The rates are those of ScaleBiO's noise study, where an answer to an instruction is replaced by a full stop. batch, seed: as
    in `reweighting_logistic`.
    """
    return _labels("reweighting_noise", TEN, (ROWS,) * len(TEN), batch, seed, dtype, device)


def _labels(maker: str, kinds: Sequence[Labels], sizes: Any, batch: Any, seed: Any, dtype: Any, device: Any) -> Instance:
    m = len(kinds)
    if not isinstance(sizes, tuple | list) or len(sizes) != m:
        raise OptionError(f"{maker}(sizes=...): expected {m} numbers of rows, got {sizes!r}")
    for size in sizes:
        whole(f"{maker}(sizes=...)", size, 1)
    if batch is not None:
        whole(f"{maker}(batch=...)", batch, 1, min(sizes))
    whole(f"{maker}(seed=...)", seed, 0, 2**63 - 1)
    device = placed(maker, dtype, device)
    data = labelled_sources(kinds, sizes, seed, dtype, device)

    def upper(x: Tensor, w: Tensor, rows: Pair) -> Tensor:
        return entropies(w, rows).mean()

    lower = Mixture(data.losses)
    few = batch is not None
    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(m, dtype=dtype, device=device),
        y=torch.zeros(DIMENSION, dtype=dtype, device=device),
        upper_data=MiniBatches(data.validation, min(m * batch, VALIDATION)) if few else FullBatch(*data.validation),
        lower_data=SourceBatches(data.sources, batch) if few else FullBatch(*data.joined),
    )
    return Instance(
        name=maker.replace("_", "-"),
        problem=problem,
        source=SOURCE,
        recommended=_with_batches() if few else _without(),
        study=LabelStudy(data, lower, seed),
    )


def _without() -> dict[Any, Recommended]:
    return {
        ScaleBiO: Recommended(ScaleBiO(inner=SGD(lr=0.5), outer=SGD(lr=0.5)), STEPS),
        Penalty: Recommended(Penalty(max_outer=100)),
    }


def _with_batches() -> dict[Any, Recommended]:
    return {
        ScaleBiO: Recommended(ScaleBiO(inner=AdamW(lr=3e-3), outer=AdamW(lr=1e-2)), STEPS),
        PenaltySGD: Recommended(PenaltySGD(), STEPS),
    }
