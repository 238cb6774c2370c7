"""Warm against cold starts of the lower level."""

import pytest
import torch

from bilevel import BilevelProblem, Implicit, MiniBatches, Penalty, PenaltySGD, retrain, solve
from constrained import ConstrainedProblem
from constrained import solve as solve_constrained
from constrained.core.errors import OptionError
from problems import quadratic

F64 = torch.float64


def test_one_lower_solution_is_found_again():
    result = solve(quadratic(seed=1).problem, Implicit(), tol=1e-7)
    found = retrain(result)
    assert found.cold == pytest.approx(found.warm, abs=1e-5)  # |g_y| <= 1e-7 leaves 1e-6 in y at curvature 0.1; |f_y| = 3.9
    assert found.y.numpy() == pytest.approx(result.y.numpy(), abs=1e-5)
    assert found.lower <= 1e-7


def test_many_lower_solutions_hide_information_in_y():
    """g = (sum y - x)^2 / 2 leaves a line of solutions; from y = (5, -3) the nearest one keeps the difference 8."""
    problem = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() + ((x - 2) ** 2).sum(),
        lower=lambda x, y: 0.5 * (y.sum() - x[0]) ** 2,
        x=torch.zeros(1, dtype=F64),
        y=torch.tensor([5.0, -3.0], dtype=F64),
    )
    found = retrain(solve(problem, Penalty()))
    assert found.warm == pytest.approx(0.0, abs=1e-6)
    assert found.cold == pytest.approx(2 * 4.0**2, rel=1e-4)
    other = retrain(solve(problem, Penalty()), start=torch.tensor([1.0, 1.0], dtype=F64))
    assert other.cold == pytest.approx(0.0, abs=1e-6)


def test_mini_batches_are_replaced_by_all_of_the_data():
    data = torch.arange(8.0, dtype=F64)
    problem = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y, b: ((y - x - b.mean()) ** 2).sum(),
        x=torch.zeros(1, dtype=F64),
        y=torch.zeros(1, dtype=F64),
        lower_data=MiniBatches(data, 2),
    )
    result = solve(problem, PenaltySGD(), max_steps=20)
    assert float(retrain(result, tol=1e-8).y) == pytest.approx(float(result.x) + 3.5, abs=1e-7)


def test_other_problems_are_refused():
    one = torch.ones(1, dtype=F64)
    with pytest.raises(OptionError, match="result: "):
        retrain(solve_constrained(ConstrainedProblem(objective=lambda x: (x**2).sum(), x=one)))
