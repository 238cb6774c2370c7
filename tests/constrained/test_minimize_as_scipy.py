"""`minimize` in the shapes of `scipy.optimize.minimize`: every form of each argument, the result's names. Truth: closed forms."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import BFGS, SR1, Bounds, LinearConstraint, NonlinearConstraint, OptimizeResult, rosen, rosen_der, rosen_hess
from scipy.sparse import csr_array, eye_array, issparse
from scipy.sparse.linalg import LinearOperator

import constrained
from constrained import SLSQP, AugmentedLagrangian, OptionError, ProblemError, SketchedNewton, Status, TrustConstr, minimize
from constrained.as_scipy.differences import Differences

ROOT = Path(__file__).parents[2]
A, B = np.diag([1.0, 4.0]), np.array([1.0, 2.0])


def shifted(x, scale, shift):
    assert isinstance(x, np.ndarray)
    return scale * float(np.dot(x - shift, A @ (x - shift)))


def shifted_jac(x, scale, shift):
    return 2 * scale * (A @ (x - shift))


# -- fun and its derivatives ----------------------------------------------------------------------------------------------------
def test_the_order_of_positions_is_scipys():
    """(fun, x0, args, method, jac, hess, hessp, bounds, constraints, tol, callback, options)."""
    told = []
    found = minimize(
        shifted,
        [0.0, 0.0],
        (3.0, B),
        None,
        shifted_jac,
        None,
        None,
        [(None, 0.5), (None, None)],
        (),
        1e-7,
        told.append,
        {"maxiter": 50},
    )
    assert found.success
    assert found.x == pytest.approx([0.5, 2], abs=1e-7)
    assert len(told) == found.nit


@pytest.mark.parametrize("jac", [None, False, "2-point", "3-point"])
def test_numpy_functions_by_differences(jac):
    found = minimize(shifted, [0.0, 0.0], (1.0, B), jac=jac)
    assert found.success
    assert found.x == pytest.approx([1, 2], abs=1e-5)
    assert any("derivatives of fun are differences" in note for note in found.notes)
    assert found.njev < found.nfev


def test_complex_steps_are_exact():
    found = minimize(lambda x: np.exp(x[0]) - 2 * x[0] + np.sum((x[1:] - 1) ** 2), np.zeros(2), jac="cs")
    assert found.success
    assert found.x == pytest.approx([np.log(2), 1], abs=1e-8)


@pytest.mark.parametrize("scheme", ["2-point", "3-point"])
def test_differences_stay_within_bounds_and_are_of_their_order(scheme):
    low, high, seen = np.array([0.0, 1.0, -1.0, 2.0]), np.array([1.0, 1.0 + 1e-7, 1.0, 2.0]), []

    def cubes(x):
        seen.append(x.copy())
        return x**3

    x = np.array([0.0, 1.0, 1.0, 2.0])
    J = Differences(cubes, cubes, scheme, low, high)(x)
    assert all((low <= at).all() and (at <= high).all() for at in seen)
    truth = np.diag([0.0, 3.0, 3.0, 0.0])  # nothing is known of the last
    assert np.abs(J - truth).max() < {"2-point": 1e-6, "3-point": 1e-8}[scheme]


def test_code_that_takes_tensors_but_loses_derivatives_is_seen_through():
    found = minimize(lambda x: (float(x[0]) - 3) ** 2 + (x[1] - 1) ** 2, [0.0, 0.0])  # float(x[0]) has no slope
    assert found.success
    assert found.x == pytest.approx([3, 1], abs=1e-5)


HESSIANS = {
    "dense": rosen_hess,
    "sparse": lambda x: csr_array(rosen_hess(x)),
    "operator": lambda x: LinearOperator((2, 2), matvec=lambda v: rosen_hess(x) @ v),
    "3-point": "3-point",
}


@pytest.mark.parametrize("kind", HESSIANS)
def test_every_kind_of_hessian_is_newtons(kind):
    circle = NonlinearConstraint(lambda x: np.dot(x, x), 1, 1, jac=lambda x: 2 * x, hess=lambda x, v: 2 * v[0] * np.eye(2))
    found = minimize(rosen, [0.5, 0.5], jac=rosen_der, hess=HESSIANS[kind], constraints=circle)
    assert found.success
    assert isinstance(found.solver, constrained.InteriorPoint)
    assert found.fun == pytest.approx(0.0456748087191604, abs=1e-9)
    assert found.nhev > 0


@pytest.mark.parametrize("hess", [None, BFGS(), SR1()])
def test_update_strategies_are_the_librarys(hess):
    found = minimize(rosen, [0.5, 0.5], jac=rosen_der, hess=hess)
    assert found.success
    assert isinstance(found.solver, AugmentedLagrangian)


def test_products_take_args():
    found = minimize(shifted, [0.0, 0.0], (2.0, B), jac=shifted_jac, hessp=lambda x, p, scale, shift: 2 * scale * (A @ p))
    assert found.success
    assert isinstance(found.solver, constrained.InteriorPoint)
    assert found.x == pytest.approx(B)


def test_a_user_may_write_into_x():
    def squares(x):
        x -= np.arange(3)
        return np.sum(x**2)

    assert minimize(squares, np.ones(3)).x == pytest.approx(np.arange(3), abs=1e-5)


def test_no_function_is_called_twice_at_a_point_in_a_row():
    seen = {"fun": [], "jac": [], "con": []}

    def told(name, function):
        def call(x):
            seen[name].append(x.tobytes())
            return function(x)

        return call

    rows = NonlinearConstraint(told("con", lambda x: np.array([x[0] + np.cos(x[1]), x[1]])), [0, -2], [2, 2])
    found = minimize(told("fun", rosen), [0.5, 0.5], jac=told("jac", rosen_der), constraints=rows)
    assert found.success
    assert found.nfev == len(seen["fun"])
    assert found.njev == len(seen["jac"])
    assert all(a != b for points in seen.values() for a, b in itertools.pairwise(points))


# -- bounds and constraints -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(0, [0.5, np.inf]),
        [(0, 0.5), (0, None)],
        np.array([[0, 0.5], [0, np.inf]]),
        [(np.array([0]), np.array([0.5])), (0, np.inf)],
    ],
    ids=["Bounds", "pairs", "array", "arrays"],
)
def test_every_form_of_bounds(bounds):
    assert minimize(shifted, [9.0, -9.0], (1.0, B), jac=shifted_jac, bounds=bounds).x == pytest.approx([0.5, 2], abs=1e-7)


@pytest.mark.parametrize("method", [None, "SLSQP", "trust-constr"])
@pytest.mark.parametrize("jac", [None, True])
@pytest.mark.parametrize("kind", [np, torch], ids=["numpy", "torch"])
def test_nothing_is_called_outside_bounds_that_are_kept(method, jac, kind):
    """sqrt(x0) + (x1 - 2)^2 on [0, 1]^2: (0, 1), with slopes that are infinite outside."""

    def inside(x):
        assert bool((x >= 0).all() and (x <= 1).all()), x

    def value(x):
        inside(x)
        return (x[0] + 0.01) ** 0.5 + (kind.square(x[1] - 2) if kind is torch else np.square(x[1] - 2))

    def both(x):
        return value(x), [0.5 / (x[0] + 0.01) ** 0.5, 2 * (x[1] - 2)]

    x0 = [0.3, 0.3] if kind is np else torch.tensor([0.3, 0.3], dtype=torch.float64)
    bounds = Bounds([0, 0], [1, 1], keep_feasible=True)
    row = NonlinearConstraint(lambda x: [inside(x), x[0] + x[1]][1], -1, 3)
    found = minimize(both if jac else value, x0, jac=jac, method=method, bounds=bounds, constraints=row)
    assert np.asarray(found.x) == pytest.approx([0, 1], abs=1e-3 if method == "trust-constr" else 1e-6)


def test_dicts_of_any_case_with_args_of_their_own():
    rows = [
        {"type": "EQ", "fun": lambda x, a: [x[0] + x[1] - a], "args": (1.0,)},
        {"type": "Ineq", "fun": lambda x, a: x[0] - a, "jac": lambda x, a: [1.0, 0.0], "args": [0.75]},
    ]
    found = minimize(lambda x: float(np.dot(x, x)), [0.0, 0.0], constraints=rows, tol=1e-7)
    assert found.success
    assert found.x == pytest.approx([0.75, 0.25], abs=1e-6)
    assert [one.tolist() for one in found.v] == [pytest.approx([-0.5], abs=1e-5), pytest.approx([-1.0], abs=1e-5)]


def test_sparse_rows_stay_sparse():
    n, seen = 400, []

    def jac(x):
        seen.append(1)
        return csr_array((2 * x[:-1], (np.arange(n - 1), np.arange(n - 1))), shape=(n - 1, n))

    squares = NonlinearConstraint(lambda x: x[:-1] ** 2, 1, 1, jac=jac, hess=lambda x, v: csr_array(np.diag(np.append(2 * v, 0))))
    last = LinearConstraint(csr_array(([1.0], ([0], [n - 1])), shape=(1, n)), 0.5, 0.5)
    target = np.full(n, 2.0)
    found = minimize(
        lambda x: float(np.sum((x - target) ** 2)),
        np.full(n, 1.5),
        jac=lambda x: 2 * (x - target),
        hess=lambda x: 2 * eye_array(n),
        constraints=[squares, last],
    )
    assert found.success
    assert seen
    assert found.x == pytest.approx(np.append(np.ones(n - 1), 0.5), abs=1e-8)
    rows = found.problem.equality.jacobian(torch.as_tensor(found.x))
    assert issparse(rows)
    assert rows.shape == (n, n)


def test_second_derivatives_of_torch_numpy_and_matrix_rows_add_up():
    """c of three kinds and h of both sides: the problem's own check against differences, and Newton's answer."""
    exp = NonlinearConstraint(
        lambda x: [np.exp(x[0]) + x[1], np.sin(x[2])],
        [1.5, 0],
        [1.5, 0.5],
        jac=lambda x: [[np.exp(x[0]), 1, 0], [0, 0, np.cos(x[2])]],
        hess=lambda x, v: np.diag([v[0] * np.exp(x[0]), 0, -v[1] * np.sin(x[2])]),
    )
    product = NonlinearConstraint(lambda x: x[0] * x[1] * x[2], 0.02, 0.02)
    found = minimize(
        lambda x: float(np.sum(np.cosh(x))),
        [0.5, 0.5, 0.5],
        jac=np.sinh,
        hess=lambda x: np.diag(np.cosh(x)),
        constraints=[exp, product, LinearConstraint([[1, 1, 1]], -9, 9)],
    )
    assert found.problem.check().ok
    assert "Lagrangian: Hessian" in str(found.problem.check())
    assert found.success
    assert np.exp(found.x[0]) + found.x[1] == pytest.approx(1.5)
    slopes = np.array([[np.exp(found.x[0]), 1, 0], [0, 0, np.cos(found.x[2])]])
    others = found.x[[1, 0, 0]] * found.x[[2, 2, 1]]
    total = np.sinh(found.x) + slopes.T @ found.v[0] + others * found.v[1][0] + found.v[2][0]
    assert total == pytest.approx([0, 0, 0], abs=1e-6)


def test_multipliers_are_those_of_the_rows_as_given():
    """min |x - (2, 2)|^2 with -1 <= x0 + x1 <= 2 (upper active, 2) and x0 >= 1.5 (1): grad f + sum J'v = 0."""
    rows = [LinearConstraint([[1, 1]], -1, 2), NonlinearConstraint(lambda x: x[0], 1.5, np.inf)]
    found = minimize(lambda x: ((x - 2) ** 2).sum(), [0.0, 0.0], constraints=rows)
    assert found.x == pytest.approx([1.5, 0.5], abs=1e-7)
    assert [one.tolist() for one in found.v] == [pytest.approx([3.0], abs=1e-6), pytest.approx([-2.0], abs=1e-6)]
    assert found.jac + found.v[0] * [1, 1] + found.v[1] * [1, 0] == pytest.approx([0, 0], abs=1e-6)


