"""CG and MINRES against numpy: what is called solved is solved, and what is not has its reason."""

import numpy as np
import pytest
import torch

from constrained.core.errors import OptionError
from constrained.core.vec import Vec
from constrained.linear import CG, LinearStatus, Minres, System

F64 = torch.float64
N = 12


def symmetric(values, seed=0):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return Q @ np.diag(values) @ Q.T


def right(seed=1, n=N):
    return np.random.default_rng(seed).normal(size=n)


def solve(method, A, b, tol=1e-10, dtype=F64, inverse=None, start=None):
    matrix, calls = torch.tensor(A, dtype=dtype), []

    def product(v):
        calls.append(1)
        return v.map(lambda t: matrix @ t)

    options = {} if start is None else {"start": Vec.of(torch.tensor(start, dtype=dtype))}
    prepared = {} if inverse is None else {"inverse": lambda v: v.map(lambda t: torch.tensor(inverse, dtype=dtype) @ t)}
    found = method.solve(
        method.init(System(product, len(b), **prepared)), Vec.of(torch.tensor(b, dtype=dtype)), tol=tol, **options
    )
    assert found.products == len(calls), "products are counted"
    return found


def array(found):
    return found.x.tree().double().numpy()


def truthful(found, A, b, tol, eps=2.3e-16):
    """The reported residual is the recomputed one, and SOLVED means within the tolerance but for rounding."""
    real = np.linalg.norm(b - A @ array(found))
    noise = eps * (np.linalg.norm(b) + np.linalg.norm(A, 2) * np.linalg.norm(array(found)))
    assert found.residual == pytest.approx(real, rel=1e-3, abs=100 * noise)
    if found.reason is LinearStatus.SOLVED:
        assert real <= 2 * tol + 1e3 * noise


DEFINITE = {
    "well": np.linspace(1, 4, N),
    "cond 1e3": np.logspace(0, -3, N),
    "large": 1e8 * np.linspace(1, 4, N),
    "small": 1e-8 * np.linspace(1, 4, N),
    "c I": np.full(N, 0.37),
    "two": np.array([1.0] * 5 + [50.0] * 7),
    "two loose": np.array([1.0] * 5 + [50.0] * 7) * (1 + 1e-12 * np.arange(N)),
    "one outlier": np.array([1.0] * 11 + [1e5]),
}


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
@pytest.mark.parametrize("name", DEFINITE)
@pytest.mark.parametrize("seed", range(4))
def test_definite(method, name, seed):
    A, b = symmetric(DEFINITE[name], seed), right(seed + 50)
    found = solve(method, A, b)
    assert found.reason is LinearStatus.SOLVED, found
    truthful(found, A, b, 1e-10)
    assert array(found) == pytest.approx(np.linalg.solve(A, b), rel=1e-6, abs=1e-9 / DEFINITE[name].min())


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
def test_early_finish(method):
    """c I takes one step, two eigenvalues two, and zero none; one more product for the residual."""
    assert solve(method, 3 * np.eye(N), right()).products <= 1 + 1 + 1
    assert solve(method, symmetric(DEFINITE["two"]), right()).products <= 2 + 1 + 1
    zero = solve(method, np.eye(N), np.zeros(N))
    assert zero.reason is LinearStatus.SOLVED
    assert not array(zero).any()
    assert solve(method, np.array([[4.0]]), np.array([2.0])).x.tree().item() == 0.5


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("tol", [1e-6, 1e-10, 1e-13])
def test_ill_conditioned_is_never_solved_in_name_only(method, seed, tol):
    A, b = symmetric(np.logspace(0, -5, 40), seed), right(seed, 40)
    found = solve(method, A, b, tol)
    truthful(found, A, b, tol)
    if tol == 1e-6:
        assert found.reason is LinearStatus.SOLVED


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
@pytest.mark.parametrize("rank", [1, 3, 6, 11])
@pytest.mark.parametrize("seed", range(5))
def test_singular_consistent(method, rank, seed):
    """b in the range: the least-norm solution."""
    A = symmetric(np.r_[np.linspace(1, 3, rank), np.zeros(N - rank)], seed)
    b = A @ right(seed)
    found = solve(method, A, b)
    assert found.reason is LinearStatus.SOLVED, found
    truthful(found, A, b, 1e-10)
    assert array(found) == pytest.approx(np.linalg.pinv(A, rcond=1e-10) @ b, abs=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 6, 11])
@pytest.mark.parametrize("seed", range(5))
def test_singular_inconsistent(rank, seed):
    A = symmetric(np.r_[np.linspace(1, 3, rank), np.zeros(N - rank)], seed)
    b = right(seed)
    by_cg = solve(CG(), A, b)
    assert by_cg.reason is LinearStatus.SINGULAR, by_cg
    truthful(by_cg, A, b, 1e-10)
    found = solve(Minres(), A, b)
    assert found.reason is LinearStatus.LEAST_SQUARES, found
    truthful(found, A, b, 1e-10)
    least = np.linalg.pinv(A, rcond=1e-10) @ b
    assert array(found) == pytest.approx(least, abs=1e-6)
    assert found.residual == pytest.approx(np.linalg.norm(b - A @ least), rel=1e-9)


def test_zero_matrix():
    A, b = np.zeros((N, N)), right()
    assert solve(CG(), A, b).reason is LinearStatus.SINGULAR
    found = solve(Minres(), A, b)
    assert found.reason is LinearStatus.LEAST_SQUARES
    assert array(found) == pytest.approx(np.zeros(N), abs=1e-12)
    assert found.residual == pytest.approx(np.linalg.norm(b))


