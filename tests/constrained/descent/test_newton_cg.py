"""NewtonCG alone: the right minimiser in few steps, negative curvature, boxes, and the right reason at every end."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from constrained.core import checkpoint
from constrained.core.errors import Unsuitable
from constrained.core.vec import Vec
from constrained.descent import LBFGS, SPG, DescentStatus, minimise
from constrained.descent.newton_cg import Differenced, NewtonCG, SecondOrder
from constrained.sets import Ball, Box, Everywhere, Simplex

F64 = torch.float64


def vec(values, dtype=F64):
    return Vec.of(torch.tensor(values, dtype=dtype))


def array(v):
    return v.tree().double().numpy()


class Smooth:
    """Value, gradient and Hessian from numpy functions, counting."""

    def __init__(self, value, gradient, hessian):
        self.value, self.gradient, self.hessian, self.calls, self.spent = value, gradient, hessian, 0, 0

    def __call__(self, x):
        self.calls += 1
        flat = array(x)
        return float(self.value(flat)), x.like([torch.tensor(self.gradient(flat), dtype=x.dtype)])

    def products(self, x):
        H = torch.tensor(self.hessian(array(x)), dtype=x.dtype)

        def product(v):
            self.spent += 1
            return v.map(lambda t: H @ t)

        return product


def quadratic(values, seed=0):
    """(x - c)' A (x - c) / 2 with these eigenvalues of A."""
    rng, n = np.random.default_rng(seed), len(values)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    A, c = Q @ np.diag(values) @ Q.T, rng.normal(size=n)
    return Smooth(lambda x: 0.5 * (x - c) @ A @ (x - c), lambda x: A @ (x - c), lambda x: A), A, c


def rosenbrock():
    return Smooth(scipy.optimize.rosen, scipy.optimize.rosen_der, scipy.optimize.rosen_hess)


# -- the whole space --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("values", [np.linspace(1, 3, 10), np.logspace(0, -2, 10), 1e6 * np.linspace(1, 3, 10), np.ones(10)])
@pytest.mark.parametrize("seed", range(3))
def test_quadratics(values, seed):
    """Unit steps of one evaluation each, superlinear: a few of them, with about as many products as unknowns a step."""
    objective, A, c = quadratic(values, seed)
    found = minimise(NewtonCG(), objective, vec(np.zeros(10)), tol=1e-8)
    assert found.reason is DescentStatus.CONVERGED
    assert found.residual == pytest.approx(np.linalg.norm(A @ (array(found.x) - c)), rel=1e-5, abs=1e-12)
    assert array(found.x) == pytest.approx(c, abs=2e-8 / values.min())
    assert found.steps <= (20 if values.max() > 10 else 10)  # 8 here; sqrt|g| < 1/2 has to come before the end is superlinear
    assert objective.calls == found.steps + 1


def test_quadratic_with_its_inverse_is_one_step():
    objective, A, c = quadratic(np.logspace(0, -4, 20))
    inverse = torch.tensor(np.linalg.inv(A))
    method = NewtonCG(preconditioner=lambda v: v.map(lambda t: inverse @ t))
    found = minimise(method, objective, vec(np.zeros(20)), tol=1e-9)
    assert (found.reason, found.steps, objective.spent) == (DescentStatus.CONVERGED, 1, 1)
    assert array(found.x) == pytest.approx(c, abs=1e-5)


@pytest.mark.parametrize("n", [2, 10])
def test_rosenbrock(n):
    objective = rosenbrock()
    found = minimise(NewtonCG(), objective, vec(np.full(n, -1.2)), tol=1e-9)
    assert found.reason is DescentStatus.CONVERGED
    assert np.linalg.norm(scipy.optimize.rosen_der(array(found.x))) <= 1e-9
    start, options = np.full(n, -1.2), {"xtol": 1e-12}
    theirs = scipy.optimize.minimize(
        objective.value, start, jac=objective.gradient, hess=objective.hessian, method="Newton-CG", options=options
    )
    assert found.value <= theirs.fun + 1e-12
    assert found.steps <= 1.5 * theirs.nit  # 72 beside 67 for n = 10; rounding, which sets the path, moves either count


def test_superlinear_end():
    """Near the minimum of Rosenbrock's function the residual falls with order 3/2 at least."""
    s, found = NewtonCG().init(rosenbrock(), Everywhere(), vec([1.01, 1.02])), []
    for _ in range(6):
        s = NewtonCG().step(rosenbrock(), Everywhere(), s)
        found.append(s.residual)
    assert min(found) <= 1e-12  # the terms of the gradient, 400 x (x^2 - y) and the like, are rounded at 400 eps = 9e-14


@pytest.mark.parametrize("start", [[0.0, 1e-8], [0.0, -1e-3], [0.3, 1e-6]])
def test_negative_curvature_leads_to_a_minimum(start):
    """x^2 + (y^2 - 1)^2 from beside the saddle at 0: the minima are (0, 1) and (0, -1), at the side of the start."""
    objective = Smooth(
        lambda x: x[0] ** 2 + (x[1] ** 2 - 1) ** 2,
        lambda x: np.array([2 * x[0], 4 * x[1] * (x[1] ** 2 - 1)]),
        lambda x: np.diag([2, 12 * x[1] ** 2 - 4]),
    )
    found = minimise(NewtonCG(), objective, vec(start), tol=1e-10)
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx([0, math.copysign(1, start[1])], abs=1e-10)
    assert objective.calls <= 60


