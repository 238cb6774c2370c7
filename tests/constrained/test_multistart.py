"""Several starts: the best of known local optima comes first."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from constrained import AugmentedLagrangian, Ball, Box, ConstrainedProblem, multistart
from constrained.core.errors import OptionError

F64 = torch.float64


def wave(X):
    return ConstrainedProblem(
        objective=lambda x: (3 * x).sin().sum() + 0.1 * (x**2).sum(), x=torch.full((1,), 2.0, dtype=F64), X=X
    )


def lowest(low, high):
    return minimize_scalar(lambda x: math.sin(3 * x) + 0.1 * x**2, bounds=(low, high), method="bounded", options={"xatol": 1e-10})


@pytest.mark.parametrize("X", [Box(-4, 4), Ball(4.0), Box(low=-4)])
def test_the_best_local_optimum_comes_first(X):
    found = multistart(wave(X), AugmentedLagrangian(), 8, spread=2.0)
    assert len(found) == 8
    assert found[0].fun == pytest.approx(lowest(-1.0, 0.0).fun, abs=1e-9)
    assert [one.fun for one in found if one.success] == sorted(one.fun for one in found if one.success)
    assert len({round(one.fun, 6) for one in found}) > 1


def test_processes_find_the_same():
    one, two = (multistart(wave(Box(-4, 4)), AugmentedLagrangian(), 4, jobs=jobs) for jobs in (1, 2))
    assert [float(a.x) for a in one] == [float(b.x) for b in two]
    assert two[0].residuals()["stationarity"] <= 1e-8


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n": 0}, "n: "),
        ({"n": True}, "n: "),
        ({"spread": 0}, "spread: "),
        ({"jobs": 0}, "jobs: "),
        ({"jobs": 2.0}, "jobs: "),
        ({"jobs": True}, "jobs: "),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(OptionError, match=word):
        multistart(wave(Box(-4, 4)), AugmentedLagrangian(), **options)
