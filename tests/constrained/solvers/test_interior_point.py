"""InteriorPoint against published optima, cvxpy, linear programs, and verdicts that are true of the problem."""

import dataclasses
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_array, diags_array
from unique_multipliers import stacked, unique

from constrained import (
    SLSQP,
    AugmentedLagrangian,
    Box,
    ConstrainedProblem,
    Function,
    InteriorPoint,
    Multipliers,
    Point,
    Simplex,
    SketchedNewton,
    Status,
    Unsuitable,
    solve,
)
from constrained.core.run import default_solver
from problems.cutest import CUTEST, HS_INEQUALITY, cutest
from problems.portfolio import portfolio
from problems.traps import TRAPS, trap

F64 = torch.float64
WITHOUT_MULTIPLIERS = {"HS13"}  # no point of it satisfies the conditions
# The least values known, where they are below the published one; local solutions from the published start elsewhere
LOCAL = {"HS2", "HS16", "HS20", "HS44", "HS55", "HS57", "HS108"}
INFEASIBLE, SLOW = {"FREURONE", "HIMMELBD"}, {"HATFLDFLNE", "OSCIPANE"}
# At these answers active gradients depend on one another, something is active without a force, or bounds fix an entry
SEVERAL = {"HS17", "HS21MOD", "HS30", "HS32", "HS35MOD", "HS55", "HS116", "COOLHANS", "FLT"}


def expect_the_multipliers(name, problem, result, low, high):
    """Those of least squares at the answer, where these are the only ones."""
    wanted = unique(problem, result.x, low, high)
    assert (wanted is None) == (name in SEVERAL)
    if wanted is not None:
        assert (np.abs(stacked(result) - wanted) <= 1e-4 * np.maximum(1, np.abs(wanted))).all()


@pytest.mark.parametrize("name", HS_INEQUALITY)
def test_hock_and_schittkowskis_problems_with_inequalities(name):
    instance = cutest(name=name)
    result = solve(instance.problem, InteriorPoint(), tol=1e-8)
    if name in WITHOUT_MULTIPLIERS:
        assert not result.status.ok
        assert result.fun == pytest.approx(instance.optimum, abs=0.02)
        return
    assert result.status is Status.CONVERGED
    assert max(result.residuals().values()) <= 1e-8
    size = 1e-6 * max(1.0, abs(instance.optimum))
    assert (result.fun > instance.optimum + size) == (name in LOCAL)
    if name not in LOCAL:
        assert result.fun >= instance.optimum - max(size, 1e-4 * abs(instance.optimum))  # published to five digits
    expect_the_multipliers(name, instance.problem, result, *map(np.array, HS_INEQUALITY[name].bounds()))


@pytest.mark.parametrize("name", CUTEST)
def test_equations_and_equalities_of_cutest(name):
    problem = cutest(name=name).problem
    result = solve(problem, InteriorPoint(), tol=1e-8)
    if name in INFEASIBLE:
        assert result.status is Status.LOCALLY_INFEASIBLE
    elif name in SLOW:
        assert result.status is Status.STALLED
    else:
        assert result.status is Status.CONVERGED
        assert max(result.residuals().values()) <= 1e-8
        expect_the_multipliers(name, problem, result, *(np.full(len(result.x), end) for end in (-np.inf, np.inf)))


@pytest.mark.parametrize("name", TRAPS)
def test_traps_end_with_what_is_true_of_them(name):
    of = trap(name=name)
    if of.raises is not None:
        with pytest.raises(of.raises):
            solve(of.problem, InteriorPoint())
        return
    assert solve(of.problem, InteriorPoint(), tol=1e-8, max_steps=500).status in of.statuses


