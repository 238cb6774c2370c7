"""Data hyper-cleaning: one learned weight a training sample, so that a model trained on half-wrong labels works.

    lower  g(x, w) = (1/n) sum_i sigmoid(x_i) CE_i(w) + 0.05 |w|^2      n = 1000 digits, a share of the labels wrong
    upper  f(w)    = mean CE on the clean images                        10 to 300 of them
    start  x = 0, w = 0 (linear) or seeded normal / sqrt(fan in) (mlp)

sigma = 10 and not 0: the exact hypergradient overfits the few clean images, a finite penalty does not. So what is solved here
is the regularised surrogate psi_10 and not the bilevel problem; the residuals of the bilevel problem are printed beside it.

Source: the task of Franceschi et al. (arXiv 1703.01785) on scikit-learn's digits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel.problem import BilevelProblem
from bilevel.solvers.f2sa import F2SA
from bilevel.solvers.kwon import KwonDoubleLoop, KwonSingleLoop
from bilevel.solvers.penalty import PenaltyDescent
from bilevel.solvers.penalty_sgd import PenaltySGD
from constrained.core.data import MiniBatches
from constrained.core.optimizers import ScalarAdam
from constrained.core.result import Result

from ..arguments import placed
from ..instance import Instance, Recommended, Study
from .baselines import Row, baselines, evaluate, network
from .data import CleaningData, digits
from .report import CLAIMS, differences, distrusted_picture, paired_table, summary, table

RIDGE = 0.1
EPOCHS, WARM_EPOCHS, BATCH = 60, 5, 100
MAX_INNER = {"linear": 10_000, "mlp": 5}  # the mlp's inner problems need not be solved to the end to rank samples


def hyper_cleaning(
    *,
    model: str = "linear",
    clean: int = 100,
    rate: float = 0.5,
    noise: str = "symmetric",
    batch: int = BATCH,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """Hyper-cleaning on digits.

    model: "linear" (650 parameters) or "mlp" (64-64-10 tanh, 4,810). clean: 10..300 clean images. rate: share of wrong labels.
    noise: "symmetric" or "pair". batch: rows of a mini-batch, of both levels. seed: of the split, the noise and the start.
    """
    device = placed("hyper_cleaning", dtype, device)
    data = digits(seed, clean=clean, rate=rate, noise=noise, dtype=dtype, device=device)
    rows = torch.arange(len(data.given), device=data.given.device)

    def lower(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        inputs, labels, row = sample
        losses = F.cross_entropy(net(inputs), labels, reduction="none")
        ridge = sum((p**2).sum() for p in net.parameters())
        return (torch.sigmoid(x[row]) * losses).mean() + 0.5 * RIDGE * ridge

    def upper(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = sample
        return F.cross_entropy(net(inputs), labels)

    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(len(data.given), dtype=dtype, device=device),
        y=network(model, seed).to(dtype=dtype, device=device),
        upper_data=MiniBatches((data.clean_inputs, data.clean_labels), batch),
        lower_data=MiniBatches((data.inputs, data.given, rows), batch),
    )
    steps = problem.lower_data.steps_per_epoch  # pyright: ignore[reportAttributeAccessIssue]
    full = PenaltyDescent(sigma=10.0, richardson=False, outer=ScalarAdam(lr=1.0), max_outer=30, max_inner=MAX_INNER[model])
    loop = PenaltySGD(sigma=10.0, gamma=1.0, outer=ScalarAdam(lr=0.3, betas=(0.0, 0.99)), warmup=WARM_EPOCHS * steps)
    return Instance(
        name="hyper-cleaning",
        problem=problem,
        source="the task of Franceschi et al., arXiv 1703.01785, on scikit-learn's digits",
        recommended={
            PenaltyDescent: Recommended(full),
            PenaltySGD: Recommended(loop, EPOCHS * steps),
            KwonSingleLoop: Recommended(KwonSingleLoop(sigma=10.0, gamma=0.09, alpha=1000.0), EPOCHS * steps),
            KwonDoubleLoop: Recommended(KwonDoubleLoop(sigma=10.0, gamma=0.09, alpha=3000.0, inner=5), EPOCHS * steps // 6),
            F2SA: Recommended(F2SA(lam=0.1, delta=0.0, gamma=0.9, alpha=0.9, ratio=1000.0), EPOCHS * steps),
        },
        study=CleaningStudy(data, model),
    )


class CleaningStudy(Study):
    """Judges a weighting beside the baselines, and draws the samples it distrusts most."""

    claims = CLAIMS

    def __init__(self, data: CleaningData, model: str):
        self.data, self.model = data, model

    def rows(self, result: Result) -> list[Row]:
        return [evaluate(self.data, self.model, result.x, type(result.solver).__name__), *baselines(self.data, self.model)]

    def tables(self, runs: list[list[Row]]) -> list[Any]:
        title = f"finding the right labels, and test accuracy: {self.model}, {len(self.data.clean_labels)} clean images"
        if len(runs) == 1:
            return [table(runs[0], title)]
        return [table(summary(runs), f"{title}, {len(runs)} seeds"), paired_table(runs)]

    def summary(self, runs: list[list[Row]]) -> dict[str, Any]:
        gaps = {}
        for rows in list(zip(*runs))[1:]:
            found = {column: differences(runs, rows, column) for column in ("f1", "accuracy", "with_clean")}
            gaps[rows[0].name] = {column: gap and dataclasses.asdict(gap) for column, gap in found.items()}
        return {"means": [dataclasses.asdict(row) for row in summary(runs)], "ours minus theirs, paired": gaps}

    def draw(self, result: Result, folder: Path) -> None:
        distrusted_picture(self.data, result.x, folder / "distrusted.png")
