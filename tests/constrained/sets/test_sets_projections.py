"""Projections against cvxpy, the variational inequality, and closed forms."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.linalg import null_space

from constrained.core.vec import Vec
from constrained.sets import Affine, Ball, Box, ConvexSet, Everywhere, Halfspace, Product, Simplex

INF = math.inf
RNG = np.random.default_rng(0)
FLAT = torch.zeros(6, dtype=torch.float64)
TREE = {
    "w": torch.zeros(2, 3, dtype=torch.float64),
    "b": torch.zeros(2, dtype=torch.float64),
    "s": torch.tensor(0.0, dtype=torch.float64),
}

A = RNG.standard_normal((2, 9))
A3 = np.vstack([A, A[0] - 2 * A[1]])  # a redundant row
B3 = A3 @ RNG.standard_normal(9)
HALF = RNG.standard_normal(9)
CENTER = {"w": RNG.standard_normal((2, 3)), "b": RNG.standard_normal(2), "s": 0.3}
CENTER_FLAT = np.concatenate([np.ravel(CENTER[k]) for k in ("w", "b", "s")])
LOW = np.array([-INF, -1.0, 0.0, 0.5, -INF, -0.2])
HIGH = np.array([0.0, INF, 0.0, 1.5, INF, 0.3])


@dataclass
class Case:
    """A set, a variable, the same set for cvxpy, and random points of it that no projection made."""

    one: ConvexSet
    like: Any
    constraints: Callable[[cp.Variable], list]
    inside: Callable[[np.random.Generator], np.ndarray]


def on_simplices(rng: np.random.Generator, rows: int, n: int, total: float) -> np.ndarray:
    return total * rng.dirichlet(np.full(n, 0.5), rows).ravel()


def in_ball(rng: np.random.Generator, n: int) -> np.ndarray:
    direction = rng.standard_normal(n)
    return direction / np.linalg.norm(direction) * rng.random()


def in_halfspace(rng: np.random.Generator, a: np.ndarray, b: float) -> np.ndarray:
    u = rng.standard_normal(len(a))
    return u - (a @ u - b + rng.exponential() * rng.integers(2)) / (a @ a) * a


CASES = {
    "everywhere": Case(Everywhere(), TREE, lambda u: [], lambda r: r.standard_normal(9)),
    "box": Case(Box(-0.5, 0.5), TREE, lambda u: [u >= -0.5, u <= 0.5], lambda r: r.uniform(-0.5, 0.5, 9)),
    "box, arrays with infinities": Case(
        Box(LOW, torch.tensor(HIGH)),
        FLAT,
        lambda u: [u[i] >= LOW[i] for i in range(6) if LOW[i] > -INF] + [u[i] <= HIGH[i] for i in range(6) if HIGH[i] < INF],
        lambda r: r.uniform(np.maximum(LOW, -2), np.minimum(HIGH, 2)),
    ),
    "box, trees": Case(
        Box(low={"s": -INF, "b": [0.0, 0.1], "w": 0.0}, high={"w": np.array([0.2, 0.3, 0.4]), "s": 0.0, "b": INF}),
        TREE,
        lambda u: [u[:6] >= 0, u[6:8] >= np.array([0, 0.1]), u[:6] <= np.array([0.2, 0.3, 0.4] * 2), u[8] <= 0],
        lambda r: np.concatenate([r.uniform(0, [0.2, 0.3, 0.4] * 2), 0.1 + r.exponential(size=2), -r.exponential(size=1)]),
    ),
    "ball": Case(Ball(0.7), TREE, lambda u: [cp.norm(u) <= 0.7], lambda r: 0.7 * in_ball(r, 9)),
    "ball, center": Case(
        Ball(1.3, center=CENTER), TREE, lambda u: [cp.norm(u - CENTER_FLAT) <= 1.3], lambda r: CENTER_FLAT + 1.3 * in_ball(r, 9)
    ),
    "simplex": Case(Simplex(), FLAT, lambda u: [u >= 0, cp.sum(u) == 1], lambda r: on_simplices(r, 1, 6, 1.0)),
    "simplex, batched": Case(
        Simplex(2.5),
        FLAT.reshape(2, 1, 3),
        lambda u: [u >= 0, cp.sum(u[:3]) == 2.5, cp.sum(u[3:]) == 2.5],
        lambda r: on_simplices(r, 2, 3, 2.5),
    ),
    "affine": Case(
        Affine(A, B3[:2]),
        TREE,
        lambda u: [A @ u == B3[:2]],
        lambda r: np.linalg.pinv(A) @ B3[:2] + null_space(A) @ r.standard_normal(7),
    ),
    "affine, redundant rows": Case(
        Affine(torch.tensor(A3), list(B3)),
        TREE,
        lambda u: [A @ u == B3[:2]],
        lambda r: np.linalg.pinv(A) @ B3[:2] + null_space(A) @ r.standard_normal(7),
    ),
    "halfspace": Case(Halfspace(HALF, -0.4), TREE, lambda u: [HALF @ u <= -0.4], lambda r: in_halfspace(r, HALF, -0.4)),
    "halfspace, dict": Case(
        Halfspace({"s": HALF[8], "w": HALF[:6].reshape(2, 3), "b": HALF[6:8]}, 0.1),
        TREE,
        lambda u: [HALF @ u <= 0.1],
        lambda r: in_halfspace(r, HALF, 0.1),
    ),
    "product": Case(
        Product({"w": Simplex(), "b": Ball(0.5)}),
        TREE,
        lambda u: [u[:6] >= 0, cp.sum(u[:3]) == 1, cp.sum(u[3:6]) == 1, cp.norm(u[6:8]) <= 0.5],
        lambda r: np.concatenate([on_simplices(r, 2, 3, 1.0), 0.5 * in_ball(r, 2), r.standard_normal(1)]),
    ),
    "product of products": Case(
        Product({1: Product({"a": Box(0)})}),
        (FLAT[:2], {"a": FLAT[:3], "b": FLAT[:1]}),
        lambda u: [u[2:5] >= 0],
        lambda r: np.concatenate([r.standard_normal(2), r.exponential(size=3), r.standard_normal(1)]),
    ),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def points(case: Case, seed: int, count: int, scale: float = 1.5, dtype: torch.dtype = torch.float64) -> list[Vec]:
    like = Vec.of(case.like)
    like = like.map(lambda leaf: leaf.to(dtype))
    rng = np.random.default_rng(seed)
    return [like.unravel(torch.tensor(scale * rng.standard_normal(like.size))) for _ in range(count)]


# -- every set --------------------------------------------------------------------------------------------------------------
@EVERY
def test_projection_agrees_with_cvxpy(case):
    for v in points(case, 1, 3):
        u = cp.Variable(v.size)
        cp.Problem(cp.Minimize(cp.sum_squares(u - v.ravel().numpy())), case.constraints(u)).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10
        )
        np.testing.assert_allclose(case.one.project(v).ravel().numpy(), u.value, atol=1e-5)


@EVERY
def test_projection_solves_the_variational_inequality(case):
    rng = np.random.default_rng(2)
    for v in points(case, 3, 5) + points(case, 4, 2, scale=1e4):
        p = case.one.project(v)
        residual, near = (v - p).ravel().numpy(), p.ravel().numpy()
        for _ in range(20):
            u = case.inside(rng)
            assert residual @ (u - near) <= 1e-13 * (1 + float(v.norm())) ** 2


@EVERY
def test_points_of_the_set_stay(case):
    rng = np.random.default_rng(5)
    for _ in range(5):
        v = Vec.of(case.like).unravel(torch.tensor(case.inside(rng)))
        assert float(case.one.distance(v)) <= 20 * 2.2e-16 * (1 + float(v.norm()))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-4, 1.5, 1e5])
def test_projection_is_idempotent_and_keeps_structure_and_dtype(case, dtype, scale):
    for v in points(case, 6, 4, scale=scale, dtype=dtype):
        before = v.clone()
        p = case.one.project(v)
        assert p.spec == v.spec
        assert [(leaf.shape, leaf.dtype) for leaf in p.leaves] == [(leaf.shape, dtype) for leaf in v.leaves]
        assert all(torch.equal(a, b) for a, b in zip(v.leaves, before.leaves)), "v was written to"
        again = case.one.project(p)
        assert float((again - p).norm()) <= 4 * torch.finfo(dtype).eps * (1 + float(p.norm()))


@EVERY
def test_float32_projection_is_the_rounded_float64_one(case):
    for v in points(case, 7, 4, dtype=torch.float32):
        wide = case.one.project(v.map(torch.Tensor.double)).ravel()
        torch.testing.assert_close(case.one.project(v).ravel().double(), wide, rtol=1e-6, atol=3e-7)


@EVERY
def test_distance_is_a_float64_scalar(case):
    for v in points(case, 8, 2, dtype=torch.float32):
        d = case.one.distance(v)
        assert d.shape == ()
        assert d.dtype == torch.float64
        assert float(d) == pytest.approx(float(np.linalg.norm((v - case.one.project(v)).ravel().double().numpy())), rel=1e-12)


@EVERY
def test_sets_copy_and_pickle(case):
    (v,) = points(case, 9, 1)
    wanted = case.one.project(v).ravel()
    for twin in (copy.deepcopy(case.one), pickle.loads(pickle.dumps(case.one))):
        assert torch.equal(twin.project(v).ravel(), wanted)
        assert repr(twin) == repr(case.one)


@EVERY
def test_nan_is_not_hidden(case):
    (v,) = points(case, 10, 1)
    v = v.like([torch.full_like(leaf, math.nan) for leaf in v.leaves])
    assert bool(case.one.project(v).ravel().isnan().all())


@EVERY
def test_check_accepts_the_variable(case):
    case.one.check(Vec.of(case.like), "y")


@EVERY
def test_works_under_no_grad_and_tracks_nothing(case):
    (v,) = points(case, 11, 1)
    with torch.no_grad():
        quiet = case.one.project(v).ravel()
    assert torch.equal(case.one.project(v).ravel(), quiet)
    assert not quiet.requires_grad


# -- violation: at most 10 eps times the scale of the data ------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e8])
def test_violation_is_rounding(dtype, scale):
    eps = torch.finfo(dtype).eps
    rng = np.random.default_rng(12)
    v = Vec.of(torch.tensor(scale * rng.standard_normal(50)).to(dtype))
    matrix, b = rng.standard_normal((7, 50)), rng.standard_normal(7)
    p = Affine(matrix, b).project(v).ravel().double().numpy()
    assert np.all(np.abs(matrix @ p - b) <= 10 * eps * (np.abs(matrix) @ np.abs(p) + np.abs(b)))
    p = Halfspace(matrix[0], -2.0).project(v).ravel().double().numpy()
    assert matrix[0] @ p + 2 <= 10 * eps * (np.abs(matrix[0]) @ np.abs(p) + 2)
    assert float(Ball(0.3).project(v).norm()) <= 0.3 * (1 + 10 * eps)
    p = Simplex(3.0).project(v).ravel().double()
    assert float(p.min()) >= 0
    assert abs(float(p.sum()) - 3) <= 10 * eps * 3


def test_affine_projection_along_the_normal_keeps_digits():
    # |v| is 1e10 times |P(v)|: one pass alone would miss the plane by 1e-6.
    normal = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    for one in (Affine([[1.0, 2.0, 2.0]], [3.0]), Halfspace([1.0, 2.0, 2.0], 3.0)):
        p = one.project(Vec.of(1.1e10 * normal)).ravel()
        assert abs(float(normal @ p) - 3) <= 1e-14
        torch.testing.assert_close(p, normal / 3, rtol=0, atol=1e-5)


def test_simplex_does_not_lose_a_long_row():
    w = torch.linspace(0, 1e-9, 1_000_000, dtype=torch.float64)[
        torch.randperm(1_000_000, generator=torch.Generator().manual_seed(0))
    ]
    p = Simplex().project(Vec.of(w)).ravel()
    assert abs(math.fsum(p.tolist()) - 1) <= 1e-14


# -- degenerate and closed forms --------------------------------------------------------------------------------------------
def project(one: ConvexSet, *values: float) -> list[float]:
    return one.project(Vec.of(torch.tensor(values, dtype=torch.float64))).ravel().tolist()


def test_everywhere_is_whole_and_so_are_products_of_it():
    v = Vec.of(FLAT)
    assert torch.equal(Everywhere().project(v).ravel(), FLAT)
    assert all(one.whole for one in (Everywhere(), Product({}), Product({"w": Everywhere(), "b": Product({})})))
    assert not Product({"w": Everywhere(), "b": Box()}).whole
    assert not any(case.one.whole for name, case in CASES.items() if name != "everywhere")


def test_box_without_bounds_and_with_one_side():
    assert project(Box(), -3, 3) == [-3, 3]
    assert project(Box(low=0), -3, 3) == [0, 3]
    assert project(Box(high=0), -3, 3) == [-3, 0]
    assert project(Box(low=[-INF, 0]), -3, -3) == [-3, 0]
    assert project(Box(1, 1), -3, 3) == [1, 1]


def test_box_value_above_several_leaves_holds_for_all():
    v = Vec.of({"net": {"w": torch.tensor([-1.0]), "b": torch.tensor(-2.0)}, "scale": torch.tensor(-3.0)})
    p = Box(low={"net": 0, "scale": -INF}).project(v).tree()
    assert (float(p["net"]["w"]), float(p["net"]["b"]), float(p["scale"])) == (0.0, 0.0, -3.0)


def test_box_list_means_the_tree_where_the_variable_is_a_list():
    v = Vec.of([torch.tensor([-9.0, 9.0]), torch.tensor([-9.0, 9.0])])
    low, high = Box([0.0, 5.0]).project(v).tree()
    assert (low.tolist(), high.tolist()) == ([0, 9], [5, 9])


def test_box_bounds_are_read_in_the_dtype_of_the_variable():
    bounds = np.array([0.1, 0.2])
    box = Box(bounds, 1)
    for dtype in (torch.float32, torch.float64, torch.float32, torch.bfloat16):
        p = box.project(Vec.of(torch.zeros(2, dtype=dtype))).ravel()
        assert p.dtype == dtype
        assert torch.equal(p, torch.tensor(bounds).to(dtype))


def test_constants_are_copied():
    low, center, a = np.zeros(2), torch.zeros(2, dtype=torch.float64), np.array([1.0, 0.0])
    box, ball, half = Box(low), Ball(1, center=center), Halfspace(a, 0.0)
    low += 5
    center += 5
    a += 5
    assert project(box, -1, 1) == [0, 1]
    assert project(ball, 0, 0.5) == [0, 0.5]
    assert project(half, 2, 7) == [0, 7]


def test_ball_inside_is_bit_equal_and_radius_zero_is_the_center():
    v = torch.rand(4, dtype=torch.float64) / 7
    assert torch.equal(Ball(1, center=[0.1, 0.2, 0.3, 0.1]).project(Vec.of(v)).ravel(), v)
    assert project(Ball(0, center=[1, 2]), 5, 6) == [1, 2]
    assert project(Ball(0), 0, 0) == [0, 0]


def test_simplex_ties_corners_and_far_points():
    assert project(Simplex(), 1, 1, 1, 1) == [0.25] * 4
    assert project(Simplex(), 5, 5, -5) == [0.5, 0.5, 0]
    assert project(Simplex(), 1e12, 0, -1e12) == [1, 0, 0]
    assert project(Simplex(), 1e12, 1e12, 0) == [0.5, 0.5, 0]
    assert project(Simplex(), -INF, 0, 0) == [0, 0.5, 0.5]
    assert project(Simplex(7), -3) == [7]


def test_simplex_rows_are_separate():
    rows = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = Simplex(2.0).project(Vec.of(rows)).tree()
    for i in range(5):
        for j in range(4):
            torch.testing.assert_close(Simplex(2.0).project(Vec.of(rows[i, j])).tree(), whole[i, j], rtol=0, atol=1e-15)


def test_affine_ranks():
    assert project(Affine([[0, 0]], [0]), 3, 4) == [3, 4]
    np.testing.assert_allclose(project(Affine(np.diag([1.0, 1e-9]), [1, 3e-9]), 7, 7), [1, 3], rtol=1e-14)
    np.testing.assert_allclose(project(Affine([[1, 1], [2, 2], [0, 0]], [1, 2, 0]), 2, 1), [1, 0], atol=1e-15)
    tall = np.vstack([np.eye(2), [[3, 4]]])
    np.testing.assert_allclose(project(Affine(tall, tall @ [1, 2]), 7, 7), [1, 2], atol=1e-15)


def test_affine_given_in_float32_is_known_to_float32():
    rows = torch.tensor([[0.1, 0.7, 0.3]])
    stacked = torch.cat([rows, rows / 3])
    p = Affine(stacked, torch.tensor([0.1, 0.1 / 3])).project(Vec.of(torch.ones(3))).ravel()
    torch.testing.assert_close(rows @ p, torch.tensor([0.1]))


def test_affine_factors_once(monkeypatch):
    one = Affine(A, B3[:2])
    for name in ("svd", "qr", "lstsq", "solve", "pinv"):
        monkeypatch.setattr(torch.linalg, name, lambda *a, **k: pytest.fail("factored again"))
    for v in points(CASES["affine"], 13, 2) + points(CASES["affine"], 13, 2, dtype=torch.float32):
        one.project(v)


def test_halfspace_inside_on_the_face_and_outside():
    assert project(Halfspace([3, 4], 5), -1, 0.1) == [-1, 0.1]
    assert project(Halfspace([3, 4], 5), 1, 0.5) == [1, 0.5]
    assert project(Halfspace([3, 4], 5), 1 + 6, 0.5 + 8) == [1, 0.5]
    assert project(Halfspace([0, 0], 0), 1, 2) == [1, 2]
    np.testing.assert_allclose(project(Halfspace([1e-200, 0], 1e-200), 5, 2), [1, 2])
    np.testing.assert_allclose(project(Halfspace([1e200, 0], 1e200), 5, 2), [1, 2])


def test_product_leaves_the_rest_untouched_and_keeps_dtypes_apart():
    v = Vec.of({"w": torch.tensor([2.0, 0.0]), "b": torch.tensor([-5.0], dtype=torch.float64)})
    p = Product({"w": Simplex()}).project(v).tree()
    assert p["b"] is v.tree()["b"]
    assert torch.equal(p["w"], torch.tensor([1.0, 0.0]))
    assert list(p) == ["w", "b"]
