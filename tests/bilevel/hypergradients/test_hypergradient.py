"""The hypergradient against closed forms and finite differences, and the cases where none can be right."""

import math

import numpy as np
import pytest
import torch
from lower_levels import NY, SPECTRA, Quadratic
from torch import nn

import bilevel
from bilevel import BilevelProblem, Box, Function, Status, hypergradient

F64 = torch.float64


def agree(found, truth, rel=1e-8):
    assert found.status is Status.CONVERGED, found.message
    value = np.asarray(found.value)
    assert np.linalg.norm(value - truth) <= rel * np.linalg.norm(truth), found


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("given", [True, False])
def test_closed_form(name, given):
    """Also where CG finishes early: H = c I after one step, two clusters after two. At the solution and from the start."""
    one = Quadratic(SPECTRA[name])
    agree(one.at(given), one.truth())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("values", [np.full(NY, 0.7), np.array([0.3] * 2 + [7.0] * 7)], ids=["c I", "clusters"])
def test_early_finish_for_more_seeds(values, seed):
    one = Quadratic(values, seed)
    agree(one.at(), one.truth())


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_of_the_upper_level(scale):
    one = Quadratic(SPECTRA["spread"], scale=scale)
    agree(one.at(), one.truth())


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("given", [True, False])
def test_singular_consistent(rank, given):
    """f_y lies in the range of g_yy: the hypergradient exists though the lower solution is not unique."""
    one = Quadratic(np.r_[np.linspace(1, 0.2, rank), np.zeros(NY - rank)], inside=True)
    agree(one.at(given), one.truth())


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_singular_inconsistent(rank):
    """f_y is not in the range of g_yy: SINGULAR, with the least-norm least-squares value and its residual."""
    one = Quadratic(np.r_[np.linspace(1, 0.2, rank), np.zeros(NY - rank)])
    found = one.at()
    assert found.status is Status.SINGULAR
    f_y, inverse = one.f_y(), np.linalg.pinv(one.H, rcond=1e-10)
    outside = np.linalg.norm(f_y - one.H @ inverse @ f_y) / np.linalg.norm(f_y)
    assert found.linear_residual == pytest.approx(outside, rel=1e-6)
    least = 0.2 * (one.x - one.b) + one.C @ one.y + one.M.T @ one.H @ inverse @ f_y
    assert np.asarray(found.value) == pytest.approx(least, rel=1e-6)
    assert Status.SINGULAR.value in found.message


def test_zero_lower_hessian():
    """g does not depend on y: nothing is defined."""
    one = BilevelProblem(
        upper=lambda x, y: (y**2).sum() + (x * y).sum(), lower=lambda x, y: (x**2).sum(), x=torch.ones(2), y=torch.ones(2)
    )
    assert hypergradient(one, torch.ones(2), torch.ones(2)).status is Status.SINGULAR


@pytest.mark.parametrize("far", [1e-6, 1e-2, 1.0])
def test_unsolved_lower_level(far):
    """y is no minimiser: LOWER_UNSOLVED and |g_y|, though the linear system is solved."""
    one = Quadratic(SPECTRA["spread"])
    step = far * np.random.default_rng(5).normal(size=NY)
    found = hypergradient(one.problem, torch.tensor(one.x), torch.tensor(one.y + step))
    assert found.status is Status.LOWER_UNSOLVED
    assert found.lower_residual == pytest.approx(np.linalg.norm(one.H @ step), rel=1e-6)
    assert found.linear_residual <= 1e-10


def test_lower_level_without_a_minimum():
    one = BilevelProblem(
        upper=lambda x, y: (y**2).sum(), lower=lambda x, y: (x * y).sum(), x=torch.ones(2, dtype=F64), y=torch.ones(2, dtype=F64)
    )
    assert hypergradient(one, torch.ones(2, dtype=F64)).status is not Status.CONVERGED


