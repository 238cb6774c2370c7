"""Wrong labels of short texts, found with a recurrent network: a lower level that is not convex and has second derivatives.

    lower  g(x, w) = mean sigmoid(x_i) CE_i(w; given labels) + 1e-3 |w|^2       1,000 texts, some labels flipped, once for all
    upper  f(x, w) = mean CE(w; clean texts)                                    300 texts
    start  x = 0, w drawn by the seed, float64

A text is 16 tokens out of 30, a Markov chain of one of two classes. The network: Embedding 30 x 12, GRU 24, the largest state
over the text, a linear layer: 3,146 parameters. 600 more texts test an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel.problem import BilevelProblem
from bilevel.solvers.bo_rep import BORep
from constrained.core.data import MiniBatches
from constrained.core.errors import OptionError

from .arguments import number, placed, whole
from .instance import Instance, Recommended

TOKENS, LENGTH, STATES, TRAIN, CLEAN, TEST = 30, 16, 24, 1000, 300, 600
RIDGE = 1e-3
APART = 0.9  # share of a class's own transitions


class Reader(nn.Module):
    """Tokens (n, length) to the logits of two classes (n, 2)."""

    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.out = nn.Embedding(TOKENS, 12), nn.GRU(12, STATES, batch_first=True), nn.Linear(STATES, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(tokens))[0].amax(1))


@dataclass(frozen=True, eq=False)
class Texts:
    """One draw of the data. `truth` is for judging only."""

    tokens: Tensor  # (1000, 16)
    given: Tensor  # (1000,) the labels a method sees
    truth: Tensor  # (1000,)
    clean: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def texts(seed: int, rate: float, device: torch.device) -> Texts:
    """Two chains that share 1 - `APART` of their transitions; labels flipped with probability `rate`, each once."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, TOKENS]))

    def transitions() -> np.ndarray:
        return rng.dirichlet(np.full(TOKENS, 0.3), TOKENS)

    shared = transitions()
    chains = np.cumsum([(1 - APART) * shared + APART * transitions() for _ in range(2)], axis=-1)
    labels = rng.integers(0, 2, TRAIN + CLEAN + TEST)
    tokens = np.empty((len(labels), LENGTH), dtype=np.int64)
    tokens[:, 0] = rng.integers(0, TOKENS, len(labels))
    for t in range(1, LENGTH):
        rows = chains[labels, tokens[:, t - 1]]
        tokens[:, t] = np.minimum((rng.random(len(labels))[:, None] > rows).sum(1), TOKENS - 1)
    given = np.where(rng.random(TRAIN) < rate, 1 - labels[:TRAIN], labels[:TRAIN])
    inputs, truth, seen = (torch.from_numpy(array).to(device) for array in (tokens, labels, given))
    ends = TRAIN, TRAIN + CLEAN
    clean, test = (slice(*ends), slice(ends[1], None))
    return Texts(inputs[:TRAIN], seen, truth[:TRAIN], (inputs[clean], truth[clean]), (inputs[test], truth[test]))


def reader(seed: int, dtype: torch.dtype, device: torch.device) -> Reader:
    """The network at its start: N(0, 1) for the embedding, U(-1, 1) / sqrt(24) for the rest, torch's own distributions."""
    with torch.device("meta"):  # so that torch draws nothing
        net = Reader().double()
    net.to_empty(device="cpu")
    generator, bound = torch.Generator().manual_seed(seed), STATES**-0.5
    for name, parameter in net.named_parameters():
        values = parameter.detach()
        if name.startswith("embed"):
            values.normal_(generator=generator)
        else:
            values.uniform_(-bound, bound, generator=generator)
    return net.to(device=device, dtype=dtype)


def text_cleaning(
    *,
    rate: float = 0.4,
    batch: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """A weight for each of 1,000 short texts, some with the wrong label, read by a GRU.

    rate: 0 <= rate < 1, the probability that a label is flipped. batch: rows of a batch of either level. seed: of the texts, the
    flips and the network's start. Hypergradients are about 1e-3 long, since a weight counts for one sample in 1,000: a normalised
    step has a length of its own, where others need an alpha of 1e2 to 1e4.
    """
    whole("text_cleaning(seed=...)", seed, 0, 2**63 - 1)
    whole("text_cleaning(batch=...)", batch, 1, TRAIN)
    number("text_cleaning(rate=...)", rate, 0)
    if rate >= 1:
        raise OptionError(f"text_cleaning(rate=...): expected a number < 1, got {rate!r}")
    device = placed("text_cleaning", dtype, device)
    data = texts(seed, rate, device)

    def lower(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        tokens, labels, row = sample
        losses = F.cross_entropy(net(tokens), labels, reduction="none")
        return (torch.sigmoid(x[row]) * losses).mean() + RIDGE * sum((p**2).sum() for p in net.parameters())

    def upper(x: Tensor, net: nn.Module, sample: tuple[Tensor, Tensor]) -> Tensor:
        tokens, labels = sample
        return F.cross_entropy(net(tokens), labels)

    rows = torch.arange(TRAIN, device=device)
    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(TRAIN, dtype=dtype, device=device),
        y=reader(seed, dtype, device),
        upper_data=MiniBatches(data.clean, batch),
        lower_data=MiniBatches((data.tokens, data.given, rows), batch),
    )
    solver = BORep(eta=1.0, nu=0.05, gamma=0.3)
    return Instance(
        name="text-cleaning",
        problem=problem,
        source="the task of arXiv 2401.09587, written afresh on generated texts, with labels that stay flipped and a clean set",
        recommended={BORep: Recommended(solver, 600)},
    )
