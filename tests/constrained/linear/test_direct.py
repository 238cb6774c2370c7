"""Direct against numpy: solutions, inertia, singular systems, sparse ones; AutoLinear's choices."""

import numpy as np
import pytest
import torch
from systems import F64, Counted, array, indefinite, kkt, normal, pde, run, singular, symmetric

from constrained.core.vec import Vec
from constrained.linear import LinearStatus, Minres, System
from constrained.linear.auto import AutoLinear
from constrained.linear.cost import Operations
from constrained.linear.direct import Direct
from constrained.linear.projected_cg import ProjectedCG


def explicit(K):
    return {"matrix": lambda: torch.tensor(K)}


# -- Direct -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", [1, 2, 3, 12, 300])
@pytest.mark.parametrize("seed", range(3))
def test_indefinite(d, seed):
    K, b = indefinite(d, seed), normal(d, seed)
    found = run(Direct(), K, b, 1e-9, **explicit(K))
    assert found.products == 1
    assert array(found) == pytest.approx(np.linalg.solve(K, b), rel=1e-8, abs=1e-8)
    values = np.linalg.eigvalsh(K)
    assert found.inertia == ((values > 0).sum(), (values < 0).sum(), 0)
    assert 0.9 <= found.smallest / abs(values).min() <= 3
    assert 0.3 <= found.largest / abs(values).max() <= 1.1


@pytest.mark.parametrize(("n", "m"), [(2, 1), (10, 3), (10, 10), (40, 0)])
@pytest.mark.parametrize("scales", [0, 2, 4])
def test_kkt(n, m, scales):
    """The right inertia of a KKT matrix is (n, m, 0), however it is scaled; scale = 0 takes no pivot for zero."""
    K, b = kkt(n, m, scales=scales), normal(n + m, 1)
    found = run(Direct(), K, b, 1e-6 * np.linalg.norm(b), scale=0.0 if scales == 4 else None, **explicit(K))
    assert found.reason is LinearStatus.SOLVED
    assert found.inertia == (n, m, 0)


def test_wrong_inertia_shows():
    K = kkt(10, 3, shift=-0.5)
    values = np.linalg.eigvalsh(K)
    assert run(Direct(), K, normal(13, 0), **explicit(K)).inertia == ((values > 0).sum(), (values < 0).sum(), 0)


def test_zero_pivots_are_relative_to_the_scale():
    """A pivot of 1e-10 is zero beside 1e5, and not beside 1; the system is solved either way."""
    K, b = np.diag([1.0, -2.0, 1e-10]), np.ones(3)
    assert run(Direct(), K, b, 1e-6, **explicit(K)).inertia == (2, 1, 0)
    beside = run(Direct(), K, b, 1e-6, scale=1e5, **explicit(K))
    assert beside.inertia == (1, 1, 1)
    assert beside.reason is LinearStatus.SOLVED
    assert array(beside) == pytest.approx([1, -0.5, 1e10])


@pytest.mark.parametrize("d", [3, 12, 60])
@pytest.mark.parametrize("rank", [0.4, 0.9])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_singular(d, rank, seed, dtype):
    """Consistent: the least-norm solution. Inconsistent: the least-squares one, said so."""
    K = singular(d, max(1, int(rank * d)), seed)
    pinv, tol, close = np.linalg.pinv(K, rcond=1e-10), *((1e-10, 1e-8) if dtype is F64 else (1e-4, 1e-3))
    b = K @ normal(len(K), seed)
    found = run(Direct(), K, b, tol, dtype)
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(pinv @ b, abs=close)
    b = normal(len(K), seed + 10)
    found = run(Direct(), K, b, tol, dtype)
    assert found.reason is LinearStatus.LEAST_SQUARES
    assert array(found) == pytest.approx(pinv @ b, abs=close)
    assert found.inertia[2] > 0


def test_zero_matrix_and_right_hand_side():
    K = np.zeros((3, 3))
    assert run(Direct(), K, np.ones(3), **explicit(K)).reason is LinearStatus.LEAST_SQUARES
    found = run(Direct(), K, np.zeros(3), **explicit(K))
    assert found.reason is LinearStatus.SOLVED
    assert found.inertia == (0, 0, 3)


