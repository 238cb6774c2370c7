"""The factors of K against its eigenvalues and numpy's solution, dense and sparse."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from constrained.interior.inertia import Matrices, factored


def system(seed, n=6, e=2, i=3, sparse=False, convex=False):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n))
    H = A @ A.T + np.eye(n) if convex else A + A.T
    J, D, slack = rng.standard_normal((e + i, n)), rng.uniform(0, 2, n), rng.uniform(0.1, 3, i)
    return Matrices(csr_array(H) if sparse else H, D, csr_array(J) if sparse else J, slack, sparse)


def dense(one, dw, dc):
    H, J = (M.toarray() if one.sparse else M for M in (one.H, one.J))
    return np.block([[H + np.diag(one.D + dw), J.T], [J, -np.diag(one.corner(dw, dc))]])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_the_shift_gives_the_inertia_and_the_factors_solve(seed, sparse):
    one = system(seed, sparse=sparse)
    found = factored(one, 0.0, 0.1)
    K = dense(one, found.dw, found.dc)
    values = np.linalg.eigvalsh(K)
    assert (values > 0).sum() == 6
    assert (values < 0).sum() == 5
    b = np.random.default_rng(seed).standard_normal(11)
    np.testing.assert_allclose(K @ found.solve(b), b, rtol=0, atol=1e-9 * np.linalg.norm(b))


@pytest.mark.parametrize("sparse", [False, True])
def test_no_shift_where_none_is_needed(sparse):
    for seed in range(5):
        found = factored(system(seed, convex=True, sparse=sparse), 1.0, 0.1)
        assert (found.dw, found.dc) == (0.0, 0.0)


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_depend_on_one_another_are_regularised(sparse):
    J = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    one = Matrices(csr_array(np.eye(3)) if sparse else np.eye(3), np.zeros(3), csr_array(J) if sparse else J, np.zeros(0), sparse)
    found = factored(one, 0.0, 0.1)
    assert found.dw == 0.0
    assert 0 < found.dc <= 1e-8
    z = found.solve(-np.array([0, 0, 0, 3.0, 6.0]))[:3]
    np.testing.assert_allclose(z, [-1.5, -1.5, 0], atol=1e-6)  # the shortest with z1 + z2 = -3


def test_the_next_shift_begins_below_the_last():
    one = system(3)
    first = factored(one, 0.0, 0.1).dw
    assert first > 0
    assert factored(one, 3e3 * first, 0.1).dw <= 1e3 * first


def test_what_is_not_finite_has_no_factors():
    one = system(0)
    one.H[0, 0] = np.nan
    assert factored(one, 0.0, 0.1) is None


@pytest.mark.parametrize("sparse", [False, True])
def test_inequalities_that_depend_on_one_another_are_regularised_too(sparse):
    """Three active rows of two unknowns: E is as good as zero."""
    J = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0]])
    H = np.eye(2)
    one = Matrices(csr_array(H) if sparse else H, np.zeros(2), csr_array(J) if sparse else J, np.full(3, 1e20), sparse)
    found = factored(one, 0.0, 0.1)
    assert found.dw == 0.0
    assert 0 < found.dc <= 1e-8


@pytest.mark.parametrize("sparse", [False, True])
def test_units_do_not_make_a_pivot_zero(sparse):
    """H = U A U with A positive definite: so is H, though its entries are of 1e-16 to 1e16."""
    A, u = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([1e-8, 1e8])
    H, J = A * np.outer(u, u), np.zeros((0, 2))
    found = factored(
        Matrices(csr_array(H) if sparse else H, np.zeros(2), csr_array(J) if sparse else J, np.zeros(0), sparse), 0.0, 0.1
    )
    assert found.dw == 0.0
    np.testing.assert_allclose(found.solve(np.array([1.0, 1.0])) * u, np.linalg.solve(A, 1 / u), rtol=1e-10)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_positive_pivot_of_round_off_is_shifted_beside_dependent_rows(sparse):
    """No curvature along (0, 0, 1), and two equal rows: both dc and dw are needed."""
    H, J = np.diag([1.0, 1.0, 0.0]), np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = factored(
        Matrices(csr_array(H) if sparse else H, np.zeros(3), csr_array(J) if sparse else J, np.zeros(0), sparse), 0.0, 0.1
    )
    assert found.dw > 0
    assert found.dc > 0
