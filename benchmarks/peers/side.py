"""What one side of the comparison is: a hypergradient at (x, y), with the settings it was made with."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .task import Task


class Answer(NamedTuple):
    """f(x, y) and the hypergradient as the side has them, and the y that its next call may start from."""

    value: float
    gradient: np.ndarray
    y: np.ndarray
    status: str = ""  # what the side itself says of its accuracy; most say nothing


Call = Callable[[np.ndarray, np.ndarray], Answer]


@dataclass(frozen=True)
class Side:
    """One library at one setting. `call` is made on first use: what it costs to set up, jit included, is not timed."""

    setting: str
    make: Callable[[Task], Call]


@dataclass(frozen=True)
class Peer:
    """One library: as its own documentation has it, and at rising accuracy.

    ladder: the sides from coarse to fine; `asked` takes the first that reaches an accuracy. documented: settings taken from the
    library's defaults, README or examples. usual: a cheap one, as in its examples of whole loops. missing: why it is not here.
    """

    name: str
    version: str = ""
    ladder: Callable[[], Iterator[Side]] = lambda: iter(())
    documented: tuple[Side, ...] = ()
    usual: Side | None = None
    missing: str = ""


class Found(NamedTuple):
    """A side with what it costs: CPU seconds, the least of the repeats, and the error relative to |exact|.

    first: of making it and the first call; a compiler's time is in it.
    """

    side: Side
    call: Call
    first: float
    seconds: float
    error: float
    status: str


def measured(side: Side, task: Task, x: np.ndarray, exact: np.ndarray, repeats: int, most: float = math.inf) -> Found | None:
    """From the task's start y each time; the first call is timed apart. None for an error above `most`."""
    start = time.process_time()
    call, seconds = side.make(task), []
    answer = call(x, task.y)
    first = time.process_time() - start
    error = float(np.linalg.norm(answer.gradient - exact) / np.linalg.norm(exact))
    if not error <= most:
        return None
    for _ in range(repeats):
        start = time.process_time()
        call(x, task.y)
        seconds.append(time.process_time() - start)
    return Found(side, call, first, min(seconds, default=math.nan), error, answer.status)


def asked(peer: Peer, task: Task, x: np.ndarray, exact: np.ndarray, error: float, repeats: int = 0) -> Found | None:
    """The first of the ladder with at most this error, None where none has."""
    found = (measured(side, task, x, exact, repeats, error) for side in peer.ladder())
    return next((one for one in found if one is not None), None)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def absent(name: str, why: Any) -> Peer:
    return Peer(name, missing=f"{type(why).__name__}: {why}" if isinstance(why, Exception) else str(why))
