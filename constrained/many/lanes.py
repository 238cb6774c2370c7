"""Lanes: runs that go on side by side, one row of every tensor each."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

LanesT = TypeVar("LanesT")


def taken(lanes: LanesT, index: Tensor) -> LanesT:
    """The lanes of an index, in its order: of every tensor, of every part that has lanes of its own."""
    return _each(lanes, lambda value: value[index])


def _each(lanes: Any, function: Any) -> Any:
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(lanes):
        value = getattr(lanes, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, tuple):
            changed[field.name] = tuple(function(one) for one in value)
    return dataclasses.replace(lanes, **changed)


def joined(one: LanesT, other: LanesT) -> LanesT:
    """The lanes of one, then those of the other."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(one):  # pyright: ignore[reportArgumentType]
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Tensor):
            changed[field.name] = torch.cat([a, b])
        elif isinstance(a, tuple):
            changed[field.name] = tuple(torch.cat(pair) for pair in zip(a, b))
    return dataclasses.replace(one, **changed)  # pyright: ignore[reportArgumentType, reportType]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a'b lane by lane."""
    return torch.linalg.vecdot(a, b)


def times(A: Tensor, v: Tensor) -> Tensor:
    """A v lane by lane."""
    return torch.bmm(A, v.unsqueeze(2)).squeeze(2)


def transposed(A: Tensor, v: Tensor) -> Tensor:
    """A'v lane by lane."""
    return torch.bmm(v.unsqueeze(1), A).squeeze(1)


def largest(v: Tensor) -> Tensor:
    """The largest entry of each lane, 0 where there is none."""
    return v.amax(1) if v.shape[1] else v.new_zeros(len(v))
