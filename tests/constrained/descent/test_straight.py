"""Functions without curvature along the steps: bounds are reached in a few dozen evaluations, whatever the gradient's size."""

import math

import pytest
import torch

from constrained.core.vec import Vec
from constrained.descent import LBFGS, SPG, DescentStatus, FaceLBFGS, NewtonCG, Pairs, minimise
from constrained.descent.curvature_pairs import straight
from constrained.descent.newton_cg import Differenced
from constrained.sets import Affine, Ball, Box, Everywhere, Halfspace, Simplex

F64 = torch.float64
SLOPE = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
FIRST_ORDER = pytest.mark.parametrize("method", [LBFGS(), SPG()], ids=["LBFGS", "SPG"])
METHODS = pytest.mark.parametrize("method", [LBFGS(), SPG(), NewtonCG()], ids=["LBFGS", "SPG", "NewtonCG"])
SIZES = pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e4, 1e8])


def vec(values):
    return Vec.of(torch.tensor(values, dtype=F64))


class Counted:
    """A torch function with its gradient, counting evaluations."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, x):
        self.calls += 1
        t = x.tree().clone().requires_grad_()
        value = self.function(t)
        return float(value.detach()), x.like(torch.autograd.grad(value, [t]))


def minimised(method, function, start, X, tol=1e-9):
    """The minimum, and how many evaluations it took, those in products with the Hessian included."""
    counted = Counted(function)
    objective = Differenced(counted) if isinstance(method, NewtonCG) else counted
    return minimise(method, objective, vec(start), tol=tol, X=X), counted.calls


def linear(size):
    return lambda x: size * (SLOPE * x).sum()


# -- linear -----------------------------------------------------------------------------------------------------------------
@METHODS
@SIZES
@pytest.mark.parametrize("width", [1.0, 1e4])
def test_a_linear_function_in_a_box_ends_in_its_corner(method, size, width):
    found, calls = minimised(method, linear(size), [0.1] * 4, Box(-width, width), tol=1e-6 * min(size, 1))
    assert found.reason is DescentStatus.CONVERGED
    assert found.x.tree().tolist() == [-width, width, -width, -width]
    assert calls <= 30


@SIZES
def test_a_linear_function_on_a_simplex_ends_at_its_vertex(size):
    found, calls = minimised(SPG(), linear(size), [0.25] * 4, Simplex(), tol=1e-6 * min(size, 1))
    assert found.reason is DescentStatus.CONVERGED
    assert found.x.tree().tolist() == [0, 1, 0, 0]
    assert calls <= 20


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-10])
def test_a_vertex_hardly_better_than_the_others(apart):
    """Most of the gradient points out of the simplex: what moves x is the small rest."""
    found, calls = minimised(SPG(), lambda x: x.sum() - apart * x[1], [0.5, 0.0, 0.5], Simplex(), tol=1e-3 * apart)
    assert found.x.tree().tolist() == [0, 1, 0]
    assert calls <= 30


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("method", [SPG(), FaceLBFGS()], ids=["SPG", "FaceLBFGS"])
def test_a_linear_function_on_a_ball(method, size):
    found, calls = minimised(method, linear(size), [0.1] * 4, Ball(2.0), tol=1e-6 * min(size, 1))
    assert found.reason is DescentStatus.CONVERGED
    assert found.x.tree() == pytest.approx(-2 * SLOPE / SLOPE.norm(), abs=1e-5)
    assert calls <= 100


@METHODS
@SIZES
@pytest.mark.parametrize(
    "X", [Everywhere(), Box(-1e6), Affine([[1.0, 1.0, 1.0, 1.0]], [1.0]), Halfspace([1.0, 0.0, 0.0, 0.0], 1.0)], ids=repr
)
def test_a_linear_function_without_a_minimum_is_unbounded(method, size, X):
    found, calls = minimised(method.for_set(X), linear(size), [0.1] * 4, X)
    assert found.reason is DescentStatus.UNBOUNDED
    assert calls <= 70


# -- concave, and saddles -----------------------------------------------------------------------------------------------------
@METHODS
@pytest.mark.parametrize("width", [1.0, 1e4])
@pytest.mark.parametrize("start", [[1e-4, 0.0], [1e-8, 1e-9]])
def test_a_saddle_in_a_box(method, start, width):
    """x y from beside the saddle: the two corners of value -width^2."""
    found, calls = minimised(method, lambda x: x[0] * x[1], start, Box(-width, width), tol=1e-10)
    assert found.reason is DescentStatus.CONVERGED
    assert found.value == -width * width
    assert calls <= 100


@METHODS
@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_a_concave_function_in_a_box(method, size):
    found, calls = minimised(method, lambda x: -size * (x**2).sum(), [1e-4, -1e-5], Box(-100, 200), tol=1e-6 * min(size, 1))
    assert found.x.tree().tolist() == [200, -100]
    assert calls <= 60


# -- curved in some directions only -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [LBFGS(), NewtonCG()], ids=["LBFGS", "NewtonCG"])
@pytest.mark.parametrize("slope", [1e-5, 1e-2])
def test_a_small_slope_beside_a_valley(method, slope):
    found, calls = minimised(method, lambda x: slope * x[0] + (x[1] - 3) ** 2, [0.3, 0.2], Box(-1e4, 1e4), tol=1e-8)
    assert found.reason is DescentStatus.CONVERGED
    assert found.x.tree().tolist() == pytest.approx([-1e4, 3], abs=1e-8)
    assert calls <= 50


@FIRST_ORDER
def test_flat_behind_a_wall(method):
    """The first step leaves a steep wall for where the function is linear: what was learned at the wall does not hold here."""

    def function(x):
        return x[1] + 5e3 * (x[0] - 1).clamp(min=0) ** 2 + 5e3 * (1 + x[0] - x[1]).clamp(min=0) ** 2

    found, calls = minimised(method, function, [1.3, 5.0], Box([-2.0, 0.0], [math.inf, math.inf]), tol=1e-8)
    assert found.reason is DescentStatus.CONVERGED
    assert found.value == pytest.approx(0, abs=1e-12)
    assert calls <= 150


def test_pairs_that_contradict_the_function_are_forgotten():
    """A pair says: curvature 100 along e; twice in turn there is none. In another direction H grows alone, and the pair stays."""
    e, other, flat = vec([1.0, 0.0]), vec([0.0, 1.0]), vec([0.0, 0.0])
    known = Pairs.empty(5, e, 1.0).add(e, 100 * e, e)
    once = known.add(-0.01 * e, flat, e)
    twice = once.add(-0.01 * e, flat, e)
    assert (once.count, twice.count) == (1, 0)
    assert float(twice.solve(e).norm()) == pytest.approx(0.1)  # ten times the last step
    aside = known.add(-0.01 * other, flat, other).add(-0.1 * other, flat, other)
    assert aside.count == 1
    assert float(aside.solve(other).norm()) == pytest.approx(100 * float(known.solve(other).norm()))
    assert float(aside.solve(e).norm()) == pytest.approx(0.01)


def test_what_is_straight_to_rounding():
    s, g, eps = vec([1.0, 0.0]), vec([3.0, 1e9]), torch.finfo(F64).eps
    for y, wanted in ((0.0, True), (-1.0, True), (eps, True), (100 * eps, False), (1.0, False)):
        assert straight(s, vec([y, 0.0]), g) is wanted, y
