"""An encoder of texts for many small tasks: x reads, a head of its own for each task in y decides.

    lower  g(x, y) = sum over tasks d of  mean CE(w_d . (phi(x), 1); support texts of d) + ridge/2 |w_d|^2
    upper  f(x, y) = sum over tasks d of  mean CE(w_d . (phi(x), 1); query texts of d)
    start  x drawn by the seed, y = 0, float64

phi: Embedding 20 x 12, GRU 24, the largest state over the text, 2,976 parameters; y: 10 heads of 25 numbers, for which g is
strongly convex. A task tells two of six topics apart, each a Markov chain of its own; a text mixes the topic's transitions with
those of its task. Ten of the fifteen pairs are trained on, five are held out. On these a head is fitted to 50 texts of either
topic with the encoder frozen, and judged on 200 others.
"""

from __future__ import annotations

import copy
import itertools
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
from constrained.core.errors import OptionError
from constrained.core.options import Power
from constrained.core.result import Result

from ..arguments import number, placed, whole
from ..instance import Instance, Recommended
from ..report.averages import Averages
from .recurrent import STATES, Encoder, seeded
from .sources import transitions, walks

TOKENS, TOPICS, TRAINED = 20, 6, 10
TEST = 200
NEWTON = 12  # steps to a head
WEAK = 1e-3  # ridge of a second judgement of the random encoder


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks of two topics; `support` and `query` hold tokens (tasks, n, 16) and labels (tasks, n), half of them 1."""

    support: tuple[Tensor, Tensor]
    query: tuple[Tensor, Tensor]

    def rows(self, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (tasks n, 16), labels and the number of the task."""
        tokens, labels = part
        task = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
        return tokens.flatten(0, 1), labels.flatten(), task.flatten()


