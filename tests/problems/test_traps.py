"""The traps: that what is said of them is true, from their functions alone."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from constrained.core.errors import OptionError
from constrained.core.problem import Point
from constrained.core.status import Status
from problems import trap, traps
from problems.traps import TRAPS

EVERY = pytest.mark.parametrize("name", TRAPS)
BROKEN = ("outside-the-domain",)


def violation(problem, x: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(x)
    c = problem.equality(x) if problem.equality else x[:0]
    h = problem.inequality(x).clamp(min=0) if problem.inequality else x[:0]
    return torch.cat([c, h]).numpy()


@EVERY
def test_instances_say_what_they_are(name):
    instance = trap(name=name)
    assert instance.name == name
    assert (not instance.statuses) == (instance.raises is not None) == (name in BROKEN)
    assert not any(status.budget for status in instance.statuses)
    assert bool(instance.solution) == math.isfinite(instance.optimum)
    assert trap(name=name, dtype=torch.float32).problem.x.dtype == torch.float32
    assert name in str(traps.__doc__)


@pytest.mark.parametrize("name", [name for name in TRAPS if name not in BROKEN])
def test_derivatives_agree_with_differences(name):
    problem = trap(name=name).problem
    report = problem.check(Point(problem.x + 0.1))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", [name for name, row in TRAPS.items() if Status.LOCALLY_INFEASIBLE in row.statuses])
def test_infeasible_ones_have_no_feasible_point(name):
    """The least violation from many starts is that of one point, and well above 0."""
    problem, least = trap(name=name).problem, []
    for seed in range(10):
        x = 3 * np.random.default_rng(seed).standard_normal(len(problem.x))
        least.append(2 * least_squares(lambda x: violation(problem, x), x).cost)
    np.testing.assert_allclose(least, least[0], rtol=1e-6)
    assert least[0] > 0.1


@pytest.mark.parametrize("name", ["linear-ray", "concave-ray", "inflection"])
def test_unbounded_ones_fall_along_a_feasible_ray(name):
    instance = trap(name=name)
    assert {Status.UNBOUNDED, Status.DIVERGED} <= instance.statuses
    ray = {"linear-ray": lambda t: (-t, 1.0), "concave-ray": lambda t: (t, 1.0), "inflection": lambda t: (-t,)}[name]
    values = []
    for t in (1e1, 1e3, 1e5):
        x = torch.tensor(ray(t), dtype=torch.float64)
        assert not violation(instance.problem, x.numpy()).any()
        values.append(float(instance.problem.objective(x)))
    assert values[0] > values[1] > values[2]
    assert values[2] <= -1e5


@pytest.mark.parametrize("name", [name for name, row in TRAPS.items() if row.solution and name not in (*BROKEN, "no-multiplier")])
def test_solvable_ones_have_the_solution_that_they_say(name):
    instance = trap(name=name)
    (point,) = instance.solution
    assert instance.problem.fun(point) == pytest.approx(instance.optimum, abs=1e-15)
    assert max(instance.problem.residuals(point).values()) <= 1e-14
    assert Status.CONVERGED in instance.statuses


def test_no_multiplier_exists_but_small_residuals_nearby_do():
    instance = trap(name="no-multiplier")
    (point,) = instance.solution
    assert instance.problem.residuals(point)["stationarity"] == 1.0
    assert max(instance.problem.residuals(Point(torch.tensor([1e-5], dtype=torch.float64))).values()) <= 1e-9


def test_the_jacobian_vanishes_at_a_start_where_the_violation_is_greatest():
    problem = trap(name="zero-jacobian").problem
    assert not torch.func.jacrev(problem.equality)(problem.x).any()
    near = problem.x + 0.1 * torch.eye(2, dtype=torch.float64)[0]
    assert np.abs(violation(problem, near.numpy())) < np.abs(violation(problem, problem.x.numpy()))


def test_a_start_outside_the_domain_is_refused():
    instance = trap(name="outside-the-domain")
    with pytest.raises(instance.raises):
        instance.problem.begin(instance.problem.oracle(), None)
    assert max(instance.problem.residuals(instance.solution[0]).values()) == 0.0


@pytest.mark.parametrize("wrong", [{"name": "none"}, {"name": 3}, {"name": []}, {"seed": -1}, {"dtype": torch.int64}], ids=str)
def test_bad_arguments_raise_one_error_of_the_library(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        trap(**wrong)
