"""Tangents of sets against finite differences: of the projections, and of minimisers that cvxpy or a secular equation finds."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from constrained.core.errors import Unsuitable
from constrained.core.vec import Vec
from constrained.polyhedron import Polyhedron
from constrained.sets import Affine, Ball, Box, ConvexSet, Everywhere, Halfspace, Product, Simplex
from constrained.sets.tangent import has_tangent, tangent

N = 6
RNG = np.random.default_rng(0)
ROWS, NORMAL = RNG.normal(size=(2, N)), RNG.normal(size=N)
CENTER = RNG.normal(size=N)
BELOW = RNG.normal(size=(3, N))


def flat(array):
    return Vec.of(torch.tensor(np.asarray(array, dtype=np.float64)))


def halves(array):
    """The same entries as {"a": 2 x 2, "b": 2}."""
    return Vec.of({"a": torch.tensor(array[:4]).reshape(2, 2), "b": torch.tensor(array[4:])})


# name: the set, the variable's structure, how far from the origin z lies
SETS = {
    "everywhere": (Everywhere(), flat, 1.0),
    "box": (Box(-0.4, [0.2] * N), flat, 1.0),
    "box, one side": (Box(low=0.0), halves, 1.0),
    "simplex": (Simplex(), flat, 0.5),
    "simplices": (Product({"a": Simplex(2.0)}), halves, 1.0),
    "affine": (Affine(ROWS, [1.0, -2.0]), flat, 1.0),
    "affine, redundant rows": (Affine(np.vstack([ROWS, ROWS[0]]), [1.0, -2.0, 1.0]), halves, 1.0),
    "halfspace, outside": (Halfspace(NORMAL, -20.0), flat, 1.0),
    "halfspace, inside": (Halfspace(NORMAL, 20.0), flat, 1.0),
    "ball, outside": (Ball(0.7, center=CENTER), flat, 2.0),
    "ball, inside": (Ball(70.0, center=CENTER), flat, 2.0),
    "ball, a point": (Ball(0.0), flat, 1.0),
    "ball, two leaves": (Ball(0.7), halves, 2.0),
    "product": (Product({"a": Simplex(), "b": Ball(0.3)}), halves, 1.0),
    "polyhedron": (Polyhedron(BELOW, [-1.0, 0.5, 0.2]), halves, 1.0),
    "polyhedron, inside": (Polyhedron(BELOW, [100.0, 100.0, 100.0]), flat, 1.0),
    "polyhedron, equalities": (Polyhedron(BELOW, [0.0, 0.1, 0.2], ROWS, [1.0, -2.0]), flat, 1.0),
    "polyhedron, redundant rows": (Polyhedron(np.vstack([BELOW, BELOW]), [-1.0, 0.5, 0.2] * 2), flat, 1.0),
    "polyhedron in a box": (Polyhedron(BELOW, [-0.5, 0.2, 0.1], inside=Box(-0.8, 0.8)), flat, 1.0),
    "polyhedron, slack variables": (Polyhedron(np.hstack([BELOW[:, :3], -np.eye(3)]), [-1.0, -0.5, -0.2]), flat, 1.0),
    "product, part": (Product({"b": Box(0.0, 0.1)}), halves, 1.0),
}


def dense(operator, like):
    """The matrix of a linear map of vectors."""
    return np.stack([operator(like.unravel(row)).ravel().numpy() for row in torch.eye(like.size, dtype=torch.float64)], axis=1)


def matrices(Y, z):
    """T and C."""
    face = tangent(Y, z)
    return dense(face.project, z), dense(face.bend or (lambda v: v.zeros()), z), face


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SETS)
def test_derivative_of_the_projection(name, seed):
    """D = (T + C)^+ on the range of T, by central differences of P; T an orthogonal projection, C = T C T symmetric and >= 0."""
    Y, shaped, far = SETS[name]
    z, h = shaped(far * np.random.default_rng(seed + 10).normal(size=N)), 1e-6
    T, C, face = matrices(Y, z)
    differences = dense(lambda v: (Y.project(z.add(v, h)) - Y.project(z.add(v, -h))) / (2 * h), z)
    D = np.linalg.pinv(T + C, rcond=1e-10)
    np.testing.assert_allclose(D, differences, atol=1e-8)
    np.testing.assert_allclose(T @ T, T, atol=1e-14)
    np.testing.assert_allclose(T, T.T, atol=1e-14)
    np.testing.assert_allclose(T @ C @ T, C, atol=1e-12)
    np.testing.assert_allclose(C, C.T, atol=1e-12)
    assert np.linalg.eigvalsh(C).min() >= -1e-12
    assert not face.whole or np.array_equal(T, np.eye(N))


def response(Y, H, c, y):
    """dy/dc of argmin 1/2 y'H y + c'y over Y: -(T H T + C + I - T)^-1 T, at the solution y."""
    T, C, _ = matrices(Y, flat(y - H @ y - c))
    return -np.linalg.solve(T @ H @ T + C + np.eye(N) - T, T), T


def spd(seed):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(N, N))
    return B @ B.T / N + 0.3 * np.eye(N), 1.5 * rng.normal(size=N)


POLYHEDRA = {
    "box": (Box(-0.4, 0.3), lambda y: [y >= -0.4, y <= 0.3]),
    "simplex": (Simplex(), lambda y: [y >= 0, cp.sum(y) == 1]),
    "affine": (Affine(ROWS, [1.0, -2.0]), lambda y: [ROWS @ y == np.array([1.0, -2.0])]),
    "halfspace": (Halfspace(NORMAL, -9.0), lambda y: [NORMAL @ y <= -9.0]),
    "polyhedron": (
        Polyhedron(BELOW, [-1.0, 0.1, 0.0], ROWS[:1], [0.5], inside=Box(-1.0, 1.0)),
        lambda y: [BELOW @ y <= np.array([-1.0, 0.1, 0.0]), ROWS[0] @ y == 0.5, y >= -1, y <= 1],
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", POLYHEDRA)
def test_response_of_a_minimiser_over_a_polyhedron(name, seed):
    """By differences of cvxpy's solutions: they are linear in c while the face stays the same, so the step may be long."""
    Y, constraints = POLYHEDRA[name]
    H, c = spd(seed)
    y, changing = cp.Variable(N), cp.Parameter(N)
    program = cp.Problem(cp.Minimize(0.5 * cp.quad_form(y, cp.psd_wrap(H)) + changing @ y), constraints(y))

    def solution(c):
        changing.value = c
        program.solve(cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
        return y.value

    J, T = response(Y, H, c, Y.project(flat(solution(c))).ravel().numpy())
    assert np.linalg.matrix_rank(T) < N, "nothing binds"
    h = 1e-2
    differences = np.stack([(solution(c + h * e) - solution(c - h * e)) / (2 * h) for e in np.eye(N)], axis=1)
    np.testing.assert_allclose(J, differences, atol=1e-6)


def on_the_sphere(H, c, radius):
    """argmin 1/2 y'H y + c'y over |y| <= radius, by bisection on the multiplier: (H + m I) y = -c, |y| = radius."""
    low, high = 0.0, 1e3
    for _ in range(200):
        m = (low + high) / 2
        low, high = (m, high) if np.linalg.norm(np.linalg.solve(H + m * np.eye(N), c)) > radius else (low, m)
    return -np.linalg.solve(H + high * np.eye(N), c)


@pytest.mark.parametrize("seed", range(3))
def test_response_of_a_minimiser_over_a_ball(seed):
    """The curvature of the sphere counts: C is the multiplier."""
    radius, h = 0.5, 1e-4
    H, c = spd(seed)
    y = on_the_sphere(H, c, radius)
    assert abs(np.linalg.norm(y) - radius) < 1e-12
    J, _ = response(Ball(radius), H, c, y)
    differences = np.stack(
        [(on_the_sphere(H, c + h * e, radius) - on_the_sphere(H, c - h * e, radius)) / (2 * h) for e in np.eye(N)], axis=1
    )
    np.testing.assert_allclose(J, differences, atol=1e-7)


def test_sets_without_a_tangent_say_so():
    class Cone(ConvexSet):
        def project(self, v):
            return v.map(lambda t: t.clamp(min=0))

    assert not has_tangent(Cone())
    assert not has_tangent(Product({"a": Simplex(), "b": Cone()}))
    assert has_tangent(Product({"a": Simplex()}))
    assert all(has_tangent(Y) for Y, _, _ in SETS.values())
    assert not has_tangent(Polyhedron(BELOW, [1.0] * 3, inside=Ball(2.0)))
    with pytest.raises(Unsuitable, match="Box or the whole space"):
        tangent(Polyhedron(BELOW, [1.0] * 3, inside=Ball(2.0)), flat(np.ones(N)))
    with pytest.raises(Unsuitable, match="register one on tangent"):
        tangent(Cone(), flat(np.ones(2)))


def test_float32_stays_float32():
    for Y in (
        Box(0, 1),
        Simplex(),
        Ball(0.5),
        Halfspace([1.0, 1.0], 0.0),
        Affine([[1.0, 1.0]], [1.0]),
        Polyhedron([[1.0, 2.0]], [1.0]),
    ):
        z = Vec.of(torch.tensor([1.5, 0.25]))
        face = tangent(Y, z)
        assert face.project(z).dtype is torch.float32
        assert face.bend is None or face.bend(z).dtype is torch.float32
