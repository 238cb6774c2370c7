"""Block schedules: which parts of a large variable move at which steps. A schedule is a pure function of (seed, k)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from constrained.core.errors import OptionError
from constrained.core.options import Options, Steps

NUMBER = re.compile(r"(?<![^.\['])\d+(?=[.\]']|$)")  # a whole part of a name


class BlockSchedule(Options, ABC):
    """Which leaves of the lower variable move at step k."""

    @abstractmethod
    def active(self, paths: Sequence[str], seed: int, k: int) -> list[bool]:
        """One flag a leaf, from the leaves' paths; the same for the same (seed, k) in every process."""


@dataclass(frozen=True, kw_only=True)
class AllBlocks(BlockSchedule):
    """Everything moves.

    >>> AllBlocks().active(["a", "b"], 0, 0)
    [True, True]
    """

    def active(self, paths: Sequence[str], seed: int, k: int) -> list[bool]:
        return [True] * len(paths)


class Layers(BlockSchedule):
    """Some of the numbered blocks at a time; what is in no block, embeddings and head, moves always or never."""

    layers: int
    every: int
    embeddings: bool
    blocks: str | None

    @abstractmethod
    def chosen(self, n: int, seed: int, k: int) -> list[int]:
        """The blocks that move at step k, of n."""

    def active(self, paths: Sequence[str], seed: int, k: int) -> list[bool]:
        blocks = blocks_of(paths, self.blocks)
        found = sorted({block for block in blocks if block is not None})
        if len(found) < self.layers:
            raise OptionError(
                f"{self!r}: expected at least {self.layers} numbered blocks in the lower variable, got {len(found)}"
            )
        moving = {found[i] for i in self.chosen(len(found), seed, k)}
        return [self.embeddings if block is None else block in moving for block in blocks]


@dataclass(frozen=True, kw_only=True)
class LISA(Layers):
    """Layerwise importance sampled AdamW: `layers` of the blocks move, drawn anew every `every` steps; the rest moves always.

    Blocks are the entries of the longest outermost numbered list in the names of the leaves (`h.0.`, `h.1.`, ...), or of the
    list named `blocks`. What is in none, embeddings and head, moves always, with embeddings=False never. Draws are uniform
    without replacement and a function of (seed, k // every), the same in all processes. The optimizer's state of a block that
    freezes is dropped: else memory would grow to that of all blocks.

    Raises OptionError, when it is used, where there are fewer than `layers` blocks.

    >>> flags = LISA(layers=1, every=5).active(["emb", "h.0.w", "h.1.w", "h.2.w"], 0, 0)
    >>> flags[0], sum(flags[1:])
    (True, 1)

    Source: LISA, arXiv 2403.17919; 2 layers every 20 steps are the values of its published scripts.
    """

    layers: Steps = 2
    every: Steps = 20
    embeddings: bool = True
    blocks: str | None = None

    def chosen(self, n: int, seed: int, k: int) -> list[int]:
        rng = np.random.default_rng(np.random.SeedSequence([seed, k // self.every]))
        return [int(i) for i in rng.choice(n, self.layers, replace=False)]


@dataclass(frozen=True, kw_only=True)
class Cyclic(Layers):
    """`layers` blocks at a time, one group after another, each for `every` steps. Blocks and `embeddings` as in `LISA`.

    >>> [Cyclic(every=1).active(["emb", "h.0.w", "h.1.w"], 0, k) for k in range(2)]
    [[True, True, False], [True, False, True]]
    """

    layers: Steps = 1
    every: Steps = 20
    embeddings: bool = True
    blocks: str | None = None

    def chosen(self, n: int, seed: int, k: int) -> list[int]:
        first = k // self.every * self.layers
        return [(first + i) % n for i in range(self.layers)]


def blocks_of(paths: Sequence[str], name: str | None = None) -> list[int | None]:
    """The number of the block that each leaf belongs to, None where it belongs to none.

    The blocks are the numbered entries of one list in the names: the one called `name`, or else of the lists that are in no
    other the one with most numbers, of equals the first.

    >>> blocks_of(["wte.weight", "h.0.attn.weight", "h.1.mlp.0.weight", "h.2.mlp.0.weight"])
    [None, 0, 1, 2]
    """
    lists: dict[str, set[int]] = {}
    for path in paths:
        for match in NUMBER.finditer(path):
            lists.setdefault(path[: match.start()], set()).add(int(match[0]))
    named = {head: numbers for head, numbers in lists.items() if name is None or head.rstrip(".").endswith(name)}
    if not named:
        if name is not None:
            raise OptionError(f"blocks: no numbered list called {name!r} in the names {list(paths)[:4]}...")
        return [None] * len(paths)
    head = max(named, key=lambda head: (len(named[head]) > 1, -len(NUMBER.findall(head)), len(named[head]), -len(head)))
    found: list[int | None] = []
    for path in paths:
        match = NUMBER.match(path, len(head)) if path.startswith(head) else None
        found.append(int(match[0]) if match else None)
    return found
