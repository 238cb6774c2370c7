"""ConstrainedProblem: refusals, features, residuals against multipliers by hand, derivatives of every kind by autograd."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from bilevel import Box, Function, MiniBatches, Point, Stream
from constrained.core.derivatives.constraint import Constraint
from constrained.core.derivatives.counts import Calls
from constrained.core.derivatives.graph import BATCHED
from constrained.core.derivatives.objective import Objective
from constrained.core.derivatives.tape import Tape
from constrained.core.errors import NonFiniteStart, OptionError, ProblemError, Unsuitable
from constrained.core.problem import Multipliers
from constrained.core.status import Feature
from constrained.core.vec import Vec
from constrained.problem import ConstrainedProblem

F64 = torch.float64
X0 = torch.tensor([0.8, 1.1, -0.6, 0.4], dtype=F64)
LAM = torch.tensor([0.7, -1.3], dtype=F64)


def f(x: Tensor) -> Tensor:
    return torch.sin(x[0]) * x[1] ** 2 + (x**4).sum() + x[2] * x[3]


def c(x: Tensor) -> Tensor:
    return torch.stack([x[0] * x[1] - x[2], (x**2).sum() - torch.exp(x[3])])


def by_hand(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """grad f, J and the Hessian of f + LAM'c by torch.autograd.functional."""
    jac, hess = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    return jac(f, x), jac(c, x), hess(lambda t: f(t) + LAM @ c(t), x)


GRAD, JAC, HESS = by_hand(X0)


def own_objective() -> Function:
    return Function(f, gradient=lambda x: by_hand(x)[0], hvp=lambda x, v: torch.autograd.functional.hessian(f, x) @ v)


