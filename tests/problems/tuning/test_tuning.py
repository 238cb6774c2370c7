"""The ridge problems against truth that is not theirs: published data and optima, scikit-learn, differences, autograd."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import brentq, minimize
from sklearn.linear_model import Ridge
from torch import Tensor

import bilevel
from bilevel import Status
from constrained.core.vec import Vec
from problems import ZOO, Instance, ridge_50

BOXES = {"ridge-1": (-12.0, 4.0), "ridge-50": (-10.0, 4.0)}
STARTS = {"ridge-1": np.zeros(1), "ridge-50": np.full(50, -2.0)}
SIZES = {"ridge-1": (600, 400, 200, 60, 3.0), "ridge-50": (200, 100, 50, 15, 2.0)}  # rows, of these for training, p, k, snr
PUBLISHED = {"ridge-1": 0, "ridge-50": 1}  # the RandomState of the data that OPTIMA and X_OF_ONE are of
OPTIMA = {"ridge-1": (5.36254772576,), "ridge-50": (0.47490335, 0.47578182)}
X_OF_ONE = -2.07620567  # by Brent's method on values, which are flat to rounding for 4e-8 around the minimum
BOTH = pytest.mark.parametrize("name", BOXES)


@cache
def made(name: str) -> Instance:
    return ZOO[name]()


@cache
def published(name: str, seed: int) -> tuple[np.ndarray, ...]:
    """A, b, V, v by the description: correlated rows, sparse coefficients, noise; numpy's legacy generator."""
    rows, train, p, k, snr = SIZES[name]
    rng = np.random.RandomState(seed)
    covariance = np.array([[0.5 ** abs(i - j) for j in range(p)] for i in range(p)])
    X = rng.randn(rows, p) @ np.linalg.cholesky(covariance).T
    drawn = rng.randn(k)
    where = rng.choice(p, k, False)
    clean = X[:, where] @ drawn
    y = clean + rng.randn(rows) * np.std(clean) / snr
    return X[:train], y[:train], X[train:], y[train:]


def value(name: str, seed: int = 0) -> Callable[[np.ndarray], float]:
    """x -> f(w(x)), exactly: the normal equations by Cholesky."""
    A, b, V, v = published(name, PUBLISHED[name] + seed)
    n, p = A.shape

    def exact(x: np.ndarray) -> float:
        w = cho_solve(cho_factor(A.T @ A / n + np.diag(np.broadcast_to(np.exp(x), p))), A.T @ b / n)
        return 0.5 * np.mean((V @ w - v) ** 2)

    return exact


def traced(name: str) -> Callable[[Tensor], Tensor]:
    """`value` in torch, so that autograd knows its derivatives."""
    A, b, V, v = (torch.from_numpy(array) for array in published(name, PUBLISHED[name]))

    def exact(x: Tensor) -> Tensor:
        w = torch.linalg.solve(A.T @ A / len(b) + x.exp().expand(A.shape[1]).diag(), A.T @ b / len(b))
        return 0.5 * ((V @ w - v) ** 2).mean()

    return exact


def gradient(name: str) -> Callable[[np.ndarray], np.ndarray]:
    exact = traced(name)
    return lambda x: torch.autograd.functional.jacobian(exact, torch.from_numpy(np.asarray(x, dtype=float))).numpy()


def points(name: str, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.uniform(*BOXES[name], len(STARTS[name])) for _ in range(count)]


# -- what the problems are --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 3])
@BOTH
def test_the_data_are_those_of_numpys_random_state(name, seed):
    A, b, V, v = published(name, PUBLISHED[name] + seed)
    problem = ZOO[name](seed=seed).problem
    for x in points(name, 3):
        w = np.random.default_rng(1).normal(size=A.shape[1])
        at = torch.from_numpy(x), torch.from_numpy(w)
        assert float(problem.upper(*at)) == pytest.approx(0.5 * np.mean((V @ w - v) ** 2), rel=1e-13)
        ridge = 0.5 * np.sum(np.exp(x) * w**2)
        assert float(problem.lower(*at)) == pytest.approx(np.sum((b - A @ w) ** 2) / (2 * len(b)) + ridge, rel=1e-13)


@BOTH
def test_start_and_box(name):
    problem = made(name).problem
    np.testing.assert_array_equal(problem.x.numpy(), STARTS[name])
    np.testing.assert_array_equal(problem.y.numpy(), np.zeros(SIZES[name][2]))
    ends = [problem.X.project(Vec.of(torch.full_like(problem.x, far))).tree().numpy() for far in (-100.0, 100.0)]
    np.testing.assert_array_equal(ends, [np.full_like(STARTS[name], end) for end in BOXES[name]])