@pytest.mark.parametrize("values", [[-1.0] * NY, [1.0] * 8 + [-0.5], [1.0] * 8 + [-1e-3], list(np.linspace(-1, 1, NY))])
def test_indefinite_lower_hessian(values):
    """A stationary point of g that is no minimiser."""
    found = Quadratic(np.array(values)).at()
    assert found.status is Status.LOWER_UNSOLVED
    assert "negative curvature" in found.message


@pytest.mark.parametrize("part", ["hvp", "jvp", "gradient"])
def test_nan_in_a_derivative(part):
    nan = float("nan")
    parts = {
        "gradient": lambda x, y: (x - y, y - x),
        "hvp": lambda x, y, v: v,
        "jvp": lambda x, y, v: -v,
    }
    seen = []
    right = parts[part]

    def broken(*args):  # not at the start, where it would be refused
        seen.append(1)
        out = right(*args)
        if part != "gradient":
            return out * nan
        return tuple(o * nan for o in out) if len(seen) > 1 else out

    parts[part] = broken
    low = Function(lambda x, y: 0.5 * ((y - x) ** 2).sum(), **parts)
    one = BilevelProblem(upper=lambda x, y: ((y - 1) ** 2).sum(), lower=low, x=torch.zeros(2), y=torch.zeros(2))
    assert hypergradient(one, torch.zeros(2), torch.zeros(2)).status is Status.NONFINITE


# -- a nonlinear lower level, by finite differences of the value function ------------------------------------------------------
class Logistic:
    """x: log-weights of a ridge penalty, one a coefficient; y: regularised logistic regression; f: the loss on other data."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.A, self.B = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
        self.s, self.t = np.sign(self.A @ rng.normal(size=5) + 0.5 * rng.normal(size=30)), np.sign(rng.normal(size=20))
        self.x = rng.normal(size=5) - 1

    def lower_solution(self, x):
        """Newton's method in numpy to the last bits."""
        y = np.zeros(5)
        for _ in range(50):
            p = 1 / (1 + np.exp(self.s * (self.A @ y)))
            gradient = -self.A.T @ (self.s * p) / 30 + np.exp(x) * y
            step = np.linalg.solve((self.A.T * (p * (1 - p))) @ self.A / 30 + np.diag(np.exp(x)), gradient)
            y = y - step
        return y

    def value(self, x):
        y = self.lower_solution(x)
        return np.mean(np.logaddexp(0, -self.t * (self.B @ y))) + 0.05 * np.sum(x**2) + 0.1 * np.sum(x * y)

    def truth(self):
        """Central differences of order four."""
        h, out = 2e-3, []
        for e in np.eye(5):
            far, near = [self.value(self.x + k * h * e) - self.value(self.x - k * h * e) for k in (2, 1)]
            out.append((8 * near - far) / (12 * h))
        return np.array(out)

    def problem(self, dtype=F64, wrap=lambda x: x, weight=lambda y: y, **start):
        A, B, s, t = (torch.tensor(v, dtype=dtype) for v in (self.A, self.B, self.s, self.t))
        loss = nn.functional.softplus

        def upper(x, y):
            x, y = wrap(x), weight(y)
            return loss(-t * (B @ y)).mean() + 0.05 * (x**2).sum() + 0.1 * (x * y).sum()

        def lower(x, y):
            x, y = wrap(x), weight(y)
            return loss(-s * (A @ y)).mean() + 0.5 * (torch.exp(x) * y**2).sum()

        zero = torch.zeros(5, dtype=dtype)
        return BilevelProblem(upper=upper, lower=lower, **{"x": zero, "y": zero, **start})


def test_finite_differences_of_the_value_function():
    one = Logistic()
    agree(hypergradient(one.problem(), torch.tensor(one.x)), one.truth())
    y = torch.tensor(one.lower_solution(one.x))
    agree(hypergradient(one.problem(), torch.tensor(one.x), y), one.truth())


def test_set_of_x_does_not_matter():
    one = Logistic()
    agree(hypergradient(one.problem(X=Box(-5, 5)), torch.tensor(one.x)), one.truth())


