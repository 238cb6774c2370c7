"""Checks of arguments that are not options, by the ranges and types that options have, in one wording.

expect("n", n, Steps)                                   n: expected an integer >= 1, got 0
expect("max_steps", max_steps, Count | None)            max_steps: expected an integer >= 0 or None, got -1
expect("Cut(at=...)", at, Range(0, 1, "a number in [0, 1]"))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import OptionError, shown
from .options import alternatives, holds, words


def expect(name: str, value: Any, kind: Any, error: type[Exception] = OptionError, *, why: str = "") -> Any:
    """The value, numpy's numbers as Python's; raises `error` where it is none of what `kind` allows. A bool is no number.

    kind: an annotation of options such as `Steps` or `Positive | None`, a `Range`, a class. why: the end of the message.

    >>> expect("spread", 0.5, float), expect("n", np.int64(3), int)
    (0.5, 3)
    """
    allowed = alternatives(kind)
    if not any(holds(value, one) for one in allowed):
        raise error(f"{name}: expected {' or '.join(words(one) for one in allowed)}, got {shown(value)}{why}")
    return value.item() if isinstance(value, np.generic) else value
