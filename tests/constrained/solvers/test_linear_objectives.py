"""Linear objectives above linear and curved constraints: the optimum that is known, in few calls."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from constrained import ConstrainedProblem, Simplex, Status, minimize, solve

F64 = torch.float64


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


@pytest.mark.parametrize(("size", "most"), [(1.0, 100), (1e-4, 600)])
def test_the_lowest_point_above_two_cubics(size, most):
    """min size x1 with x1 >= (2 x0)^3, (1 - x0)^3, 0 from far above: (1/3, 8/27), where the cubics meet."""
    height = Counted(lambda x: size * x[1])
    above = [{"type": "ineq", "fun": lambda x: x[1] - (2 * x[0]) ** 3}, {"type": "ineq", "fun": lambda x: x[1] - (1 - x[0]) ** 3}]
    found = minimize(height, [1.234, 5.678], bounds=[(None, None), (0, None)], constraints=above)
    assert found.status is Status.CONVERGED
    assert found.x.tolist() == pytest.approx([1 / 3, 8 / 27], abs=1e-5)
    assert height.calls <= most


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_linear_programs(seed, size):
    rng = np.random.default_rng(seed)
    A, b, c = rng.uniform(0.1, 1, (3, 5)), rng.uniform(1, 3, 3), -size * rng.uniform(0.1, 1, 5)
    rows, right, cost = (torch.from_numpy(v) for v in (A, b, c))
    value = Counted(lambda x: cost @ x)
    found = minimize(value, [0.1] * 5, bounds=[(0, None)] * 5, constraints={"type": "ineq", "fun": lambda x: right - rows @ x})
    assert found.status is Status.CONVERGED
    assert found.fun == pytest.approx(linprog(c, A, b).fun, rel=1e-6)
    assert value.calls <= 300


def test_an_assignment():
    """Rows on a simplex, columns by an equality: the permutation of least cost."""
    cost = torch.from_numpy(np.random.default_rng(1).uniform(0, 1, (5, 5)))
    value = Counted(lambda x: (cost * x).sum())
    start = torch.ones(5, 5, dtype=F64) / 5
    found = solve(ConstrainedProblem(objective=value, equality=lambda x: x.sum(0) - 1, x=start, X=Simplex()))
    i, j = linear_sum_assignment(cost.numpy())
    assert found.status is Status.CONVERGED
    assert found.x[i, j].tolist() == pytest.approx([1] * 5, abs=1e-6)
    assert value.calls <= 300
