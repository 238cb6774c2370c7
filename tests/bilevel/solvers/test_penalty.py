"""Penalty as it is accepted: only `tol` given, status CONVERGED, the right x within a number of gradients."""

import math

import numpy as np
import pytest
import torch

from bilevel import BilevelProblem, Box, Function, Penalty, PenaltyDescent, Point, ScalarAdam, Status, solve
from problems.quadratic import quadratic
from problems.toy import PL_MINIMA, pl_toy

F64 = torch.float64
# instance's options, tol, relative x error, gradients
ACCEPTANCE = {
    "cond 10": ({"cond": 10.0}, 1e-6, 1e-6, 10_000),
    "cond 1000": ({"cond": 1000.0}, 1e-4, 1e-4, 30_000),
    "rank 12 flat": ({"rank": 12, "flat": True}, 1e-5, 1e-5, 4_000),
    "rank 12": ({"rank": 12}, 1e-3, 1e-3, 5_000),
}


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


def accept(name: str, seed: int, factor: int) -> None:
    options, tol, error, gradients = ACCEPTANCE[name]
    instance = quadratic(seed=seed, **options)
    result = solve(instance.problem, Penalty(), tol=tol)
    best = instance.solution[0]
    assert result.status is Status.CONVERGED, result
    assert float((result.x - best.x).norm() / best.x.norm()) <= error
    assert result.calls.gradients <= factor * gradients
    assert all(value <= tol for value in result.residuals().values()), result.residuals()
    assert all(value <= tol for value in result.certify().values()), result.certify()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "cond 1000")) for n in ACCEPTANCE])
def test_quadratics_of_seed_0(name):
    accept(name, 0, 1)


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4, 5))])
@pytest.mark.parametrize("name", ["rank 12 flat", "rank 12"])
def test_quadratics_of_more_seeds(name, seed):
    accept(name, seed, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["cond 10", "cond 1000"])
def test_quadratics_of_more_seeds_full_rank(name, seed):
    accept(name, seed, 2)


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 50))])
def test_pl_toy_from_random_starts(seed):
    result = solve(pl_toy(seed=seed).problem, Penalty())
    assert result.status is Status.CONVERGED, result
    assert min(abs(float(result.x) - x) for x in PL_MINIMA) <= 1e-6
    assert float(result.y) == pytest.approx(-float(result.x), abs=1e-6)
    assert result.calls.gradients <= 1000


def test_pl_minima_are_minima():
    """The three numbers that the starts are judged by: f(x, -x) is flat there and higher beside them."""

    def value(x):
        return math.cos(2 - 4 * x) / (1 + math.exp(2 - 4 * x)) + 0.5 * math.log((4 * x - 2) ** 2 + 1)

    for x in PL_MINIMA:
        assert abs(value(x + 1e-5) - value(x - 1e-5)) / 2e-5 <= 1e-7
        assert min(value(x + 1e-3), value(x - 1e-3)) > value(x)
    grid = np.linspace(0, 3, 30_001)
    values = np.array([value(x) for x in grid])
    inner = (values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])
    assert sorted(PL_MINIMA) == pytest.approx(grid[1:-1][inner], abs=2e-4)


def test_gradients_are_counted_one_a_function():
    """Every evaluation of f and of g, seen from inside the functions, is one counted gradient."""
    seen = {"upper": 0, "lower": 0}

    def count(name, function):
        def counted(x, y):
            seen[name] += 1
            return function(x, y)

        return counted

    instance = quadratic(seed=0)
    one = BilevelProblem(
        upper=count("upper", instance.problem.upper),
        lower=count("lower", instance.problem.lower),
        x=instance.problem.x,
        y=instance.problem.y,
    )
    solver = Penalty(tol=1e-6)
    oracle = one.oracle()
    start, by = one.begin(oracle, None), oracle.calls.by["solve"]
    looks = {level: by[level].values for level in seen}  # differences at the start
    state = solver.init(oracle, start)
    for _ in range(5):
        state = solver.step(oracle, state)
    assert seen == {level: looks[level] + by[level].gradients for level in seen}
    assert {level: by[level].values for level in seen} == looks


def test_optimistic_lower_solution():
    """S(x) = {y_1 = x_1} leaves y_2 free; f decides: y_2 = 3, x_1 = 1/2 (2 x_1 = 2 (1 - x_1))."""
    one = BilevelProblem(
        upper=lambda x, y: (y[0] - 1) ** 2 + (x**2).sum() + (y[1] - 3) ** 2,
        lower=lambda x, y: (y[0] - x[0]) ** 2,
        x=vector(0),
        y=vector(0, 0),
    )
    result = solve(one, tol=1e-5)
    assert result.success, result
    assert float(result.x) == pytest.approx(0.5, abs=1e-4)
    assert result.y.numpy() == pytest.approx([0.5, 3], abs=1e-3)


