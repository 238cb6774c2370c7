"""Product: one set for each part of a variable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch

from ..core.errors import ProblemError
from ..core.vec import Vec
from .base import ConvexSet


@final
class Product(ConvexSet):
    """A set for each top-level entry of a dict (by key) or of a list or tuple (by position); the others are free.

    P projects each entry onto its own set. Raises ProblemError for values that are not sets; `check` for keys that the
    variable does not have, and where an entry does not fit its set.

    >>> from constrained import Simplex
    >>> Product({"w": Simplex()}).project(Vec.of({"w": torch.tensor([2.0, 0.0]), "b": torch.tensor([-5.0])})).tree()
    {'w': tensor([1., 0.]), 'b': tensor([-5.])}
    """

    def __init__(self, sets: Mapping[Any, ConvexSet]):
        super().__init__()
        if not isinstance(sets, Mapping) or not all(isinstance(one, ConvexSet) for one in sets.values()):
            raise ProblemError(f"Product: expected a mapping from top-level keys to sets such as Box(0, 1), got {sets!r:.80}")
        self.sets = dict(sets)
        self.whole, self.entrywise = (all(getattr(one, a) for one in self.sets.values()) for a in ("whole", "entrywise"))

    def project(self, v: Vec) -> Vec:
        leaves = dict(enumerate(v.leaves))
        for key, (places, spec) in self._on(v).items():
            leaves.update(zip(places, self.sets[key].project(Vec([v.leaves[i] for i in places], spec)).leaves))
        return v.like(leaves.values())

    def _fit(self, v: Vec, name: str) -> dict[Any, tuple[list[int], Any]]:
        # A tree of leaf numbers shows which leaves lie below a key.
        marks = v.like(torch.tensor(float(i), dtype=torch.float64) for i in range(len(v.leaves))).tree()
        if not isinstance(marks, (Mapping, list, tuple)):
            raise ProblemError(f"{name}: {self!r} expects a dict, list or tuple of variables, got a {type(marks).__name__}")
        keys, parts = list(marks) if isinstance(marks, Mapping) else list(range(len(marks))), {}
        for key, one in self.sets.items():
            if key not in keys:
                raise ProblemError(f"{name}: {self!r} expects an entry {key!r}, got {', '.join(map(repr, keys))}")
            below = Vec.of(marks[key])
            places = [int(mark) for mark in below.leaves]
            one.check(Vec([v.leaves[i] for i in places], below.spec), f"{name}[{key!r}]")
            parts[key] = (places, below.spec)
        return parts

    def __repr__(self) -> str:
        return f"Product({self.sets!r})"
