"""Samplers: a batch is a pure function of (seed, stream, n).

The same three numbers give the same batch in every process and after every resume: permutations come from
`numpy.random.SeedSequence([seed, stream, epoch])`. Draws are made on the CPU and indexed on the data's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from .errors import ProblemError
from .vec import tensors

Batch = Any


@runtime_checkable
class Sampler(Protocol):
    """Gives batches. `stochastic` says whether two draws differ."""

    stochastic: bool

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        """The n-th batch of a stream."""
        ...

    def full(self) -> Sampler | None:
        """A sampler whose one batch is all of the data, or None where there is no such thing."""
        ...


class NoData:
    """No batches: the function takes variables only.

    >>> NoData().draw(seed=0, stream=0, n=3) is None
    True
    """

    stochastic = False

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        return None

    def full(self) -> NoData:
        return self

    def __repr__(self) -> str:
        return "NoData()"


class FullBatch:
    """All of the data at every call: deterministic, and the rows differentiated are counted.

    `FullBatch(inputs, labels)` hands the tuple `(inputs, labels)` to the function; one argument is handed as it is.

    >>> len(FullBatch(torch.zeros(6, 2), torch.zeros(6)))
    6
    """

    stochastic = False

    def __init__(self, *data: Any):
        if not data:
            raise ProblemError("FullBatch: expected at least one tensor, got none")
        self.data = data[0] if len(data) == 1 else tuple(data)

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        return self.data

    def full(self) -> FullBatch:
        return self

    def __len__(self) -> int:
        return rows(self.data)

    def __repr__(self) -> str:
        return f"FullBatch({len(self)} rows)"


class MiniBatches:
    """Mini-batches of `size` rows from tensors of equal length or from any map-style `Dataset`.

    `shuffle`: "epochs" (default) passes over a fresh permutation each epoch, the last batch of an epoch may be smaller;
    "replacement" draws with replacement; "none" keeps the order. `stratify`: one label a row; every batch then holds the
    labels in the proportions of the data, to within one row a label. `collate` turns a list of items into a batch
    (`default_collate` of torch).

    >>> batches = MiniBatches((torch.arange(6.0), torch.arange(6)), size=4)
    >>> [tuple(batches.draw(seed=0, stream=0, n=n)[0].shape) for n in range(3)]
    [(4,), (2,), (4,)]
    """

    stochastic = True

    def __init__(
        self,
        data: Tensor | Sequence[Tensor] | torch_data.Dataset,
        size: int,
        *,
        shuffle: Literal["epochs", "replacement", "none"] = "epochs",
        collate: Callable[[list], Batch] | None = None,
        stratify: Sequence[int] | Tensor | None = None,
    ):
        if isinstance(data, np.ndarray):
            data = torch.as_tensor(data)
        if isinstance(data, (tuple, list)) and any(isinstance(part, np.ndarray) for part in data):
            data = tuple(torch.as_tensor(part) for part in data)
        self.arrays = data if (isinstance(data, Tensor) and data.ndim > 0) or _tensors(data) else None
        self.dataset = data
        lengths = (
            {len(part) for part in ([data] if isinstance(data, Tensor) else data)} if self.arrays is not None else {_length(data)}
        )
        if len(lengths) != 1:
            raise ProblemError(f"MiniBatches: expected tensors of one length, got lengths {sorted(lengths)}")
        (self.length,) = lengths
        if self.length == 0:
            raise ProblemError("MiniBatches: expected at least one row, got none")
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ProblemError(f"MiniBatches: size must be an integer >= 1, got {size!r}")
        if shuffle not in ("epochs", "replacement", "none"):
            raise ProblemError(f"MiniBatches: shuffle must be 'epochs', 'replacement' or 'none', got {shuffle!r}")
        self.size = min(int(size), self.length)
        self.shuffle = shuffle
        self.collate = collate or torch_data.default_collate
        self.stratify = None if stratify is None else np.asarray(stratify)
        if self.stratify is not None and self.stratify.shape != (self.length,):
            raise ProblemError(f"MiniBatches: stratify needs one label a row ({self.length}), got shape {self.stratify.shape}")
        if self.stratify is not None and shuffle != "epochs":
            raise ProblemError(f"MiniBatches: stratify goes with shuffle='epochs', got {shuffle!r}")
        self._last: tuple[tuple[int, int, int], np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.length // self.size)

    def indices(self, seed: int, stream: int, n: int) -> np.ndarray:
        """Row numbers of the n-th batch."""
        epoch, place = divmod(n, self.steps_per_epoch)
        if self.shuffle == "replacement":
            return np.random.default_rng(np.random.SeedSequence([seed, stream, n])).integers(0, self.length, self.size)
        if self.shuffle == "none":
            order = np.arange(self.length)
        elif self._last is not None and self._last[0] == (seed, stream, epoch):
            order = self._last[1]
        else:
            order = self._permutation(np.random.default_rng(np.random.SeedSequence([seed, stream, epoch])))
            self._last = ((seed, stream, epoch), order)  # a cache: the value depends on its key alone
        return order[place * self.size : (place + 1) * self.size]

    def _permutation(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(self.length)
        if self.stratify is None:
            return order
        # Each batch gets the floor of its share of each label. What is left goes, batch by batch, to the labels with most left:
        # the greedy construction of Gale and Ryser, so every share is rounded down or up, and rows and columns add up.
        _, labels, counts = np.unique(self.stratify[order], return_inverse=True, return_counts=True)
        sizes = np.diff(np.append(np.arange(0, self.length, self.size), self.length))
        share = np.outer(sizes, counts) // self.length
        left = counts - share.sum(0)
        for b in rng.permutation(len(sizes)):
            most = np.lexsort((rng.random(len(left)), -left))[: sizes[b] - share[b].sum()]
            share[b, most] += 1
            left[most] -= 1
        parts = [np.split(order[labels == l], np.cumsum(share[:-1, l])) for l in range(len(counts))]
        return np.concatenate([rng.permutation(np.concatenate(batch)) for batch in zip(*parts)])

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        index = self.indices(seed, stream, n)
        if self.arrays is None:
            return self.collate([self.dataset[int(i)] for i in index])  # pyright: ignore[reportIndexIssue]
        row = torch.from_numpy(index)
        if isinstance(self.arrays, Tensor):
            return self.arrays[row.to(self.arrays.device)]
        return tuple(part[row.to(part.device)] for part in self.arrays)

    def full(self) -> FullBatch:
        if isinstance(self.arrays, Tensor):
            return FullBatch(self.arrays)
        if self.arrays is not None:
            return FullBatch(*self.arrays)
        return FullBatch(self.collate([self.dataset[i] for i in range(self.length)]))  # pyright: ignore[reportIndexIssue]

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return f"MiniBatches({self.length} rows, size={self.size}, shuffle={self.shuffle!r})"


def rows(batch: Batch) -> int:
    """Rows of a batch: the length of its first tensor; 0 without data."""
    found = tensors(batch)
    return len(found[0]) if found and found[0].ndim else 0


def _tensors(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) > 0 and all(isinstance(part, Tensor) and part.ndim > 0 for part in data)


def _length(data: Any) -> int:
    if isinstance(data, dict) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ProblemError(f"MiniBatches: expected tensors or a map-style Dataset, got {type(data).__name__}")
    return len(data)