def test_sets_on_both_levels():
    """y = clip(x, 0, 1), f = (y - 2)^2 + (x - 1/2)^2 / 10 on x in [-1, 0.8]: the bound x = 0.8 is the answer."""
    one = BilevelProblem(
        upper=lambda x, y: ((y - 2) ** 2).sum() + 0.1 * ((x - 0.5) ** 2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        x=vector(0, 0.5),
        y=vector(0, 0),
        X=Box(-1, 0.8),
        Y=Box(0, 1),
    )
    result = solve(one, tol=1e-5)
    assert result.success, result
    assert result.x.numpy() == pytest.approx([0.8, 0.8], abs=1e-5)
    assert result.y.numpy() == pytest.approx([0.8, 0.8], abs=1e-5)


def test_numpy_functions_without_second_derivatives():
    """min (y - 1)^2 + x^2 / 2 with y = 2 x: x = 4 / 9; nothing but gradients from numpy."""
    up = Function.numpy(lambda x, y: ((y - 1) ** 2 + x**2 / 2).sum(), gradient=lambda x, y: (x, 2 * (y - 1)))
    low = Function.numpy(lambda x, y: ((y - 2 * x) ** 2).sum(), gradient=lambda x, y: (-4 * (y - 2 * x), 2 * (y - 2 * x)))
    result = solve(BilevelProblem(upper=up, lower=low, x=np.zeros(2), y=np.zeros(2)), tol=1e-4)
    assert result.success, result
    assert result.x.numpy() == pytest.approx([4 / 9, 4 / 9], abs=1e-4)
    assert "upper_estimate" in result.residuals()


def test_float32():
    instance = quadratic(seed=0)
    upper, lower = instance.problem.upper, instance.problem.lower
    one = BilevelProblem(
        upper=lambda x, y: upper(x.double(), y.double()).float(),
        lower=lambda x, y: lower(x.double(), y.double()).float(),
        x=torch.zeros(10),
        y=torch.zeros(20),
    )
    result = solve(one)
    assert result.status in (Status.CONVERGED, Status.PRECISION, Status.LINE_SEARCH, Status.STALLED), result
    assert result.success == all(value <= 1e-3 for value in result.certify().values())
    assert result.x.dtype is torch.float32
    assert instance.error(result.x.double()) <= 1e-2


def test_fixed_penalty_solves_the_surrogate_and_says_so():
    """psi_s of min (y - 1)^2 + x^2 with y = x, s = 1: y_s = (1 + x) / 2, psi = (1 - x)^2 / 2 + x^2, x = 1/3 and not 1/2."""
    one = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2 + x**2).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=vector(0), y=vector(0)
    )
    result = solve(one, Penalty(sigma=1.0, richardson=False))
    assert result.status is Status.MAX_STEPS
    assert not result.success
    assert float(result.x) == pytest.approx(1 / 3, abs=1e-6)
    assert "surrogate" in " ".join(result.notes)
    by_adam = solve(one, PenaltyDescent(sigma=1.0, richardson=False, outer=ScalarAdam(lr=0.1), max_outer=300))
    assert by_adam.status is Status.MAX_STEPS
    assert float(by_adam.x) == pytest.approx(1 / 3, abs=1e-2)


def test_lower_level_without_a_minimum():
    """g falls without bound: never CONVERGED."""
    one = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2 + x**2).sum(), lower=lambda x, y: (x * y).sum(), x=vector(1), y=vector(0)
    )
    result = solve(one, max_steps=30)
    assert not result.success
    assert result.status.done


def test_upper_level_without_a_minimum():
    one = BilevelProblem(upper=lambda x, y: (y + x).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=vector(0), y=vector(0))
    result = solve(one, max_steps=8)
    assert not result.success
    assert result.status.done


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_nan_later_ends_with_the_last_finite_point(level):
    """log of what the run drives below zero: NONFINITE, and what is returned is finite."""
    functions = {
        "upper": lambda x, y: ((y + 1) ** 2 + x**2).sum(),
        "lower": lambda x, y: ((y - x) ** 2).sum(),
    }
    right = functions[level]
    functions[level] = lambda x, y: right(x, y) + 0 * torch.where(x > 0.5, 0.0, float("nan")).sum()
    result = solve(BilevelProblem(x=vector(2), y=vector(2), **functions))
    assert result.status is Status.NONFINITE, result
    assert bool(result.x.isfinite().all())
    assert bool(result.y.isfinite().all())
    assert float(result.x) >= 0.5


def test_start_is_used_and_untouched():
    x, y = vector(1.5), vector(-1.5)
    instance = pl_toy()
    point = Point(torch.tensor(2.8, dtype=F64), torch.tensor(-2.8, dtype=F64))
    result = solve(instance.problem, start=point)
    assert float(result.x) == pytest.approx(PL_MINIMA[2], abs=1e-6)
    assert float(point.x) == 2.8
    assert float(instance.problem.x) == 1.5
    assert torch.equal(x, vector(1.5))
    assert torch.equal(y, vector(-1.5))