def program(seed, n=12, e=3, i=6):
    """A convex quadratic program with a feasible point."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n // 2, n))
    x = rng.uniform(0.2, 0.8, n)
    C, G = rng.standard_normal((e, n)), rng.standard_normal((i, n))
    return A.T @ A, rng.standard_normal(n), C, C @ x, G, G @ x + rng.uniform(0, 0.3, i)


@pytest.mark.parametrize("seed", range(5))
def test_quadratic_programs_and_their_multipliers_beside_cvxpy(seed):
    Q, q, C, d, G, h = program(seed)
    v = cp.Variable(12)
    rows = [C @ v == d, G @ v <= h, v >= 0, v <= 1]
    cp.Problem(cp.Minimize(0.5 * cp.quad_form(v, cp.psd_wrap(Q)) + q @ v), rows).solve(solver=cp.CLARABEL)
    tQ, tq, tC, td, tG, th = (torch.from_numpy(np.ascontiguousarray(a)) for a in (Q, q, C, d, G, h))
    problem = ConstrainedProblem(
        objective=lambda x: 0.5 * x @ tQ @ x + tq @ x,
        equality=lambda x: tC @ x - td,
        inequality=lambda x: tG @ x - th,
        x=torch.full((12,), 0.5, dtype=F64),
        X=Box(0.0, 1.0),
    )
    result = solve(problem, InteriorPoint(), tol=1e-8)
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.x, v.value, atol=1e-5)
    np.testing.assert_allclose(result.multipliers.equality, rows[0].dual_value, atol=1e-4)
    np.testing.assert_allclose(result.multipliers.inequality, rows[1].dual_value, atol=1e-4)
    np.testing.assert_allclose(result.multipliers.low, rows[2].dual_value, atol=1e-4)
    np.testing.assert_allclose(result.multipliers.high, rows[3].dual_value, atol=1e-4)


@pytest.mark.parametrize("solver", [InteriorPoint(), AugmentedLagrangian(), SLSQP()], ids=repr)
def test_multipliers_of_bounds_are_the_known_ones_whoever_solves(solver):
    instance = portfolio()
    (known,) = instance.solution
    result = solve(instance.problem, solver, tol=1e-6)
    assert result.status is Status.CONVERGED
    for name in ("low", "high"):
        np.testing.assert_allclose(getattr(result.multipliers, name), getattr(known.multipliers, name), atol=1e-4)


def test_a_multiplier_is_what_a_bound_costs():
    """f falls by it, for a bound one unit further out; of a tree, in its structure."""

    def of(low):
        x = {"a": torch.ones(2, dtype=F64), "b": torch.ones((), dtype=F64)}
        return ConstrainedProblem(
            objective=lambda x: ((x["a"] + 1) ** 2).sum() + (x["b"] - 0.5) ** 2, x=x, X=Box(low={"a": [low, -3.0], "b": 0.0})
        )

    result = solve(of(0.5))
    price = (solve(of(0.5 - 1e-4)).fun - solve(of(0.5 + 1e-4)).fun) / 2e-4
    assert float(result.multipliers.low["a"][0]) == pytest.approx(-price, rel=1e-6)
    assert result.multipliers.low["a"][1] == result.multipliers.low["b"] == 0
    assert not result.multipliers.high["a"].any()


@pytest.mark.parametrize("seed", range(3))
def test_linear_programs_beside_scipy(seed):
    rng = np.random.default_rng(seed)
    A, b, c = rng.uniform(0.1, 1, (4, 8)), rng.uniform(1, 3, 4), -rng.uniform(0.1, 1, 8)
    rows, right, cost = (torch.from_numpy(a) for a in (A, b, c))
    problem = ConstrainedProblem(
        objective=lambda x: cost @ x, inequality=lambda x: rows @ x - right, x=torch.zeros(8, dtype=F64), X=Box(0.0, math.inf)
    )
    result = solve(problem, InteriorPoint(), tol=1e-8)
    assert result.status is Status.CONVERGED
    assert result.fun == pytest.approx(linprog(c, A, b).fun, abs=1e-7)


def obstacle(n):
    """A string over a hill: 1/2 sum (x_i+1 - x_i)^2 (n + 1) with x above the hill, by sparse derivatives of its own."""
    T = diags_array([2.0 * np.ones(n), -np.ones(n - 1), -np.ones(n - 1)], offsets=[0, 1, -1]) * (n + 1.0)
    hill = 0.5 - 4 * (np.linspace(0, 1, n + 2)[1:-1] - 0.5) ** 2
    f = Function.numpy(lambda x: 0.5 * x @ (T @ x), gradient=lambda x: T @ x, hessian=lambda x: csr_array(T))
    h = Function.numpy(
        lambda x: hill - x, jacobian=lambda x: csr_array(diags_array(-np.ones(n))), hessian=lambda x, lam: csr_array((n, n))
    )
    return f, h, hill, T


def test_a_sparse_problem_stays_sparse(monkeypatch):
    n = 500
    f, h, hill, T = obstacle(n)
    monkeypatch.setattr(torch.Tensor, "to_dense", lambda self: pytest.fail("a dense matrix"))
    problem = ConstrainedProblem(objective=f, inequality=h, x=torch.from_numpy(hill + 1))
    result = solve(problem, InteriorPoint(), tol=1e-8)
    assert result.status is Status.CONVERGED
    v = cp.Variable(n)
    whole = cp.Problem(cp.Minimize(0.5 * cp.quad_form(v, cp.psd_wrap(T))), [v >= hill])
    assert result.fun == pytest.approx(whole.solve(solver=cp.CLARABEL), rel=1e-6)
    np.testing.assert_allclose(result.x, v.value, atol=1e-4)


def test_fixed_entries_and_bounds_of_one_side():
    low = torch.tensor([-math.inf, 1.0, 3.0], dtype=F64)
    high = torch.tensor([0.5, math.inf, 3.0], dtype=F64)
    problem = ConstrainedProblem(
        objective=lambda x: ((x - torch.tensor([2.0, -1.0, 0.0], dtype=F64)) ** 2).sum(),
        x=torch.tensor([0.0, 2.0, 3.0], dtype=F64),
        X=Box(low, high),
    )
    result = solve(problem, InteriorPoint(), tol=1e-8)
    assert result.status is Status.CONVERGED
    assert result.x.tolist() == pytest.approx([0.5, 1.0, 3.0], abs=1e-8)


def test_structure_and_dtype_of_x_are_kept():
    x = {"a": torch.zeros(2), "b": torch.ones(1, 2)}
    problem = ConstrainedProblem(
        objective=lambda x: (x["a"] ** 2).sum() + (x["b"] ** 2).sum(), inequality=lambda x: 1 - x["a"].sum() - x["b"].sum(), x=x
    )
    result = solve(problem, InteriorPoint(), tol=1e-4)
    assert result.status is Status.CONVERGED
    assert result.x["b"].dtype is torch.float32
    assert torch.cat([result.x["a"], result.x["b"][0]]).tolist() == pytest.approx([0.25] * 4, abs=1e-4)
    assert result.multipliers.inequality.tolist() == pytest.approx([0.5], abs=1e-3)


def test_a_sequence_of_neighbours_is_solved_from_one_another():
    """HS71 with its right sides moved in 20 steps: a warm start saves more than half of the steps, and ends at the same."""
    steps, last = {"cold": 0, "warm": 0}, None
    for t in np.linspace(0, 0.4, 20):
        problem = ConstrainedProblem(
            objective=lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
            equality=lambda x, t=t: (x**2).sum() - (40 + 4 * t),
            inequality=lambda x, t=t: 25 + 5 * t - x.prod(),
            x=torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=F64),
            X=Box(1.0, 5.0),
        )
        cold = solve(problem, InteriorPoint(), tol=1e-8)
        warm = solve(problem, InteriorPoint(), tol=1e-8, start=last)
        assert warm.status is Status.CONVERGED
        assert warm.fun == pytest.approx(cold.fun, rel=1e-8)
        steps["cold"], steps["warm"] = steps["cold"] + cold.steps, steps["warm"] + warm.steps
        last = Point(warm.x, None, warm.multipliers)
    assert steps["warm"] <= 0.4 * steps["cold"]


def test_multipliers_given_are_those_of_the_problems_rows():
    problem = cutest(name="HS71").problem
    oracle, solver = problem.oracle(), InteriorPoint(tol=1e-8)
    given = Multipliers(equality=torch.tensor([0.16], dtype=F64), inequality=torch.tensor([0.55], dtype=F64))
    start = dataclasses.replace(problem.begin(oracle, None), multipliers=given)
    answer = solver.answer(oracle, solver.init(oracle, start))
    torch.testing.assert_close(answer.multipliers.equality, given.equality)
    torch.testing.assert_close(answer.multipliers.inequality, given.inequality)


def test_other_sets_are_refused_by_name():
    problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), x=torch.ones(3, dtype=F64) / 3, X=Simplex())
    with pytest.raises(Unsuitable, match="InteriorPoint: of sets it takes a Box, got Simplex"):
        solve(problem, InteriorPoint())


def test_steps_do_not_depend_on_units():
    """The scales are taken at the start: the same path in other units of f and c."""
    f = lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2]  # noqa: E731
    x = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=F64)
    parts = {"x": x, "X": Box(1.0, 5.0), "inequality": lambda x: 25 - x.prod()}
    found = [
        solve(
            ConstrainedProblem(objective=lambda x, a=a: a * f(x), equality=lambda x, b=b: b * ((x**2).sum() - 40), **parts),
            InteriorPoint(),
            tol=1e-6 * a,
        )
        for a, b in ((1e3, 1e3), (1e5, 1e4))
    ]
    assert all(one.status is Status.CONVERGED for one in found)
    torch.testing.assert_close(found[0].x, found[1].x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("power", [2, 4])
@pytest.mark.parametrize("rows", [False, True])
def test_a_start_that_is_a_solution_is_the_answer(power, rows):
    """On bounds or rows that hold without a multiplier, where f = 0 is not met again from inside."""
    more = {"inequality": lambda x: -x.sum()} if rows else {"X": Box(0.0, math.inf)}
    result = solve(ConstrainedProblem(objective=lambda x: (x**power).sum(), x=torch.zeros(2, dtype=F64), **more), InteriorPoint())
    assert (result.status, result.steps) == (Status.CONVERGED, 0)
    assert not result.x.any()


def test_a_hessian_that_is_nan_is_told():
    own = Function(lambda x: (x**2).sum(), gradient=lambda x: 2 * x, hessian=lambda x: torch.full((2, 2), math.nan, dtype=F64))
    result = solve(ConstrainedProblem(objective=own, x=torch.ones(2, dtype=F64)), InteriorPoint())
    assert result.status is Status.NONFINITE
    assert result.x.tolist() == [1, 1]


def test_the_default_by_size_and_matrices():
    """A dense Jacobian of 20,000 rows is not even asked for."""
    n = 20_000
    x = torch.zeros(n, dtype=F64)
    wide = ConstrainedProblem(objective=lambda x: (x**2).sum(), inequality=lambda x: x - 1, x=x)
    assert type(default_solver(wide)) is AugmentedLagrangian
    f, h, hill, _ = obstacle(n)
    assert type(default_solver(ConstrainedProblem(objective=f, inequality=h, x=torch.from_numpy(hill + 1)))) is InteriorPoint
    alone = Function(h.value, jacobian=h.jacobian)  # its Hessian would be autodiff's, and dense
    mixed = ConstrainedProblem(objective=lambda x: (x**2).sum(), inequality=alone, x=torch.from_numpy(hill + 1))
    assert type(default_solver(mixed)) is AugmentedLagrangian
    assert type(default_solver(cutest(name="HS6").problem)) is InteriorPoint
    many = ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: x.sum() - 1, x=x)
    assert type(default_solver(many)) is SketchedNewton
