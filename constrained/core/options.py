"""Options: ranges live in annotations and are checked once, when the object is made.

    @dataclass(frozen=True, kw_only=True)
    class Descent(Options):
        step: Positive | Schedule = Power(0.1, 0.5)
        memory: Steps = 20

`Descent(step=-1.0)` raises `OptionError: Descent(step=-1.0): step must be a number > 0 or a Schedule`. The tests read the
same annotations to make values that must be refused (`outside`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from .errors import OptionError, shown


@dataclass(frozen=True)
class Range:
    """A closed interval of numbers unless an end is open."""

    low: float
    high: float
    words: str
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        if not self.whole and not _is_float(value):
            return False
        number: Any = value  # as it is: a large integer is no float
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return bool(above and below)

    def outside(self) -> Iterator[Any]:
        if math.isfinite(self.low):
            yield self.low if self.open_low else self.low - 1
        if math.isfinite(self.high):
            yield self.high if self.open_high else self.high + 1
        yield math.nan
        yield "a word"
        if self.whole:
            yield 1.5


INF = math.inf
Positive = Annotated[float, Range(0, INF, "a number > 0", open_low=True, open_high=True)]
NonNegative = Annotated[float, Range(0, INF, "a number >= 0", open_high=True)]
Fraction = Annotated[float, Range(0, 1, "a number in (0, 1)", open_low=True, open_high=True)]
Weight = Annotated[float, Range(0, 1, "a number in (0, 1]", open_low=True)]
Growth = Annotated[float, Range(1, INF, "a number >= 1", open_high=True)]
Momentum = Annotated[float, Range(0, 1, "a number in [0, 1)", open_high=True)]
Steps = Annotated[int, Range(1, INF, "an integer >= 1", open_high=True, whole=True)]
Count = Annotated[int, Range(0, INF, "an integer >= 0", open_high=True, whole=True)]


class Schedule:
    """A step size or penalty as a function of the completed steps k: `schedule(k)` -> a number > 0."""

    def __call__(self, k: int) -> float:
        raise NotImplementedError


def at(option: float | Schedule, k: int) -> float:
    """The option's value at step k."""
    return option(k) if isinstance(option, Schedule) else float(option)


class Options:
    """Base of everything configurable: a frozen keyword-only dataclass whose annotations are its ranges."""

    def __new__(cls, *args: Any, **options: Any):
        names = [field.name for field in dataclasses.fields(cls) if field.init] if dataclasses.is_dataclass(cls) else []
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f": did you mean {near[0]}?" if near else "."
                raise OptionError(f"{cls.__name__} has no option {name!r}{hint} It has: {', '.join(names) or 'none'}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, alternatives in ranges(type(self)).items():
            value = getattr(self, name)
            if not any(holds(value, alternative) for alternative in alternatives):
                wanted = " or ".join(words(alternative) for alternative in alternatives)
                raise OptionError(f"{type(self).__name__}({name}={shown(value)}): {name} must be {wanted}, got {shown(value)}")


@dataclass(frozen=True)
class Power(Options, Schedule):
    """scale / (1 + k)**exponent.

    >>> Power(0.3, 0.5)(3)
    0.15
    """

    scale: Positive
    exponent: float

    def __call__(self, k: int) -> float:
        return self.scale / (1 + k) ** self.exponent


@dataclass(frozen=True)
class Cosine(Options, Schedule):
    """scale (1 + cos(pi k / steps)) / 2, down to `scale` / 1000; over the first `warmup` steps a linear rise from 0.

    >>> [round(Cosine(1.0, steps=10, warmup=2)(k), 3) for k in (0, 1, 2, 6, 10)]
    [0.333, 0.667, 1.0, 0.5, 0.001]
    """

    scale: Positive
    steps: Steps
    warmup: Count = 0

    def __call__(self, k: int) -> float:
        if k < self.warmup:
            return self.scale * (k + 1) / (self.warmup + 1)
        done = min(1.0, (k - self.warmup) / max(1, self.steps - self.warmup))
        return self.scale * max(1e-3, 0.5 * (1 + math.cos(math.pi * done)))


@functools.cache
def ranges(cls: type) -> dict[str, tuple[Any, ...]]:
    """For each option, what it may be: ranges, classes, None, literals."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: alternatives(hints[field.name]) for field in dataclasses.fields(cls) if field.init}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """What an annotation allows: its ranges, or its types."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for member in typing.get_args(hint) for part in alternatives(member))
    if typing.get_origin(hint) is Annotated:
        return tuple(mark for mark in hint.__metadata__ if isinstance(mark, Range)) or alternatives(hint.__origin__)
    return (hint,)


def holds(value: Any, alternative: Any) -> bool:
    if isinstance(alternative, Range):
        return alternative.holds(value)
    if alternative is Any:
        return True
    if alternative is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_float(value) and math.isfinite(value)
    if alternative is type(None):
        return value is None
    if alternative is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    origin = typing.get_origin(alternative)
    if origin is typing.Literal:
        return value in typing.get_args(alternative)
    if origin is tuple:
        parts = typing.get_args(alternative)
        if parts[1:] == (...,) and isinstance(value, tuple):  # any number of one kind
            parts = parts[:1] * len(value)
        return (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(any(holds(v, a) for a in alternatives(part)) for v, part in zip(value, parts))
        )
    if (origin or alternative) is Callable or origin is typing.get_origin(Callable[..., Any]):
        return callable(value)
    return isinstance(value, origin or alternative)


def _is_float(value: Any) -> bool:
    """Not an integer or a fraction beyond the floats."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


def words(alternative: Any) -> str:
    """The alternative as an error message names it."""
    if isinstance(alternative, Range):
        return alternative.words
    if alternative is float:
        return "a number"
    if alternative is type(None):
        return "None"
    if alternative is int:
        return "an integer"
    if alternative is bool:
        return "True or False"
    origin = typing.get_origin(alternative)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(alternative))
    if origin is tuple:
        return "(" + ", ".join(" or ".join(words(a) for a in alternatives(p)) for p in typing.get_args(alternative)) + ")"
    name = getattr(alternative, "__name__", str(alternative))
    return ("an " if name[0] in "AEIOU" else "a ") + name


def outside(cls: type) -> Iterator[tuple[str, Any]]:
    """(option, value) pairs that `cls` must refuse, made from its annotations."""
    for name, alternatives in ranges(cls).items():
        bad: list[Any] = [object()]
        for alternative in alternatives:
            bad += alternative.outside() if isinstance(alternative, Range) else []
        for value in bad:
            if not any(holds(value, alternative) for alternative in alternatives):
                yield name, value