def test_products_are_made_a_matrix():
    """d batched products, once for all right-hand sides; without batches one by one; the same bits."""
    K, b = indefinite(300), normal(300, 1)
    for more in ({}, {"products": None}):
        counted = Counted(K, more=more)
        prepared = Direct().init(counted.system())
        assert prepared.spent == counted.count == 300
        for scale in (1.0, 2.0):
            found = Direct().solve(prepared, Vec.of(torch.tensor(scale * b)), tol=1e-10)
            assert found.products == 1
            assert array(found) == pytest.approx(scale * np.linalg.solve(K, b))


def test_float32():
    K, b = kkt(20, 5), normal(25, 0)
    found = run(Direct(), K, b, 1e-4, torch.float32)
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.solve(K, b), rel=1e-3, abs=1e-3)


def test_out_of_reach_is_precision():
    K = indefinite(40, condition=1e12)
    assert run(Direct(), K, normal(40, 0), 1e-14, **explicit(K)).reason is LinearStatus.PRECISION


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad):
    K = indefinite(5)
    counted = Counted(K, more={"products": lambda vs: vs.map(lambda t: t * bad)})
    found = Direct().solve(Direct().init(counted.system()), Vec.of(torch.ones(5, dtype=F64)), tol=1e-8)
    assert found.reason is LinearStatus.NONFINITE
    system = System(lambda v: v * bad, 5, matrix=lambda: torch.tensor(K))
    assert Direct().solve(Direct().init(system), Vec.of(torch.ones(5, dtype=F64)), tol=1e-8).reason is LinearStatus.NONFINITE
    assert run(Direct(), K, np.zeros(5), **explicit(K)).reason is LinearStatus.SOLVED


def test_trees():
    K = torch.tensor(indefinite(5))
    like = Vec.of({"a": torch.zeros(2, 2, dtype=F64), "b": torch.zeros((), dtype=F64)})
    system = System(lambda v: v.unravel(K @ v.ravel()), 5, like=like)
    b = like.unravel(torch.arange(5.0, dtype=F64))
    found = Direct().solve(Direct().init(system), b, tol=1e-10)
    assert found.x.tree()["a"].shape == (2, 2)
    assert found.x.ravel().numpy() == pytest.approx(np.linalg.solve(K.numpy(), np.arange(5.0)))


@pytest.mark.parametrize("N", [8, 20])
def test_sparse(N):
    """Up to 500 unknowns with the inertia, above by SuperLU without."""
    K, b, _ = pde(N)
    found = run(Direct(), K, b, 1e-8, sparse=lambda: K)
    assert found.reason is LinearStatus.SOLVED
    assert found.inertia == ((2 * N * N, N * N, 0) if N == 8 else None)
    assert found.products == 1
    values = abs(np.linalg.eigvalsh(K.toarray()))
    assert 0.9 <= found.smallest / values.min() <= 3


def test_sparse_and_singular(monkeypatch):
    import scipy.sparse

    K = scipy.sparse.block_diag([pde(14)[0], [[0.0]]]).tocsr()
    d = K.shape[0]
    x = np.r_[normal(d - 1, 0), 0.0]
    found = run(Direct(), K, K @ x, 1e-8, sparse=lambda: K)
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(x, abs=1e-8)
    b = normal(d, 1)
    assert run(Direct(), K, b, 1e-8, sparse=lambda: K).reason is LinearStatus.LEAST_SQUARES
    monkeypatch.setattr("constrained.linear.direct.DENSE", 100)
    assert run(Direct(), K, b, 1e-8, sparse=lambda: K).reason is LinearStatus.SINGULAR
    assert run(AutoLinear(), K, b, 1e-8, sparse=lambda: K).reason is LinearStatus.LEAST_SQUARES


