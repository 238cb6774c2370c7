"""Batches with a fixed number of rows from each of several sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .data import Batch, FullBatch, MiniBatches
from .errors import ProblemError
from .vec import map_leaves, tensors, zipped

STREAMS = 1000  # of sources within one stream of batches


class SourceBatches:
    """Batches (rows, source): `size` rows of every source, one source after another, with the number of its source for each row.

    sources: name -> its data, as `MiniBatches` takes it: a tensor, a tuple of tensors, a map-style dataset; `rows` has that
    structure. Sources are numbered in the order of their names, whatever order they come in; each is shuffled by itself, epoch
    by epoch, and a short last batch of an epoch is left out. size: of each source, at most its length; or name -> size.
    Source i's mean over its rows is then an unbiased estimate of its mean loss in every batch.

    Raises ProblemError for no sources, names that are no words, and what `MiniBatches` refuses.

    >>> batches = SourceBatches({"b": torch.zeros(5, 2), "a": torch.ones(7, 2)}, size=2)
    >>> rows, source = batches.draw(seed=0, stream=1, n=0)
    >>> rows[:, 0], source, batches.names
    (tensor([1., 1., 0., 0.]), tensor([0, 0, 1, 1]), ('a', 'b'))
    """

    stochastic = True
    exact = True

    def __init__(self, sources: Mapping[str, Any], size: int | Mapping[str, int], **options: Any):
        if not isinstance(sources, Mapping) or not sources or not all(isinstance(name, str) and name for name in sources):
            raise ProblemError(f"SourceBatches: sources: expected a dict of names and data, got {sources!r:.80}")
        if isinstance(size, Mapping) and set(size) != set(sources):
            raise ProblemError(f"SourceBatches: size: expected one for each of {sorted(sources)}, got {sorted(size)}")
        if "drop_last" in options:
            raise ProblemError("SourceBatches: drop_last: a short last batch is always left out, got drop_last")
        self.names = tuple(sorted(sources))
        self.parts: list[MiniBatches] = []
        for name in self.names:
            rows = size[name] if isinstance(size, Mapping) else size
            try:
                part = MiniBatches(sources[name], rows, drop_last=True, **options)
            except (ProblemError, TypeError) as cause:
                raise ProblemError(f"SourceBatches: source {name!r}: {cause}") from cause
            self.parts.append(part)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source in a batch."""
        return tuple(part.size for part in self.parts)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each source in all."""
        return tuple(len(part) for part in self.parts)

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        return self._joined([part.draw(seed, STREAMS * (1 + stream) + i, n) for i, part in enumerate(self.parts)])

    def full(self) -> FullBatch:
        whole = FullBatch(*self._joined([part.full().data for part in self.parts]))
        whole.names = self.names
        return whole

    def share(self, batch: Batch, rank: int, world: int) -> Batch:
        """The rows of a batch that one of `world` processes takes: the same number of every source."""
        if any(size % world for size in self.sizes):
            raise ProblemError(f"SourceBatches: {world} processes cannot share {self.sizes} rows of the sources evenly")
        return map_leaves(lambda rows: rows[rank::world], batch)  # sizes are multiples of `world`, so are the places of sources

    def _joined(self, batches: list[Batch]) -> Batch:
        try:
            rows = zipped(lambda *parts: torch.cat(parts), *batches)
        except (TypeError, ValueError, RuntimeError) as cause:
            raise ProblemError(
                f"SourceBatches: sources: expected tensors of one structure, shape and dtype, got {cause}"
            ) from cause
        source = torch.cat([torch.full((len(tensors(batch)[0]),), i) for i, batch in enumerate(batches)])
        return rows, source.to(tensors(rows)[0].device)

    def __len__(self) -> int:
        return sum(self.lengths)

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}: {len(part)}" for name, part in zip(self.names, self.parts))
        return f"SourceBatches({{{listed}}}, size={self.sizes if len(set(self.sizes)) > 1 else self.sizes[0]})"