def test_indefinite_valley():
    """Rosenbrock's function at (0, 1), where its Hessian is indefinite."""
    start = np.array([0.0, 1.0])
    assert np.linalg.eigvalsh(scipy.optimize.rosen_hess(start))[0] < 0
    found = minimise(NewtonCG(), rosenbrock(), vec(start), tol=1e-10)
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x) == pytest.approx([1, 1], abs=1e-9)


# -- boxes and other sets ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(8))
def test_box(seed):
    """The answer of scipy's L-BFGS-B, with the bounds found in a few steps."""
    objective, A, c = quadratic(np.logspace(0, -3, 30), seed)
    found = minimise(NewtonCG(), objective, vec(np.zeros(30)), tol=1e-9, X=Box(-0.3, 0.4))
    assert found.reason is DescentStatus.CONVERGED
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 100_000, "maxfun": 100_000}
    theirs = scipy.optimize.minimize(
        objective.value, np.zeros(30), jac=objective.gradient, bounds=[(-0.3, 0.4)] * 30, method="L-BFGS-B", options=options
    )
    assert found.value <= theirs.fun + 1e-12
    assert array(found.x) == pytest.approx(theirs.x, abs=1e-4)
    x = array(found.x)
    assert found.residual == pytest.approx(np.linalg.norm(x - np.clip(x - A @ (x - c), -0.3, 0.4)), abs=1e-14)
    assert found.steps <= 40


def test_rosenbrock_in_a_box():
    objective, start = rosenbrock(), np.full(6, -1.0)
    found = minimise(NewtonCG(), objective, vec(start), tol=1e-9, X=Box(-2, 0.7))
    assert found.reason is DescentStatus.CONVERGED
    theirs = scipy.optimize.minimize(
        objective.value,
        array(found.x),
        jac=objective.gradient,
        bounds=[(-2, 0.7)] * 6,
        method="L-BFGS-B",
        options={"ftol": 1e-16},
    )
    assert found.value <= theirs.fun + 1e-12
    assert array(found.x) == pytest.approx(theirs.x, abs=1e-6)


def test_concave_in_a_box_ends_in_a_corner():
    objective = Smooth(lambda x: -(x**2).sum(), lambda x: -2 * x, lambda x: -2 * np.eye(len(x)))
    found = minimise(NewtonCG(), objective, vec([0.1, -0.2, 0.0]), tol=1e-12, X=Box(-1, 2))
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x).tolist() == [2, -1, 0]


def test_linear_on_a_bounded_set_has_a_minimum():
    objective = Smooth(lambda x: x.sum(), np.ones_like, lambda x: np.zeros((2, 2)))
    found = minimise(NewtonCG(), objective, vec([500.0, 0.2]), tol=1e-12, X=Box(-1000, 1000))
    assert found.reason is DescentStatus.CONVERGED
    assert array(found.x).tolist() == [-1000, -1000]
    assert objective.calls <= 20


def test_other_sets_are_left_to_spg():
    assert NewtonCG().for_set(Everywhere()) == NewtonCG()
    assert NewtonCG().for_set(Box(0, 1)) == NewtonCG()
    assert NewtonCG(first=2.0).for_set(Simplex()) == SPG(first=2.0)
    objective, _, c = quadratic(np.ones(3))
    found = minimise(NewtonCG(), objective, vec(np.zeros(3)), tol=1e-10, X=Ball(0.5))
    assert array(found.x) == pytest.approx(c * min(1, 0.5 / np.linalg.norm(c)), abs=1e-10)


# -- the ends ---------------------------------------------------------------------------------------------------------------
def test_products_are_asked_for_by_name():
    assert isinstance(rosenbrock(), SecondOrder)
    with pytest.raises(Unsuitable, match=r"NewtonCG.*products"):
        minimise(NewtonCG(), lambda x: (0.0, x), vec([1.0]), tol=1e-9)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("X", [Everywhere(), Box(-5, 5)])
def test_tolerance_below_rounding(dtype, X):
    """PRECISION, soon, at a point as good as rounding allows."""
    objective, _, c = quadratic(np.logspace(0, -1, 10), 1)
    found = minimise(NewtonCG(), objective, vec(np.zeros(10), dtype), tol=1e-30, X=X)
    assert found.reason is DescentStatus.PRECISION or found.residual <= 1e-30
    assert found.x.dtype is dtype
    assert objective.calls < 1000
    assert array(found.x) == pytest.approx(c, abs=1e-12 if dtype is F64 else 1e-5)


def test_float32_to_its_accuracy():
    objective, _, c = quadratic(np.linspace(1, 2, 5), 1)
    found = minimise(NewtonCG(), objective, vec(np.zeros(5), torch.float32), tol=1e-5)
    assert found.reason is DescentStatus.CONVERGED
    assert found.x.dtype is torch.float32
    assert array(found.x) == pytest.approx(c, abs=2e-5)