# -- AutoLinear -------------------------------------------------------------------------------------------------------------
def chosen(K, b, tol=1e-8, method=None, **more):
    """What AutoLinear's prepared system holds in the end, and the solution."""
    counted, method = Counted(K, more=more), method or AutoLinear()
    prepared = method.init(counted.system())
    found = method.solve(prepared, Vec.of(torch.tensor(b)), tol=tol)
    assert found.products + prepared.spent == counted.count
    dense = K if isinstance(K, np.ndarray) else K.toarray()
    noise = 2.3e-16 * (np.linalg.norm(b) + np.linalg.norm(dense) * np.linalg.norm(array(found)))  # of one product
    assert found.residual == pytest.approx(np.linalg.norm(b - dense @ array(found)), rel=1e-3, abs=30 * noise)
    if prepared.factors is not None:
        return "direct", found, prepared
    return "minres" if prepared.projected is None else "projected", found, prepared


def test_explicit_sparse_and_small_systems_are_factorised_at_once():
    K, b = indefinite(300), normal(300, 0)
    assert chosen(K, b, **explicit(K))[0] == "direct"
    assert chosen(indefinite(100), normal(100, 0))[0] == "direct"
    S, b, _ = pde(20)
    assert chosen(S, b, sparse=lambda: S)[0] == "direct"


def test_an_easy_operator_is_left_to_minres():
    K, b = symmetric(np.linspace(1, 2, 400)), normal(400, 0)
    which, found, _ = chosen(K, b)
    assert found.reason is LinearStatus.SOLVED
    assert which == "minres"
    assert found.products <= 20


def test_a_hard_operator_is_factorised():
    """MINRES would need thousands of products."""
    K, b = indefinite(400, condition=1e6), normal(400, 0)
    which, found, prepared = chosen(K, b, 1e-7)
    assert which == "direct"
    assert found.reason is LinearStatus.SOLVED
    again = AutoLinear().solve(prepared, Vec.of(torch.tensor(b)), tol=1e-7)
    assert again.products == 1


def test_constraints_that_are_cheap_to_factorise():
    """The PDE's null space has a well-conditioned Hessian: ProjectedCG, for this right-hand side and the next."""
    K, b, _ = pde(20)
    which, found, prepared = chosen(K, b, split=(800, 400))
    assert which == "projected"
    assert found.reason is LinearStatus.SOLVED
    again = AutoLinear().solve(prepared, Vec.of(torch.tensor(K @ normal(1200, 3))), tol=1e-8)
    assert again.reason is LinearStatus.SOLVED
    assert again.products < 20


def test_few_constraints_at_hand_are_projected_at_once():
    """Unless that fails: then as if they were not there."""
    K, b = kkt(400, 20), normal(420, 0)
    which, found, _ = chosen(K, b, split=(400, 20), below=lambda: torch.tensor(K[400:]))
    assert which == "projected"
    assert found.reason is LinearStatus.SOLVED
    K = kkt(400, 20, shift=-0.2)
    which, found, prepared = chosen(K, b, split=(400, 20), below=lambda: torch.tensor(K[400:]))
    assert which == "direct"
    assert found.reason is LinearStatus.SOLVED
    assert not prepared.projectable


@pytest.mark.parametrize("below", [True, False])
def test_negative_curvature_ends_the_solve_of_a_convex_system(below):
    K, b = kkt(400, 20, shift=-0.2), normal(420, 0)
    more = {"below": lambda: torch.tensor(K[400:])} if below else {}
    _, found, _ = chosen(K, b, split=(400, 20), convex=True, **more)
    assert found.reason is LinearStatus.NEGATIVE_CURVATURE
    d = found.direction.ravel().numpy()
    assert d @ K @ d < 0


def test_an_indefinite_reduced_hessian_is_factorised():
    K, b = kkt(400, 50, shift=-0.2), normal(450, 0)
    which, found, _ = chosen(K, b, split=(400, 50))
    assert which == "direct"
    assert found.reason is LinearStatus.SOLVED


