"""What a product with a matrix costs, in flops and bytes, and the time that a machine takes for these."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Machine(NamedTuple):
    """Seconds a call of an operation, bytes a second, operations a second of matrix products and of factorisations."""

    call: float
    bytes: float
    products: float
    factors: float


MACHINES = {"cpu": Machine(6e-6, 2e10, 1.5e10, 1e10), "cuda": Machine(8e-6, 2e12, 2e13, 1e12)}
MULTIPLY = ("mm", "mv", "addmm", "addmv", "bmm", "baddbmm")


class Operations(TorchDispatchMode):
    """What torch does in a block: `calls`, `bytes` read and written by elementwise work, `matrices` by products of matrices,
    and their `flops`: 2 sqrt(|A| |B| |AB|) = 2 i j k for (i, j) times (j, k). Views are free; work outside torch is not seen.

    >>> import torch
    >>> with Operations() as done:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> done.flops
    48.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes, self.matrices, self.flops = 0, 0, 0, 0.0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True, the default, makes the first call import torch._dynamo: a second

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls += 1
            sizes = [t.numel() for t in _tensors((*args, out))]
            touched = sum(sizes) * (out.element_size() if isinstance(out, Tensor) else 8)
            if func.overloadpacket.__name__ in MULTIPLY:
                self.matrices += touched
                self.flops += 2 * math.prod(sizes[-3:]) ** 0.5
            else:
                self.bytes += touched
        return out


def _tensors(args: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (tuple, list)):
            found += _tensors(arg)
    return found
