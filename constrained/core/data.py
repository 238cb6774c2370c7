"""Samplers: a batch is a pure function of (seed, stream, n).

The same three numbers give the same batch in every process and after every resume: permutations come from
`numpy.random.SeedSequence([seed, stream, epoch])`. Draws are made on the CPU and indexed on the data's device. What is drawn
inside a dataset or a collate function is seeded by (seed, stream, n) too, and the global generators are put back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from .arguments import expect
from .errors import ProblemError
from .options import Steps
from .shared_state import generators_kept, seed_generators
from .vec import tensors

Batch = Any


@runtime_checkable
class Sampler(Protocol):
    """Gives batches. `stochastic` says whether two draws differ.

    A sampler whose batches are not a pure function of (seed, stream, n) has `exact = False`: a resumed run then need not equal
    an uninterrupted one, and the result says so. One with `state_dict()` and `load_state_dict(state)`, the state plain JSON
    data, has it saved in checkpoints and loaded before the first step of a resumed run.
    """

    stochastic: bool

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        """The n-th batch of a stream."""
        ...

    def full(self) -> Sampler | None:
        """A sampler whose one batch is all of the data, or None where there is no such thing."""
        ...


def expect_sampler(name: str, value: Any) -> None:
    """Raise ProblemError unless the value is a sampler."""
    if inspect.isclass(value) or not isinstance(value, Sampler):
        raise ProblemError(
            f"{name}: expected a sampler such as MiniBatches(...), MiniBatches.of(loader) or Stream(loader), "
            f"got {type(value).__name__}"
        )


class NoData:
    """No batches: the function takes variables only.

    >>> NoData().draw(seed=0, stream=0, n=3) is None
    True
    """

    stochastic = False
    exact = True

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
    exact = True

    def __init__(self, *data: Any):
        if not data:
            raise ProblemError("FullBatch: expected at least one tensor, got none")
        self.data = data[0] if len(data) == 1 else tuple(data)
        self.names: tuple[str, ...] = ()  # of the sources that it is joined from

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

    `shuffle`: "epochs" (default) passes over a fresh permutation each epoch, the last batch of an epoch may be smaller, with
    `drop_last` it is left out; "replacement" draws with replacement; "none" keeps the order. `stratify`: one label a row; every
    batch then holds the labels in the proportions of the data, to within one row a label. `collate` turns a list of items into
    a batch (`default_collate` of torch).

    A tensor gives batches that are tensors, a tuple of tensors gives tuples; a dataset gives what `collate` makes of its items,
    as a DataLoader does: lists for a `TensorDataset`, which is indexed without collating. Items are loaded one by one in the
    calling process. Randomness in `dataset[i]` and in `collate` from the global generators of torch (CPU), numpy and Python is
    seeded by (seed, stream, n) and the item's place in the batch, so that the batch is a pure function of these; generators
    that a dataset owns, or seeds from the system, are its own affair.

    Raises ProblemError for data without rows or of unequal lengths, an IterableDataset, and options out of range.

    >>> batches = MiniBatches((torch.arange(6.0), torch.arange(6)), size=4)
    >>> [tuple(batches.draw(seed=0, stream=0, n=n)[0].shape) for n in range(3)]
    [(4,), (2,), (4,)]
    """

    stochastic = True
    exact = True

    def __init__(
        self,
        data: Tensor | Sequence[Tensor] | torch_data.Dataset,
        size: int,
        *,
        shuffle: Literal["epochs", "replacement", "none"] = "epochs",
        collate: Callable[[list], Batch] | None = None,
        stratify: Sequence[int] | Tensor | None = None,
        drop_last: bool = False,
    ):
        if isinstance(data, np.ndarray):
            data = torch.as_tensor(data)
        if isinstance(data, (tuple, list)) and any(isinstance(part, np.ndarray) for part in data):
            data = tuple(torch.as_tensor(part) for part in data)
        self.collate = collate or torch_data.default_collate
        self.arrays: Tensor | tuple[Tensor, ...] | list[Tensor] | None = None  # batches have its structure
        if isinstance(data, Tensor) and data.ndim > 0:
            self.arrays = data
        elif _tensors(data):
            self.arrays = tuple(data)  # pyright: ignore[reportArgumentType]
        elif type(data) is torch_data.TensorDataset and self.collate is torch_data.default_collate:
            self.arrays = list(data.tensors)
        self.dataset = data
        parts = [self.arrays] if isinstance(self.arrays, Tensor) else self.arrays
        lengths = {len(part) for part in parts} if parts is not None else {_length(data)}
        if len(lengths) != 1:
            raise ProblemError(f"MiniBatches: expected tensors of one length, got lengths {sorted(lengths)}")
        (self.length,) = lengths
        if self.length == 0:
            raise ProblemError("MiniBatches: expected at least one row, got none")
        size = expect("MiniBatches: size", size, Steps, ProblemError)
        if shuffle not in ("epochs", "replacement", "none"):
            raise ProblemError(f"MiniBatches: shuffle must be 'epochs', 'replacement' or 'none', got {shuffle!r}")
        expect("MiniBatches: drop_last", drop_last, bool, ProblemError)
        if drop_last and size > self.length:
            raise ProblemError(f"MiniBatches: drop_last leaves no batch: size must be at most {self.length}, got {size!r}")
        self.size = min(size, self.length)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.stratify = None if stratify is None else np.asarray(stratify)
        if self.stratify is not None and self.stratify.shape != (self.length,):
            raise ProblemError(f"MiniBatches: stratify needs one label a row ({self.length}), got shape {self.stratify.shape}")
        if self.stratify is not None and shuffle != "epochs":
            raise ProblemError(f"MiniBatches: stratify goes with shuffle='epochs', got {shuffle!r}")
        self._last: tuple[tuple[int, int, int], np.ndarray] | None = None

    @classmethod
    def of(cls, loader: torch_data.DataLoader) -> MiniBatches:
        """The mini-batches of a torch DataLoader, drawn anew: each is a pure function of (seed, stream, n).

        Taken over: the map-style dataset, batch_size, collate_fn, drop_last, and the kind of order: `shuffle=True` becomes
        "epochs", a RandomSampler with replacement "replacement", no shuffling "none". Not taken over: the loader's generator
        (orders come from the seed of `solve`), num_workers, pin_memory and prefetching (items are loaded in the calling
        process). `Stream(loader)` keeps all of these, at the price of exact resuming.

        Raises ProblemError, and names `Stream(loader)`, for what cannot be indexed or made reproducible: an IterableDataset, a
        sampler or batch_sampler of its own, batch_size=None, num_samples, worker_init_fn.

        >>> data = torch_data.TensorDataset(torch.arange(6.0), torch.arange(6))
        >>> MiniBatches.of(torch_data.DataLoader(data, batch_size=4, shuffle=True))
        MiniBatches(6 rows, size=4, shuffle='epochs')
        """
        if not isinstance(loader, torch_data.DataLoader):
            raise ProblemError(f"MiniBatches.of: loader: expected a torch DataLoader, got {type(loader).__name__}")
        sampler = loader.sampler
        plain = type(sampler) in (torch_data.SequentialSampler, torch_data.RandomSampler)
        if isinstance(loader.dataset, torch_data.IterableDataset):
            bad = f"an IterableDataset ({type(loader.dataset).__name__})"
        elif loader.batch_sampler is None:
            bad = "batch_size=None"
        elif loader.batch_size is None:
            bad = f"a batch_sampler of its own ({type(loader.batch_sampler).__name__})"
        elif not plain or len(sampler.data_source) != len(loader.dataset):  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
            bad = f"a sampler of its own ({type(sampler).__name__})"
        elif getattr(sampler, "_num_samples", None) is not None:
            bad = f"a RandomSampler with num_samples={sampler._num_samples}"  # pyright: ignore[reportAttributeAccessIssue]
        elif loader.worker_init_fn is not None:
            bad = "a worker_init_fn"
        else:
            shuffle = "epochs" if isinstance(sampler, torch_data.RandomSampler) else "none"
            if getattr(sampler, "replacement", False):
                shuffle = "replacement"
            return cls(loader.dataset, loader.batch_size, shuffle=shuffle, collate=loader.collate_fn, drop_last=loader.drop_last)
        raise ProblemError(
            f"MiniBatches.of: loader: expected a map-style dataset in sequential or random order, got {bad}: use Stream(loader)"
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.size if self.drop_last else -(-self.length // self.size)

    def indices(self, seed: int, stream: int, n: int) -> np.ndarray:
        """Row numbers of the n-th batch."""
        epoch, place = divmod(n, self.steps_per_epoch)
        if self.shuffle == "replacement":
            return np.random.default_rng(np.random.SeedSequence([seed, stream, n])).integers(0, self.length, self.size)
        if self.shuffle == "none":
            order = np.arange(self.length)
        elif (last := self._last) is not None and last[0] == (seed, stream, epoch):  # read once: threads may share this
            order = last[1]
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
            return self._collated(index, (seed, stream, n))
        row = torch.from_numpy(index)
        if isinstance(self.arrays, Tensor):
            return self.arrays[row.to(self.arrays.device)]
        return type(self.arrays)(part[row.to(part.device)] for part in self.arrays)

    def _collated(self, index: Sequence[int] | np.ndarray, key: tuple[int, int, int]) -> Batch:
        # A spawned sequence: the key itself seeds permutations and dropout. One word an item, the last for collate.
        words = np.random.SeedSequence(key, spawn_key=(0,)).generate_state(len(index) + 1, np.uint64).tolist()
        with generators_kept():
            items = []
            for i, word in zip(index, words):
                seed_generators(word)
                items.append(self.dataset[int(i)])  # pyright: ignore[reportIndexIssue]
            seed_generators(words[-1])
            return self.collate(items)

    def full(self) -> FullBatch:
        if self.arrays is None:
            return FullBatch(self._collated(range(self.length), (0, 0, 0)))  # one augmentation of each item, always the same
        return FullBatch(*self.arrays) if isinstance(self.arrays, tuple) else FullBatch(self.arrays)

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        last = ", drop_last=True" if self.drop_last else ""
        return f"MiniBatches({self.length} rows, size={self.size}, shuffle={self.shuffle!r}{last})"


def exact(sampler: Sampler) -> bool:
    """Its batches are a function of (seed, stream, n): true of every sampler that does not say otherwise."""
    return getattr(sampler, "exact", True)


def rows(batch: Batch) -> int:
    """Rows of a batch: the length of its first tensor; 0 without data."""
    found = tensors(batch)
    return len(found[0]) if found and found[0].ndim else 0


def tokens(batch: Batch) -> int:
    """Entries of a batch of integer rows, such as token ids: those of its first tensor; 0 of any other batch."""
    found = tensors(batch)
    return found[0].numel() if found and found[0].ndim > 1 and not found[0].is_floating_point() else 0


def _tensors(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) > 0 and all(isinstance(part, Tensor) and part.ndim > 0 for part in data)


def _length(data: Any) -> int:
    if isinstance(data, (dict, torch_data.IterableDataset)) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        advice = ": use MiniBatches.of(loader)" if isinstance(data, torch_data.DataLoader) else ""
        raise ProblemError(f"MiniBatches: expected tensors or a map-style Dataset, got {type(data).__name__}{advice}")
    return len(data)