def tasks(seed: int, shots: int, mix: float, device: torch.device) -> tuple[Tasks, Tasks]:
    """The ten to train on and the five held out."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, TOPICS]))
    topics = np.stack([transitions(rng, TOKENS) for _ in range(TOPICS)])
    pairs = rng.permutation(list(itertools.combinations(range(TOPICS), 2)))

    def made(pairs: np.ndarray, query: int) -> Tasks:
        parts = [], []
        for pair in pairs:
            own = transitions(rng, TOKENS)
            chains = mix * own + (1 - mix) * topics[rng.permutation(pair)]
            for part, n in zip(parts, (2 * shots, query)):
                labels = rng.permutation(np.arange(n) % 2)
                part.append((walks(rng, chains, labels), labels))
        stacked = [tuple(torch.from_numpy(np.stack(arrays)).to(device) for arrays in zip(*part)) for part in parts]
        return Tasks(*stacked)  # pyright: ignore[reportArgumentType]

    return made(pairs[:TRAINED], 2 * shots), made(pairs[TRAINED:], TEST)


def hyper_representation(
    *,
    shots: int = 50,
    mix: float = 0.2,
    ridge: float = 0.1,
    batch: int = 100,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """A recurrent encoder for ten tasks at once, judged by how heads on it do on five other tasks.

    shots: texts of either topic in a task's support set, and in the query set of one that is trained on. mix: share of a task's
    own transitions, which say nothing about the topic, 0 <= mix <= 1. ridge: of the heads, >= 1e-6, the lower level's strong
    convexity. batch: texts of a batch, from all ten tasks. seed: of the tasks and the encoder's start.
    """
    whole("hyper_representation(shots=...)", shots, 1)
    whole("hyper_representation(batch=...)", batch, 1)
    whole("hyper_representation(seed=...)", seed, 0, 2**63 - 1)
    number("hyper_representation(mix=...)", mix, 0)
    number("hyper_representation(ridge=...)", ridge, 1e-6)
    if mix > 1:
        raise OptionError(f"hyper_representation(mix=...): expected a number <= 1, got {mix!r}")
    device = placed("hyper_representation", dtype, device)
    known, held_out = tasks(seed, shots, mix, device)
    encoder = seeded(lambda: Encoder(TOKENS), seed, dtype, device)

    def loss(encoder: nn.Module, heads: Tensor, sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        tokens, labels, task = sample
        return TRAINED * _cross_entropy(encoder(tokens), heads[task], labels)

    def lower(x: nn.Module, y: Tensor, sample: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return loss(x, y, sample) + 0.5 * ridge * (y**2).sum()

    problem = BilevelProblem(
        upper=loss,
        lower=lower,
        x=encoder,
        y=torch.zeros(TRAINED, STATES + 1, dtype=dtype, device=device),
        upper_data=MiniBatches(known.rows(known.query), batch),
        lower_data=MiniBatches(known.rows(known.support), batch),
    )
    return Instance(
        name="hyper-representation",
        problem=problem,
        source="the task of arXiv 2401.09587 (recurrent encoder, held-out domains), on generated texts, linear heads, one a task",
        recommended={
            BORep: Recommended(BORep(eta=Power(1.0, 0.5)), 400),
            StocBiO: Recommended(StocBiO(alpha=0.3, inner=3, terms=5), 130),
            SOBA: Recommended(SOBA(alpha=1.0), 550),
        },
        study=HeldOut(known, held_out, ridge, batch, seed, encoder),
    )


def _cross_entropy(features: Tensor, heads: Tensor, labels: Tensor) -> Tensor:
    """Mean over texts, with a head (25,) for each or one for all: its last entry is the constant."""
    scores = (features * heads[..., :-1]).sum(-1) + heads[..., -1]
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))


@dataclass(frozen=True)
class Row:
    """Mean accuracy and cross-entropy on the query texts of the held-out tasks, after a head was fitted to the support texts."""

    name: str
    accuracy: float
    loss: float


class HeldOut(Averages):
    """The learned encoder beside the one of the start and one trained without a second level, with heads fitted alike."""

    title = "held-out tasks, a head fitted to each with the encoder frozen"
    columns = {"accuracy": "accuracy", "loss": "cross-entropy"}
    claims = (
        f"The encoder of the start has heads with the same ridge and with ridge {WEAK:g}, which suits it better. `one level` is "
        "SGD on encoder and heads together, on support and query texts, for as many steps as the run took gradients.",
    )

    def __init__(self, known: Tasks, held_out: Tasks, ridge: float, batch: int, seed: int, start: Encoder):
        self.known, self.held_out, self.ridge, self.batch, self.seed, self.start = known, held_out, ridge, batch, seed, start

    def rows(self, result: Result) -> list[Row]:
        learned = self.judge(result.module(), type(result.solver).__name__)
        return [learned, *self.baselines(result.calls.gradients)]

    def baselines(self, steps: int) -> list[Row]:
        """The encoder of the start with two ridges, and `one level` after so many steps."""
        frozen = [self.judge(self.start, "random encoder"), self.judge(self.start, f"random encoder, ridge {WEAK:g}", WEAK)]
        return [*frozen, self.judge(self._one_level(steps), "one level")]

    def _one_level(self, steps: int) -> Encoder:
        """SGD of step size 1 on the mean CE of all texts + ridge/20 |y|^2, the same ridge for each of the ten heads."""
        encoder = copy.deepcopy(self.start)
        heads = next(encoder.parameters()).new_zeros(TRAINED, STATES + 1).requires_grad_()
        parts = zip(self.known.rows(self.known.support), self.known.rows(self.known.query))
        batches = MiniBatches([torch.cat(part) for part in parts], self.batch)
        optimizer = torch.optim.SGD([*encoder.parameters(), heads], lr=1.0)
        for n in range(steps):
            tokens, labels, task = batches.draw(self.seed, 1, n)
            optimizer.zero_grad()
            loss = _cross_entropy(encoder(tokens), heads[task], labels)
            (loss + 0.5 * self.ridge / TRAINED * (heads**2).sum()).backward()
            optimizer.step()
        return encoder

    @torch.no_grad()
    def judge(self, encoder: nn.Module, name: str, ridge: float | None = None) -> Row:
        """A head for each task by Newton's method on its support texts, judged on its query texts."""
        found = []
        for tokens, labels, query, truth in zip(*self.held_out.support, *self.held_out.query):
            features = encoder(query)
            head = fitted(encoder(tokens), labels, ridge or self.ridge)
            scores = features @ head[:-1] + head[-1]
            loss = _cross_entropy(features, head, truth)
            found.append([float(((scores > 0) == (truth > 0)).double().mean()), float(loss)])
        accuracy, loss = np.mean(found, axis=0)
        return Row(name, float(accuracy), float(loss))


def fitted(features: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """The head (25,) with the least mean CE + ridge/2 |w|^2, by Newton's method; features (n, 24), labels (n,) 0 or 1."""
    A = torch.cat([features, torch.ones_like(features[:, :1])], 1).double()
    w, eye = A.new_zeros(A.shape[1]), torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
    for _ in range(NEWTON):
        p = torch.sigmoid(A @ w)
        gradient = A.T @ (p - labels) / len(A) + ridge * w
        w = w - torch.linalg.solve((A.T * (p * (1 - p))) @ A / len(A) + ridge * eye, gradient)
    return w.to(features.dtype)
