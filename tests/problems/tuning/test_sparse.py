"""The lasso and the elastic net against truth that is not theirs: published data and optimum, scikit-learn, differences."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import ElasticNet

import bilevel
from bilevel import Implicit, Status
from constrained.core.problem import Point
from constrained.core.vec import Vec
from problems import Instance
from problems.tuning.ridge import Rows
from problems.tuning.sparse import Piece, elastic_net, lasso

MAKE = {"lasso": lasso, "elastic-net": elastic_net}
SIZES = {"lasso": (600, 300, 300, 20, 3.0, 2), "elastic-net": (280, 80, 100, 30, 2.0, 5)}  # rows, for training, p, k, snr, seed
PUBLISHED = 2.29779905446, -2.67053071  # of the lasso, by scikit-learn's Lasso on a grid and Brent's method
BOTH = pytest.mark.parametrize("name", MAKE)


@cache
def made(name: str, seed: int = 0) -> Instance:
    return MAKE[name](seed=seed)


@cache
def published(name: str, seed: int = 0) -> tuple[np.ndarray, ...]:
    """A, b, V, v by the description: correlated rows, sparse coefficients, noise; numpy's legacy generator."""
    rows, train, p, k, snr, first = SIZES[name]
    rng = np.random.RandomState(first + seed)
    covariance = np.array([[0.5 ** abs(i - j) for j in range(p)] for i in range(p)])
    X = rng.randn(rows, p) @ np.linalg.cholesky(covariance).T
    drawn = rng.randn(k)
    where = rng.choice(p, k, False)
    clean = X[:, where] @ drawn
    y = clean + rng.randn(rows) * np.std(clean) / snr
    return X[:train], y[:train], X[train:], y[train:]


