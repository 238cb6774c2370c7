"""Stream: batches from any iterable, in the order in which it gives them.

What an iterable gives cannot be computed from (seed, stream, n): the position is remembered, and a resumed run goes on where
the loader lets it. `MiniBatches.of(loader)` is exact, wherever it applies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from torch import Tensor

from .data import Batch
from .errors import CheckpointError, ProblemError
from .shared_state import GENERATORS

END = object()


class Stream:
    """The batches of a loader one after another: a DataLoader over an IterableDataset, torchdata's StatefulDataLoader, any
    iterable of batches. Its workers, prefetching and pinned memory are kept.

    `draw(seed, stream, n)` is the n-th batch since the beginning, epoch after epoch; seed and stream are ignored, the order and
    its randomness are the loader's. The first batch and the last one drawn are kept: asked for again they are the same object.
    A larger n skips forward; a smaller one begins again, from the state the loader had before its first batch if it tells it,
    else with a new iteration. Give each level a stream of its own.

    There is no batch of all the data: residuals are taken on the first batch, and their names end in `_estimate`. A checkpoint
    holds the position, and `loader.state_dict()` where the loader has one of plain JSON data: a resumed run then goes on from
    there. Else it skips as many batches as were drawn. Neither can be checked: `Result.exact` is False.

    Raises ProblemError for what is no iterable of batches; on drawing, for a loader without batches and for an exhausted
    iterator that cannot begin again.

    >>> import torch
    >>> batches = Stream([torch.zeros(2), torch.ones(2)])
    >>> [batches.draw(seed=0, stream=0, n=n)[0].item() for n in range(3)]
    [0.0, 1.0, 0.0]
    """

    stochastic = True
    exact = False

    def __init__(self, loader: Iterable[Batch]):
        if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes, Mapping, Tensor)):
            raise ProblemError(f"Stream: loader: expected an iterable of batches such as a DataLoader, got {loader!r:.60}")
        self.loader = loader
        self._iterator: Iterator[Batch] | None = None
        self._origin: Any = None  # the loader's state before its first batch
        self._position = 0  # batches taken
        self._kept: dict[int, Batch] = {}  # the first batch and the last one, by number

    def draw(self, seed: int, stream: int, n: int) -> Batch:
        if n not in self._kept:
            if n < self._position:
                self._begin_again()
            self._forward(n + 1)
        return self._kept[n]

    def full(self) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        """`position`, the number of batches taken, and `loader`, the loader's own state, or None without plain data."""
        return {"position": self._position, "loader": self._loader_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        position = state.get("position") if isinstance(state, Mapping) else None
        if not isinstance(position, int) or position < 0:
            raise CheckpointError(f"Stream: state: expected a position >= 0 and the loader's state, got {state!r:.80}")
        if state.get("loader") is not None and self._stateful():
            self._enter(position, state["loader"])
            return
        if position < self._position:
            self._begin_again()
        self._forward(position)

    # -- helpers --------------------------------------------------------------------------------------------------------
    def _forward(self, position: int) -> None:
        """Take batches until `position` have been taken."""
        while self._position < position:
            with GENERATORS:  # loaders draw from torch's global generator
                batch = self._next()
            first = {0: self._kept[0]} if 0 in self._kept else {}
            self._kept = {self._position: batch} | first  # the first stays the first, whatever a new iteration gives
            self._position += 1

    def _next(self) -> Batch:
        if self._iterator is None:
            if self._origin is None:
                self._origin = self._loader_state()
            self._iterator = iter(self.loader)
        batch = next(self._iterator, END)
        if batch is not END:
            return batch
        if self._iterator is self.loader:
            self._cannot_begin_again("that ended after")
        self._iterator = iter(self.loader)  # the next epoch
        batch = next(self._iterator, END)
        if batch is END:
            raise ProblemError(f"Stream: loader: expected batches, got a {type(self.loader).__name__} that gives none")
        return batch

    def _begin_again(self) -> None:
        if self._iterator is self.loader and self._origin is None:
            self._cannot_begin_again("after")
        self._enter(0, self._origin)

    def _cannot_begin_again(self, when: str) -> NoReturn:
        kind = type(self.loader).__name__
        raise ProblemError(
            f"Stream: loader: expected an iterable that can begin again, got a {kind} {when} {self._position} batches"
        )

    def _enter(self, position: int, loader: Any) -> None:
        if self._origin is None:
            self._origin = self._loader_state()
        if loader is not None:
            self.loader.load_state_dict(loader)  # pyright: ignore[reportAttributeAccessIssue]
        self._iterator = None
        self._position = position
        self._kept = {n: batch for n, batch in self._kept.items() if n == 0}

    def _stateful(self) -> bool:
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")

    def _loader_state(self) -> Any:
        """What the loader tells of itself, if JSON gives it back as it is."""
        state = self.loader.state_dict() if self._stateful() else None  # pyright: ignore[reportAttributeAccessIssue]
        try:
            copy = json.loads(json.dumps(state, allow_nan=False))
            return copy if copy == state else None
        except (TypeError, ValueError, RecursionError):
            return None

    def __repr__(self) -> str:
        size = getattr(self.loader, "batch_size", None)
        return f"Stream({type(self.loader).__name__}{'' if size is None else f', batch_size={size}'})"