def own_constraint(jacobian: bool) -> Function:
    def hvp(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return torch.autograd.functional.hessian(lambda t: w @ c(t), x) @ v

    given = {"jacobian": lambda x: by_hand(x)[1]} if jacobian else {"vjp": lambda x, w: by_hand(x)[1].T @ w}
    return Function(c, hvp=hvp, **given)


KINDS = {
    "autodiff": (f, c),
    "own objective": (own_objective(), c),
    "own Jacobian": (f, own_constraint(True)),
    "own vjp": (f, own_constraint(False)),
    "both": (own_objective(), own_constraint(True)),
}


def tape(kind: str) -> Tape:
    objective, equality = KINDS[kind]
    calls = Calls()
    return Tape(Objective("objective", objective, calls), [Constraint("equality", equality, calls)], Vec.of(X0))


# -- the tape ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_every_derivative_of_a_tape(kind):
    one = tape(kind)
    at = one.lagrangian(LAM)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # noqa: E731
    close(one.value, f(X0))
    close(one.c, c(X0))
    close(one.gradient, GRAD)
    close(one.jacobian, JAC)
    close(one.vjp(LAM), JAC.T @ LAM)
    close(one.gradient_of_lagrangian(LAM), GRAD + JAC.T @ LAM)
    close(at.gradient, GRAD + JAC.T @ LAM)
    close(at.hessian, HESS)
    u, v = torch.randn(3, 4, dtype=F64), torch.randn(3, 2, dtype=F64)
    for i in range(3):
        top, bottom = at.product(u[i], v[i])
        close(top, HESS @ u[i] + JAC.T @ v[i])
        close(bottom, JAC @ u[i])
    tops, bottoms = at.products(u, v)
    close(tops, u @ HESS + v @ JAC)
    close(bottoms, u @ JAC.T)


def test_large_hessians_agree_with_products():
    n = BATCHED + 7
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    calls = Calls()
    one = Tape(
        Objective("objective", lambda x: torch.log1p((A @ x) ** 2).sum(), calls),
        [Constraint("equality", lambda x: x.sum() ** 2 - 1, calls)],
        Vec.of(torch.linspace(-1, 1, n, dtype=F64)),
    )
    at = one.lagrangian(torch.ones(1, dtype=F64))
    columns, _ = at.products(torch.eye(n, dtype=F64), torch.zeros(n, 1, dtype=F64))
    torch.testing.assert_close(at.hessian, columns, rtol=1e-10, atol=1e-10)
    assert calls.by["solve"]["objective"].hessians == 1
    assert calls.by["solve"]["objective"].hvps == n


def test_linear_functions_have_no_curvature():
    calls = Calls()
    one = Tape(Objective("objective", lambda x: x.sum(), calls), [Constraint("equality", lambda x: x[0] - 1, calls)], Vec.of(X0))
    at = one.lagrangian(torch.ones(1, dtype=F64))
    assert torch.equal(at.hessian, torch.zeros(4, 4, dtype=F64))
    top, bottom = at.product(torch.ones(4, dtype=F64), torch.ones(1, dtype=F64))
    assert torch.equal(top, torch.tensor([1.0, 0, 0, 0], dtype=F64))
    assert torch.equal(bottom, torch.ones(1, dtype=F64))


def test_without_constraints():
    one = Tape(Objective("objective", f, Calls()), [], Vec.of(X0))
    assert one.jacobian.shape == (0, 4)
    assert one.lagrangian(torch.zeros(0, dtype=F64)).hessian.shape == (4, 4)


def test_missing_second_derivatives_are_named():
    numpy = Function.numpy(lambda x: (x**2).sum(), gradient=lambda x: 2 * x)
    one = Tape(Objective("objective", numpy, Calls()), [], Vec.of(X0))
    torch.testing.assert_close(one.gradient, 2 * X0)
    with pytest.raises(Unsuitable, match="hvp"):
        one.lagrangian(torch.zeros(0, dtype=F64))


# -- the problem ------------------------------------------------------------------------------------------------------------
def test_features_and_signature():
    problem = ConstrainedProblem(objective=f, equality=c, inequality=lambda x: -x, x=X0, X=Box(-9, 9))
    assert problem.features == Feature.EQUALITY | Feature.INEQUALITY | Feature.X_SET
    assert problem.signature()["x"] == [["", [4], "torch.float64", "cpu"]]
    assert ConstrainedProblem(objective=f, x=X0).features == Feature(0)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"objective": 3}, "objective: expected a function"),
        ({"equality": "c"}, "equality: expected a function"),
        ({"X": (0, 1)}, "X: expected a set"),
        ({"data": [1]}, "data: expected a sampler"),
        ({"x": [1.0, 2.0]}, "x: expected a tensor"),
        ({"x": torch.ones(2, dtype=torch.int64)}, "x: expected floating-point"),
    ],
)
def test_what_is_no_problem(changed, match):
    with pytest.raises(ProblemError, match=match):
        ConstrainedProblem(**{"objective": f, "x": X0, **changed})


@pytest.mark.parametrize(
    ("functions", "match"),
    [
        ({"objective": lambda x: x.sum() / 0}, "objective"),
        ({"objective": lambda x: torch.sqrt(x[0] - X0[0])}, "objective: its gradient"),
        ({"equality": lambda x: torch.log(-x[:1])}, "equality"),
        ({"inequality": lambda x: x.log()}, "inequality"),
    ],
)
def test_a_start_that_is_not_finite_is_named(functions, match):
    problem = ConstrainedProblem(**{"objective": f, "x": X0, **functions})
    with pytest.raises(NonFiniteStart, match=match):
        problem.begin(problem.oracle(), None)


def test_an_exception_of_the_user_is_told_apart():
    problem = ConstrainedProblem(objective=lambda x: x[9], x=X0)
    with pytest.raises(ProblemError, match="IndexError at the start"):
        problem.begin(problem.oracle(), None)


