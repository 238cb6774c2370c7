"""Other people's solvers behind this library's interface: truth, signs of multipliers, sparse places, calls, limits, errors.

Each runs where its package is installed.
"""

import itertools
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, diags_array

from bilevel import Box, Function, Status
from constrained import SLSQP, ConstrainedProblem, Ipopt, MissingExtra, Pounce, TrustConstr, Uno, solve
from constrained.core.vec import Vec
from constrained.peers.reference import View
from constrained.peers.stacked import Grown, Places, Stacked

F64 = torch.float64
PACKAGES = {Ipopt: "cyipopt", Pounce: "pounce", Uno: "unopy"}


def where_installed(*kinds):
    missing = {kind: find_spec(PACKAGES[kind]) is None for kind in kinds if kind in PACKAGES}
    marks = {
        kind: pytest.mark.skipif(missing.get(kind, False), reason=f"{PACKAGES.get(kind)} is not installed") for kind in kinds
    }
    return pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.__name__, marks=marks[kind]) for kind in kinds])


THEIRS = where_installed(Ipopt, Pounce, Uno)
ALL = where_installed(SLSQP, TrustConstr, Ipopt, Pounce, Uno)


def real(*entries):
    return torch.tensor(entries, dtype=F64)


def rosen_suzuki(**more):
    """HS43: x = (0, 1, 2, -1), mu = (1, 0, 2)."""

    def h(x):
        a, b, c, d = x
        first = a**2 + b**2 + c**2 + d**2 + a - b + c - d - 8
        return torch.stack([first, a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d - 10, 2 * a**2 + b**2 + c**2 + 2 * a - b - d - 5])

    def f(x):
        a, b, c, d = x
        return a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d

    return ConstrainedProblem(objective=f, inequality=h, x=torch.zeros(4, dtype=F64), **more)


def rivets():
    """HS71, with an equality, an inequality and bounds."""
    return ConstrainedProblem(
        objective=lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equality=lambda x: (x**2).sum() - 40,
        inequality=lambda x: 25 - x.prod(),
        x=real(1, 5, 5, 1),
        X=Box(1.0, 5.0),
    )


@ALL
def test_rosen_suzuki_with_its_multipliers(kind):
    result = solve(rosen_suzuki(), kind(), tol=1e-6)
    assert result.success
    torch.testing.assert_close(result.x, real(0, 1, 2, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.multipliers.inequality, real(1, 0, 2), atol=1e-5, rtol=0)


@ALL
def test_equality_inequality_and_bounds(kind):
    result = solve(rivets(), kind(), tol=1e-6)
    assert result.success
    assert result.fun == pytest.approx(17.0140173, abs=1e-6)
    torch.testing.assert_close(result.multipliers.equality, real(0.16146857), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.multipliers.inequality, real(0.55229366), atol=1e-5, rtol=0)


@ALL
def test_signs_of_multipliers(kind):
    """min (x - 3)^2 + (y - 1)^2, y = 2, x <= 1: L = f + lam (y - 2) + mu (x - 1) is stationary with lam = -2, mu = 4."""
    problem = ConstrainedProblem(
        objective=lambda x: (x[0] - 3) ** 2 + (x[1] - 1) ** 2,
        equality=lambda x: x[1] - 2,
        inequality=lambda x: x[0] - 1,
        x=real(0, 0),
    )
    result = solve(problem, kind(), tol=1e-6)
    assert result.success
    torch.testing.assert_close(result.multipliers.equality, real(-2), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.multipliers.inequality, real(4), atol=1e-5, rtol=0)


@ALL
def test_a_derivative_that_is_zero_at_the_start_is_not_lost(kind):
    """relu(x0 - 3) + x1 <= 1 does not depend on x0 at the start, nor anywhere near a random point."""
    problem = ConstrainedProblem(
        objective=lambda x: (x[0] - 5) ** 2 + (x[1] - 1) ** 2, inequality=lambda x: torch.relu(x[0] - 3) + x[1] - 1, x=real(0, 0)
    )
    result = solve(problem, kind(), tol=1e-6)
    assert result.success
    torch.testing.assert_close(result.x, real(4, 0), atol=1e-6, rtol=0)


# -- sparse places ----------------------------------------------------------------------------------------------------------
def discs(n, dropped=False):
    """Steps of a path in one dimension, its points in |x_i - i| <= 1/2: all derivatives sparse, no zero stored if `dropped`."""
    D, steps = diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n)), np.arange(n)
    H = csr_array(2 * (D.T @ D))

    def diagonal(d):
        A = csr_array((d, (steps, steps)), shape=(n, n))
        if dropped:
            A.eliminate_zeros()
        return A

    f = Function.numpy(lambda x: 0.5 * x @ (H @ x), gradient=lambda x: H @ x, hessian=lambda x: H)
    h = Function.numpy(
        lambda x: (x - steps) ** 2 - 0.25, jacobian=lambda x: diagonal(2 * (x - steps)), hessian=lambda x, mu: diagonal(2 * mu)
    )
    return ConstrainedProblem(objective=f, inequality=h, x=torch.arange(n, dtype=F64))


def path_of(n):
    """The truth: all steps are (n - 2) / (n - 1), from 1/2 to n - 3/2."""
    return torch.linspace(0.5, n - 1.5, n, dtype=F64)