# -- methods, options, callbacks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "solver"),
    [
        ("slsqp", SLSQP),
        ("trust-constr", TrustConstr),
        ("augmented-lagrangian", AugmentedLagrangian),
        ("AugmentedLagrangian", AugmentedLagrangian),
        ("sketched_newton", SketchedNewton),
    ],
)
def test_methods_by_name(method, solver):
    found = minimize(lambda x: ((x - 1) ** 2).sum(), [0.0, 0.0], method=method)
    assert found.success
    assert type(found.solver) is solver


@pytest.mark.parametrize("method", ["L-BFGS-B", "bfgs", "Nelder-Mead"])
def test_other_methods_of_scipy_are_the_librarys_choice_and_it_says_so(method):
    found = minimize(shifted, [0.0, 0.0], (1.0, B), method, bounds=[(0, 5)] * 2)
    assert found.success
    assert found.x == pytest.approx(B, abs=1e-5)
    assert f"method: {method.upper() if method == 'bfgs' else method} is scipy's" in found.notes[0]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"method": "simplex"}, OptionError, "method: expected None or one of SLSQP, .*got 'simplex'"),
        ({"method": 3}, OptionError, "method: expected a name, got 3"),
        ({"method": "SLSQP", "solver": SLSQP()}, OptionError, "method= or solver=, got both"),
        ({"options": {"maxcor": 5}}, OptionError, "options: expected some of maxiter.*got 'maxcor'"),
        ({"options": {"ftol": 1e-9}}, OptionError, "options: .*got 'ftol' for the library's choice"),
        ({"options": {"maxiter": "many"}}, OptionError, "maxiter: expected a number"),
        ({"options": 3}, OptionError, "options: expected a dict"),
        ({"callback": 3}, OptionError, "callback: expected a function"),
        ({"jac": "4-point"}, ProblemError, "jac: expected a function, True"),
        ({"hess": "4-point", "jac": rosen_der}, ProblemError, "hess: expected a function, BFGS"),
        ({"hess": "2-point"}, OptionError, "hess: expected .* where jac is made of differences"),
        ({"hessp": 3}, ProblemError, "hessp: expected a function"),
        ({"fun": lambda x: np.dot(x, x) * np.ones(2)}, ProblemError, "fun: expected one number, got 2"),
        ({"fun": lambda x: str(x)}, ProblemError, "fun: expected numbers"),
        ({"fun": lambda x: 1.0, "jac": True}, ProblemError, "fun: expected the value and its gradient"),
        ({"bounds": [(1, 0), (0, 1)]}, ProblemError, "bounds: expected a Box, low <= high"),
        (
            {"constraints": NonlinearConstraint(lambda x: np.exp(x), 0, 1, jac=lambda x: np.eye(3))},
            ProblemError,
            "shape \\(2, 2\\)",
        ),
        ({"constraints": LinearConstraint(np.eye(3), 0, 1)}, ProblemError, "a matrix with 2 columns"),
    ],
)
def test_what_means_nothing_is_named(wrong, error, words):
    with pytest.raises(error, match=words):
        minimize(**{"fun": rosen, "x0": [0.5, 0.5]} | wrong)


