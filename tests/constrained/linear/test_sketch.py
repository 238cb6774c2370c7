"""Sketches: finite termination, memory, the paper's literal steps, the counts of a prototype."""

import math

import numpy as np
import pytest
import torch
from systems import F64, Counted, array, indefinite, kkt, normal, pde, run, singular, symmetric

from constrained.core.errors import OptionError, Unsuitable
from constrained.core.options import outside
from constrained.core.vec import Vec
from constrained.linear import LinearStatus, Minres, System
from constrained.linear.projected_cg import ProjectedCG
from constrained.linear.sketch import Gaussian, Kaczmarz, Sketch, one_by_one

EVERY = [Sketch(block=4), Sketch(block=4, memory=0), Sketch(block=4, memory=2), Gaussian(), Kaczmarz()]
names = pytest.mark.parametrize("method", EVERY, ids=lambda m: repr(m).partition(", max")[0])


def rows(K):
    return {"matrix": lambda: torch.tensor(K)}


# -- the progressive sketch -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("q", [1, 4, 5, 12, 40, None])
@pytest.mark.parametrize("d", [1, 2, 12, 41])
@pytest.mark.parametrize("seed", range(3))
def test_progressive_ends(q, d, seed):
    """At most d products and a look after each block; to the accuracy of a direct solve."""
    K, b = indefinite(d, seed), normal(d, seed)
    found = run(Sketch(block=q), K, b, 1e-9, seed=seed)
    assert found.reason is LinearStatus.SOLVED
    assert found.products <= d + math.ceil(d / min(q or d, d))
    assert array(found) == pytest.approx(np.linalg.solve(K, b), rel=1e-6, abs=1e-7)
    assert (0.3 if min(q or d, d) >= 4 else 0.0) < found.largest / np.linalg.norm(K, 2) <= 2
    assert found.smallest is None or 0.9 <= found.smallest / abs(np.linalg.eigvalsh(K)).min() <= 3


@pytest.mark.parametrize("q", [1, 7, 64])
@pytest.mark.parametrize("scales", [0, 1, 2])
@pytest.mark.parametrize(("n", "m"), [(30, 10), (200, 60)])
def test_progressive_on_kkt_systems(q, scales, n, m):
    """Condition numbers up to 1e9: what rounding spoils, the factors refine in two looks more."""
    d = n + m
    K, b = kkt(n, m, scales=scales), normal(d, 1)
    found = run(Sketch(block=q), K, b, 1e-9 * np.linalg.norm(b), seed=0)
    assert found.reason is LinearStatus.SOLVED
    assert found.products <= d + math.ceil(d / q) + 2


@pytest.mark.parametrize("q", [64, 150, 300])
@pytest.mark.parametrize("seed", range(2))
def test_directions_stay_orthogonal(q, seed):
    """Condition number 1e9, most of the spectrum at its large end: late blocks lie nearly in the span of the early ones. As
    exact as LAPACK's L U all the same.
    """
    values = np.r_[np.logspace(-6, 0, 100), np.linspace(1, 1e3, 200)] * np.where(np.arange(300) % 3 == 0, -1.0, 1.0)
    K, b = symmetric(values, seed), normal(300, seed)
    found = run(Sketch(block=q), K, b, 1e-9, seed=seed)
    assert found.residual <= np.linalg.norm(b - K @ np.linalg.solve(K, b))


@pytest.mark.parametrize("q", [1, 4, 12, 40])
@pytest.mark.parametrize("rank", [1, 9, 10, 39])
@pytest.mark.parametrize("seed", range(3))
def test_progressive_on_singular_systems(q, rank, seed):
    """Consistent: the least-norm solution. Inconsistent: the least-squares one of least norm, once the range is used up."""
    K = singular(40, rank, seed)
    pinv = np.linalg.pinv(K, rcond=1e-10)
    b = K @ normal(40, seed)
    found = run(Sketch(block=q), K, b, 1e-9, seed=seed)
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(pinv @ b, abs=1e-7)
    assert found.products <= 40 + math.ceil(40 / q)
    b = normal(40, seed)
    found = run(Sketch(block=q), K, b, 1e-9, seed=seed)
    assert found.reason is LinearStatus.LEAST_SQUARES
    assert array(found) == pytest.approx(pinv @ b, abs=1e-7)
    assert found.products <= 40 + math.ceil(40 / q) + 2


