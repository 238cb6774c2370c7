"""The violation minimised, against least squares by numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from constrained import Box, ConstrainedProblem
from constrained.interior.program import Program
from constrained.interior.restoration import flat, restore

F64 = torch.float64


def start(x, **parts):
    problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), x=torch.tensor(x, dtype=F64), **parts)
    oracle = problem.oracle()
    program = Program.of(oracle, oracle.variables["x"])
    at = program.at(program.flat(oracle.variables["x"]), np.zeros(program.inequalities))
    return at.slid(np.maximum(-at.C[program.equalities :], 1e-2))


def never(at):
    return False


def test_equations_that_contradict_one_another_end_at_least_squares():
    A, b = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0]], dtype=F64), torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    found = restore(start([3.0, -4.0], equality=lambda x: A @ x - b), 0.1, never)
    assert found.stationary
    np.testing.assert_allclose(found.at.x, np.linalg.lstsq(A.numpy(), b.numpy(), rcond=None)[0], atol=1e-7)


def test_bounds_hold_and_the_verdict_knows_them():
    A, b = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]), np.array([4.0, 5.0, -2.0])
    rows, right = torch.from_numpy(A), torch.from_numpy(b)
    found = restore(start([0.5, 0.5], equality=lambda x: rows @ x - right, X=Box(0.0, 1.0)), 0.1, never)
    truth = lsq_linear(A, b, (0, 1), tol=1e-13).x
    np.testing.assert_allclose(found.at.x, truth, atol=1e-4)
    assert (found.at.x > 0).all()
    assert (found.at.x < 1).all()


def test_inequalities_that_contradict_one_another():
    """x >= 1 and x <= -1: the violation is least at 0."""
    found = restore(start([5.0], inequality=lambda x: torch.stack([1 - x[0], x[0] + 1])), 0.1, never)
    assert found.stationary
    assert found.at.x[0] == pytest.approx(0, abs=1e-6)


def test_it_ends_where_enough_is_reached():
    begin = start([-1.2, 1.0], equality=lambda x: torch.stack([10 * (x[1] - x[0] ** 2), x[0] - 1]))
    found = restore(begin, 0.1, lambda at: at.theta <= 0.1 * begin.theta)
    assert not found.stationary
    assert 1e-12 < found.at.theta <= 0.1 * begin.theta


def test_a_point_without_slope_is_flat():
    assert flat(start([0.0], equality=lambda x: x**2 + 1))
    assert not flat(start([0.5], equality=lambda x: x**2 + 1))


@pytest.mark.parametrize("x", [[0.0, 0.0], [1e-9, 0.0]])
def test_the_origin_is_a_start_like_others(x):
    """The way from it and its length are 0, and the violation has a slope there."""
    begin = start(x, equality=lambda x: torch.stack([x[0] + x[1] - 1, x[0] - x[1] ** 2]))
    assert not flat(begin)
    found = restore(begin, 0.1, never)
    assert not found.stationary
    assert found.at.theta <= 1e-8