@pytest.mark.parametrize("method", [None, "SLSQP", "trust-constr"])
def test_maxiter_is_a_limit(method):
    found = minimize(rosen, [-1.2, 1.0], method=method, jac=rosen_der, options={"maxiter": 2.5})
    assert not found.success
    assert found.nit == 3


@pytest.mark.parametrize("method", [None, "SLSQP", "trust-constr"])
@pytest.mark.parametrize("form", ["x", "whole", "state"])
def test_callbacks_see_every_step_and_stop(method, form):
    seen = []

    def stop():
        if len(seen) == 2:
            raise StopIteration

    def plain(xk):
        seen.append(xk)
        stop()

    def whole(intermediate_result):
        assert isinstance(intermediate_result, OptimizeResult)
        assert intermediate_result.fun == rosen(intermediate_result.x)
        seen.append(intermediate_result.x)
        stop()

    def state(xk, state):
        assert state.nit == len(seen) + 1
        seen.append(xk)
        return len(seen) == 2

    callback = {"x": plain, "whole": whole, "state": state}[form]
    found = minimize(rosen, [-1.2, 1.0], method=method, jac=rosen_der, callback=callback)
    assert found.status is Status.STOPPED
    assert len(seen) == 2
    assert all(type(x) is np.ndarray for x in seen)
    assert found.message.startswith("`callback` raised `StopIteration`") == (form != "state")