@pytest.mark.parametrize("size", [1e-150, 1e-200, 1e-300])
def test_a_matrix_near_the_end_of_the_range(size):
    """Squares of its entries are zero in float64."""
    found = solve(Minres(), size * np.eye(N), right())
    assert found.smallest is None or found.smallest == pytest.approx(size)
    assert found.residual <= np.linalg.norm(right())


def test_singular_indefinite_inconsistent():
    A, b = symmetric(np.r_[[2.0, 1.0, -1.0, -3.0], np.zeros(N - 4)]), right()
    found = solve(Minres(), A, b)
    assert found.reason is LinearStatus.LEAST_SQUARES
    assert array(found) == pytest.approx(np.linalg.pinv(A, rcond=1e-10) @ b, abs=1e-6)


@pytest.mark.parametrize("values", [np.linspace(-1, 2, N), -np.ones(N), np.r_[np.ones(11), -1e-3], np.r_[np.ones(11), -1e6]])
@pytest.mark.parametrize("seed", range(4))
def test_indefinite(values, seed):
    A, b = symmetric(values, seed), right(seed)
    found = solve(CG(), A, b)
    assert found.reason is LinearStatus.NEGATIVE_CURVATURE, found
    d = found.direction.tree().numpy()
    assert d @ A @ d < 0
    truthful(found, A, b, 1e-10)
    other = solve(Minres(), A, b, 1e-8)
    assert other.reason is LinearStatus.SOLVED, other
    truthful(other, A, b, 1e-8)
    assert array(other) == pytest.approx(np.linalg.solve(A, b), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("after", [0, 2])
def test_products_that_are_not_finite(method, bad, after):
    """From the first product or later: NONFINITE."""
    A, count = torch.tensor(symmetric(np.linspace(1, 4, N))), []

    def product(v):
        count.append(1)
        return v.map(lambda t: A @ t * (bad if len(count) > after else 1.0))

    found = method.solve(method.init(System(product, N)), Vec.of(torch.tensor(right())), tol=1e-12)
    assert found.reason is LinearStatus.NONFINITE


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
def test_right_hand_side_that_is_not_finite(method):
    assert solve(method, np.eye(N), np.full(N, np.nan)).reason is LinearStatus.NONFINITE


def test_preconditioner():
    """The exact inverse needs one step; a diagonal one fewer than none; the answer is the same."""
    rng = np.random.default_rng(0)
    scales = np.diag(np.logspace(0, 3, 40))
    A = scales @ symmetric(np.linspace(1, 2, 40)) @ scales
    b = rng.normal(size=40)
    plain, diagonal, exact = (solve(CG(), A, b, 1e-8, inverse=M) for M in (None, np.diag(1 / np.diag(A)), np.linalg.inv(A)))
    assert exact.products <= 4
    assert diagonal.products < plain.products
    for found in (diagonal, exact):
        assert found.reason is LinearStatus.SOLVED
        truthful(found, A, b, 1e-8)
        assert array(found) == pytest.approx(np.linalg.solve(A, b), rel=1e-5, abs=1e-9)


def test_start():
    A, b = symmetric(np.linspace(1, 4, N)), right()
    truth = np.linalg.solve(A, b)
    at_it = solve(CG(), A, b, 1e-8, start=truth)
    assert at_it.reason is LinearStatus.SOLVED
    assert at_it.products <= 2
    near = solve(CG(), A, b, 1e-8, start=truth + 1e-6)
    far = solve(CG(), A, b, 1e-8)
    assert near.products < far.products
    assert array(near) == pytest.approx(truth, abs=1e-7)


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
def test_float32(method):
    A, b = symmetric(np.linspace(1, 4, N)), right()
    found = solve(method, A, b, 1e-5, torch.float32)
    assert found.reason is LinearStatus.SOLVED
    assert found.x.dtype is torch.float32
    assert array(found) == pytest.approx(np.linalg.solve(A, b), abs=1e-4)
    truthful(found, A, b, 1e-5, eps=6e-8)
    too_much = solve(method, symmetric(np.logspace(0, -3, N)), b, 1e-12, torch.float32)
    assert too_much.reason in (LinearStatus.SOLVED, LinearStatus.PRECISION, LinearStatus.MAX_STEPS)
    truthful(too_much, symmetric(np.logspace(0, -3, N)), b, 1e-12, eps=6e-8)


@pytest.mark.parametrize("method", [CG, Minres])
def test_limit_of_steps(method):
    found = solve(method(max_steps=3), symmetric(np.logspace(0, -3, 40)), right(n=40))
    assert found.reason is LinearStatus.MAX_STEPS
    assert found.products <= 5
    with pytest.raises(OptionError):
        method(max_steps=0)


@pytest.mark.parametrize("method", [CG(), Minres()], ids=["CG", "Minres"])
def test_operator_is_prepared_once_and_trees_are_vectors(method):
    """Several right-hand sides by one operator; a dict variable; nothing given is written to."""
    d = {"a": torch.tensor([1.0, 2.0], dtype=F64), "b": torch.tensor(4.0, dtype=F64)}
    operator = method.init(System(lambda v: Vec.of({name: d[name] * leaf for name, leaf in v.tree().items()}), 3))
    for scale in (1.0, -3.0):
        b = Vec.of({"a": torch.full((2,), scale, dtype=F64), "b": torch.tensor(scale, dtype=F64)})
        before = b.clone()
        found = method.solve(operator, b, tol=1e-12)
        assert found.x.tree()["a"].tolist() == pytest.approx([scale, scale / 2])
        assert found.x.tree()["b"].item() == pytest.approx(scale / 4)
        assert torch.equal(b.ravel(), before.ravel())
