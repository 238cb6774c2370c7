"""Arguments are checked by the ranges of options, in one wording."""

import math

import numpy as np
import pytest

from constrained.core.arguments import expect
from constrained.core.errors import OptionError, ProblemError
from constrained.core.options import Count, Positive, Range, Steps

SHARE = Range(0, 1, "a number in [0, 1]")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Steps, 1), (Count | None, None), (Count, 10**400), (Positive, 1e-300), (SHARE, 1), (bool, False), (int, -1)],
)
def test_what_is_expected_comes_back(kind, value):
    assert expect("n", value, kind) is value


@pytest.mark.parametrize("value", [np.int64(3), np.float32(0.5), np.uint8(1)])
def test_numbers_of_numpy_become_pythons(value):
    found = expect("n", value, Positive)
    assert type(found) in (int, float)
    assert found == value


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Steps, 0, "n: expected an integer >= 1, got 0"),
        (Steps, True, "n: expected an integer >= 1, got True"),
        (Steps, 1.0, "n: expected an integer >= 1, got 1.0"),
        (Count | None, "3", "n: expected an integer >= 0 or None, got '3'"),
        (Positive, math.nan, "n: expected a number > 0, got nan"),
        (Positive, math.inf, "n: expected a number > 0, got inf"),
        (SHARE, 1.5, "n: expected a number in [0, 1], got 1.5"),
        (bool, 1, "n: expected True or False, got 1"),
        (int, True, "n: expected an integer, got True"),
    ],
)
def test_what_is_not_is_refused(kind, value, message):
    with pytest.raises(OptionError) as caught:
        expect("n", value, kind)
    assert str(caught.value) == message


def test_a_caller_names_the_error_and_says_why():
    with pytest.raises(ProblemError, match=r"^n: expected an integer >= 1, got None: there is none$"):
        expect("n", None, Steps, ProblemError, why=": there is none")


@pytest.mark.parametrize("kind", [Positive, float, SHARE, Positive | None])
@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**5000)], ids=["400 digits", "5,000 digits", "negative"])
def test_integers_beyond_the_floats_are_refused(kind, value):
    with pytest.raises(OptionError, match=r"^n: expected a number"):
        expect("n", value, kind)


def test_integers_that_python_does_not_print_are_refused_in_words():
    assert expect("n", 10**5000, Steps) == 10**5000
    for value in (-(10**5000), [10**5000]):
        with pytest.raises(OptionError, match=r"^n: expected an integer >= 1, got <.* without a repr>$"):
            expect("n", value, Steps)
