"""A limit of time that binds wherever it runs out: inside a step, a minimisation within it, a projection, a certificate.

`Calls.of`, which every call of a user's function passes, and loops that call none `look()` at the clock.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextvars import ContextVar

_end: ContextVar[float] = ContextVar("end", default=math.inf)  # of this thread, on the clock of time.perf_counter


class OutOfTime(BaseException):
    """The time is over. No Exception: nobody but who set the limit may catch it."""


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """What runs inside has so many seconds, fewer where a limit around it ends sooner; None: no limit of its own."""
    mine = math.inf if seconds is None else time.perf_counter() + seconds
    token = _end.set(min(_end.get(), mine))
    try:
        yield
    finally:
        _end.reset(token)


def look() -> None:
    """Raise OutOfTime where the time is over."""
    if time.perf_counter() > _end.get():
        raise OutOfTime
