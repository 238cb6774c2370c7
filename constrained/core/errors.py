"""The exception tree.

    BilevelError
    ├── ProblemError        a problem that is not one: wrong shape, dtype, device, value, an objective of nothing
    │   └── NonFiniteStart  a function is NaN or infinite at the start (which one is named)
    ├── OptionError         a solver's option out of range, of the wrong kind, or misspelt
    ├── Unsuitable          this solver cannot handle this problem; the message names the feature and a solver that fits
    ├── CheckpointError     a file that is not a checkpoint, or one of another problem, solver, data or format
    ├── MissingExtra        an optional package is not installed; the message holds the pip command
    ├── OutputError         a folder or file that cannot be written
    ├── NonFiniteGradient   of a live variable; a run ends as NONFINITE before a step is made with it
    └── SolveFailed         raised by `Result.raise_for_status()`; carries the result

Each is also the built-in a caller would expect (`ValueError`, `ImportError`, `OSError`, `RuntimeError`).
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class BilevelError(Exception):
    """Base of every exception the library raises on purpose."""


class ProblemError(BilevelError, ValueError):
    """A problem, a start or a set is not well formed."""


class NonFiniteStart(ProblemError):
    """A function or its gradient is NaN or infinite at the start."""


class OptionError(BilevelError, ValueError):
    """An option is out of range, of the wrong kind, or misspelt."""


class Unsuitable(BilevelError, ValueError):
    """The solver cannot handle a feature of the problem."""


class CheckpointError(BilevelError, ValueError):
    """A checkpoint cannot be read, or belongs to something else."""


class MissingExtra(BilevelError, ImportError):
    """An optional dependency is not installed."""


class OutputError(BilevelError, OSError):
    """A folder or file cannot be written."""


class NonFiniteGradient(BilevelError, ArithmeticError):
    """A gradient in a live variable is NaN or infinite."""


class SolveFailed(BilevelError, RuntimeError):
    """A solve ended without an answer; `result` is what there is."""

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result


@contextlib.contextmanager
def raised(name: str, when: str) -> Iterator[None]:
    """What a user's function raises in here, of whatever kind, as a ProblemError that names it."""
    try:
        yield
    except BilevelError:
        raise
    except Exception as cause:  # of any class
        raise ProblemError(f"{name}: raised {type(cause).__name__} {when}: {cause}") from cause


def shown(value: Any, width: int = 60) -> str:
    """What came, as a message shows it: the beginning of its repr, which Python refuses for integers of 5,000 digits."""
    try:
        text = repr(value)
    except Exception:  # of any class
        text = f"<{type(value).__name__} without a repr>"
    return text if len(text) <= width else f"{text[: width - 3]}..."


def extra(module: str, name: str) -> ModuleType:
    """Import an optional module, or raise one sentence with the pip command of the extra that holds it."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingExtra(f"{module.split('.')[0]} is not installed: pip install 'bilevel[{name}]'") from cause
