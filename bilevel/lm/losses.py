"""The loss of a row of tokens, and the two levels made of it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from constrained.core.errors import ProblemError
from constrained.core.options import Options

from ..mixture import Mixture, per_source
from .rows import IGNORED


class Precision(Options, ABC):
    """In which precision a model computes its logits. Losses, parameters and optimizers are not touched."""

    @abstractmethod
    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """What the forward pass runs in."""


@dataclass(frozen=True, kw_only=True)
class FullPrecision(Precision):
    """As the parameters are."""

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext()


FULL = FullPrecision()


@dataclass(frozen=True, kw_only=True)
class MixedPrecision(Precision):
    """bfloat16 where torch's autocast finds it safe, from parameters in float32; half the memory of activations.

    >>> with MixedPrecision().context(torch.device("cpu")):
    ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    torch.bfloat16

    Source: Micikevicius et al., arXiv 1710.03740; bfloat16 needs no scaling of the loss.
    """

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=torch.bfloat16)


def token_loss(model: torch.nn.Module, rows: Any, precision: Precision = FULL) -> Tensor:
    """One loss a row: the mean of -log p(token t + 1 | tokens to t) over its targets, in nats; (n,), float32 or wider.

    model: called as model(input_ids=..., attention_mask=...), the mask only where the rows have one; gives logits
    (n, length, vocabulary), as a tensor or as `.logits`. rows: {"input_ids", "labels"} and perhaps "attention_mask", or a tuple
    (ids, labels), integers of shape (n, length); they are moved to the model's device. A label of -100 is no target, nor is the
    first of a row. A row without targets has loss 0. The loss is taken in float32 whatever the logits are in; it is not the
    model's own, which is a mean over a batch.

    Raises ProblemError for rows and logits that are not as said.

    >>> model = torch.nn.Embedding(4, 4)  # the next token's logits from the last token alone
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> model.forward = lambda input_ids: torch.nn.functional.embedding(input_ids, model.weight)
    >>> token_loss(model, (torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.tensor([[0, 1, 2], [0, -100, -100]])))
    tensor([1.3863, 0.0000], grad_fn=<DivBackward0>)
    """
    ids, labels, mask = parts(rows)
    device = next(model.parameters()).device
    given: dict[str, Any] = {"input_ids": ids.to(device)} | ({} if mask is None else {"attention_mask": mask.to(device)})
    if getattr(getattr(model, "config", None), "use_cache", False):  # of keys and values, for generation
        given["use_cache"] = False
    with precision.context(device):
        logits = model(**given)
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ProblemError(f"token_loss: model: expected logits of shape {(*ids.shape, 'vocabulary')}, got {got}")
    logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    targets = labels[:, 1:].to(logits.device)
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    counts = (targets != IGNORED).sum(1)
    return each.view_as(targets).sum(1) / counts.clamp(min=1)


def parts(rows: Any, who: str = "token_loss") -> tuple[Tensor, Tensor, Tensor | None]:
    """(ids, labels, mask or None) of rows. Raises ProblemError."""
    if isinstance(rows, Mapping) and {"input_ids", "labels"} <= set(rows):
        ids, labels, mask = rows["input_ids"], rows["labels"], rows.get("attention_mask")
    elif isinstance(rows, (tuple, list)) and len(rows) == 2:
        (ids, labels), mask = rows, None
    else:
        got = f"a dict of {sorted(map(str, rows))}" if isinstance(rows, Mapping) else type(rows).__name__
        raise ProblemError(f"{who}: rows: expected a dict with input_ids and labels, or a tuple (ids, labels), got {got}")
    for name, one in (("input_ids", ids), ("labels", labels), ("attention_mask", ids if mask is None else mask)):
        fits = isinstance(one, Tensor) and not one.is_floating_point() and one.ndim == 2 and one.shape == ids.shape
        if not fits or one.shape[1] < 2:
            got = f"{one.dtype} of shape {tuple(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
            raise ProblemError(f"{who}: rows: {name}: expected integers of shape (n, length >= 2) like input_ids, got {got}")
    return ids, labels, mask


def mixture(m: int, precision: Precision = FULL) -> Mixture:
    """g(x, model) = sum_i softmax(x)_i l_i, l_i the mean of `token_loss` over the batch's rows of source i: of m sources, with
    the batches (rows, source) of `SourceBatches`. For `BilevelProblem(lower=...)`.

    >>> mixture(2).weights(torch.zeros(2))
    tensor([0.5000, 0.5000])

    Source: ScaleBiO, arXiv 2406.19976.
    """
    return Mixture(functools.partial(_of_sources, m=m, precision=precision))


def upper(precision: Precision = FULL) -> Callable[..., Tensor]:
    """f(x, model, rows): the mean of `token_loss` over trusted rows, every row counting alike. For `BilevelProblem(upper=...)`.

    >>> callable(upper(MixedPrecision()))
    True
    """
    return functools.partial(_trusted, precision=precision)


def _of_sources(model: torch.nn.Module, batch: tuple[Any, Tensor], *, m: int, precision: Precision) -> Tensor:
    rows, source = batch
    values = token_loss(model, rows, precision)
    return per_source(values, source.to(values.device), m)


def _trusted(x: Tensor, model: torch.nn.Module, rows: Any, *, precision: Precision) -> Tensor:
    return token_loss(model, rows, precision).mean()