@BOTH
def test_the_lower_solution_is_that_of_scikit_learn(name):
    """Penalties a feature by scaling: with u_j = exp(x_j / 2) w_j all penalties are 1."""
    A, b, _, _ = published(name, PUBLISHED[name])
    for x in [STARTS[name], *points(name, 5)]:
        scale = np.exp(-x / 2)
        u = Ridge(alpha=len(b), fit_intercept=False, solver="svd").fit(A * scale, b).coef_
        ours = made(name).problem.lower_solution(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(ours, scale * u, rtol=0, atol=1e-11)


@BOTH
def test_the_hypergradient_is_that_of_finite_differences(name):
    problem, exact = made(name).problem, value(name)
    for x in [STARTS[name], *points(name, 2)]:
        found = bilevel.hypergradient(problem, torch.from_numpy(x))
        assert found.status is Status.CONVERGED, found.message
        steps = 1e-4 * np.eye(len(x))
        slopes = [(8 * (exact(x + e) - exact(x - e)) - exact(x + 2 * e) + exact(x - 2 * e)) / 12e-4 for e in steps]
        np.testing.assert_allclose(found.value.numpy(), slopes, rtol=0, atol=1e-9)


# -- the optima -------------------------------------------------------------------------------------------------------------
@BOTH
def test_the_solutions_have_the_published_values(name):
    instance, exact = made(name), value(name)
    found = [exact(point.x.numpy()) for point in instance.solution]
    digits = 5e-12 if name == "ridge-1" else 5e-9
    np.testing.assert_allclose(found, OPTIMA[name], rtol=0, atol=digits)
    assert [instance.problem.fun(point) for point in instance.solution] == pytest.approx(found, abs=1e-12)  # sums of 200 squares


@BOTH
def test_the_solutions_are_strict_local_minima_by_autograd(name):
    low, high = BOXES[name]
    for point in made(name).solution:
        slope = gradient(name)(point.x.numpy())
        x = point.x.numpy()
        assert np.linalg.norm(x - np.clip(x - slope, low, high)) <= 1e-11
        free = (low < x) & (x < high)
        assert (slope[x == low] > 1e-8).all()
        assert (slope[x == high] < -1e-8).all()
        curvature = torch.autograd.functional.hessian(traced(name), point.x).numpy()[np.ix_(free, free)]
        assert np.linalg.eigvalsh(curvature)[0] >= 1.5e-7


def test_one_penalty_has_one_minimum():
    exact = value("ridge-1")
    grid = np.linspace(*BOXES["ridge-1"], 161)
    values = np.array([exact(x) for x in grid])
    assert ((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])).sum() == 1
    slope = gradient("ridge-1")
    (point,) = made("ridge-1").solution
    assert float(point.x) == pytest.approx(X_OF_ONE, abs=4e-8)
    assert float(point.x) == pytest.approx(brentq(lambda x: slope([x])[0], -3, -1, xtol=1e-14), abs=1e-12)


@pytest.mark.parametrize(("start", "which"), [(-6.0, 1), pytest.param(-2.0, 1, marks=pytest.mark.slow), (0.0, 0)])
def test_fifty_penalties_have_two_minima_by_the_start(start, which):
    """L-BFGS-B on the log-penalties themselves; its x is right to 1e-2 at best, so ill determined are they."""
    options = {"maxiter": 5000, "maxfun": 5000, "ftol": 1e-16, "gtol": 1e-12}
    exact, slope = value("ridge-50"), gradient("ridge-50")
    found = minimize(exact, np.full(50, start), jac=slope, method="L-BFGS-B", bounds=[BOXES["ridge-50"]] * 50, options=options)
    assert found.fun == pytest.approx(OPTIMA["ridge-50"][which], abs=6e-9)
    np.testing.assert_allclose(made("ridge-50").solution[which].x, found.x, rtol=0, atol=0.05)


@pytest.mark.parametrize("seed", [*(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 8)), 28])
def test_solutions_of_other_data_are_sorted_and_apart(seed):
    """With seed 28 a looser search ends near a saddle point."""
    exact = value("ridge-50", seed)
    found = [point.x.numpy() for point in ridge_50(seed=seed).solution]
    values = [exact(x) for x in found]
    assert values == sorted(values)
    assert min((np.abs(x - y).max() for i, x in enumerate(found) for y in found[:i]), default=1.0) > 1e-3
    rng = np.random.default_rng(0)
    for x, best in zip(found, values):
        around = (np.clip(x + rng.normal(size=50) * 0.1, *BOXES["ridge-50"]) for _ in range(200))
        assert min(exact(near) for near in around) > best


# -- solved -----------------------------------------------------------------------------------------------------------------
def test_the_default_solver_solves_ridge_1():
    problem = made("ridge-1").problem
    result = bilevel.solve(problem)
    assert result.status is Status.CONVERGED, result.message
    assert abs(value("ridge-1")(result.x.numpy()) - OPTIMA["ridge-1"][0]) <= 5e-12
    assert made("ridge-1").error(result.x) <= 1e-6


PLATEAU = "ends stationary on a plateau, 2.4e-5 above, with penalties e^-10 and e^-7.5 where the optimum has e^-6.5 and e^-2.3"


@pytest.mark.slow
@pytest.mark.parametrize("solver", [pytest.param(bilevel.Penalty(), marks=pytest.mark.xfail(reason=PLATEAU)), None])
def test_an_optimum_of_ridge_50_is_found(solver):
    """From -2 the published local search ends at the second of the two optima. The regret that a residual of 1e-6 allows is 1e-12
    over twice the smallest curvature, 2e-7: 2.5e-6.
    """
    result = bilevel.solve(made("ridge-50").problem, solver)
    assert result.status is Status.CONVERGED, result.message
    assert value("ridge-50")(result.x.numpy()) - OPTIMA["ridge-50"][1] <= 1e-6
    assert abs(result.fun - value("ridge-50")(result.x.numpy())) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("solver", [bilevel.Penalty(), None])
def test_answers_of_ridge_50_are_stationary(solver):
    """By finite differences of the closed form."""
    exact = value("ridge-50")
    result = bilevel.solve(made("ridge-50").problem, solver)
    assert result.status is Status.CONVERGED, result.message
    x = result.x.numpy()
    slope = np.array([exact(x + step) - exact(x - step) for step in 1e-4 * np.eye(50)]) / 2e-4
    assert np.linalg.norm(x - np.clip(x - slope, *BOXES["ridge-50"])) <= 1e-6
    assert abs(result.fun - exact(x)) <= 1e-8
