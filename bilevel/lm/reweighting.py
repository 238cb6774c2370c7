"""Weights of text sources as a bilevel problem, checked before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from constrained.core.data import MiniBatches
from constrained.core.errors import ProblemError
from constrained.core.live import Live
from constrained.core.sources import SourceBatches

from ..problem import BilevelProblem
from .losses import FULL, Precision, mixture, parts, upper
from .rows import Packed, Padded


def language_problem(
    model: torch.nn.Module,
    sources: Mapping[str, Any],
    trusted: Any,
    *,
    size: int | Mapping[str, int],
    trusted_size: int | None = None,
    precision: Precision = FULL,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] | None = None,
) -> BilevelProblem:
    """Which sources to train a language model on: min over logits x of the trusted loss of the model trained with softmax(x).

    g(x, model) = sum_i softmax(x)_i l_i, f(x, model) = trusted loss, both means of `token_loss` over rows; x starts at 0, uniform
    weights. model: the lower variable, a `Live`: it moves in place. sources: name -> its rows; trusted: rows that no source
    holds; of `packed` or `padded`, or any that `MiniBatches` takes. size: rows of each source in a batch, one number or
    name -> number; a batch has their sum. trusted_size: rows of a trusted batch, as many as of the first source by default.
    precision: of the forward pass. wrap: what shards the model, as in `Live`.

    Raises ProblemError for what `Live`, `SourceBatches` and `MiniBatches` refuse, rows that are not of one width, ids outside the
    model's vocabulary, rows longer than its positions, and trainable parameters in half precision.

    >>> from bilevel.lm import Bytes, packed
    >>> class Bigrams(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.table = torch.nn.Embedding(258, 258)
    ...     def forward(self, input_ids):
    ...         return self.table(input_ids)
    >>> texts = {"prose": ["what it was"] * 9, "noise": ["qzx kvj wq"] * 9}
    >>> sources = {name: packed(text, 8, Bytes()) for name, text in texts.items()}
    >>> problem = language_problem(Bigrams(), sources, packed(["it was what"] * 2, 8, Bytes()), size=2)
    >>> problem.lower_data
    SourceBatches({noise: 12, prose: 13}, size=2)

    Source: ScaleBiO, arXiv 2406.19976.
    """
    if not isinstance(precision, Precision):
        raise ProblemError(f"precision: expected FullPrecision() or MixedPrecision(), got {precision!r:.60}")
    batches = SourceBatches(sources, size)
    wanted = batches.sizes[0] if trusted_size is None else trusted_size
    whole = isinstance(wanted, int) and hasattr(trusted, "__len__")
    held = MiniBatches(trusted, min(wanted, len(trusted)) if whole else wanted, drop_last=whole)
    _fits(model, held, "trusted")
    widths = {name: _fits(model, part, f"sources: {name!r}") for name, part in zip(batches.names, batches.parts)}
    if len(set(widths.values())) > 1:
        raise ProblemError(f"sources: expected rows of one length, got {widths}")
    live = Live(model, wrap=wrap)
    parameters = [p for p in live.module.parameters() if p.requires_grad]
    for p in parameters:
        if p.dtype not in (torch.float32, torch.float64):
            raise ProblemError(
                f"model: expected trainable parameters in float32, got {p.dtype}: load or convert it with float32 and use "
                "precision=MixedPrecision(), or train adapters: lora(model)"
            )
    logits = torch.zeros(len(batches.names), dtype=parameters[0].dtype, device=parameters[0].device)
    return BilevelProblem(
        upper=upper(precision),
        lower=mixture(len(batches.names), precision),
        x=logits,
        y=live,
        upper_data=held,
        lower_data=batches,
    )


def _fits(model: torch.nn.Module, batches: MiniBatches, where: str) -> int:
    """The length of the rows, which are within the model's vocabulary and positions, where it says what these are."""
    ids, *_ = parts(batches.draw(0, 0, 0), where)
    data, config = batches.dataset, getattr(model, "config", None)
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # pyright: ignore[reportCallIssue]
    vocabulary = getattr(table, "num_embeddings", None) or getattr(config, "vocab_size", None)
    highest = data.highest if isinstance(data, (Packed, Padded)) else int(ids.max())
    if vocabulary is not None and highest >= vocabulary:
        raise ProblemError(f"{where}: expected token ids below the model's vocabulary of {vocabulary}, got {highest}")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and ids.shape[1] > positions:
        raise ProblemError(f"{where}: expected rows of at most {positions} tokens, the model's positions, got {ids.shape[1]}")
    return ids.shape[1]