def test_dict_and_module_variables():
    one, net = Logistic(), nn.Linear(5, 1, bias=False).double()
    problem = one.problem(
        wrap=lambda x: torch.cat([x["a"].reshape(-1), x["b"]]),
        weight=lambda y: y.weight[0],
        x={"a": torch.zeros(2, 1, dtype=F64), "b": torch.zeros(3, dtype=F64)},
        y=net,
    )
    x = {"a": torch.tensor(one.x[:2, None]), "b": torch.tensor(one.x[2:])}
    found = hypergradient(problem, x)
    assert found.status is Status.CONVERGED, found.message
    got, truth = np.r_[found.value["a"].numpy().ravel(), found.value["b"].numpy()], one.truth()
    assert np.linalg.norm(got - truth) <= 1e-8 * np.linalg.norm(truth)


def test_float32():
    one = Logistic()
    found = hypergradient(one.problem(torch.float32), torch.tensor(one.x, dtype=torch.float32))
    assert found.value.dtype is torch.float32
    agree(found, one.truth(), rel=1e-3)


def test_given_lower_solution_is_used_and_checked():
    one = Quadratic(SPECTRA["spread"])
    M, m = torch.tensor(one.M), torch.tensor(one.m)
    for shift, status in ((0.0, Status.CONVERGED), (1.0, Status.LOWER_UNSOLVED)):
        changed = BilevelProblem(
            upper=one.problem.upper,
            lower=one.problem.lower,
            x=one.problem.x,
            y=one.problem.y,
            lower_solution=lambda x, shift=shift: M @ x + m + shift,
        )
        assert hypergradient(changed, torch.tensor(one.x)).status is status


@pytest.mark.parametrize("upper", [lambda x, y: (x**2).sum(), lambda x, y: (y**2).sum()], ids=["f of x", "f of y"])
def test_upper_level_that_ignores_a_variable(upper):
    one = BilevelProblem(upper=upper, lower=lambda x, y: ((y - 3 * x) ** 2).sum(), x=np.ones(2), y=np.ones(2))
    found = hypergradient(one, np.array([1.0, 2.0]))
    agree(found, [2, 4] if upper(1 * torch.ones(1), 0 * torch.ones(1)) else [18, 36])
    assert math.isfinite(found.linear_residual)


def test_only_the_lower_level_needs_second_derivatives():
    """A numpy upper level without hvp is fine; a numpy lower one needs hvp and jvp, and is estimated without."""
    upper = bilevel.Function.numpy(lambda x, y: ((y - 1) ** 2).sum(), gradient=lambda x, y: (0 * x, 2 * (y - 1)))
    products = {"hvp": lambda x, y, v: 2 * v, "jvp": lambda x, y, v: -2 * v}
    for given, key in ((products, "upper"), ({"hvp": products["hvp"]}, "upper_estimate")):
        lower = bilevel.Function.numpy(
            lambda x, y: ((y - x) ** 2).sum(), gradient=lambda x, y: (2 * (x - y), 2 * (y - x)), **given
        )
        problem = bilevel.BilevelProblem(upper=upper, lower=lower, x=np.zeros(2), y=np.zeros(2))
        assert problem.check().ok
        assert bilevel.solve(problem).residuals()[key] <= 1e-6
        if key == "upper":
            np.testing.assert_allclose(bilevel.hypergradient(problem, np.zeros(2)).value, [-2, -2], atol=1e-10)


def test_y_and_f_come_with_it():
    """y(x) = 3 x, f = |y|^2: y is the start of the next call, and f the value at it."""
    one = torch.ones(2, dtype=torch.float64)
    problem = BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=lambda x, y: ((y - 3 * x) ** 2).sum(), x=one, y=one)
    found = hypergradient(problem, one)
    assert found.fun == pytest.approx(18.0, abs=1e-8)
    torch.testing.assert_close(found.y, 3 * one)
    again = hypergradient(problem, one * (1 + 1e-3), found.y)
    assert again.status is Status.LOWER_UNSOLVED  # a y that is given is taken as it is
