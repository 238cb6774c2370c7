"""BoxHyperplane, CvxpySet, Polyhedron and FaceLBFGS against cvxpy, scipy and optimality conditions."""

import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import lsq_linear, minimize
from threaded import in_threads

from constrained.core.errors import ProblemError
from constrained.core.vec import Vec
from constrained.descent import DescentStatus, minimise
from constrained.descent.face_lbfgs import FaceLBFGS
from constrained.polyhedron import Polyhedron
from constrained.sets import Ball, Box, Simplex
from constrained.sets.intersections import BoxHyperplane, CvxpySet
from constrained.sets.tangent import has_tangent, tangent

INF = np.inf
TIGHT = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)
SEEDS = pytest.mark.parametrize("seed", range(12))


def vec(values):
    return Vec.of(torch.tensor(np.asarray(values), dtype=torch.float64))


def projected(one, u):
    return one.project(vec(u)).tree().numpy()


def nearest(u, constraints):
    v = cp.Variable(len(u))
    cp.Problem(cp.Minimize(cp.sum_squares(v - u)), constraints(v)).solve(solver="CLARABEL", **TIGHT)
    return v.value


# -- BoxHyperplane ----------------------------------------------------------------------------------------------------------
@SEEDS
def test_box_and_hyperplane_against_cvxpy(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    a, low = rng.standard_normal(n) * (rng.random(n) < 0.8), rng.uniform(-2, 0, n)
    high = low + rng.uniform(0, 2, n)
    if seed % 3 == 0:
        high[:] = INF
    if seed % 4 == 0:
        low[:] = -INF
    b = float(a @ np.clip(rng.standard_normal(n), low, high))
    u = 3 * rng.standard_normal(n)
    found = projected(BoxHyperplane(a, b, low, high), u)
    assert abs(a @ found - b) <= 1e-13 * (1 + abs(b))
    assert (found >= low).all()
    assert (found <= high).all()

    def constraints(v):
        some = [v[i] >= low[i] for i in range(n) if low[i] > -INF] + [v[i] <= high[i] for i in range(n) if high[i] < INF]
        return [a @ v == b, *some]

    np.testing.assert_allclose(found, nearest(u, constraints), atol=1e-5)


def test_box_and_hyperplane_is_the_simplex_where_it_should_be():
    rng = np.random.default_rng(0)
    u = rng.standard_normal(2000)
    np.testing.assert_allclose(projected(BoxHyperplane(np.ones(2000), 1.0, low=0.0), u), projected(Simplex(), u), atol=1e-13)


def test_box_and_hyperplane_on_trees_and_in_float32():
    one = BoxHyperplane({"w": [1.0, 2.0], "b": 1.0}, 3.0, low=0.0)
    v = Vec.of({"w": torch.tensor([1.0, 1.0]), "b": torch.tensor(-1.0)})
    found = one.project(v).tree()
    assert found["b"] == 0
    torch.testing.assert_close(found["w"], torch.tensor([1.0, 1.0]))
    assert projected(pickle.loads(pickle.dumps(BoxHyperplane([1.0, 1.0], 1.0))), [1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert repr(BoxHyperplane(torch.ones(2), 1.0, low=0.0)) == "BoxHyperplane(a=<2>, b=1.0, low=0.0)"


def test_box_and_hyperplane_refuses():
    with pytest.raises(ProblemError, match="empty"):
        BoxHyperplane([1.0, 1.0], 3.0, 0.0, 1.0).project(vec([0.0, 0.0]))
    with pytest.raises(ProblemError, match="entries"):
        BoxHyperplane([1.0, 1.0], 1.0).check(vec([0.0, 0.0, 0.0]))
    with pytest.raises(ProblemError, match="finite"):
        BoxHyperplane([1.0, INF], 1.0)


@SEEDS
def test_tangent_is_the_derivative_of_the_projection(seed):
    rng = np.random.default_rng(100 + seed)
    a, z, v = rng.standard_normal(6), rng.standard_normal(6), rng.standard_normal(6)
    one = BoxHyperplane(a, 0.1, -0.7, 0.7)
    assert has_tangent(one)
    h = 1e-6
    difference = (projected(one, z + h * v) - projected(one, z - h * v)) / (2 * h)
    np.testing.assert_allclose(tangent(one, vec(z)).project(vec(v)).tree().numpy(), difference, atol=1e-8)


# -- Polyhedron -------------------------------------------------------------------------------------------------------------
@SEEDS
@pytest.mark.parametrize("box", [False, True])
def test_polyhedra_satisfy_their_optimality_conditions(seed, box):
    """u - w is in the normal cone: a non-negative combination of binding rows and bounds, by scipy's bounded least squares."""
    rng = np.random.default_rng(seed)
    n, m, e = int(rng.integers(3, 12)), int(rng.integers(1, 8)), int(rng.integers(0, 3))
    inside = rng.uniform(-0.5, 0.5, n)
    A, E = rng.standard_normal((m, n)), rng.standard_normal((e, n))
    b, d, u = A @ inside + rng.uniform(0, 0.2, m), E @ inside, 3 * rng.standard_normal(n)
    pair = {"E": E, "d": d} if e else {}
    w = projected(Polyhedron(A, b, inside=Box(-1.0, 1.0) if box else None, **pair), u)
    assert (A @ w - b).max() <= 1e-11
    assert np.abs(E @ w - d).max(initial=0) <= 1e-11
    normals = [A[A @ w - b > -1e-9].T]
    if box:
        assert np.abs(w).max() <= 1
        normals += [np.eye(n)[:, w == 1], -np.eye(n)[:, w == -1]]
    normals = np.concatenate([*normals, E.T], 1)
    low = np.r_[np.zeros(normals.shape[1] - e), np.full(e, -INF)]
    left = lsq_linear(normals, u - w, bounds=(low, INF), tol=1e-14).cost if normals.shape[1] else np.sum((u - w) ** 2)
    assert left <= 1e-18 * (1 + u @ u)


def test_polyhedron_in_a_ball_against_cvxpy():
    rng = np.random.default_rng(1)
    A, u = rng.standard_normal((2, 5)), 3 * rng.standard_normal(5)
    found = projected(Polyhedron(A, [0.1, 0.1], inside=Ball(1.0)), u)
    np.testing.assert_allclose(found, nearest(u, lambda v: [A @ v <= 0.1, cp.norm(v) <= 1]), atol=1e-5)


def soft_margin(p, d, seed=0):
    """Rows 1 - xi_i - t_i (w'z_i + b) <= 0 on (w, b, xi)."""
    rng = np.random.default_rng(seed)
    Z, t = rng.standard_normal((p, d)), rng.choice([-1.0, 1.0], p)
    return sparse.hstack([sparse.csr_matrix(-t[:, None] * np.c_[Z, np.ones(p)]), -sparse.eye(p)]), rng.standard_normal(d + 1 + p)


@pytest.mark.parametrize(("p", "d"), [(40, 2), (15, 60)])
def test_rows_with_slack_variables_of_their_own(p, d):
    R, u = soft_margin(p, d)
    one = Polyhedron(R, -np.ones(p))
    assert one.own
    w = projected(one, u)
    np.testing.assert_allclose(w, nearest(u, lambda v: [R @ v <= -np.ones(p)]), atol=2e-5)
    mu = (u - w)[-p:] / -1.0  # the slack columns are -I
    assert mu.min() >= -1e-12
    assert np.abs(u - w - R.T @ mu).max() <= 1e-12
    assert np.abs(mu * (R @ w + 1)).max() <= 1e-11


def test_slack_rows_by_the_dual_are_the_same():
    R, u = soft_margin(30, 4)
    plain = Polyhedron(R, -np.ones(30), inside=Box(-1e6, 1e6))
    assert not plain.own
    np.testing.assert_allclose(projected(plain, u), projected(Polyhedron(R, -np.ones(30)), u), atol=1e-10)


def test_polyhedron_refuses():
    with pytest.raises(ProblemError, match="empty"):
        Polyhedron([[1.0], [-1.0]], [0.0, -1.0]).project(vec([0.0]))
    with pytest.raises(ProblemError, match="A with b"):
        Polyhedron([[1.0]])
    with pytest.raises(ProblemError, match="shapes"):
        Polyhedron([[1.0]], [1.0, 2.0])
    with pytest.raises(ProblemError, match="columns"):
        Polyhedron([[1.0]], [1.0], [[1.0, 1.0]], [1.0])
    with pytest.raises(ProblemError, match="3 entries"):
        Polyhedron([[1.0, 1.0, 0.0]], [1.0]).check(vec([0.0]))


# -- CvxpySet ---------------------------------------------------------------------------------------------------------------
def test_cvxpy_set_against_closed_forms():
    rng = np.random.default_rng(0)
    for _ in range(5):
        u = 3 * rng.standard_normal(4)
        np.testing.assert_allclose(projected(CvxpySet(lambda v: [cp.norm(v) <= 1]), u), projected(Ball(1.0), u), atol=1e-6)
        simplex = CvxpySet(lambda v: [v >= 0, cp.sum(v) == 1], solver="OSQP", options={"eps_abs": 1e-9, "eps_rel": 1e-9})
        np.testing.assert_allclose(projected(simplex, u), projected(Simplex(), u), atol=1e-6)


def test_cvxpy_set_on_a_dict_is_compiled_once():
    built = []

    def build(v):
        built.append(v)
        return [cp.sum(v["x"]) + v["y"] <= 1]

    one = CvxpySet(build)
    tree = {"x": torch.ones(2), "y": torch.tensor(2.0)}
    for _ in range(3):
        found = one.project(Vec.of(tree)).tree()
    torch.testing.assert_close(found, {"x": torch.zeros(2), "y": torch.tensor(1.0)}, atol=1e-5, rtol=0)
    assert len(built) == 1


def test_cvxpy_set_in_threads():
    one, far = CvxpySet(lambda v: [cp.norm(v) <= 1]), vec([3.0, 4.0])
    alone = one.project(far).tree()
    assert all(
        torch.equal(found, alone) for each in in_threads(lambda: [one.project(far).tree() for _ in range(4)]) for found in each
    )


def test_cvxpy_set_refuses():
    for build, words in (
        (lambda v: [v >= 1, v <= 0], "empty"),
        (lambda v: [cp.sum_squares(v) >= 1], "not convex"),
        (lambda v: None, "must return a list"),
    ):
        with pytest.raises(ProblemError, match=words):
            CvxpySet(build).project(vec([0.0, 0.0]))
    with pytest.raises(ProblemError, match="expected a function"):
        CvxpySet(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProblemError, match=r"failed|status|not installed"):
        CvxpySet(lambda v: [v >= 0], solver="NO_SUCH").project(vec([0.0]))


# -- FaceLBFGS --------------------------------------------------------------------------------------------------------------
@SEEDS
def test_face_lbfgs_against_scipy(seed):
    """A convex quartic over a polyhedron: SLSQP's point, to its accuracy, and a residual far below it."""
    rng = np.random.default_rng(seed)
    n, m = 6, 4
    A, b, target = rng.standard_normal((m, n)), rng.uniform(0.1, 0.5, m), 2 * rng.standard_normal(n)

    def objective(x):
        gap = x.leaves[0] - torch.from_numpy(target)
        return float((gap**2).sum() / 2 + (x.leaves[0] ** 4).sum() / 4), x.like([gap + x.leaves[0] ** 3])

    found = minimise(FaceLBFGS(), objective, vec(np.zeros(n)), tol=1e-10, X=Polyhedron(A, b))
    assert found.reason is DescentStatus.CONVERGED
    rows = [{"type": "ineq", "fun": lambda x: b - A @ x}]
    known = minimize(lambda x: np.sum((x - target) ** 2) / 2 + np.sum(x**4) / 4, np.zeros(n), constraints=rows, tol=1e-14)
    np.testing.assert_allclose(found.x.tree().numpy(), known.x, atol=1e-5)


# -- sets without rows, leaves without entries --------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [{"A": np.zeros((0, 2)), "b": []}, {"E": sparse.csr_array((0, 2)), "d": []}], ids=["A", "E"])
@pytest.mark.parametrize("inside", [None, Box(-1.0, 0.5)], ids=["whole", "box"])
def test_a_polyhedron_without_rows_is_what_it_lies_in(rows, inside):
    one, u = Polyhedron(**rows, inside=inside), vec([2.0, -0.5])
    assert torch.equal(one.project(u).tree(), u.tree() if inside is None else inside.project(u).tree())
    assert tangent(one, u).project(u).tree().tolist() == [2.0 if inside is None else 0.0, -0.5]


def test_cvxpy_set_beside_a_leaf_without_entries():
    v = Vec.of({"a": torch.zeros(0), "b": torch.full((2,), 3.0)})
    found = CvxpySet(lambda v: [v["b"] <= 1]).project(v).tree()
    torch.testing.assert_close(found, {"a": torch.zeros(0), "b": torch.ones(2)}, atol=1e-5, rtol=0)