def test_early_end():
    """Where the tolerance is loose, before d products; from a start near the solution, sooner."""
    K = pde(8)[0].toarray()
    z = normal(192, 1)
    b = K @ z
    loose = run(Sketch(block=16), K, b, 1e-2 * np.linalg.norm(b), seed=0)
    assert loose.products < 192
    near = run(Sketch(block=16), K, b, 1e-2, seed=0, start=z + 1e-3 * normal(192, 2))
    assert near.reason is LinearStatus.SOLVED
    assert near.products < loose.products
    assert run(Sketch(), K, b, 1e-2, start=z).products == 1


def test_out_of_reach_is_precision():
    found = run(Sketch(), indefinite(40, condition=1e9), normal(40, 0), 1e-15)
    assert found.reason is LinearStatus.PRECISION
    assert found.residual < 1e-4


def test_float32():
    K, b = indefinite(40), normal(40, 0)
    found = run(Sketch(block=8), K, b, 1e-3, torch.float32)
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.solve(K, b), abs=1e-1)


# -- the others -------------------------------------------------------------------------------------------------------------
def test_steps_at_once_are_steps_one_by_one():
    """The forward substitution against the loop of the paper's code."""
    rng = np.random.default_rng(0)
    K, b, S = indefinite(12), normal(12, 0), rng.normal(size=(50, 12))
    Y = S @ K
    Y[7] = 0.0  # a zero row is no step
    z = np.zeros(12)
    for s, y in zip(S, Y):
        if y.any():
            z = z + (s @ b - y @ z) / (y @ y) * y
    at_once = one_by_one(torch.tensor(Y), torch.tensor(S @ b))
    assert at_once.numpy() == pytest.approx(z)


@pytest.mark.parametrize("method", EVERY[1:], ids=lambda m: type(m).__name__ + str(getattr(m, "memory", "")))
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ["definite", "indefinite", "singular"])
def test_linear_methods(method, seed, case):
    K = {"definite": symmetric(np.linspace(1, 4, 12), seed), "indefinite": indefinite(12, seed, 10), "singular": singular(12, 8)}[
        case
    ]
    b = K @ normal(12, seed)
    found = run(method, K, b, 1e-6, seed=seed, **rows(K))
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.pinv(K, rcond=1e-10) @ b, abs=1e-4)


@pytest.mark.parametrize("method", EVERY[1:3])
def test_no_convergence_is_noticed(method):
    K, b = singular(12, 8), normal(12, 0)
    found = run(method, K, b, 1e-6, **rows(K))
    assert found.reason is LinearStatus.STALLED


@pytest.mark.parametrize("method", [Gaussian(max_steps=120), Kaczmarz(max_steps=120)])
def test_the_paper_methods_stop_at_their_cap(method):
    """Steps of Gaussian are products, steps of Kaczmarz rows; both look three times: after 50, 100 and 120 steps."""
    K, b = indefinite(12, condition=1e6), normal(12, 0)
    found = run(method, K, b, 1e-12, **rows(K))
    assert found.reason is LinearStatus.MAX_STEPS
    assert found.products == (123 if isinstance(method, Gaussian) else 3)
    capped = run(Sketch(memory=0, block=2, max_steps=5), K, b, 1e-12)
    assert capped.reason is LinearStatus.MAX_STEPS
    assert capped.products == 15


def test_kaczmarz_needs_rows():
    with pytest.raises(Unsuitable, match="use Gaussian"):
        Kaczmarz().init(System(lambda v: v, 3))
    K = pde(3)[0]
    found = run(Kaczmarz(), K, K @ np.ones(27), 0.3, sparse=lambda: K)
    assert found.reason is LinearStatus.SOLVED
    zero = np.zeros((3, 3))
    assert run(Kaczmarz(), zero, np.ones(3), **rows(zero)).reason is LinearStatus.SINGULAR
    half = np.diag([1.0, 0.0, 2.0])
    assert array(run(Kaczmarz(), half, np.array([1.0, 0.0, 2.0]), **rows(half))) == pytest.approx([1, 0, 1])


@pytest.mark.parametrize("window", [1, 2, 10])
def test_a_window_is_enough_where_rounding_is(window):
    """S = r with the last direction is SYMMLQ: two products a step, d steps in exact arithmetic."""
    K, b = symmetric(np.linspace(1, 4, 40)), normal(40, 0)
    found = run(Sketch(memory=window), K, b, 1e-8)
    assert found.reason is LinearStatus.SOLVED
    assert found.products <= 2 * 41


