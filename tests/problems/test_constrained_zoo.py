"""Spring, portfolio, optimal control, obstacle and discs: derivatives, and solutions by formulas and by other methods."""

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import LinearConstraint, minimize
from scipy.sparse.linalg import spsolve

from constrained.core.derivatives.function import Function
from constrained.core.errors import OptionError
from constrained.core.problem import Point
from constrained.core.status import Feature
from constrained.core.vec import Vec
from problems import ZOO, discs, obstacle, optimal_control, portfolio, spring
from problems.discs import SHORTEST
from problems.obstacle import CONTACT, exact, radii

F64 = torch.float64
CASES = {
    "spring": spring,
    "portfolio": portfolio,
    "control": lambda **more: optimal_control(N=8, **more),
    "pendulum": lambda **more: optimal_control(N=8, pull=9.0, **more),
    "obstacle": lambda **more: obstacle(N=6, **more),
    "past a disc": lambda **more: discs(K=7, **more),
    "through discs": lambda **more: discs(K=7, avoid=False, **more),
}
EVERY = pytest.mark.parametrize("case", CASES)


def away(x: torch.Tensor) -> torch.Tensor:
    return x + 0.02 * torch.cos(torch.arange(x.numel(), dtype=F64)).reshape(x.shape)


def plain(function):
    """The torch function without derivatives of its own."""
    return function.value if isinstance(function, Function) else function


# -- every one --------------------------------------------------------------------------------------------------------------
@EVERY
def test_derivatives_agree_with_finite_differences(case):
    problem = CASES[case]().problem
    report = problem.check(Point(away(problem.x)))
    assert report.ok, str(report)


@EVERY
def test_instances_say_what_they_are(case):
    instance = CASES[case]()
    assert instance.name in ZOO
    assert len(instance.source) > 20
    assert Feature.NO_HVP not in instance.problem.features
    assert max(instance.problem.residuals(instance.start).values()) > 0.01


@EVERY
def test_dtype_is_that_asked_for(case):
    narrow = CASES[case](dtype=torch.float32)
    problem = narrow.problem
    functions = [f for f in (problem.objective, problem.equality, problem.inequality) if f]
    assert {tensor.dtype for tensor in (problem.x, *(plain(f)(problem.x) for f in functions))} == {torch.float32}
    assert {point.x.dtype for point in narrow.solution} <= {torch.float32}


@pytest.mark.parametrize("case", ["control", "pendulum", "obstacle", "past a disc", "through discs"])
def test_matrices_are_sparse_and_those_of_autodiff(case):
    problem = CASES[case]().problem
    x = away(problem.x)
    n = x.numel()
    H = problem.objective.hessian(x)
    assert sparse.issparse(H)
    value = problem.objective.value
    true = torch.autograd.functional.hessian(lambda v: value(v.reshape(x.shape)), x.reshape(-1))
    np.testing.assert_allclose(H.toarray(), true.numpy(), atol=1e-12 * float(true.abs().max()))
    for rows in (problem.equality, problem.inequality):
        if rows is None:
            continue
        J, w = rows.jacobian(x), torch.cos(torch.arange(len(rows.value(x)), dtype=F64))
        B = rows.hessian(x, w)
        assert sparse.issparse(J)
        assert sparse.issparse(B)
        flat = lambda v, rows=rows: rows.value(v.reshape(x.shape))  # noqa: E731
        np.testing.assert_allclose(J.toarray(), torch.func.jacrev(flat)(x.reshape(-1)).numpy(), atol=1e-13)
        true = torch.func.hessian(lambda v, flat=flat, w=w: flat(v) @ w)(x.reshape(-1))
        np.testing.assert_allclose(B.toarray(), true.reshape(n, n).numpy(), atol=1e-13)


WRONG = [
    *(
        (optimal_control, {"N": 1}),
        (optimal_control, {"pull": -1.0}),
        (optimal_control, {"ceiling": "low"}),
        (obstacle, {"N": 0}),
    ),
    *((discs, {"K": 1}), (discs, {"avoid": 1}), (spring, {"seed": -1}), (portfolio, {"dtype": torch.int64})),
    *((discs, {"seed": 0.5}), (obstacle, {"device": "nowhere"})),
]


