"""Convex quadratics between bounds against scipy's least squares, a convex hull, and the conditions of optimality."""

import numpy as np
import pytest
import scipy.optimize
from scipy.sparse import csr_array, diags_array
from scipy.spatial import ConvexHull

from constrained.interior import quadratic
from constrained.interior.quadratic import Quadratic, minimiser


def drawn(seed, n=12, m=4, convex=True, sparse=False):
    """rho J'J is large beside H; some bounds are infinite, some entries fixed."""
    rng = np.random.default_rng(seed)
    R = rng.standard_normal((n, n))
    H, J = R @ R.T / n + 0.1 * np.eye(n) if convex else R + R.T, rng.standard_normal((m, n))
    low, high = -rng.uniform(0, 0.5, n), rng.uniform(0, 0.5, n)
    low[::5], high[1::5] = -np.inf, np.inf
    low[2] = high[2] = 0.0
    made = (lambda A: csr_array(A)) if sparse else np.asarray
    return Quadratic(made(H), made(J), 1e3, 3 * rng.standard_normal(n), low, high, sparse), H, J


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("faces", [8, 0], ids=["faces", "barrier"])
def test_convex_ones_are_bounded_least_squares(seed, sparse, faces, monkeypatch):
    """g'd + d'A d / 2 is |L'd + L^-1 g|^2 / 2 and a constant, with A = L L'. Without faces the barrier finds it."""
    monkeypatch.setattr(quadratic, "FACES", faces)
    one, H, J = drawn(seed, sparse=sparse)
    L = np.linalg.cholesky(H + 1e3 * J.T @ J)
    free = one.low < one.high
    truth = np.zeros(12)
    bounds = one.low[free], one.high[free]
    truth[free] = scipy.optimize.lsq_linear(L.T[:, free], -np.linalg.solve(L, one.g), bounds, method="bvls", tol=1e-14).x
    found = minimiser(one)
    np.testing.assert_allclose(found, truth, atol=1e-9 if faces else 1e-5)
    assert ((found >= one.low) & (found <= one.high)).all()
    assert one.w == 0


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_others_are_shifted_until_they_are_convex(seed, sparse):
    """The conditions of optimality of the shifted one, and positive eigenvalues on its face."""
    one, H, J = drawn(seed, convex=False, sparse=sparse)
    d = minimiser(one)
    A = H + 1e3 * J.T @ J + one.w * np.eye(12)
    slope, scale = one.g + A @ d, 1e-8 * np.linalg.norm(one.g)
    inner = (d > one.low) & (d < one.high)
    assert one.w > 0 or np.linalg.eigvalsh(A[np.ix_(inner, inner)]).min() > 0
    assert np.linalg.eigvalsh(A[np.ix_(inner, inner)]).min() > 0
    assert np.abs(slope[inner]).max(initial=0) <= scale
    apart = one.low < one.high
    assert (slope[apart & (d == one.low)] >= -scale).all()
    assert (slope[apart & (d == one.high)] <= scale).all()
    assert one.g @ d < 0


def test_a_string_over_a_hump_is_a_convex_hull():
    """The least sum of squared differences above points, ends fixed, is the upper hull of these: 500 entries that start on a
    face that is wrong by hundreds, which faces alone would leave two by two.
    """
    n = 500
    s = np.linspace(0, 1, n)
    hump = 0.3 - 4 * (s - 0.4) ** 2
    points = np.concatenate([[[0.0, 0.0]], np.stack([s, hump], 1)[1:-1], [[1.0, 0.0]]])
    corners = np.array(sorted(v for v in ConvexHull(points).vertices if points[v, 1] >= 0))
    truth = np.interp(s, points[corners, 0], points[corners, 1])
    D = csr_array(diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)))
    start = np.full(n, 0.5)
    low, high = np.maximum(hump, -1.0) - start, np.full(n, np.inf)
    low[[0, -1]] = high[[0, -1]] = -0.5
    H = csr_array(n * (D.T @ D))
    calls = []
    one = Quadratic(H, csr_array((0, n)), 1.0, H @ start, low, high, sparse=True)
    solved = one.solved
    one.solved = lambda *given: calls.append(1) or solved(*given)
    np.testing.assert_allclose(start + minimiser(one), truth, atol=1e-9)
    assert len(calls) < 60


def test_nothing_that_moves():
    one = Quadratic(np.eye(2), np.zeros((0, 2)), 1.0, np.ones(2), np.zeros(2), np.zeros(2), sparse=False)
    np.testing.assert_array_equal(minimiser(one), np.zeros(2))
    one.H[0, 0], one.low[:] = np.nan, -1.0
    assert minimiser(one) is None
