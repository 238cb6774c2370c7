"""Residuals and certificates against numpy, by hand."""

import numpy as np
import pytest
import torch

from bilevel import Ball, BilevelProblem, Box, Function, MiniBatches, Point

F64 = torch.float64
RNG = np.random.default_rng(7)
A, M = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 3))
H, W = A @ A.T + np.eye(4), np.diag([1.0, 2.0, 3.0, 4.0])
X0, Y0 = RNG.normal(size=3), RNG.normal(size=4)


def tensor(value):
    return torch.tensor(value, dtype=F64)


def quadratic(H=H, **changed):
    """g = (y - M x)' H (y - M x) / 2, f = y' W y / 2 + sum(y) + |x|^2."""
    h, m, w = tensor(H), tensor(M), tensor(W)
    options = {
        "upper": lambda x, y: 0.5 * y @ w @ y + y.sum() + (x**2).sum(),
        "lower": lambda x, y: 0.5 * (y - m @ x) @ h @ (y - m @ x),
        "x": torch.zeros(3, dtype=F64),
        "y": torch.zeros(4, dtype=F64),
    }
    return BilevelProblem(**{**options, **changed})


def point(x=X0, y=Y0):
    return Point(tensor(x), tensor(y))


def hypergradient(y):
    """f_x - g_xy v with g_yy v = f_y and g_xy = -M'H, at y, solution or not."""
    return 2 * X0 + M.T @ (W @ y + 1)


def test_lower_and_upper():
    found = quadratic().residuals(point())
    assert set(found) == {"lower", "upper"}
    assert found["lower"] == pytest.approx(np.linalg.norm(H @ (Y0 - M @ X0)), rel=1e-12)
    assert found["upper"] == pytest.approx(np.linalg.norm(hypergradient(Y0)), rel=1e-9)


def test_upper_residual_is_projected_on_x():
    """|x - P(x - grad)|: where the bound holds x back only the free part counts; being outside X is a violation."""
    box = Box(-0.5, 0.5)
    x = np.clip(X0, -0.5, 0.5)
    grad = 2 * x + M.T @ (W @ (M @ x) + 1)
    found = quadratic(X=box).residuals(point(x, M @ x))
    assert found["upper"] == pytest.approx(np.linalg.norm(x - np.clip(x - grad, -0.5, 0.5)), rel=1e-9)
    assert found["lower"] == pytest.approx(0, abs=1e-12)
    assert found["constraints"] == 0.0
    outside = quadratic(X=box).residuals(point(np.array([2.0, 0, 0]), Y0))
    assert outside["constraints"] == pytest.approx(1.5, rel=1e-12)


def test_lower_residual_is_projected_on_y():
    """With a set on y: |y - P(y - g_y)|, and the hypergradient with the active entries held."""
    low, high = -0.2, 0.3
    problem = quadratic(H=np.diag([1.0, 2.0, 3.0, 4.0]), Y=Box(low, high))
    grad = np.array([1.0, 2.0, 3.0, 4.0]) * (Y0 - M @ X0)
    found = problem.residuals(point(y=np.clip(Y0, low, high)))
    y = np.clip(Y0, low, high)
    grad = np.array([1.0, 2.0, 3.0, 4.0]) * (y - M @ X0)
    assert found["lower"] == pytest.approx(np.linalg.norm(y - np.clip(y - grad, low, high)), rel=1e-12)
    solution = np.clip(M @ X0, low, high)
    free = (low < M @ X0) & (high > M @ X0)
    truth = 2 * X0 + (M * free[:, None]).T @ (W @ solution + 1)
    found = problem.residuals(point(y=solution))
    assert set(found) == {"lower", "upper", "constraints"}
    assert found["lower"] == pytest.approx(0, abs=1e-12)
    assert found["upper"] == pytest.approx(np.linalg.norm(truth), rel=1e-10)


@pytest.mark.parametrize("name", ["lower_equality", "lower_inequality", "upper_equality", "upper_inequality"])
def test_violation_of_constraints(name):
    """The largest: |c| for an equality, the positive part for an inequality."""
    value = np.array([0.3, -2.0, 0.1])
    problem = quadratic(**{name: lambda x, y: tensor(value) + 0 * x})
    found = problem.residuals(point())["constraints"]
    assert found == pytest.approx(2.0 if name.endswith("_equality") else 0.3)
    satisfied = quadratic(**{name: lambda x, y: -(x**2) * (0 if name.endswith("_equality") else 1)})
    assert satisfied.residuals(point())["constraints"] == 0.0


def test_violation_takes_the_worst_of_all():
    problem = quadratic(
        X=Ball(0.1), upper_inequality=lambda x, y: y.sum() - 100, lower_equality=lambda x, y: (x[0] - x[0] + 0.01).sum()
    )
    assert problem.residuals(point())["constraints"] == pytest.approx(np.linalg.norm(X0) - 0.1, rel=1e-12)