def coefficients(name: str, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """scikit-learn's, by coordinate descent. There the penalties are alpha l1_ratio and alpha (1 - l1_ratio)."""
    A, b, _, _ = published(name, seed)
    first, second = np.exp(x[0]), np.exp(x[1]) if len(x) == 2 else 0.0
    alpha = first + second
    model = ElasticNet(alpha=alpha, l1_ratio=first / alpha, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    return model.fit(A, b).coef_


def value(name: str, seed: int = 0) -> Callable[[np.ndarray], float]:
    """x -> f(w(x)) by scikit-learn."""
    _, _, V, v = published(name, seed)
    return lambda x: np.mean((V @ coefficients(name, x, seed) - v) ** 2)


def parts(w: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([w.clip(min=0), (-w).clip(min=0)]))


def ends(name: str) -> tuple[np.ndarray, np.ndarray]:
    A, b, _, _ = published(name)
    top = np.log(np.abs(A.T @ b).max() / len(b))
    low, high = [top - 6, -8.0], [top, 2.0]
    dimension = 1 if name == "lasso" else 2
    return np.array(low[:dimension]), np.array(high[:dimension])


def points(name: str, count: int) -> list[np.ndarray]:
    low, high = ends(name)
    rng = np.random.default_rng(0)
    return [low + (0.3 + 0.6 * rng.random(len(low))) * (high - low) for _ in range(count)]


# -- what the problems are --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 3])
@BOTH
def test_the_data_are_those_of_numpys_random_state(name, seed):
    A, b, V, v = published(name, seed)
    problem = made(name, seed).problem
    for x in points(name, 3):
        w = np.random.default_rng(1).normal(size=A.shape[1])
        at = torch.from_numpy(x), parts(w)
        assert float(problem.upper(*at)) == pytest.approx(np.mean((V @ w - v) ** 2), rel=1e-13)
        penalty = np.exp(x[0]) * np.abs(w).sum() + (np.exp(x[1]) * np.sum(w**2) / 2 if len(x) == 2 else 0.0)
        assert float(problem.lower(*at)) == pytest.approx(np.sum((b - A @ w) ** 2) / (2 * len(b)) + penalty, rel=1e-13)


@BOTH
def test_start_and_boxes(name):
    problem, (low, high) = made(name).problem, ends(name)
    np.testing.assert_allclose(problem.x.numpy(), (low + high) / 2, rtol=1e-14)
    assert problem.y.shape == (2, SIZES[name][2])
    assert not problem.y.any()
    for far, end in ((-100.0, low), (100.0, high)):
        np.testing.assert_allclose(problem.X.project(Vec.of(torch.full_like(problem.x, far))).tree().numpy(), end, rtol=1e-14)
    both = problem.Y.project(Vec.of(torch.tensor([[-1.0, 2.0], [1e9, -3.0]]))).tree()
    assert both.tolist() == [[0.0, 2.0], [1e9, 0.0]]


@BOTH
def test_the_lower_solution_is_that_of_scikit_learn(name):
    problem = made(name).problem
    for x in [problem.x.numpy(), *points(name, 4)]:
        w = coefficients(name, x)
        assert problem.residuals(Point(torch.from_numpy(x), parts(w)))["lower"] <= 1e-10


@BOTH
def test_the_hypergradient_is_that_of_finite_differences(name):
    """Between two kinks, which are some 0.02 apart: steps of 1e-6, values right to 1e-13."""
    problem, exact = made(name).problem, value(name)
    for x in [problem.x.numpy(), *points(name, 3)]:
        found = bilevel.hypergradient(problem, torch.from_numpy(x))
        assert found.status is Status.CONVERGED, found.message
        slopes = [(exact(x + e) - exact(x - e)) / 2e-6 for e in 1e-6 * np.eye(len(x))]
        np.testing.assert_allclose(found.value.numpy(), slopes, rtol=0, atol=1e-5)


@BOTH
def test_derivatives_on_a_piece_are_those_of_finite_differences(name):
    rows, train, p, k, snr, first = SIZES[name]
    data = Rows.drawn(first, train=train, validate=rows - train, p=p, k=k, snr=snr)
    x = made(name).problem.x.numpy()
    signs = np.sign(coefficients(name, x))
    at = Piece(data, signs, x)
    np.testing.assert_allclose(at.w, coefficients(name, x), rtol=0, atol=1e-10)
    for i, e in enumerate(1e-4 * np.eye(len(x))):
        up, down = Piece(data, signs, x + e), Piece(data, signs, x - e)
        assert at.gradient[i] == pytest.approx((up.value - down.value) / 2e-4, rel=1e-6)
        np.testing.assert_allclose(at.hessian()[i], (up.gradient - down.gradient) / 2e-4, rtol=1e-6)


# -- the optima -------------------------------------------------------------------------------------------------------------
def test_the_lassos_solution_is_the_published_one():
    (point,) = made("lasso").solution
    assert value("lasso")(point.x.numpy()) == pytest.approx(PUBLISHED[0], abs=6e-12)
    assert made("lasso").problem.fun(point) == pytest.approx(PUBLISHED[0], abs=6e-12)
    assert float(point.x) == pytest.approx(PUBLISHED[1], abs=1e-7)


def test_the_lassos_solution_is_that_of_a_fine_search():
    exact, (low, high) = value("lasso"), ends("lasso")
    grid = np.linspace(low[0] + 2, high[0], 120)
    i = int(np.argmin([exact(np.array([x])) for x in grid]))
    around, options = (grid[i - 1], grid[i + 1]), {"xatol": 1e-9}
    best = minimize_scalar(lambda x: exact(np.array([x])), bounds=around, method="bounded", options=options)
    (point,) = made("lasso").solution
    assert best.fun == pytest.approx(exact(point.x.numpy()), abs=1e-11)
    assert best.x == pytest.approx(float(point.x), abs=1e-5)


@pytest.mark.parametrize(("name", "seed"), [("lasso", 0), ("lasso", 1), ("lasso", 2), ("elastic-net", 0), ("elastic-net", 1)])
def test_no_point_is_better_than_the_solution(name, seed):
    """With seed 1 both optima are kinks."""
    exact, (point,) = value(name, seed), made(name, seed).solution
    x, X = point.x.numpy(), made(name, seed).problem.X
    best, rng = exact(x), np.random.default_rng(0)
    assert made(name, seed).problem.fun(point) == pytest.approx(best, abs=1e-11)
    for far in (1e-4, 1e-2, 1.0):
        for _ in range(15):
            near = X.project(Vec.of(torch.from_numpy(x + far * rng.normal(size=len(x))))).tree().numpy()
            assert exact(near) >= best - 1e-12


# -- solved -----------------------------------------------------------------------------------------------------------------
@BOTH
def test_implicit_differentiation_finds_the_optimum(name):
    """In 15 lower solves at most for the lasso."""
    instance = made(name)
    result = bilevel.solve(instance.problem, Implicit())
    assert result.status is Status.CONVERGED, result.message
    assert abs(value(name)(result.x.numpy()) - value(name)(instance.solution[0].x.numpy())) <= 1e-9
    assert instance.error(result.x) <= 1e-6
    assert result.state.evaluations <= {"lasso": 15, "elastic-net": 20}[name]
