"""`minimize` with scipy's shapes: numpy functions, mixed constraints, flags; what is refused. Truth: scipy, closed forms."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, rosen, rosen_der
from scipy.optimize import minimize as scipy_minimize

from constrained import AugmentedLagrangian, ProblemError, minimize

CIRCLE = {"type": "eq", "fun": lambda x: np.array([x @ x - 1]), "jac": lambda x: 2 * x[None]}


def test_numpy_functions_are_solved_without_second_derivatives():
    found = minimize(rosen, [0.5, 0.5], jac=rosen_der, constraints=CIRCLE, max_steps=40)
    truth = scipy_minimize(rosen, [0.5, 0.5], jac=rosen_der, constraints=CIRCLE, method="SLSQP", options={"ftol": 1e-14})
    assert found.status.ok
    assert type(found.solver) is AugmentedLagrangian
    assert np.abs(found.x - truth.x).max() < 1e-5


def test_a_numpy_quadratic_is_solved():
    A = np.diag([1.0, 100.0])
    found = minimize(lambda x: 0.5 * x @ A @ x, [3.0, 1.0], jac=lambda x: A @ x)
    assert found.status.ok
    assert np.linalg.norm(found.x) < 1e-6


def test_jac_true_calls_the_function_once_a_point():
    points = []

    def both(x):
        points.append(x.tobytes())
        return rosen(x), rosen_der(x)

    found = minimize(both, [0.5, 0.5], jac=True)
    assert found.status.ok
    assert np.abs(found.x - 1).max() < 1e-5
    assert all(a != b for a, b in itertools.pairwise(points))


def test_torch_and_numpy_constraints_together():
    """min |x|^2 with x0 + x1 + x2 >= 1 in torch, x0 = 1/2 in numpy, 3 x1 <= 6 as a matrix: (1/2, 1/4, 1/4)."""
    rows = [
        {"type": "ineq", "fun": lambda x: x.sum() - 1},
        NonlinearConstraint(lambda x: x[:1], 0.5, 0.5, jac=lambda x: np.eye(3)[:1]),
        LinearConstraint([[0, 3, 0]], -np.inf, 6),
    ]
    found = minimize(lambda x: (x**2).sum(), [0.0, 0.0, 0.0], constraints=rows)
    assert found.status.ok
    assert found.x.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=1e-6)


def test_functions_see_a_tensor_that_requires_a_gradient():
    """A loss with a derivative inside, as physics losses have: (u'(x) - 2)^2 for u = a x^2 at x = 1."""

    def loss(a):
        z = torch.ones(1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((a * z**2).sum(), z, create_graph=True)
        return ((slope - 2) ** 2).sum()

    found = minimize(loss, [0.2])
    assert found.status.ok
    assert found.fun == pytest.approx(0, abs=1e-12)
    assert found.x.item() == pytest.approx(1)


def test_what_is_not_honoured_is_refused():
    row = LinearConstraint([[1, 1]], -np.inf, 0.25, keep_feasible=True)
    with pytest.raises(
        ProblemError, match=r"constraints\[0\]: keep_feasible=True: expected a start x0 .* got 0.3.* in component 0"
    ):
        minimize(lambda x: (x**2).sum(), [0.1, 0.2], constraints=row)
    with pytest.raises(ProblemError, match="keep_feasible: expected a bool or 1 of them"):
        row = NonlinearConstraint(lambda x: x.sum(), 0, 1, keep_feasible=[True, False])
        minimize(lambda x: (x**2).sum(), [0.1, 0.1], constraints=row)
    with pytest.raises(ProblemError, match="jac: expected a function"):
        minimize(rosen, [0.1, 0.2], jac="5-point")
    with pytest.raises(ProblemError, match="a dict has args, fun, jac, type, got 'jak' too"):
        minimize(rosen, [0.1, 0.2], constraints={"type": "eq", "fun": sum, "jak": sum})
    assert minimize(lambda x: (x**2).sum(), [0.1, 0.2], bounds=Bounds([0, 0], [1, 1], keep_feasible=True)).status.ok


def square(x):
    return (x**2).sum()


@pytest.mark.parametrize(
    "x0",
    [
        {"a": 1.0},
        {1.0},
        [np.zeros(1), np.zeros(2)],
        "word",
        ["a", "b"],
        None,
        object(),
        [],
        torch.zeros(0),
        torch.zeros(2, 2),
        torch.tensor([1, 2]),
        [1j],
        [10**400],
        10**5000,
        [torch.ones((), requires_grad=True)],
    ],
    ids=lambda x0: type(x0).__name__,
)
def test_what_is_no_vector_of_numbers_is_refused(x0):
    with pytest.raises(ProblemError, match=r"^x0: expected a vector of"):
        minimize(square, x0)


@pytest.mark.parametrize("x0", [[1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0])], ids=lambda x0: type(x0).__name__)
def test_vectors_of_numbers_are_starts(x0):
    assert minimize(square, x0).success


@pytest.mark.parametrize("bounds", ["ab", 3, [(0,)] * 2, [(0, 1), 3], [("a", 1)] * 2, [(0, 1)] * 3, [(0, 10**400)] * 2, {}])
def test_what_are_no_bounds_is_refused(bounds):
    with pytest.raises(ProblemError, match=r"^bounds: expected Bounds or 2 pairs"):
        minimize(square, [1.0, 1.0], bounds=bounds)


def test_bounds_that_fix_every_entry():
    assert minimize(square, [0.0, 0.0], bounds=[(0.5, 0.5), (0.25, 0.25)]).x.tolist() == [0.5, 0.25]
