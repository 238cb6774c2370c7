"""The method of multipliers, the reference solvers and `minimize` on published problems with inequalities and bounds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint
from torch import Tensor

import constrained
from bilevel import Ball, Box, Function, Simplex, Status
from constrained import LBFGS, AugmentedLagrangian, ConstrainedProblem, NewtonCG, Vec, minimize, solve
from constrained.augmented_objective import AugmentedObjective
from constrained.core.errors import ProblemError, Unsuitable
from constrained.solvers import SLSQP, TrustConstr
from problems.cutest import cutest
from problems.discs import discs

F64 = torch.float64


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=F64)


# Hock and Schittkowski, Test Examples for Nonlinear Programming Codes, 1981: the optima that they publish.
PUBLISHED = {"HS21": -99.96, "HS35": 1 / 9, "HS43": -44, "HS71": 17.0140173, "HS100": 680.6300573}


def f71(x: Tensor) -> Tensor:
    return x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("solver", [AugmentedLagrangian(), SLSQP(), TrustConstr()], ids=lambda s: type(s).__name__)
def test_published_optima(solver, name):
    best = PUBLISHED[name]
    result = solve(cutest(name=name).problem, solver, tol=1e-5 if isinstance(solver, TrustConstr) else 1e-6)
    if isinstance(solver, AugmentedLagrangian) or result.status is Status.CONVERGED:
        assert result.fun == pytest.approx(best, rel=1e-5, abs=1e-5)
        assert max(result.residuals().values()) <= result.solver.tolerance
    assert result.status in (Status.CONVERGED, Status.STALLED)  # the others' own tolerances may miss ours, and say so
    if isinstance(solver, AugmentedLagrangian):
        assert result.status is Status.CONVERGED, result.message


def test_inequalities_by_first_derivatives():
    result = solve(cutest(name="HS35").problem, AugmentedLagrangian(), tol=1e-7)
    assert result.fun == pytest.approx(1 / 9, abs=1e-6)
    assert bool((result.multipliers.inequality >= 0).all())


@pytest.mark.parametrize("X", [Ball(1.0), Simplex()], ids=["ball", "simplex"])
def test_sets_that_are_no_box(X):
    """The projection of a point on X and a hyperplane, checked by its residuals."""
    a = vector(2.0, 0.5, -1.0)
    problem = ConstrainedProblem(
        objective=lambda x: ((x - a) ** 2).sum(), equality=lambda x: x[0] - x[1] - 0.2, x=vector(0.3, 0.3, 0.4), X=X
    )
    result = solve(problem, AugmentedLagrangian(), tol=1e-6)
    assert result.status is Status.CONVERGED, result.message
    with pytest.raises(Unsuitable, match="Box"):
        solve(problem, SLSQP())


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (
            ConstrainedProblem(objective=lambda x: (x**2).sum(), inequality=lambda x: x[0] ** 2 + 1, x=vector(1, 1)),
            "LOCALLY_INFEASIBLE",
        ),
        (ConstrainedProblem(objective=lambda x: x[0], inequality=lambda x: -x[1], x=vector(1, 1)), "UNBOUNDED"),
        (
            ConstrainedProblem(objective=lambda x: -torch.log(x[0]) + x[0], inequality=lambda x: x[0] - 0.5, x=vector(2.0)),
            "CONVERGED",
        ),
    ],
    ids=["infeasible", "unbounded", "logarithm"],
)
def test_verdicts(problem, status):
    assert solve(problem, AugmentedLagrangian(), tol=1e-6).status.name == status


# -- minimize ---------------------------------------------------------------------------------------------------------------
def g71(x: np.ndarray) -> np.ndarray:
    s = x[0] + x[1] + x[2]
    return np.array([x[3] * (x[0] + s), x[0] * x[3], x[0] * x[3] + 1, x[0] * s])


SHAPES = {
    "torch": dict(
        bounds=[(1, 5)] * 4,
        constraints=[NonlinearConstraint(lambda x: (x**2).sum(), 40, 40), {"type": "ineq", "fun": lambda x: x.prod() - 25}],
    ),
    "numpy": dict(
        jac=g71,
        bounds=Bounds(1, 5),
        constraints=[
            NonlinearConstraint(lambda x: (x**2).sum(), 40, 40, jac=lambda x: 2 * x),
            {"type": "ineq", "fun": lambda x: x.prod() - 25, "jac": lambda x: np.prod(x) / x},
        ],
    ),
    "two-sided": dict(
        bounds=[(1, 5)] * 4,
        constraints=NonlinearConstraint(lambda x: torch.stack([(x**2).sum(), x.prod()]), [40, 25], [40, np.inf]),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_minimize_takes_the_shapes_of_scipy(shape):
    result = minimize(f71, [1.0, 5.0, 5.0, 1.0], tol=1e-6, **SHAPES[shape])
    assert result.status is Status.CONVERGED
    assert result.fun == pytest.approx(17.0140173, abs=1e-5)


def test_minimize_with_linear_rows_is_newton():
    """The projection of a on {A x = b}: one step."""
    rng = np.random.default_rng(0)
    A, b, a = rng.normal(size=(2, 5)), rng.normal(size=2), rng.normal(size=5)
    result = minimize(lambda x: ((x - torch.as_tensor(a)) ** 2).sum(), np.zeros(5), constraints=LinearConstraint(A, b, b))
    np.testing.assert_allclose(result.x, a - A.T @ np.linalg.solve(A @ A.T, A @ a - b), atol=1e-10)
    assert isinstance(result.solver, constrained.InteriorPoint)
    bounded = minimize(
        lambda x: ((x - 2) ** 2).sum(), np.zeros(2), constraints=LinearConstraint(np.eye(2), -1, [1, np.inf]), tol=1e-7
    )
    np.testing.assert_allclose(bounded.x, [1, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"x0": [[1.0]]}, "x0: expected a vector"),
        ({"fun": 3.0}, "fun: expected a function"),
        ({"bounds": [(0, 1)]}, "bounds: expected Bounds or 2 pairs"),
        ({"constraints": "eq"}, "constraints: expected LinearConstraint"),
        (
            {"constraints": {"type": "less", "fun": lambda x: np.ones(1)}},
            "type 'eq' or 'ineq' and fun, got a dict with type 'less'",
        ),
        ({"constraints": NonlinearConstraint(lambda x: x, [1, 2, 3], 4)}, "bounds for 2 rows"),
        ({"constraints": LinearConstraint(np.eye(2), 1, 0)}, "lb <= ub"),
    ],
)
def test_minimize_names_what_does_not_fit(changed, match):
    with pytest.raises(ProblemError, match=match):
        minimize(**{"fun": lambda x: (x**2).sum(), "x0": [1.0, 2.0], **changed})


# -- second derivatives -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optima_by_newton(name):
    """Products with the Hessian of the augmented Lagrangian reach 1e-8."""
    best = PUBLISHED[name]
    result = solve(cutest(name=name).problem, AugmentedLagrangian(inner=NewtonCG()), tol=1e-8)
    assert result.status is Status.CONVERGED, result.message
    assert result.fun == pytest.approx(best, rel=1e-7, abs=1e-7)
    assert result.calls.total().hvps > 0


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_products_of_the_augmented_lagrangian(lam):
    """Against central differences of its gradient, on either side of the boundary of an inequality."""
    problem = ConstrainedProblem(
        objective=lambda x: torch.sin(x).sum() * x[0],
        equality=lambda x: torch.stack([x.prod(), x[0] ** 2 - x[1]]),
        inequality=lambda x: torch.stack([x[0] ** 3 + x[1], x[2] ** 2 - 5, torch.exp(x[1]) - 1]),
        x=vector(0.4, 0.9, -0.3),
    )
    oracle = problem.oracle()
    generator = torch.Generator().manual_seed(1)
    for x in (vector(0.4, 0.9, -0.3), vector(-1.0, 0.2, 2.5)):
        augmented = AugmentedObjective(oracle, vector(lam, -0.4), vector(0.3, lam, 0.0), 3.0)
        at, v = Vec.of(x), Vec.of(torch.randn(3, generator=generator, dtype=F64))
        above, below = (augmented(at.add(v, t))[1] for t in (1e-6, -1e-6))
        augmented(at)
        product = augmented.products(at)
        assert torch.allclose(product(v).ravel(), ((above - below) * 5e5).ravel(), rtol=1e-7, atol=1e-7)
        assert torch.equal(product(v).ravel(), augmented.products(Vec.of(x.clone()))(v).ravel())  # without a kept graph


@pytest.mark.parametrize("name", ["objective", "equality", "inequality"])
def test_a_function_without_second_derivatives_is_named(name):
    """Own first derivatives without hvp: refused by NewtonCG, taken with hvp."""

    def own(hvp: bool) -> ConstrainedProblem:
        one = {"objective": "gradient"}.get(name, "vjp")
        first = {"gradient": lambda x: 2 * x, "vjp": lambda x, w: 2 * x * w}[one]
        second = (lambda x, v: 2 * v) if name == "objective" else (lambda x, w, v: 2 * w * v)
        square = lambda x: (x**2).sum()  # noqa: E731
        function = Function(square, **{one: first}, hvp=second if hvp else None)
        return ConstrainedProblem(**{"objective": lambda x: (x - 2).square().sum(), "x": vector(0.5, 0.4), name: function})

    with pytest.raises(Unsuitable, match=f"^{name}: .*hvp"):
        solve(own(False), AugmentedLagrangian(inner=NewtonCG()))
    assert solve(own(False), AugmentedLagrangian(), tol=1e-6).steps > 0
    assert solve(own(True), AugmentedLagrangian(inner=NewtonCG()), tol=1e-8).steps > 0


# -- the user's matrices ----------------------------------------------------------------------------------------------------
def explicit(one: ConstrainedProblem, seen: list[str]) -> ConstrainedProblem:
    """The same problem with Hessians and Jacobians as dense matrices, calls of each noted."""

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: (seen.append(name), function(*given))[1]

    def of(name: str, value: Callable[..., Any]) -> Function:
        if name == "f":
            return Function(noted("f", value), hessian=noted("f''", torch.func.hessian(value)))
        bent = torch.func.hessian(lambda x, w: w @ value(x).reshape(-1))
        return Function(noted(name, value), jacobian=lambda x: torch.func.jacrev(value)(x).reshape(-1, len(x)), hessian=bent)

    c, h = (given and of(name, given) for name, given in (("c", one.equality), ("h", one.inequality)))
    return ConstrainedProblem(objective=of("f", one.objective), equality=c, inequality=h, x=one.x, X=one.X)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optima_by_the_users_matrices(name):
    """Without inner=, and in no more or far fewer evaluations than by first derivatives."""
    first, second = [], []
    problem = cutest(name=name).problem
    result = solve(explicit(problem, second), AugmentedLagrangian(), tol=1e-8)
    assert result.status is Status.CONVERGED, result.message
    assert result.fun == pytest.approx(PUBLISHED[name], rel=1e-7, abs=1e-7)
    assert second.count("f''") > 0
    solve(explicit(problem, first), AugmentedLagrangian(inner=LBFGS()), tol=1e-8)
    assert first.count("f''") == 0
    assert second.count("f") <= first.count("f") + 1  # HS21: 13 and 13; the others 0.1 to 0.8 times as many


def test_a_sparse_problem_by_the_users_matrices():
    """A path through discs, 400 unknowns, against cvxpy; no products, and a few dozen evaluations."""
    cvxpy = pytest.importorskip("cvxpy")
    K = 200
    result = solve(discs(K=K, avoid=False).problem, AugmentedLagrangian(), tol=1e-8)
    assert result.status is Status.CONVERGED, result.message
    total = result.calls.total()
    assert total.hvps == 0
    assert total.hessians > 0
    assert result.calls.by["solve"]["objective"].values <= 100
    t = 4 * np.arange(1, K + 1) / (K + 1) - 2
    q, centres = cvxpy.Variable((K, 2)), np.stack([t, np.sin(np.pi * t)], 1)
    whole = cvxpy.vstack([np.array([[-2.0, 0.0]]), q, np.array([[2.0, 0.0]])])
    cost = (K + 1) / 2 * cvxpy.sum_squares(whole[1:] - whole[:-1])
    least = cvxpy.Problem(cvxpy.Minimize(cost), [cvxpy.sum((q - centres) ** 2, axis=1) <= 0.04]).solve(solver="CLARABEL")
    assert result.fun == pytest.approx(least, rel=1e-6)
    np.testing.assert_allclose(result.x, q.value, atol=1e-4)


def test_products_of_the_user_are_taken_too():
    problem = ConstrainedProblem(
        objective=Function(lambda x: (x**4).sum() - x.sum(), hvp=lambda x, v: 12 * x**2 * v), x=vector(3, -2, 1), X=Box(0.0, 1.0)
    )
    result = solve(problem, AugmentedLagrangian(), tol=1e-9)
    assert torch.allclose(result.x, torch.full((3,), 0.25 ** (1 / 3), dtype=F64), atol=1e-9)
    assert result.calls.total().hvps > 0
