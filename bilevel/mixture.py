"""Mixture: a lower objective that is a weighted sum of the losses of several sources, and what its weights are good for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from constrained.core.arguments import expect
from constrained.core.errors import OptionError, ProblemError
from constrained.core.options import Count, Positive, Range


def softmax(x: Tensor) -> Tensor:
    """exp(x_i) / sum_j exp(x_j): weights of m sources from m logits, a 1-D tensor. Raises ProblemError for anything else."""
    if not isinstance(x, Tensor) or x.ndim != 1:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ProblemError(f"softmax: x: expected logits as a 1-D tensor, got {got}: give Mixture(weights=...) for another x")
    return torch.softmax(x, dim=-1)


@dataclass(frozen=True, eq=False)
class Mixture:
    """g(x, y) = sum_i p_i(x) l_i(y): the lower objective of data reweighting, for `BilevelProblem(lower=...)`.

    losses: y -> the m losses of the sources, a 1-D tensor; of (y, batch) where the problem has `lower_data`, each then a mean
    over that source's rows of the batch (`per_source`). weights: x -> p, m numbers >= 0; the softmax of m logits by default.

    `ScaleBiO` needs the losses one by one; every other solver takes the sum. Raises ProblemError for what is not callable, and
    where it is called for losses that are not 1-D or as many as the weights.

    >>> mixture = Mixture(lambda y: torch.stack([(y - 1) ** 2, (y + 1) ** 2]))
    >>> mixture(torch.zeros(2), torch.tensor(3.0))
    tensor(10.)

    Source: the lower level of ScaleBiO, arXiv 2406.19976.
    """

    losses: Callable[..., Tensor]
    weights: Callable[[Any], Tensor] = softmax

    def __post_init__(self) -> None:
        for name in ("losses", "weights"):
            if not callable(getattr(self, name)):
                raise ProblemError(f"Mixture: {name}: expected a function, got {type(getattr(self, name)).__name__}")

    def __call__(self, x: Any, y: Any, *batch: Any) -> Tensor:
        p, losses = self.weights(x), self.losses(y, *batch)
        if not isinstance(losses, Tensor) or losses.shape != p.shape or losses.device.type == "meta":
            got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise ProblemError(f"Mixture: losses: expected {len(p)} losses, one a weight, as a 1-D tensor, got {got}")
        if not losses.is_floating_point():
            raise ProblemError(f"Mixture: losses: expected floating-point numbers, got {losses.dtype}")
        return p.to(losses.dtype) @ losses

    def sampling_plan(self, x: Any, n: int, *, temperature: float = 1.0, floor: float = 0.0) -> list[int]:
        """How many of n examples to take from each source: n p_i rounded so that they add up (largest remainders first).

        temperature: p_i^(1/temperature), normalised, replaces p: above 1 flatter. floor: no source gets a smaller share, in
        [0, 1/m]. Raises OptionError.

        >>> Mixture(lambda y: y).sampling_plan(torch.tensor([0.0, 0.0, 1.0986]), 10)
        [2, 2, 6]
        """
        expect("n", n, Count)
        expect("temperature", temperature, Positive)
        p = self.weights(x).detach().double().cpu()
        m = len(p)
        if not bool((p.isfinite() & (p >= 0)).all()):
            raise OptionError(f"weights: expected finite numbers >= 0 at x, got {p.tolist()}")
        expect("floor", floor, Range(0, 1 / m, f"a number in [0, 1/{m}]"))
        p = torch.softmax(p.clamp(min=torch.finfo(p.dtype).tiny).log() / temperature, 0)
        p = floor + (1 - m * floor) * p
        counts = (n * p).floor()
        left = n - int(counts.sum())
        counts[torch.argsort(n * p - counts, descending=True, stable=True)[:left]] += 1
        return [int(count) for count in counts]


def per_source(values: Tensor, source: Tensor, m: int, shares: Tensor | None = None) -> Tensor:
    """The m losses of a batch: (mean of the values of source i) for i = 0 .. m - 1, from one value a row and its source.

    A source without rows has loss 0. shares: the probability q_i of a row to come from source i where rows were drawn from all
    sources together; the loss is then sum of its values / (q_i rows), unbiased though a source may be absent. Without it rows
    must be stratified (`SourceBatches`): divided by the counts of a batch, sources that come and go would have weights of
    their own.

    Raises ProblemError for values and sources that are not 1-D and of one length, and on the CPU for sources outside 0..m-1.

    >>> per_source(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2)
    tensor([2., 5.])
    """
    if values.ndim != 1 or source.shape != values.shape or source.is_floating_point():
        got = f"{tuple(values.shape)} and {tuple(source.shape)}, {source.dtype}"
        raise ProblemError(f"per_source: expected one value and one integer source a row, 1-D, got shapes {got}")
    if source.device.type == "cpu" and len(source) and not 0 <= int(source.min()) <= int(source.max()) < m:
        raise ProblemError(f"per_source: source: expected numbers in 0..{m - 1}, got {int(source.min())}..{int(source.max())}")
    mine = source == torch.arange(m, device=source.device)[:, None]  # sums are deterministic on every device, scatters are not
    total = torch.where(mine, values, 0.0).sum(1)
    if shares is not None:
        return total / (shares.to(values) * len(values))
    return total / mine.sum(1).clamp(min=1).to(values.dtype)
