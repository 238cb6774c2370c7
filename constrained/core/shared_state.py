"""What a process has once, and an evaluation sets for a while: the global generators, the switch of cuDNN.

Another thread's draws would come from the seed set here, and what is put back here would undo what it set: so one thread at a
time has the generators, and the switch counts those that need it off.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .vec import Vec

GENERATORS = threading.RLock()  # reentrant: a function may solve a problem of its own
UNCOPIED = threading.RLock()  # modules that cannot be copied, while their parameters are others
NOTHING = contextlib.nullcontext()
_switch = threading.Lock()
_off, _cudnn = 0, contextlib.ExitStack()  # how many need cuDNN off; what the last of them closes


@contextlib.contextmanager
def generators_kept(devices: Sequence[int] = (), *, torch_alone: bool = False) -> Iterator[None]:
    """The global generators of torch (CPU, and the CUDA devices), numpy and Python are this thread's within, and stand afterwards
    where they stood. torch_alone: numpy's and Python's, which take 0.1 ms, are left out.
    """
    with GENERATORS:
        own = [torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)]
        kept = [generator.get_state() for generator in own]
        rest = None if torch_alone else (np.random.get_state(legacy=False), random.getstate())  # noqa: NPY002
        try:
            yield
        finally:
            for generator, state in zip(own, kept):
                generator.set_state(state)
            if rest is not None:
                np.random.set_state(rest[0])  # noqa: NPY002
                random.setstate(rest[1])


def seed_generators(word: int, devices: Sequence[int] = (), *, torch_alone: bool = False) -> None:
    """Seed them by 64 bits, within `generators_kept`."""
    # `torch.manual_seed` would reseed every CUDA device, kept or not.
    for generator in (torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)):
        generator.manual_seed(word >> 1)
    if not torch_alone:
        np.random.seed(word & 0xFFFFFFFF)  # noqa: NPY002
        random.seed(word)


class Randomness:
    """Module randomness (dropout) seeded by the draw: two evaluations on one batch see one mask, the global state is kept.

    trained: a module in train mode is evaluated, which may draw from numpy's and Python's generators too (LayerDrop of
    transformers does). Those are seeded until an evaluation leaves them alone.
    """

    def __init__(self, trained: bool = False):
        self.others = trained

    def __call__(self, key: tuple[int, int, int] | None, args: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        """args: modules and trees, whose devices are seeded too. key: None where there is nothing to seed."""
        return NOTHING if key is None else self._seeded(key, args)

    @contextlib.contextmanager
    def _seeded(self, key: tuple[int, int, int], args: Sequence[Any]) -> Iterator[None]:
        leaves = [leaf for arg in args for leaf in (arg.parameters() if isinstance(arg, torch.nn.Module) else Vec.of(arg).leaves)]
        devices = sorted({leaf.device.index or 0 for leaf in leaves if leaf.device.type == "cuda"})
        word = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        with generators_kept(devices, torch_alone=not self.others):
            seed_generators(word, devices, torch_alone=not self.others)
            yield
            self.others = self.others and _others_drew(word)


def _others_drew(word: int) -> bool:
    """Something was drawn from numpy's or Python's generator since they were seeded by `word`."""
    now = np.random.random_sample(), random.random()  # noqa: NPY002
    seed_generators(word)
    return now != (np.random.random_sample(), random.random())  # noqa: NPY002


@contextlib.contextmanager
def without_cudnn(device: torch.device) -> Iterator[None]:
    """cuDNN is off within, where the device has it: its kernels of RNNs have no double backward."""
    global _off
    if device.type != "cuda":
        yield
        return
    with _switch:
        if _off == 0:
            _cudnn.enter_context(torch.backends.cudnn.flags(enabled=False))
        _off += 1
    try:
        yield
    finally:
        with _switch:
            _off -= 1
            if _off == 0:
                _cudnn.close()