# -- all --------------------------------------------------------------------------------------------------------------------
@names
def test_randomness_is_the_generators(method):
    """The same seed the same bits, another seed other bits; without a generator the same each time; nothing global."""
    K, b = indefinite(12, condition=5), normal(12, 0)
    before = torch.get_rng_state()
    first, again, other, none, still = (array(run(method, K, b, 1e-4, seed=s, **rows(K))) for s in (3, 3, 4, None, None))
    assert (first == again).all()
    assert (none == still).all()
    assert torch.equal(before, torch.get_rng_state())
    if not getattr(method, "memory", 0):  # with a window S = r
        assert (first != other).any()


@names
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("after", [0, 2])
def test_not_finite(method, bad, after):
    K, calls = torch.tensor(indefinite(12)), []

    def product(v):
        calls.append(1)
        return v.map(lambda t: t @ K * (bad if len(calls) > after else 1.0))

    system = System(product, 12, products=product, matrix=lambda: K)
    found = method.solve(method.init(system), Vec.of(torch.tensor(normal(12, 0))), tol=1e-13)
    assert found.reason is LinearStatus.NONFINITE
    assert bool(found.x.finite())


@names
def test_zero_right_hand_side_and_trees(method):
    K = torch.tensor(indefinite(5))
    like = Vec.of({"a": torch.zeros(2, 2, dtype=F64), "b": torch.zeros((), dtype=F64)})
    system = System(lambda v: v.unravel(K @ v.ravel()), 5, like=like, matrix=lambda: K)
    prepared = method.init(system)
    found = method.solve(prepared, like, tol=1e-8)
    assert (found.reason, found.products) == (LinearStatus.SOLVED, 0)
    b = like.unravel(torch.arange(5.0, dtype=F64))
    found = method.solve(prepared, b, tol=1e-5)
    assert found.x.tree()["a"].shape == (2, 2)
    assert found.x.ravel().numpy() == pytest.approx(np.linalg.solve(K.numpy(), np.arange(5.0)), abs=1e-1)


@pytest.mark.parametrize("cls", [Gaussian, Kaczmarz, Sketch, ProjectedCG, Minres])
def test_options_out_of_range(cls):
    for name, value in outside(cls):
        with pytest.raises(OptionError):
            cls(**{name: value})


# -- the published table ----------------------------------------------------------------------------------------------------
def products(method, K, b, tol, **more):
    counted = Counted(K, more=more)
    found = method.solve(method.init(counted.system()), Vec.of(torch.tensor(b)), tol=tol * np.linalg.norm(b))
    assert found.reason is LinearStatus.SOLVED
    return counted.count


@pytest.mark.parametrize(
    ("N", "tol", "progressive", "residual", "minres", "preconditioned"),
    [(8, 1e-2, 195, 50, 40, 4), (8, 1e-8, 195, 342, 96, 4), (20, 1e-2, 845, 86, 49, 4), (20, 1e-8, 1219, 1882, 514, 4)],
)
def test_products_on_the_pde_systems(N, tol, progressive, residual, minres, preconditioned):
    """What a prototype took, with b = K z, z normal: exactly for the progressive sketch, within the draws for others."""
    K, _, inverse = pde(N)
    b = K @ normal(K.shape[0], 5)
    assert products(Sketch(block=64), K, b, tol) == progressive
    assert products(Minres(), K, b, tol) == pytest.approx(minres, rel=0.15)
    assert products(Minres(), K, b, tol, inverse=inverse) <= preconditioned
    assert products(Sketch(memory=2), K, b, tol) == pytest.approx(residual, rel=0.6 if tol == 1e-2 else 0.05)
    assert products(ProjectedCG(), K, b, tol, split=(2 * N * N, N * N)) <= N * N + 7


def test_the_pde_system_is_the_papers():
    """|b| and the optimal value at N = 3 (19.19 and 9.6444421)."""
    K, b, _ = pde(3)
    assert np.linalg.norm(b) == pytest.approx(19.19, abs=5e-3)
    W, Z = np.split(1 + array(run(Sketch(), K, b, 1e-10))[:18], 2)
    at = 0.1 / np.sqrt(15) * np.arange(-1, 2)
    Wd = (np.sin(4 + at)[:, None] + np.cos(3 + at)).ravel()
    assert 0.5 * ((W - Wd) ** 2).sum() + 0.05 * (Z**2).sum() == pytest.approx(9.6444421, abs=1e-7)
