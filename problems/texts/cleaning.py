"""Wrong labels of short texts, found with a recurrent network: a lower level that is not convex and has second derivatives.

    lower  g(x, w) = mean sigmoid(x_i) CE_i(w; given labels) + 1e-3 |w|^2       1,000 texts, some labels flipped, once for all
    upper  f(x, w) = mean CE(w; clean texts)                                    300 texts
    start  x = 0, w drawn by the seed, float64

A text is 16 tokens: by default a Markov chain of one of two classes on 30 tokens. The network: Embedding 12, GRU 24, the largest
state over the text, a linear layer: 3,146 parameters. 600 more texts test an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel.problem import BilevelProblem
from bilevel.solvers.bo_rep import BORep
from bilevel.solvers.soba import SOBA
from bilevel.solvers.stocbio import StocBiO
from constrained.core.data import MiniBatches
from constrained.core.errors import OptionError, extra
from constrained.core.result import Result

from ..arguments import number, placed, whole
from ..instance import Instance, Recommended
from ..report.averages import Averages
from .recurrent import Reader, accuracy, seeded, squares, trained
from .sources import Chains, Source

TRAIN, CLEAN, TEST = 1000, 300, 600
RIDGE, GAMMA = 1e-3, 0.3


@dataclass(frozen=True, eq=False)
class Texts:
    """One draw of the data. `truth` is for judging only."""

    tokens: Tensor  # (1000, 16)
    given: Tensor  # (1000,) the labels a method sees
    truth: Tensor  # (1000,)
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    source: Source

    def network(self, seed: int, dtype: torch.dtype) -> Reader:
        """The network at its start."""
        return seeded(lambda: Reader(self.source.tokens, self.source.classes), seed, dtype, self.tokens.device)


def texts(seed: int, rate: float, device: torch.device, source: Source | None = None) -> Texts:
    """1,900 texts of the source, by default `Chains`; labels made wrong with probability `rate`, each once."""
    source = Chains() if source is None else source
    rng = np.random.default_rng(np.random.SeedSequence([seed, 30]))
    tokens, labels = source.draw(rng, TRAIN + CLEAN + TEST)
    wrong = rng.random(TRAIN) < rate
    shift = rng.integers(1, source.classes, TRAIN) if source.classes > 2 else 1
    given = np.where(wrong, (labels[:TRAIN] + shift) % source.classes, labels[:TRAIN])
    inputs, truth, seen = (torch.from_numpy(array).to(device) for array in (tokens, labels, given))
    clean, test = slice(TRAIN, TRAIN + CLEAN), slice(TRAIN + CLEAN, None)
    return Texts(inputs[:TRAIN], seen, truth[:TRAIN], (inputs[clean], truth[clean]), (inputs[test], truth[test]), source)


def text_cleaning(
    *,
    data: Source | None = None,
    rate: float = 0.4,
    batch: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """A weight for each of 1,000 short texts, some with the wrong label, read by a GRU.

    data: where the texts come from; None is `Chains()`, generated ones. `Glosses()` reads definitions of WordNet, if it is there.
    rate: 0 <= rate < 1, the probability that a label is wrong. batch: rows of a batch of either level. seed: of the texts, the
    wrong labels and the network's start. Hypergradients are about 1e-3 long, since a weight counts for one sample in 1,000: a
    normalised step has a length of its own, where others need an alpha of 1e2 to 1e4.
    """
    whole("text_cleaning(seed=...)", seed, 0, 2**63 - 1)
    whole("text_cleaning(batch=...)", batch, 1, TRAIN)
    number("text_cleaning(rate=...)", rate, 0)
    if rate >= 1:
        raise OptionError(f"text_cleaning(rate=...): expected a number < 1, got {rate!r}")
    if data is not None and not isinstance(data, Source):
        raise OptionError(f"text_cleaning(data=...): expected a source of texts such as glosses or None, got {data!r}")
    device = placed("text_cleaning", dtype, device)
    drawn = texts(seed, rate, device, data)

    def lower(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        tokens, labels, row = sample
        losses = F.cross_entropy(net(tokens), labels, reduction="none")
        return (torch.sigmoid(x[row]) * losses).mean() + RIDGE * squares(net)

    def upper(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = sample
        return F.cross_entropy(net(tokens), labels)

    rows = torch.arange(TRAIN, device=device)
    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(TRAIN, dtype=dtype, device=device),
        y=drawn.network(seed, dtype),
        upper_data=MiniBatches(drawn.clean, batch),
        lower_data=MiniBatches((drawn.tokens, drawn.given, rows), batch),
    )
    return Instance(
        name="text-cleaning",
        problem=problem,
        source="the task of arXiv 2401.09587, written afresh on generated texts, with labels that stay flipped and a clean set",
        recommended={
            BORep: Recommended(BORep(eta=1.0, nu=0.1, gamma=GAMMA), 400),
            StocBiO: Recommended(StocBiO(alpha=1000.0, gamma=GAMMA, nu=0.05, inner=3, terms=5), 130),
            SOBA: Recommended(SOBA(alpha=1000.0, rho=GAMMA), 500),
        },
        study=TextStudy(drawn, batch, seed, dtype),
    )


@dataclass(frozen=True)
class Row:
    """A network's accuracy on the test texts; for a weighting also how it tells right labels from wrong ones.

    auc: of x as the score of right labels, None where all are right; right, wrong: mean sigmoid(x) of the samples with either.
    """

    name: str
    accuracy: float
    auc: float | None = None
    right: float | None = None
    wrong: float | None = None


class TextStudy(Averages):
    """The trained network and its weights beside plain training of the same network for as many gradients of g."""

    title = "accuracy on the test texts, and weights of right and wrong labels"
    columns = {"accuracy": "accuracy", "auc": "AUC", "right": "weight\nright label", "wrong": "weight\nwrong label"}
    claims = (
        "Each baseline takes as many steps as the run took gradients of g, with the same step size, ridge, batches and start. "
        "Learned weights beat no cleaning; 300 clean texts alone do better than either here.",
    )

    def __init__(self, data: Texts, batch: int, seed: int, dtype: torch.dtype):
        self.data, self.batch, self.seed, self.dtype = data, batch, seed, dtype

    def rows(self, result: Result) -> list[Row]:
        steps = result.calls.by["solve"]["lower"].gradients
        return [self.judge(result), *self.baselines(steps)]

    def judge(self, result: Result) -> Row:
        """The row of a weighting, with its own network."""
        score, right = torch.as_tensor(result.x).detach(), self.data.given == self.data.truth
        weight = torch.sigmoid(score)

        def mean(part: Tensor) -> float | None:
            return float(part.mean()) if len(part) else None

        found = mean(weight[right]), mean(weight[~right])
        mixed = bool(right.any()) and not bool(right.all())
        ranks = extra("sklearn.metrics", "zoo").roc_auc_score
        auc = float(ranks(right.cpu().numpy(), score.cpu().numpy())) if mixed else None
        return Row(type(result.solver).__name__, accuracy(result.module(), self.data.test), auc, *found)

    def baselines(self, steps: int) -> list[Row]:
        """Plain training for `steps` steps: on all given labels, on the right ones of them, on the clean texts."""
        data, right = self.data, self.data.given == self.data.truth
        parts: dict[str, Any] = {
            "all given labels": (data.tokens, data.given),
            "right labels alone (an oracle)": (data.tokens[right], data.given[right]),
            "clean texts alone": data.clean,
        }
        made = []
        for name, part in parts.items():
            net = data.network(self.seed, self.dtype)
            net = trained(net, part, steps=steps, gamma=GAMMA, ridge=RIDGE, batch=self.batch, seed=self.seed)
            made.append(Row(name, accuracy(net, data.test)))
        return made
