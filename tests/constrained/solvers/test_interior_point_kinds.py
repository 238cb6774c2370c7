"""InteriorPoint on kinds of problems: degenerate, badly scaled, unbounded, with entries nothing needs, known to round-off."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from constrained import Box, ConstrainedProblem, InteriorPoint, Status, solve

F64 = torch.float64


def solved(objective, x, tol=1e-8, **more):
    return solve(ConstrainedProblem(objective=objective, x=torch.tensor(x, dtype=F64), **more), InteriorPoint(), tol=tol)


@pytest.mark.parametrize("seed", range(6))
def test_degenerate_vertices_beside_scipy(seed):
    """Half of 3 n rows meet at one vertex, some without a multiplier; the set may have no inside."""
    rng = np.random.default_rng(350 + seed)
    n = (3, 5, 8, 12, 16, 20)[seed]
    A = rng.integers(-3, 4, (3 * n, n)).astype(float)
    vertex, active = rng.integers(-2, 3, n).astype(float), rng.random(3 * n) < 0.5
    b = A @ vertex + np.where(active, 0, rng.uniform(0, 2, 3 * n))
    c = -A.T @ np.where(active, rng.uniform(0, 1, 3 * n) * (rng.random(3 * n) < 0.6), 0)
    rows, right, cost = (torch.from_numpy(a) for a in (A, b, c))
    result = solved(lambda x: cost @ x, [10.0] * n, inequality=lambda x: rows @ x - right)
    assert result.status is Status.CONVERGED
    assert result.steps <= 30
    assert result.fun == pytest.approx(linprog(c, A, b, bounds=(None, None)).fun, abs=1e-6)


def test_a_set_of_one_point():
    """Two discs that touch at 0."""
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    result = solved(lambda x: x[0], [3.0, 1.0], inequality=lambda x: ((x - centres) ** 2).sum(1) - 1)
    assert result.status is Status.CONVERGED
    assert result.x.tolist() == pytest.approx([0, 0], abs=1e-4)  # the violation is quadratic in x2


def test_an_equality_as_two_inequalities():
    """min x1^2 + (x2 - 3)^2 + x3 with x1 + x2 = 1, x3 = x1^2: 3 t^2 + 4 t + 4 at t = x1 = -2/3."""

    def rows(x):
        pair = torch.stack([x[0] + x[1] - 1, x[0] ** 2 - x[2]])
        return torch.cat([pair, -pair])

    result = solved(lambda x: x[0] ** 2 + (x[1] - 3) ** 2 + x[2], [3.0, 3.0, 1.0], inequality=rows)
    assert result.status is Status.CONVERGED
    assert result.fun == pytest.approx(8 / 3, abs=1e-7)


PRESSURE = (77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0)
VOLUME = (10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78)


def test_unknowns_of_very_different_size():
    """Misra1a of NIST's reference data, whose certified parameters are 239 and 5.5e-4."""
    t, y = torch.tensor([PRESSURE, VOLUME], dtype=F64)
    result = solved(lambda b: ((y - b[0] * (1 - torch.exp(-b[1] * t))) ** 2).sum(), [500.0, 1e-4], tol=1e-6)
    assert result.status.ok
    assert result.steps <= 60
    np.testing.assert_allclose(result.x, [2.3894212918e2, 5.5015643181e-4], rtol=1e-7)
    assert result.fun == pytest.approx(1.2455138894e-1, rel=1e-9)


def test_units_from_a_millionth_to_a_million():
    """A chain of Rosenbrock's in a ball: the solution is that of units of 1."""

    def chain(y):
        return (100 * (y[:-1] ** 2 - y[1:]) ** 2 + (y[:-1] - 1) ** 2).sum()

    def parts(u):
        return {"objective": lambda x: chain(x / u), "x": u.tolist(), "inequality": lambda x: ((x / u) ** 2).sum() - 3}

    units = torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e6], dtype=F64)
    plain, scaled = solved(**parts(torch.ones(5, dtype=F64))), solved(**parts(units))
    assert plain.status is scaled.status is Status.CONVERGED
    np.testing.assert_allclose(scaled.x / units, plain.x, rtol=1e-6)


def test_what_nothing_needs_stays_near():
    """x3 has one bound and is in nothing else: -log of its distance falls for ever. Rosenbrock's x1, x2 >= 0 beside it."""
    result = solved(lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, [0.1, 9.0, 1.0], X=Box(0.0, math.inf))
    assert result.status is Status.CONVERGED
    assert result.x[:2].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert result.x[2] <= 1e6


def test_unbounded_below_along_slacks():
    """x3 <= g_i(x1, x2) bound it from above alone."""

    def rows(x):
        a, b, t = x
        return torch.stack([t - a**2 - (b - 1) ** 2 - b + 1, t + a**2 + (b - 1) ** 2 - b - 1])

    result = solved(lambda x: x[2], [-1.5, 2.0, 0.0], inequality=rows)
    assert result.status is Status.UNBOUNDED
    assert result.steps <= 100


def test_where_an_objective_is_known_to_round_off_of_1():
    """log(1 + q) with q >= 0 small: it is 0 long before its gradient is."""
    result = solved(lambda x: torch.log(1 + 1e4 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2), [0.0, 5.0], X=Box(0.0, math.inf))
    assert result.status is Status.CONVERGED
    assert result.x.tolist() == pytest.approx([1, 1], abs=1e-7)
