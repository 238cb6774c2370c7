"""`bilevel run ... --distributed`: one of the processes that torchrun started."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from constrained.core.errors import OptionError

WANTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun puts into the environment
LIVE = {"live": True, "sharded": True}  # arguments of a problem that runs on several processes


@contextlib.contextmanager
def joined() -> Iterator[str]:
    """In the group of torchrun's processes, by NCCL on GPUs, one each, by gloo without; the device of this process.

    Raises OptionError where torchrun did not start it.
    """
    missing = [name for name in WANTED if name not in os.environ]
    if missing:
        raise OptionError(f"--distributed: expected a process of torchrun, got one without {', '.join(missing)}")
    local, cuda = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield f"cuda:{local}" if cuda else "cpu"
    finally:
        dist.destroy_process_group()


def first() -> bool:
    """This process is the first, or alone: the one that prints and writes."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


def spread(factory: Callable[..., Any], name: str, arguments: dict[str, Any]) -> None:
    """Ask a problem for live, sharded variables, where it was not told otherwise. Raises OptionError where it has none."""
    known = inspect.signature(factory).parameters
    if not set(LIVE) <= set(known):
        raise OptionError(f"--distributed: {name} has no arguments {' and '.join(LIVE)}: it runs in one process")
    for argument, value in LIVE.items():
        arguments.setdefault(argument, value)