def rank_deficient(rank):
    Q, _ = np.linalg.qr(A)
    return Q @ np.diag([1.0, 2.0, 0.5, 3.0] * (np.arange(4) < rank)) @ Q.T, Q[:, :rank]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_optimism(rank):
    """g_yy singular and f_y not in its range: the part outside, and grad Phi by the least-norm solution."""
    singular, Q = rank_deficient(rank)
    f_y = W @ Y0 + 1
    outside = f_y - Q @ (Q.T @ f_y)
    found = quadratic(H=singular).residuals(point())
    assert set(found) == {"lower", "upper", "optimism"}
    assert found["optimism"] == pytest.approx(np.linalg.norm(outside), rel=1e-6)
    grad = 2 * X0 + M.T @ (Q @ (Q.T @ f_y))
    assert found["upper"] == pytest.approx(np.linalg.norm(grad), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_optimism_where_the_system_is_consistent(rank):
    """The same singular lower Hessian, with f that ignores its null space."""
    singular, Q = rank_deficient(rank)
    q = tensor(Q)
    problem = quadratic(H=singular, upper=lambda x, y: 0.5 * ((q.T @ y) ** 2).sum() + (q.T @ y).sum() + (x**2).sum())
    found = problem.residuals(point())
    assert set(found) == {"lower", "upper"}
    f_y = Q @ (Q.T @ Y0 + 1)
    assert found["upper"] == pytest.approx(np.linalg.norm(2 * X0 + M.T @ f_y), rel=1e-6)


def test_without_second_derivatives():
    """The hypergradient is estimated by penalties, and the key says so."""

    def lower(x, y):
        return 0.5 * (y - M @ x) @ H @ (y - M @ x)

    own = Function.numpy(lower, gradient=lambda x, y: (-M.T @ H @ (y - M @ x), H @ (y - M @ x)))
    y = M @ X0
    found = quadratic(lower=own).residuals(point(y=y))
    assert set(found) == {"lower", "upper_estimate"}
    assert found["upper_estimate"] == pytest.approx(np.linalg.norm(hypergradient(y)), rel=1e-4)


def test_many_unknowns():
    """Above 1e5 entries of y no linear system is solved."""
    n = 100_001
    problem = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() / n + (x**2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum() / 2,
        x=torch.ones(1, dtype=F64),
        y=torch.ones(n, dtype=F64),
    )
    found = problem.residuals(Point(tensor([3.0]), torch.full((n,), 3.0, dtype=F64)))
    assert set(found) == {"lower", "upper_estimate"}
    assert found["upper_estimate"] == pytest.approx(2 * 2 + 6, rel=1e-3)


def test_mini_batches_are_judged_on_all_of_the_data():
    data = torch.arange(10.0, dtype=F64)
    problem = BilevelProblem(
        upper=lambda x, y, b: ((y - b.mean()) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y, b: ((y - x) ** 2 * b.mean()).sum(),
        x=tensor([0.0]),
        y=tensor([0.0]),
        upper_data=MiniBatches(data, 3),
        lower_data=MiniBatches(data, 3),
    )
    found = problem.residuals(Point(tensor([1.0]), tensor([2.0])))
    assert sum(value for key, value in found.items() if key.startswith("lower")) == pytest.approx(2 * 4.5, rel=1e-12)
    assert sum(value for key, value in found.items() if key.startswith("upper")) == pytest.approx(
        abs(2 + 2 * (2 - 4.5)), rel=1e-9
    )


def double_well(**changed):
    """g = (y^2 - 1)^2 + 0.3 y: minimisers near 0.96 and, lower, near -1.03."""
    options = {
        "upper": lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(),
        "lower": lambda x, y: ((y**2 - 1) ** 2 + 0.3 * y).sum() + 0 * x.sum(),
        "x": tensor([0.0]),
        "y": tensor([0.9]),
    }
    return BilevelProblem(**{**options, **changed})


def test_certificate_finds_a_lower_point():
    """y at the local minimiser passes `residuals` and fails `certify` by the gap to the global one."""
    roots = np.sort(np.roots([4, 0, -4, 0.3]).real)
    values = (roots**2 - 1) ** 2 + 0.3 * roots
    local, best = roots[2], roots[0]
    at = Point(tensor([0.0]), tensor([local]))
    assert double_well().residuals(at)["lower"] <= 1e-10
    assert double_well().certify(at)["lower_gap"] == pytest.approx(values[2] - values[0], rel=1e-6)
    assert double_well().certify(Point(tensor([0.0]), tensor([best])))["lower_gap"] <= 1e-12
    known = double_well(lower_solution=lambda x: tensor([best]) + 0 * x)
    assert known.certify(at)["lower_gap"] == pytest.approx(values[2] - values[0], rel=1e-6)


def test_certificate_of_a_solution():
    """Residuals are repeated, the gap is zero; away from it the gap is g itself."""
    found = quadratic().certify(point(y=M @ X0))
    assert set(found) == {"lower", "upper", "lower_gap"}
    assert found["lower_gap"] <= 1e-20
    r = Y0 - M @ X0
    assert quadratic().certify(point())["lower_gap"] == pytest.approx(0.5 * r @ H @ r, rel=1e-9)


def test_nan_in_a_second_derivative_is_no_small_residual():
    """x = 0 makes f_x zero: without g_xy v, which is NaN, the point would look stationary."""
    own = Function(lambda x, y: 0.5 * ((y - x) ** 2).sum(), hvp=lambda x, y, v: v * float("nan"))
    problem = BilevelProblem(upper=lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(), lower=own, x=tensor([0.0]), y=tensor([0.0]))
    assert not problem.residuals(Point(tensor([0.0]), tensor([0.0])))["upper"] <= 1.0


def test_residuals_leave_everything_alone():
    problem, before = quadratic(), torch.random.get_rng_state()
    at = point()
    first = problem.certify(at)
    assert problem.certify(at) == first
    assert torch.equal(at.x, tensor(X0))
    assert torch.equal(at.y, tensor(Y0))
    assert torch.equal(torch.random.get_rng_state(), before)
