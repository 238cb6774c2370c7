"""Options: what the annotations allow, what they refuse, and what the refusal says."""

import doctest
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from constrained.core import options
from constrained.core.errors import BilevelError, OptionError
from constrained.core.options import (
    Count,
    Fraction,
    Momentum,
    NonNegative,
    Options,
    Positive,
    Power,
    Range,
    Schedule,
    Steps,
    at,
    outside,
    ranges,
)


@dataclass(frozen=True, kw_only=True)
class Inner(Options):
    size: Steps = 3


@dataclass(frozen=True, kw_only=True)
class Every(Options):
    positive: Positive = 1.0
    non_negative: NonNegative = 0.0
    fraction: Fraction = 0.5
    momentum: Momentum = 0.0
    steps: Steps = 1
    count: Count = 0
    number: float = -3.0
    scheduled: Positive | Schedule = 0.1
    optional: Positive | None = None
    flag: bool = False
    word: Literal["short", "long"] = "short"
    pair: tuple[Momentum, Momentum | None] = (0.9, None)
    call: Callable[[float], float] | None = None
    inner: Inner = Inner()


GOOD = {
    "positive": [1e-300, 1, 1e300, np.float64(2), np.float32(2), np.int64(3)],
    "non_negative": [0, 0.0, 5.5],
    "fraction": [1e-9, 1 - 1e-9],
    "momentum": [0, 0.999],
    "steps": [1, 10**9, np.int64(4)],
    "count": [0, 7],
    "number": [-1, 0, 2.5],
    "scheduled": [0.5, Power(1.0, 0.5)],
    "optional": [None, 3.0],
    "flag": [True, False],
    "word": ["short", "long"],
    "pair": [(0.0, None), (0.5, 0.5)],
    "call": [None, math.sqrt],
    "inner": [Inner(size=4)],
}
BAD = {
    "positive": [0, -1, math.inf, math.nan, True, "1", None, torch.tensor(1.0), [1.0]],
    "non_negative": [-1e-300, math.inf, math.nan],
    "fraction": [0, 1, -0.5, 1.5],
    "momentum": [1, -1e-9, 1.1],
    "steps": [0, -1, 1.5, 1.0, True, "3", math.inf],
    "count": [-1, 0.5, False],
    "number": [math.inf, math.nan, True, "0", None],
    "scheduled": [0, None, "power", Power],
    "optional": [0, "none"],
    "flag": ["yes", None],
    "word": ["Short", "", None, 1],
    "pair": [(0.9,), (1.0, 0.5), (0.5, 0.5, 0.5), [0.9, 0.9], 0.9],
    "call": [3],
    "inner": [None, Inner, 3],
}


def refusal(cls: type, **options: object) -> str:
    with pytest.raises(OptionError) as caught:
        cls(**options)
    return str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in GOOD.items() for v in values], ids=str)
def test_values_in_range_are_taken(name, value):
    assert getattr(Every(**{name: value}), name) is value


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values], ids=str)
def test_values_out_of_range_are_refused(name, value):
    message = refusal(Every, **{name: value})
    assert message.startswith(f"Every({name}=")
    assert repr(value) in message
    assert f"{name} must be" in message


def test_every_value_that_outside_makes_is_refused():
    made = list(outside(Every))
    assert {name for name, _ in made} == set(ranges(Every))
    for name, value in made:
        assert repr(value) in refusal(Every, **{name: value})


@pytest.mark.parametrize("cls", [Every, Inner, Power])
def test_outside_of_each_class(cls):
    for name, value in outside(cls):
        given = {"scale": 1.0, "exponent": 0.5} if cls is Power else {}
        refusal(cls, **{**given, name: value})


def test_the_message_names_class_option_range_and_value():
    assert refusal(Every, steps=0) == "Every(steps=0): steps must be an integer >= 1, got 0"
    assert "a number > 0 or a Schedule" in refusal(Every, scheduled=-1)
    assert "a number > 0 or None" in refusal(Every, optional=-1)
    assert "'short' or 'long'" in refusal(Every, word="middle")
    assert "(a number in [0, 1), a number in [0, 1) or None)" in refusal(Every, pair=())
    assert "an Inner" in refusal(Every, inner=3)
    assert issubclass(OptionError, BilevelError)
    assert issubclass(OptionError, ValueError)


def test_a_misspelt_option_is_suggested():
    message = refusal(Every, postive=1.0)
    assert "Every" in message
    assert "'postive'" in message
    assert "did you mean positive?" in message


def test_an_unknown_option_lists_what_there_is():
    message = refusal(Inner, zzz=1)
    assert "did you mean" not in message
    assert "size" in message


def test_options_are_frozen_compare_and_repeat_their_repr():
    every = Every(pair=(0.5, 0.25), scheduled=Power(0.3, 0.5))
    with pytest.raises(FrozenInstanceError):
        every.steps = 3  # pyright: ignore
    again = eval(repr(every), {"Every": Every, "Inner": Inner, "Power": Power})
    assert again == every
    assert hash(again) == hash(every)


def test_subclasses_inherit_and_widen():
    @dataclass(frozen=True, kw_only=True)
    class More(Inner):
        size: Count = 0
        extra: Positive = 1.0

    assert More(size=0).size == 0
    assert set(ranges(More)) == {"size", "extra"}
    assert "More(extra=0)" in refusal(More, extra=0)
    assert "Inner(size=0)" in refusal(Inner, size=0)


def test_schedules():
    assert at(0.5, 7) == 0.5
    assert at(Power(0.3, 0.5), 3) == pytest.approx(0.15, rel=1e-15)
    assert [at(Power(2.0, 1.0), k) for k in range(3)] == [2.0, 1.0, 2 / 3]
    assert isinstance(at(1, 0), float)
    assert "Power(scale=0" in refusal(Power, scale=0, exponent=1.0)
    with pytest.raises(NotImplementedError):
        Schedule()(0)


def test_ranges_are_read_from_the_annotations():
    (steps,) = ranges(Every)["steps"]
    assert isinstance(steps, Range)
    assert steps.words == "an integer >= 1"
    assert ranges(Every)["scheduled"][1] is Schedule


def test_docstring_examples():
    assert doctest.testmod(options).failed == 0


@pytest.mark.parametrize("value", [10**400, 10**5000], ids=["400 digits", "5,000 digits"])
def test_integers_beyond_the_floats_are_refused(value):
    with pytest.raises(OptionError, match="scale must be a number > 0"):
        Power(value, 0.5)
    with pytest.raises(OptionError, match="exponent must be a number"):
        Power(0.5, value)