# -- the result -----------------------------------------------------------------------------------------------------------------
def test_the_result_has_scipys_names():
    found = minimize(rosen, [0.5, 0.5], jac=rosen_der)
    assert found["x"] is found.x
    assert found.get("nit") == found.niter == found.steps
    assert found.get("none", 3) == 3
    assert (
        {"x", "fun", "jac", "success", "status", "message", "nit", "nfev", "njev", "nhev"} <= set(found.keys()) <= set(dir(found))
    )
    assert "fun" in found
    assert "funs" not in found
    assert dict(found.items()).keys() == set(found)
    assert found.jac == pytest.approx(rosen_der(found.x))
    assert found.optimality == pytest.approx(np.linalg.norm(found.jac))
    with pytest.raises(KeyError):
        found["funs"]
    again = pickle.loads(pickle.dumps(found)).on(found.problem)
    assert (again.x == found.x).all()
    assert again.nfev == found.nfev
    assert again.fun == found.fun


def test_x_is_what_x0_is():
    for x0 in ([0.0], (0.0,), np.zeros(1), 0.0, [0]):
        assert type(minimize(lambda x: (x[0] - 1) ** 2, x0).x) is np.ndarray
    x = minimize(lambda x: (x[0] - 1) ** 2, torch.zeros(1, dtype=torch.float64)).x
    assert isinstance(x, torch.Tensor)
    assert x.item() == pytest.approx(1)


def test_tensors_for_torch_derivatives():
    """With x0 a tensor, functions that take tensors get them, and numpy code arrays."""
    x0 = torch.tensor([0.5, 0.5], dtype=torch.float64)
    own = minimize(lambda x: (x**4).sum() + x.exp().sum(), x0, jac=lambda x: 4 * x**3 + x.exp())
    numpy = minimize(rosen, x0, jac=rosen_der)
    assert own.success is numpy.success is True
    assert numpy.x.tolist() == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.slow
def test_scipys_own_tests():
    done = subprocess.run(
        [sys.executable, "benchmarks/scipy_tests.py"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode()[-3000:]
