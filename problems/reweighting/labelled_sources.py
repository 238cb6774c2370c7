"""Sources of labelled rows with labels wrong in different ways, and models fitted to mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bilevel.mixture import per_source

DIMENSION, VALIDATION, TEST = 20, 300, 4000
RIDGE = 1e-3
STARTS, EARLY, RATE = 10, 20, 0.5  # of the scores: runs, their steps and step size
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Labels:
    """What was done to a source's labels: with probability `random` each is a coin's; then, if `flipped`, all are inverted."""

    random: float = 0.0
    flipped: bool = False

    @property
    def wrong(self) -> float:
        """The expected share of labels that are not the right ones."""
        return 1 - self.random / 2 if self.flipped else self.random / 2

    def __str__(self) -> str:
        return "flipped" if self.flipped else f"{self.random:g} random" if self.random else "clean"


@dataclass(frozen=True, eq=False)
class LabelledSources:
    """Rows N(0, I) of 20 features, labels 0 or 1 with the log-odds a'w, w drawn N(0, I).

    sources: name -> (features, labels); validation, test: without wrong labels; wrong: expected share of wrong labels by source.
    """

    sources: dict[str, Pair]
    validation: Pair
    test: Pair
    wrong: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.sources)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(labels) for _, labels in self.sources.values())

    @property
    def joined(self) -> tuple[Pair, Tensor]:
        """((features, labels), number of the source) of all rows."""
        pairs = list(self.sources.values())
        source = torch.arange(len(pairs)).repeat_interleave(torch.tensor(self.sizes)).to(pairs[0][0].device)
        return (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])), source

    def losses(self, w: Tensor, batch: tuple[Pair, Tensor]) -> Tensor:
        """For each source the mean cross-entropy of its rows of the batch + 1e-3 |w|^2."""
        rows, source = batch
        return per_source(entropies(w, rows), source, len(self.sources)) + RIDGE * (w @ w)

    def accuracy(self, w: Tensor) -> float:
        """Of the signs of a'w on the test rows."""
        features, labels = self.test
        return float(((features @ w > 0) == labels.bool()).double().mean())

    def fitted(self, p: Tensor) -> Tensor:
        """argmin sum_i p_i l_i(w)."""
        batch = self.joined
        return argmin(lambda w: p.to(w) @ self.losses(w, batch), self.test[0])

    def drawn(self, counts: Sequence[int], seed: int) -> Tensor:
        """argmin of mean cross-entropy + 1e-3 |w|^2 over counts[i] rows of source i.

        Rows are drawn without replacement by the seed; where a source has fewer, every row comes as often as it fits before.
        """
        rng = np.random.default_rng(np.random.SeedSequence([seed, 43]))
        parts = []
        for (features, labels), count in zip(self.sources.values(), counts):
            n = len(labels)
            rows = np.concatenate([np.tile(np.arange(n), count // n), rng.permutation(n)[: count % n]])
            parts.append((features[rows], labels[rows]))
        return alone((torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])))

    def scores(self, seed: int) -> tuple[Tensor, Tensor]:
        """EL2N and GraNd of each source: means over its rows, early in training on all sources alike.

        EL2N = |(1 - s, s) - (1 - b, b)| = sqrt(2) |s - b| with s = sigmoid(a'w), GraNd = |s - b| |a|, the norm of the gradient;
        both are means over 10 starts w of N(0, 1/20) after 20 gradient steps of 0.5. Source: Paul, Ganguli and Dziugaite, "Deep
        Learning on a Data Diet", arXiv 2107.07075.
        """
        (features, labels), source = batch = self.joined
        generator, error = torch.Generator().manual_seed(seed), torch.zeros_like(labels)
        for _ in range(STARTS):
            w = torch.randn(DIMENSION, dtype=torch.float64, generator=generator).to(features) / DIMENSION**0.5
            for _ in range(EARLY):
                w = w.requires_grad_()
                (slope,) = torch.autograd.grad(self.losses(w, batch).mean(), w)
                w = (w - RATE * slope).detach()
            error = error + (torch.sigmoid(features @ w) - labels).abs() / STARTS
        values = (2**0.5 * error, error * features.norm(dim=1))
        return tuple(per_source(value, source, len(self.sources)) for value in values)  # pyright: ignore[reportReturnType]


def entropies(w: Tensor, rows: Pair) -> Tensor:
    """The cross-entropy of each row."""
    features, labels = rows
    return F.binary_cross_entropy_with_logits(features @ w, labels, reduction="none")


def alone(rows: Pair) -> Tensor:
    """argmin of mean cross-entropy + 1e-3 |w|^2 on some rows."""
    return argmin(lambda w: entropies(w, rows).mean() + RIDGE * (w @ w), rows[0])


def argmin(loss: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The minimiser of a smooth strongly convex function of 20 numbers, by L-BFGS to a gradient of 1e-9 (1e-5 in float32)."""
    w = like.new_zeros(DIMENSION, requires_grad=True)
    accuracy = 1e-9 if like.dtype == torch.float64 else 1e-5
    optimizer = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=accuracy, tolerance_change=0.0, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = loss(w)
            value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return w.detach()


def labelled_sources(
    kinds: Sequence[Labels], sizes: Sequence[int], seed: int, dtype: torch.dtype, device: torch.device
) -> LabelledSources:
    """A source of sizes[i] rows for each kind, 300 validation and 4,000 test rows."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 42]))
    w = rng.standard_normal(DIMENSION)

    def drawn(n: int, kind: Labels) -> Pair:
        features = rng.standard_normal((n, DIMENSION))
        labels = rng.random(n) < 1 / (1 + np.exp(-features @ w))
        labels = np.where(rng.random(n) < kind.random, rng.random(n) < 0.5, labels) ^ kind.flipped
        return torch.from_numpy(features).to(device, dtype), torch.from_numpy(labels).to(device, dtype)

    sources = {f"{i} {kind}": drawn(n, kind) for i, (kind, n) in enumerate(zip(kinds, sizes))}
    validation, test = drawn(VALIDATION, Labels()), drawn(TEST, Labels())
    return LabelledSources(sources, validation, test, tuple(kind.wrong for kind in kinds))
