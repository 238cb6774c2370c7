"""Convex sets with a Euclidean projection: where a variable may live (`X=`, `Y=`).

Box works entry by entry, Simplex on the last axis of one leaf, Product on the entries of a dict, the others on all leaves as
one vector. Constants are float64, cast when a variable is first met. A set seen to be empty raises ProblemError when made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ProblemError, shown
from ..core.vec import Tree, Vec, map_leaves


class ConvexSet(ABC):
    """A closed convex set, known by its projection P(v) = argmin_u |u - v| over u in the set."""

    whole: bool = False  # nothing to project: Everywhere, and a Product of it
    entrywise: bool = False  # each entry is projected alone: Box too

    def __init__(self) -> None:
        self._cache: dict[Any, tuple[Any, Any]] = {}

    @abstractmethod
    def project(self, v: Vec) -> Vec:
        """The nearest point of the set, with v's structure, dtype and device; v is not written to."""

    def distance(self, v: Vec) -> Tensor:
        """|v - P(v)|, 0-dim float64."""
        return (v - self.project(v)).norm()

    def check(self, v: Vec, name: str = "the variable") -> None:
        """Raise ProblemError, naming the variable, where the set does not fit its structure, shapes, dtypes or devices."""
        self._on(v, name)

    def _fit(self, v: Vec, name: str) -> Any:
        """What `project` needs for variables like v, or ProblemError."""
        return ()

    def _on(self, v: Vec, name: str = "the variable") -> Any:
        """`_fit`, once for each structure, shape, dtype and device."""
        key = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in v.leaves)
        spec, found = self._cache.get(key, (None, None))
        if found is None or not (spec is v.spec or spec == v.spec):
            self._cache[key] = _, found = v.spec, self._fit(v, name)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": {}}


def expect_set(name: str, value: Any) -> None:
    """Raise ProblemError unless the value is a set."""
    if not isinstance(value, ConvexSet):
        raise ProblemError(f"{name}: expected a set such as Box(0, 1), got {type(value).__name__}")


# -- constants: numbers, arrays and trees of them, beside a variable ---------------------------------------------------------
class Constant:
    """A number, array or tree of these in float64. The value at a path holds for every leaf of the variable below it."""

    def __init__(self, value: Tree, name: str, finite: bool = False):
        self.name = name
        vec = Vec.of(map_leaves(lambda leaf: float64_tensor(leaf, name, finite), value), name)
        self.leaves = dict(zip(vec.paths(), vec.leaves))
        self.number = vec.leaves[0].item() if vec.paths() == [""] and vec.leaves[0].ndim == 0 else None

    def on(self, v: Vec, name: str) -> list[Tensor]:
        """One tensor a leaf of v, which broadcasts to it."""
        found, used = [], []
        for p, leaf in zip(v.paths(), v.leaves):
            at = [q for q in self.leaves if leads_to(q, p)]
            if not at:  # a list of numbers that stands for an array
                at = [q for i, q in enumerate(q for q in self.leaves if leads_to(p, q)) if q == f"{p}[{i}]"]
            parts = [self.leaves[q] for q in at]
            try:
                found.append(parts[0] if at and leads_to(at[0], p) else torch.stack(parts))
                found[-1].expand(leaf.shape)
            except RuntimeError:
                shapes = ", ".join(f"{tuple(c.shape)}" for c in parts) or f"nothing, only {', '.join(self.leaves)}"
                raise ProblemError(f"{name}{p}: {self.name} for a leaf of shape {tuple(leaf.shape)}: got {shapes}") from None
            used += at
        if spare := [q for q in self.leaves if q not in used]:
            raise ProblemError(f"{name}: {self.name} for the leaves {', '.join(v.paths())}: got one for {', '.join(spare)} too")
        return found

    def __repr__(self) -> str:
        shapes = [" x ".join(map(str, leaf.shape)) or "1" for leaf in self.leaves.values()]
        return repr(self.number) if self.number is not None else f"<{' + '.join(shapes)}>"


def normal(value: Tree, name: str) -> Constant:
    """The normal of a plane: finite numbers, one at least."""
    found = Constant(value, name, finite=True)
    if not sum(leaf.numel() for leaf in found.leaves.values()):
        raise ProblemError(f"{name}: expected one number an entry of the variable, got none")
    return found


def float64_tensor(value: Any, name: str, finite: bool = True) -> Tensor:
    """Numbers as a float64 tensor of its own. NaN is refused, infinities too where `finite`."""
    try:
        if value is None or isinstance(value, (bool, str)):
            raise TypeError
        tensor = value.detach().double() if isinstance(value, Tensor) else torch.tensor(np.array(value, dtype=np.float64))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ProblemError(f"{name}: expected numbers, got {type(value).__name__} {shown(value)}") from None
    if bool(tensor.isnan().any()) or (finite and not bool(tensor.isfinite().all())):
        raise ProblemError(f"{name}: expected {'finite numbers' if finite else 'numbers or +-inf'}, got {tensor}")
    return tensor.clone()


def one_number(value: Any, name: str) -> float:
    array = float64_tensor(value, name)
    if array.ndim:
        raise ProblemError(f"{name}: expected one number, got shape {tuple(array.shape)}")
    return array.item()


def leads_to(q: str, p: str) -> bool:
    """The path q is p, or leads to it."""
    return p.startswith(q) and (len(p) == len(q) or p[len(q)] in "[.")


def check_nonempty(low: Tensor, high: Tensor, name: str) -> None:
    low, high = torch.broadcast_tensors(low, high.to(low.device))
    empty = (low > high) | (low == math.inf) | (high == -math.inf)
    if bool(empty.any()):
        raise ProblemError(f"{name}: no number lies in [{low[empty][0]:g}, {high[empty][0]:g}]: the set is empty")


def check_entries(v: Vec, name: str, one: ConvexSet, size: int) -> None:
    kinds = sorted({f"{leaf.dtype} on {leaf.device}" for leaf in v.leaves})
    if len(kinds) > 1 or v.size != size:
        raise ProblemError(f"{name}: {one!r} expects {size} entries of one dtype and device, got {v.size} in {', '.join(kinds)}")