@pytest.mark.parametrize(("make", "wrong"), WRONG, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_arguments_raise_one_error_of_the_library(make, wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        make(**wrong)


# -- closed solutions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [spring, portfolio])
def test_known_solutions_are_stationary_with_the_known_value(make):
    instance = make()
    (point,) = instance.solution
    assert instance.problem.fun(point) == pytest.approx(instance.optimum, rel=1e-12)
    assert max(instance.problem.residuals(point).values()) <= 1e-12


def test_the_spring_is_the_published_one():
    """0.0126652, with the deflection and the shear stress at their limits."""
    instance = spring()
    (point,) = instance.solution
    assert instance.optimum == pytest.approx(0.012665, abs=5e-7)
    h = instance.problem.inequality(point.x)
    assert h[:2].abs().max() <= 1e-12
    assert h[2:].max() < -0.1
    found = minimize(
        lambda x: float(instance.problem.objective(torch.from_numpy(x))),
        instance.problem.x.numpy(),
        bounds=[(0.05, 2), (0.25, 1.3), (2, 15)],
        constraints={"type": "ineq", "fun": lambda x: -instance.problem.inequality(torch.from_numpy(x)).numpy()},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    assert found.fun == pytest.approx(instance.optimum, rel=1e-4)


def test_the_portfolio_is_that_of_slsqp_and_its_multipliers_have_the_right_sign():
    instance = portfolio()
    (point,) = instance.solution
    m = point.multipliers
    assert m.low[4] > 0
    assert m.high[1] > 0
    assert float(m.low.sum() + m.high.sum()) == float(m.low[4] + m.high[1])
    found = minimize(
        lambda w: float(instance.problem.objective(torch.from_numpy(w))),
        np.full(5, 0.2),
        bounds=[(0, 0.4)] * 5,
        constraints=LinearConstraint(np.ones((1, 5)), 1, 1),
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(found.x, point.x.numpy(), atol=1e-5)


# -- limits of large sizes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ceiling", [1 / 9, 1 / 8])
def test_optimal_control_tends_to_the_known_optimum(ceiling):
    """A quadratic program: by its active set, found by adding and dropping bounds."""
    errors = []
    for N in (36, 72):
        problem = optimal_control(N=N, ceiling=ceiling).problem
        J, H = problem.equality.jacobian(problem.x), problem.objective.hessian(problem.x)
        right = -problem.equality.value(torch.zeros_like(problem.x)).numpy()
        n, active = len(problem.x), np.zeros(len(problem.x), dtype=bool)
        tiny = 1e-10 * sparse.eye_array(n)  # the rows leave modes of u that nothing else fixes
        for _ in range(50):
            E = sparse.eye_array(n, format="csr")[active]
            A = sparse.vstack([J, E])
            K = sparse.block_array([[H + tiny, A.T], [A, -1e-12 * sparse.eye_array(A.shape[0])]], format="csc")
            z = spsolve(K, np.concatenate([np.zeros(n), right, np.full(active.sum(), ceiling)]))
            mu = np.zeros(n)
            mu[active] = z[n + len(right) :]
            p = np.arange(n) <= N
            again = p & (mu + (z[:n] - ceiling) > 1e-9)
            if (again == active).all():
                break
            active = again
        errors.append(float(problem.objective.value(torch.from_numpy(z[:n]))) / (4 / (9 * ceiling)) - 1)
    assert abs(errors[1]) <= 0.01
    assert abs(errors[1]) <= 0.6 * abs(errors[0])


def test_the_membrane_tends_to_the_known_one():
    """A primal-dual active set method; the greatest error falls with h."""
    assert CONTACT**2 * (1 - math.log(CONTACT / 2)) == pytest.approx(1, abs=1e-12)
    errors = []
    for N in (19, 39):
        problem = obstacle(N=N).problem
        H = problem.objective.hessian(problem.x)
        g = torch.func.grad(problem.objective.value)(torch.zeros_like(problem.x)).reshape(-1).numpy()
        low = problem.X.project(Vec.of(torch.full_like(problem.x, -10.0))).leaves[0].reshape(-1).numpy()
        active = np.zeros(N * N, dtype=bool)
        for _ in range(30):
            w = np.where(active, low, 0.0)
            free = ~active
            w[free] = spsolve(H[free][:, free].tocsc(), -(g + H @ w)[free])
            again = (H @ w + g) * active + (low - w) > 1e-12
            if (again == active).all():
                break
            active = again
        errors.append(np.abs(w - exact(radii(N))[1:-1, 1:-1].reshape(-1).numpy()).max())
    assert errors[1] <= 0.6 * errors[0] <= 0.01


@pytest.mark.parametrize("avoid", [True, False])
def test_the_path_past_a_disc_is_near_the_shortest(avoid):
    errors = []
    for K in (10, 30):
        problem = discs(K=K, avoid=avoid).problem
        value = lambda q, problem=problem, K=K: problem.objective.value(torch.from_numpy(q).reshape(K, 2))  # noqa: E731
        h = lambda q, problem=problem, K=K: problem.inequality.value(torch.from_numpy(q).reshape(K, 2)).numpy()  # noqa: E731
        J = lambda q, problem=problem, K=K: problem.inequality.jacobian(torch.from_numpy(q).reshape(K, 2)).toarray()  # noqa: E731
        g = torch.func.grad(lambda q, problem=problem, K=K: problem.objective.value(q.reshape(K, 2)))
        found = minimize(
            lambda q, value=value: float(value(q)),
            problem.x.reshape(-1).numpy(),
            jac=lambda q, g=g: g(torch.from_numpy(q)).numpy(),
            constraints={"type": "ineq", "fun": lambda q, h=h: -h(q), "jac": lambda q, J=J: -J(q)},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-12},
        )
        assert found.success
        assert h(found.x).max() <= 1e-8
        if avoid:
            assert found.fun <= SHORTEST**2 / 2, "chords may cut the disc"
            errors.append(1 - found.fun / (SHORTEST**2 / 2))
    assert not errors or errors[1] <= min(0.01, 0.5 * errors[0])


def test_the_sizes_are_those_of_the_arguments():
    problem = discs().problem
    assert problem.x.numel() == 2000
    assert len(problem.inequality.value(problem.x)) == 1000
    assert problem.inequality.jacobian(problem.x).nnz == 2000
    problem = optimal_control().problem
    assert (problem.x.numel(), len(problem.equality.value(problem.x))) == (303, 204)
    assert obstacle().problem.x.shape == (20, 20)