@pytest.mark.parametrize(
    "objective",
    [
        Smooth(lambda x: x.sum(), np.ones_like, lambda x: np.zeros((2, 2))),
        Smooth(lambda x: -(x**2).sum(), lambda x: -2 * x, lambda x: -2 * np.eye(2)),
        Smooth(lambda x: (x**3).sum(), lambda x: 3 * x**2, lambda x: np.diag(6 * x)),
        Smooth(lambda x: -np.exp(x).sum(), lambda x: -np.exp(x), lambda x: -np.diag(np.exp(x))),
    ],
    ids=["linear", "concave", "cubic", "exponential"],
)
@pytest.mark.parametrize("X", [Everywhere(), Box(high=5.0)], ids=["whole", "half"])
def test_unbounded(objective, X):
    if isinstance(X, Box) and objective.gradient(np.ones(2))[0] < 0 and objective.gradient(-np.ones(2))[0] < 0:
        pytest.skip("bounded: it falls towards the bound")
    with np.errstate(all="ignore"):
        found = minimise(NewtonCG(), objective, vec([-1.0, -2.0]), tol=1e-9)
    assert found.reason in (DescentStatus.UNBOUNDED, DescentStatus.NONFINITE)
    assert objective.calls < 5000


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named(bad):
    one = np.eye(1)
    for objective in (
        Smooth(lambda x: bad, lambda x: x, lambda x: one),
        Smooth(lambda x: 1.0, lambda x: x * bad, lambda x: one),
        Smooth(lambda x: x @ x, lambda x: 2 * x, lambda x: one * bad),
    ):
        assert minimise(NewtonCG(), objective, vec([1.0]), tol=1e-9).reason is DescentStatus.NONFINITE


def test_wrong_gradient_gives_a_reason():
    objective = Smooth(lambda x: (x**2).sum(), lambda x: -2 * x, lambda x: 2 * np.eye(2))
    assert minimise(NewtonCG(), objective, vec([1.0, 2.0]), tol=1e-9).reason in (
        DescentStatus.LINE_SEARCH,
        DescentStatus.PRECISION,
    )


# -- state ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("X", [Everywhere(), Box(-2, 0.7)])
def test_a_state_from_disk_steps_to_the_same_bits(X, tmp_path):
    method, objective = NewtonCG(), rosenbrock()
    s = method.init(objective, X, vec(np.full(4, -1.0)))
    for k in range(5):
        checkpoint.save(tmp_path / "c", {"run": {}, "k": k, "seconds": 0.0, "calls": {}, "callbacks": []}, s, {"x": s.x})
        restored = checkpoint.restore(tmp_path / "c", *checkpoint.load(tmp_path / "c"), {"x": s.x})
        s = method.step(objective, X, s)
        again = method.step(rosenbrock(), X, restored)
        assert torch.equal(again.x.ravel(), s.x.ravel())
        assert (again.k, again.value, again.residual, again.memory) == (s.k, s.value, s.residual, s.memory)
    by_loop = minimise(method, objective, vec(np.full(4, -1.0)), tol=0.0, X=X, max_steps=5)
    assert torch.equal(by_loop.x.ravel(), s.x.ravel())


def test_a_start_near_the_minimum_saves_products():
    objective, _, c = quadratic(np.logspace(0, -3, 40))
    cold = minimise(NewtonCG(), objective, vec(np.zeros(40)), tol=1e-9)
    spent, objective.spent = objective.spent, 0
    found = minimise(NewtonCG(), objective, vec(c + 1e-6), tol=1e-9, memory=cold.memory)
    assert found.reason is DescentStatus.CONVERGED
    assert objective.spent < 0.7 * spent


def test_fewer_evaluations_than_lbfgs():
    objective, _, _ = quadratic(np.logspace(0, -3, 40))
    minimise(NewtonCG(), objective, vec(np.zeros(40)), tol=1e-8)
    newton, objective.calls = objective.calls, 0
    minimise(LBFGS(), objective, vec(np.zeros(40)), tol=1e-8)
    assert newton < 0.5 * objective.calls


def test_products_by_differences_of_gradients():
    """On Rosenbrock's function: the same minimiser without second derivatives, and products right to half the digits."""

    def rosenbrock(x):
        a = x.tree().numpy()
        return float(scipy.optimize.rosen(a)), x.like([torch.tensor(scipy.optimize.rosen_der(a))])

    objective, at = Differenced(rosenbrock), Vec.of(torch.linspace(0.5, 2.0, 6, dtype=torch.float64))
    H = torch.tensor(scipy.optimize.rosen_hess(at.tree().numpy()))
    v = Vec.of(torch.arange(6, dtype=torch.float64))
    torch.testing.assert_close(objective.products(at)(v).tree(), H @ v.tree(), rtol=1e-5, atol=1e-3)
    found = minimise(NewtonCG(), objective, at, tol=1e-6)
    assert found.reason is DescentStatus.CONVERGED
    torch.testing.assert_close(found.x.tree(), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)
