"""One number for a whole recurrent network: the weight of |y|^2, chosen on validation texts.

    lower  g(x, y) = mean CE(y; training texts) + exp(x)/2 |y|^2        200 texts, a fifth of the labels wrong
    upper  f(x, y) = mean CE(y; validation texts)                       300 texts
    start  x = -4 in [-10, 0], y drawn by the seed, float64

y: Embedding 30 x 12, GRU 24, the largest state over the text, a linear layer, 3,146 parameters; texts of 16 tokens of two Markov
chains, as in text-cleaning. 600 more texts test an answer. Without a penalty the network learns the wrong labels by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel.problem import BilevelProblem
from bilevel.solvers.bo_rep import BORep
from bilevel.solvers.soba import SOBA
from bilevel.solvers.stocbio import StocBiO
from constrained.core.data import MiniBatches
from constrained.core.options import Power
from constrained.core.result import Result
from constrained.sets import Box

from ..arguments import placed, whole
from ..instance import Instance, Recommended
from ..report.averages import Averages
from .recurrent import Reader, accuracy, seeded, squares, trained
from .sources import Chains

TRAIN, VALIDATE, TEST, WRONG = 200, 300, 600, 0.2
START, GAMMA = -4.0, 0.3
GRID = (-8.0, -6.0, -5.0, -4.0, -3.0)


@dataclass(frozen=True, eq=False)
class Parts:
    """Tokens and labels of each part; only the training labels have wrong ones among them."""

    train: tuple[Tensor, Tensor]
    validate: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def parts(seed: int, device: torch.device) -> Parts:
    """1,100 texts of `Chains`, each training label flipped with probability 0.2."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 31]))
    tokens, labels = Chains().draw(rng, TRAIN + VALIDATE + TEST)
    labels[:TRAIN] ^= rng.random(TRAIN) < WRONG
    ends = [TRAIN, TRAIN + VALIDATE]
    pairs = zip(np.split(tokens, ends), np.split(labels, ends))
    return Parts(*((torch.from_numpy(a).to(device), torch.from_numpy(b).to(device)) for a, b in pairs))


def recurrent_regulariser(
    *, batch: int = 64, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Instance:
    """The weight exp(x)/2 of |y|^2 for a GRU that reads 200 texts with a fifth of the labels wrong.

    batch: rows of a batch of either level. seed: of the texts, the flips and the network's start.
    """
    whole("recurrent_regulariser(batch=...)", batch, 1)
    whole("recurrent_regulariser(seed=...)", seed, 0, 2**63 - 1)
    device = placed("recurrent_regulariser", dtype, device)
    data = parts(seed, device)

    def upper(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = sample
        return F.cross_entropy(net(tokens), labels)

    def lower(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        return upper(x, net, sample) + 0.5 * torch.exp(x) * squares(net)

    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.tensor(START, dtype=dtype, device=device),
        y=seeded(network, seed, dtype, device),
        upper_data=MiniBatches(data.validate, batch),
        lower_data=MiniBatches(data.train, batch),
        X=Box(-10.0, 0.0),
    )
    return Instance(
        name="recurrent-regulariser",
        problem=problem,
        source="the task of arXiv 2401.09587 (a scalar regulariser of a recurrent network), on generated texts, |y|^2 for |y|",
        recommended={
            BORep: Recommended(BORep(eta=Power(0.1, 0.5), gamma=GAMMA, nu=0.1, inner=6), 400),
            StocBiO: Recommended(StocBiO(alpha=1.0, gamma=GAMMA, nu=0.1, inner=3, terms=5), 130),
            SOBA: Recommended(SOBA(alpha=1.0, rho=0.1), 400),
        },
        study=Grid(data, batch, seed, dtype),
    )


def network() -> Reader:
    return Reader(Chains.tokens, Chains.classes)


@dataclass(frozen=True)
class Row:
    """x, the validation loss that it is chosen by, and what it leads to on the test texts."""

    name: str
    x: float
    validation: float
    accuracy: float
    loss: float


class Grid(Averages):
    """The answer beside plain training with x on a grid, each for as many steps as the run took gradients of g."""

    title = "the regulariser, and what the network does with it"
    columns = {"x": "x", "validation": "validation loss", "accuracy": "test accuracy", "loss": "test loss"}
    claims = (
        "`grid` is the x of the grid with the least validation loss, each a plain training. In a few hundred steps the "
        "lower level is far from solved: do not expect to beat the best of the grid.",
    )

    def __init__(self, data: Parts, batch: int, seed: int, dtype: torch.dtype):
        self.data, self.batch, self.seed, self.dtype = data, batch, seed, dtype

    def rows(self, result: Result) -> list[Row]:
        steps = result.calls.by["solve"]["lower"].gradients
        mine, every = float(result.x), self.grid(steps)
        best = min(every, key=lambda row: row.validation)
        return [
            self.judge(type(result.solver).__name__, mine, result.module()),
            self.judge("its x, trained afresh", mine, self._trained(mine, steps)),
            Row(f"grid of {len(every)}", best.x, best.validation, best.accuracy, best.loss),
            *every,
        ]

    def grid(self, steps: int) -> list[Row]:
        return [self.judge(f"x = {x:g}", x, self._trained(x, steps)) for x in GRID]

    def judge(self, name: str, x: float, net: nn.Module) -> Row:
        losses = [_loss(net, part) for part in (self.data.validate, self.data.test)]
        return Row(name, x, losses[0], accuracy(net, self.data.test), losses[1])

    def _trained(self, x: float, steps: int) -> Reader:
        net = seeded(network, self.seed, self.dtype, self.data.train[0].device)
        ridge = 0.5 * float(np.exp(x))
        return trained(net, self.data.train, steps=steps, gamma=GAMMA, ridge=ridge, batch=self.batch, seed=self.seed)


@torch.no_grad()
def _loss(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    return float(F.cross_entropy(net(data[0]), data[1]))