def test_residuals_of_a_known_kkt_point():
    """min |x|^2 / 2 s.t. x0 + x1 = 2, 1 - x2 <= 0: x = (1, 1, 1), lam = -1, mu = 1."""
    problem = ConstrainedProblem(
        objective=lambda x: 0.5 * (x**2).sum(), equality=lambda x: x[0] + x[1] - 2, inequality=lambda x: 1 - x[2], x=X0[:3]
    )
    x, lam, mu = torch.ones(3, dtype=F64), -torch.ones(1, dtype=F64), torch.ones(1, dtype=F64)
    for multipliers in (Multipliers(lam, mu), None):
        found = problem.residuals(Point(x, None, multipliers))
        assert max(found.values()) <= 1e-12
        assert set(found) == {"stationarity", "feasibility", "complementarity"}
    off = problem.residuals(Point(x + 0.1, None, Multipliers(lam, mu)))
    assert off["feasibility"] == pytest.approx(0.2)
    assert off["stationarity"] == pytest.approx(0.1 * 3**0.5)
    assert off["complementarity"] == pytest.approx(0.1)
    wrong = problem.residuals(Point(x, None, Multipliers(lam, -mu)))
    assert wrong["complementarity"] == pytest.approx(1)
    assert problem.fun(Point(x)) == pytest.approx(1.5)


def test_residuals_with_a_set_are_projected():
    problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), x=X0, X=Box(1.0, 2.0))
    assert problem.residuals(Point(torch.ones(4, dtype=F64)))["stationarity"] == 0
    assert problem.residuals(Point(torch.zeros(4, dtype=F64)))["feasibility"] == 2


def test_least_squares_multipliers_of_a_published_problem():
    """HS71's solution by scipy: its residuals vanish without anybody giving multipliers."""
    fun, eq = lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2], lambda x: (x**2).sum() - 40
    kept = {"type": "eq", "fun": lambda x: float(eq(x))}, {"type": "ineq", "fun": lambda x: np.prod(x) - 25}
    found = minimize(fun, [1.0, 5, 5, 1], bounds=[(1, 5)] * 4, constraints=kept, method="SLSQP", options={"ftol": 1e-15})
    problem = ConstrainedProblem(
        objective=fun, equality=eq, inequality=lambda x: 25 - x.prod(), x=torch.ones(4, dtype=F64), X=Box(1.0, 5.0)
    )
    assert max(problem.residuals(Point(torch.as_tensor(found.x))).values()) <= 1e-5


def test_check_finds_a_wrong_derivative():
    assert ConstrainedProblem(objective=f, equality=c, inequality=lambda x: x**3 - 1, x=X0).check().ok
    wrong = Function(c, jacobian=lambda x: 1.1 * by_hand(x)[1], hvp=lambda x, w, v: 0 * v)
    report = ConstrainedProblem(objective=f, equality=wrong, x=X0).check()
    assert "equality: Jacobian" in report.bad


def test_modules_dicts_and_batches():
    net = nn.Linear(3, 1, dtype=F64)
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=F64)

    def loss(module: nn.Linear, batch: Tensor) -> Tensor:
        return ((module(batch)[:, 0] - batch.sum(1)) ** 2).mean()

    problem = ConstrainedProblem(objective=loss, equality=lambda m: m.weight.sum() - 1, x=net, data=MiniBatches(rows, 4))
    assert problem.features == Feature.SAMPLES | Feature.EQUALITY
    whole = problem.full_batch()
    assert whole.check().ok
    point = Point({"weight": torch.ones(1, 3, dtype=F64), "bias": torch.zeros(1, dtype=F64)})
    assert problem.fun(point) == pytest.approx(0, abs=1e-15)
    assert problem.residuals(point)["feasibility"] == pytest.approx(2)
    assert torch.equal(problem.module(point).weight, torch.ones(1, 3, dtype=F64))
    assert not torch.equal(net.weight, torch.ones(1, 3, dtype=F64))
    streamed = ConstrainedProblem(objective=loss, equality=lambda m: m.weight.sum() - 1, x=net, data=Stream(list(rows.split(4))))
    assert set(streamed.residuals(point)) == {"stationarity_estimate", "feasibility"}
    with pytest.raises(OptionError, match="module"):
        ConstrainedProblem(objective=f, x=X0).module(Point(X0))
