"""Processes that run together under torchrun: their shares of a batch, and means over them.

The only file in which processes exchange numbers.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ProblemError
from .vec import Tree, map_leaves, tensors


class Ranks:
    """The processes of this run: which one this is, of how many, and means over them."""

    def __init__(self, device: torch.device):
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device

    @staticmethod
    def here(device: torch.device) -> Ranks | None:
        """None where the process is alone."""
        alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
        return None if alone else Ranks(device)

    def mean_(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes: the same bits in all of them."""
        for value in values:
            dist.all_reduce(value)
            value /= self.world

    def share(self, sampler: Any, batch: Tree) -> Tree:
        """The rows of a batch that this process takes. Raises ProblemError where they cannot be shared evenly."""
        if batch is None:
            return None
        if hasattr(sampler, "share"):
            return sampler.share(batch, self.rank, self.world)
        n = len(tensors(batch)[0])
        if n % self.world:
            raise ProblemError(f"a batch of {n} rows cannot be shared evenly by {self.world} processes: choose another size")

        def mine(rows: Any) -> Any:
            return rows[self.rank :: self.world] if isinstance(rows, Tensor) and rows.ndim and len(rows) == n else rows

        return map_leaves(mine, batch)

    def first(self, value: float) -> float:
        """The number that the first process has: for decisions that all must take alike."""
        found = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        dist.broadcast(found, 0)
        return float(found)

    def any(self, flag: bool) -> bool:
        """Whether it holds in some process."""
        found = torch.tensor(float(flag), dtype=torch.float64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def same(self, name: str, *values: float) -> None:
        """Raise ProblemError, in all processes, where they do not have the same numbers."""
        if self.any(any(self.first(value) != value for value in values)):
            raise ProblemError(f"{name}: expected the same in every process, got others: seed all of them alike")

    def check(self, name: str, sampler: Any) -> None:
        """Raise ProblemError at the start where a batch of mini-batches will not be shared evenly."""
        sizes = {getattr(sampler, "size", 0)}
        if not getattr(sampler, "drop_last", True):
            sizes.add(len(sampler) % sampler.size)
        if any(size % self.world for size in sizes):
            wanted = f"batches of multiples of {self.world} rows, with drop_last=True"
            raise ProblemError(f"{name}: expected {wanted}, for {self.world} processes to share, got {sampler!r}")

    def gathered(self, value: Any) -> list[Any]:
        """The plain data that each process has."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        dist.barrier()
