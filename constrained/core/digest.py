"""A digest of the data that samplers hold, so that a run is resumed on the data it began with.

It reaches the tensors and arrays of the samplers here, those of torch's own datasets, and lists of such. It does not reach what
the functions of a problem hold in closures, datasets of other classes, and a `Stream`: these are known by their names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from .data import FullBatch, MiniBatches, NoData
from .live import sharded
from .sources import SourceBatches

WHOLE = 10**8  # bytes of a sampler's data that are all hashed; of more, evenly spaced runs that make SAMPLED: some 0.1 s
SAMPLED = 2**24
RUN = 2**16  # bytes of a run
ITEMS = 10_000  # of a list that are looked at; of more, as many evenly spaced ones
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PLAIN = (bool, int, float, complex, str, bytes, type(None))


def digest(sampler: Any) -> tuple[str, bool]:
    """SHA-256 of what a sampler holds, and whether that is all of its data."""
    parts = list(_parts(sampler))
    size = sum(_size(part) for part in parts)
    share = 1.0 if size <= WHOLE else SAMPLED / size
    found, reached = hashlib.sha256(), True
    for part in parts:
        try:
            for piece in _pieces(part, share):
                found.update(piece)
        except (TypeError, ValueError, RuntimeError):  # the last two: a dtype whose bytes numpy or torch does not show
            found.update(type(part).__name__.encode())
            reached = False
    return found.hexdigest(), reached


def _parts(value: Any) -> Iterator[Any]:
    """Tensors, arrays and plain values, what is none of these as it is."""
    if isinstance(value, (*PLAIN, Tensor, np.ndarray)):
        yield value
    elif isinstance(value, NoData):
        yield None
    elif isinstance(value, FullBatch):
        yield from _parts(value.data)
    elif isinstance(value, MiniBatches):
        yield from _parts([value.dataset if value.arrays is None else value.arrays, value.stratify])
    elif isinstance(value, SourceBatches):
        yield from _parts(value.parts)
    elif type(value) is torch_data.TensorDataset:
        yield from _parts(value.tensors)
    elif type(value) is torch_data.Subset:
        yield from _parts([value.dataset, value.indices])
    elif type(value) in (torch_data.ConcatDataset, torch_data.StackDataset):
        yield from _parts(value.datasets)
    elif isinstance(value, Mapping):
        yield from _parts([part for pair in value.items() for part in pair])
    elif isinstance(value, (list, tuple, range)):
        yield len(value)
        places = range(len(value)) if len(value) <= ITEMS else np.linspace(0, len(value) - 1, ITEMS, dtype=int).tolist()
        for i in places:
            yield from _parts(value[i])
    else:
        yield value


def _size(part: Any) -> int:
    return part.numel() * part.element_size() if isinstance(part, Tensor) else part.nbytes if isinstance(part, np.ndarray) else 0


def _pieces(part: Any, share: float) -> Iterator[Any]:
    """What is hashed of a part, a share of its entries where that is less than 1. Raises TypeError for what has no bytes."""
    if isinstance(part, PLAIN):
        yield f"{type(part).__name__} {part!r}".encode()
        return
    yield f"{getattr(part, 'dtype', '')} {tuple(getattr(part, 'shape', ()))}".encode()
    if isinstance(part, Tensor) and part.layout is torch.strided and not sharded([part]):
        part = (torch.view_as_real(part.resolve_conj()) if part.is_complex() else part).detach().resolve_neg()
        part = part.view(INTEGERS[part.element_size()])
        if share < 1 and part.device.type != "cpu":  # chosen there, so that little is moved
            places = np.concatenate([*_runs(part.numel(), part.element_size(), share)])
            part, share = torch.take(part, torch.from_numpy(places).to(part.device)), 1.0
        part = part.cpu().numpy()
    if not isinstance(part, np.ndarray) or part.dtype.hasobject:
        raise TypeError(f"no bytes of a {type(part).__name__}")
    if share == 1:
        yield np.ascontiguousarray(part)
        return
    for places in _runs(part.size, part.itemsize, share):  # one by one: a transposed array is never copied as a whole
        yield np.ascontiguousarray(part[np.unravel_index(places, part.shape)])


def _runs(entries: int, size: int, share: float) -> Iterator[np.ndarray]:
    """Places of entries, in evenly spaced runs from the first entry to the last that make a share of all."""
    run = min(entries, RUN // size)
    count = 0 if run == 0 else max(1, round(share * entries / run))
    for start in np.linspace(0, entries - run, count, dtype=np.int64):
        yield np.arange(start, start + run)