@THEIRS
@pytest.mark.parametrize("dropped", [False, True])
def test_sparse_derivatives(kind, dropped):
    """Where zeros are not stored, the start has no place for any entry of J: the places grow."""
    result = solve(discs(12, dropped), kind(), tol=1e-6)
    assert result.success
    torch.testing.assert_close(result.x, path_of(12), atol=1e-6, rtol=0)


def test_places_grow_and_never_lose_a_number():
    places = Places((2, 3))
    places.include([(0, csr_array(np.array([[1.0, 0, 2]])))])
    assert [list(side) for side in places.indices] == [[0, 0], [0, 2]]
    np.testing.assert_array_equal(places.numbers([(0, csr_array(np.array([[0.0, 0, 5]])))]), [0, 5])
    with pytest.raises(Grown):
        places.numbers([(1, csr_array(np.array([[0.0, 7, 0]])))])
    np.testing.assert_array_equal(
        places.numbers([(1, csr_array(np.array([[0.0, 7, 0]]))), (0, np.ones((1, 3)) * [1, 0, 1])]), [1, 1, 7]
    )


def test_large_sparse_matrices_have_few_places():
    problem = discs(500)
    stacked = Stacked(View(problem.oracle(), Vec.of(problem.x)))
    assert (len(stacked.of_J.keys), len(stacked.of_H.keys)) == (500, 999)


def test_the_hessian_is_that_of_the_lagrangian():
    """Of sigma f + lam'c + mu'h, at sigma 0 too, against torch's."""
    problem, x = rivets(), np.array([1.5, 4.0, 3.0, 2.0])
    view, lam, mu = View(problem.oracle(), Vec.of(problem.x)), np.array([0.7]), np.array([1.3])
    for sigma in (0.0, 2.0):

        def lagrangian(x, sigma=sigma):
            return sigma * problem.objective(x) + 0.7 * problem.equality(x) + 1.3 * problem.inequality(x)

        wanted = torch.autograd.functional.hessian(lagrangian, torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(sum(view.hessian(x, sigma, lam, mu)), wanted, atol=1e-12)


# -- calls, limits, errors --------------------------------------------------------------------------------------------------
class Told:
    """A function that keeps where it was called, and raises at a call."""

    def __init__(self, function, at=None, error=None):
        self.function, self.points, self.at, self.error = function, [], at, error

    def __call__(self, x):
        self.points.append(tuple(x.detach().tolist()))
        if len(self.points) == self.at:
            raise self.error
        return self.function(x)


@THEIRS
def test_one_call_of_each_function_a_point(kind):
    """Values, gradient, J and H at one point cost one call of f and one of h."""
    problem = rosen_suzuki()
    f, h = Told(problem.objective), Told(problem.inequality)
    problem = ConstrainedProblem(objective=f, inequality=h, x=problem.x)
    view = View(problem.oracle(), Vec.of(problem.x))
    kind().run(view)
    for points in (f.points, h.points):
        assert all(a != b for a, b in itertools.pairwise(points))


@THEIRS
@pytest.mark.parametrize(
    "error", [ValueError("mine"), RuntimeError("mine"), ZeroDivisionError("mine")], ids=lambda e: type(e).__name__
)
def test_errors_of_the_functions_reach_the_caller(kind, error):
    problem = rosen_suzuki()
    for name in ("objective", "inequality"):
        told = Told(getattr(problem, name), at=20, error=error)
        own = {"objective": problem.objective, "inequality": problem.inequality, name: told}
        with pytest.raises(type(error), match="mine"):
            solve(ConstrainedProblem(x=problem.x, **own), kind())
        assert len(told.points) == 20


@ALL
def test_ctrl_c_stops(kind):
    problem = rosen_suzuki()
    told = Told(problem.objective, at=15, error=KeyboardInterrupt())
    result = solve(ConstrainedProblem(objective=told, inequality=problem.inequality, x=problem.x), kind())
    assert result.status is Status.STOPPED


@THEIRS
def test_without_second_derivatives(kind):
    """Numpy functions with gradients alone: a limited-memory approximation."""
    f = Function.numpy(lambda x: ((x - 2) ** 4).sum() + x @ x, gradient=lambda x: 4 * (x - 2) ** 3 + 2 * x)
    h = Function.numpy(lambda x: np.array([x @ x - 1]), jacobian=lambda x: 2 * x[None])
    result = solve(ConstrainedProblem(objective=f, inequality=h, x=real(0.1, 0.2, 0.3)), kind(), tol=1e-5)
    assert result.success
    torch.testing.assert_close(result.x, torch.full((3,), 3**-0.5, dtype=F64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "words"), [(Ipopt, "ipopt"), (Pounce, "pounce"), (Uno, "uno")])
def test_a_missing_package_is_named(kind, words, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    with pytest.raises(MissingExtra, match=rf"pip install 'bilevel\[{words}\]'"):
        solve(rosen_suzuki(), kind())


@pytest.mark.parametrize("name", ["SLSQP", "TrustConstr", "Ipopt"])
def test_old_places_of_the_solvers_work(name):
    import constrained
    from constrained.solvers import reference

    with pytest.warns(DeprecationWarning, match=f"constrained.solvers.reference.{name} is now"):
        assert getattr(reference, name) is getattr(constrained, name)