def test_what_is_too_large_stays_with_products():
    K, b = indefinite(300, condition=1e3), normal(300, 0)
    which, found, _ = chosen(K, b, 1e-6, method=AutoLinear(dense=200))
    assert which == "minres"
    assert found.reason is LinearStatus.SOLVED


def test_a_missed_tolerance_is_tried_by_direct():
    """Badly scaled: MINRES alone misses it by far."""
    K, b = kkt(200, 60, scales=2), normal(260, 0)
    assert run(Minres(), K, b, 1e-6).reason is not LinearStatus.SOLVED
    which, found, _ = chosen(K, b, 1e-6)
    assert which == "direct"
    assert found.reason is LinearStatus.SOLVED


def test_a_preconditioner_is_used():
    K, b, inverse = pde(20)
    which, found, _ = chosen(K, b, inverse=inverse)
    assert which == "minres"
    assert found.products == 4


@pytest.mark.parametrize("shift", [1e-1, 1e-7])
def test_a_slow_projection_gives_way_to_a_factorisation(shift):
    """Few constraints: projected at once, and left at once where the reduced Hessian is ill-conditioned."""
    K, b = kkt(600, 20, shift=shift), normal(620, 0)
    which, found, prepared = chosen(K, b, 1e-7, split=(600, 20), below=lambda: torch.tensor(K[600:]))
    assert which == ("projected" if shift == 1e-1 else "direct")
    assert found.reason is LinearStatus.SOLVED
    assert found.products + prepared.spent <= (100 if shift == 1e-1 else 620 + 100)


def test_a_preconditioner_comes_before_a_projection():
    K, b = kkt(400, 20), normal(420, 0)
    values, V = np.linalg.eigh(K)
    M = torch.tensor(V / abs(values) @ V.T)
    more = {"inverse": lambda v: v.map(lambda t: M @ t), "split": (400, 20), "below": lambda: torch.tensor(K[400:])}
    which, found, _ = chosen(K, b, 1e-7, **more)
    assert which == "minres"
    assert found.products <= 6  # eigenvalues 1 and -1


def test_operations_are_counted_by_their_shapes():
    """By hand: 2 i j k for products of matrices, 8 bytes for each number read or written by the rest; views are free."""
    A, B, v = (torch.ones(*shape, dtype=F64, requires_grad=True) for shape in ((2, 3), (3, 4), (3,)))
    with Operations() as done:
        _ = (A @ B, A @ v, A.T)
    assert (done.calls, done.flops, done.bytes) == (2, pytest.approx(48 + 12), 0)
    assert done.matrices == 8 * (6 + 12 + 8 + 6 + 3 + 2)
    with Operations() as done:
        _ = torch.cat([v, v]).exp()
    assert (done.calls, done.flops, done.bytes) == (2, 0, 8 * (12 + 12))
    out = (A @ v).sum()
    with Operations() as done:
        torch.autograd.grad(out, [v])
    assert done.flops == pytest.approx(12)  # of the backward too


def test_singular_and_not_finite_operators():
    K = singular(200, 150)
    b = K @ normal(200, 0)
    assert run(AutoLinear(), K, b, 1e-8).reason is LinearStatus.SOLVED
    found = run(AutoLinear(), K, normal(200, 1), 1e-8)
    assert found.reason is LinearStatus.LEAST_SQUARES
    assert array(found) == pytest.approx(np.linalg.pinv(K, rcond=1e-10) @ normal(200, 1), abs=1e-6)
    system = System(lambda v: v * np.nan, 200)
    assert AutoLinear().solve(AutoLinear().init(system), Vec.of(torch.tensor(b)), tol=1e-8).reason is LinearStatus.NONFINITE


def test_runs_repeat_bit_for_bit():
    K, b = indefinite(300, condition=1e5), normal(300, 0)
    first, second = (array(run(AutoLinear(), K, b, 1e-7)) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("method", [Direct(), AutoLinear(), ProjectedCG()])
def test_nothing_global_is_touched(method):
    before = torch.get_rng_state()
    run(method, kkt(20, 5), normal(25, 0), split=(20, 5))
    assert torch.equal(before, torch.get_rng_state())
