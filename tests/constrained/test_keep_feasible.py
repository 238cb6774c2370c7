"""keep_feasible=True of constraints: fun is never called where such a row is violated; answers in closed form."""

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint
from scipy.sparse import csr_array

from constrained import SLSQP, InteriorPoint, TrustConstr, minimize
from constrained.core.errors import ProblemError

KINDS = {"numpy": np, "torch": torch}
DISC = NonlinearConstraint(lambda x: (x**2).sum(), -np.inf, 1, keep_feasible=True)
BELOW = LinearConstraint([[1, 2], [2, 1]], -np.inf, 1, keep_feasible=True)


def guarded(holds, value):
    """`value`, which fails the test where `holds` does not; the calls are noted."""
    seen = []

    def fun(x, *more):
        at = x.detach().numpy() if isinstance(x, torch.Tensor) else np.array(x)
        assert holds(at), at
        seen.append(at)
        return value(x, *more)

    return fun, seen


def in_disc(x):
    return x @ x <= 1


def as_start(kind, x0):
    return x0 if kind == "numpy" else torch.tensor(x0, dtype=torch.float64)


def numbers(kind, value):
    """Numpy code, which a tensor that is to be differentiated does not pass; or torch code."""
    return (lambda x: float(value(x))) if kind == "numpy" else value


@pytest.mark.parametrize("x0", [[0.0, 0.0], [0.6, 0.8], [0.0, -1.0], [1.0, 0.0]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_curved_row_is_kept_from_inside_and_from_its_boundary(kind, x0):
    """The projection of (2, 1) on the disc."""
    fun, seen = guarded(in_disc, numbers(kind, lambda x: (x[0] - 2) ** 2 + (x[1] - 1) ** 2))
    found = minimize(fun, as_start(kind, x0), constraints=DISC)
    assert isinstance(found.solver, InteriorPoint if kind == "torch" else TrustConstr)
    assert found.success, found.message
    assert np.asarray(found.x) == pytest.approx(np.array([2, 1]) / 5**0.5, abs=1e-7)
    assert in_disc(np.asarray(found.x))
    assert 0 < len(seen) <= 120
    assert any("trust-constr" in note for note in found.notes) == (kind == "numpy")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [None, SLSQP(ftol=1e-14), TrustConstr()], ids=["default", "SLSQP", "TrustConstr"])
def test_linear_rows_are_kept_at_a_corner(kind, solver):
    """Two rows hold at the solution (1/3, 1/3), where differences have room on few sides."""
    fun, _ = guarded(lambda x: (BELOW.A @ x <= 1).all(), numbers(kind, lambda x: (x[0] - 2) ** 2 + (x[1] - 2) ** 2))
    found = minimize(fun, as_start(kind, [0.0, 0.0]), constraints=BELOW, solver=solver)
    assert found.success, found.message
    assert np.asarray(found.x) == pytest.approx([1 / 3, 1 / 3], abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_that_does_not_exist_beyond(kind):
    """-log(1 - s) - 3 x0 - x1 / 2 with s = x0 + x1 <= 0.9, |x| <= 2: the slope in x1 is 1 / (1 - s) - 1/2 > 0 for x0 = 2."""
    lib = KINDS[kind]
    row = LinearConstraint([[1, 1]], -np.inf, 0.9, keep_feasible=True)
    value = numbers(kind, lambda x: -lib.log(1 - x[0] - x[1]) - 3 * x[0] - x[1] / 2)
    fun, _ = guarded(lambda x: x.sum() <= 0.9, value)
    found = minimize(fun, as_start(kind, [0.3, 0.3]), bounds=Bounds(-2, 2), constraints=row)
    assert found.success, found.message
    assert np.asarray(found.x) == pytest.approx([2, -2], abs=1e-6)


def test_jac_and_hess_are_not_called_outside_either():
    jac, _ = guarded(in_disc, lambda x: 2 * (x - np.array([2, 1])))
    hess, bent = guarded(in_disc, lambda x: csr_array(2 * np.eye(2)))
    fun, _ = guarded(in_disc, lambda x: float(((x - np.array([2, 1])) ** 2).sum()))
    row = NonlinearConstraint(
        lambda x: x @ x, -np.inf, 1, jac=lambda x: csr_array(2 * x[None]), hess=lambda x, v: csr_array(2 * v[0] * np.eye(2)),
        keep_feasible=True,
    )  # fmt: skip
    found = minimize(fun, [0.0, -1.0], jac=jac, hess=hess, constraints=row)
    assert isinstance(found.solver, InteriorPoint)
    assert found.success
    assert len(bent) > 0
    assert found.x == pytest.approx(np.array([2, 1]) / 5**0.5, abs=1e-7)
    both, _ = guarded(in_disc, lambda x: (float(((x - np.array([2, 1])) ** 2).sum()), 2 * (x - np.array([2, 1]))))
    assert minimize(both, [0.0, -0.5], jac=True, constraints=row).x == pytest.approx(found.x, abs=1e-6)


def test_of_several_rows_those_that_say_so():
    """(0.7, 0.7) is outside the disc, which need not be kept; x0 >= 0.2 is."""
    row = NonlinearConstraint(lambda x: [x[0], (x**2).sum()], [0.2, -np.inf], [np.inf, 0.5], keep_feasible=[True, False])
    fun, seen = guarded(lambda x: x[0] >= 0.2, lambda x: (x[0] + 1) ** 2 + x[1] ** 2)
    found = minimize(fun, [0.7, 0.7], constraints=row)
    assert found.success
    assert found.x == pytest.approx([0.2, 0], abs=1e-7)
    assert max(x @ x for x in seen) > 0.5


def test_equalities_are_no_rows_to_keep():
    """As in scipy it has no effect on them."""
    row = LinearConstraint([[1, 1]], 1, 1, keep_feasible=True)
    assert minimize(lambda x: (x**2).sum(), [3.0, 0.0], constraints=row).x == pytest.approx([0.5, 0.5])


def test_a_start_near_a_bound_is_not_pushed_out_of_the_rows():
    """InteriorPoint moves starts 0.01 from bounds: here x0 + x1 <= 0.001 leaves no such room."""
    row = LinearConstraint([[1, 1]], -np.inf, 1e-3, keep_feasible=True)
    fun, _ = guarded(lambda x: x.sum() <= 1e-3, lambda x: (x[0] - 1) ** 2 + 2 * (x[1] - 1) ** 2)
    found = minimize(fun, [0.0, 0.0], bounds=Bounds(0, 1), constraints=row)
    assert isinstance(found.solver, InteriorPoint)
    assert found.success, found.message
    assert found.x == pytest.approx([0, 1e-3], abs=1e-7)


def test_nan_at_the_start_is_no_feasible_row():
    row = NonlinearConstraint(lambda x: np.array([np.nan * x[0]]), 0, 1, keep_feasible=True)
    with pytest.raises(ProblemError, match="keep_feasible"):
        minimize(lambda x: (x**2).sum(), [0.5], constraints=row)
