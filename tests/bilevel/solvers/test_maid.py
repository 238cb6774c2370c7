"""MAID: its gradients and bounds against closed forms and finite differences, its counts on the quadratic, honest ends."""

import itertools

import numpy as np
import pytest
import torch

from bilevel import BilevelProblem, Status, hypergradient, iterate, solve
from bilevel.solvers.maid import MAID
from constrained.core.derivatives.finite_differences import direction
from constrained.core.vec import Vec
from constrained.linear.spectrum import lowest, lowest_from_scratch, operator_norm
from problems.images import denoising, least_squares
from problems.quadratic import quadratic

F64 = torch.float64


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


def phi(problem: BilevelProblem):
    return lambda x: float(problem.upper(x, problem.lower_solution(x)))


def differences(function, x: torch.Tensor, h: float = 1e-4) -> torch.Tensor:
    """Central differences, exact to rounding on quadratics."""
    steps = h * torch.eye(len(x), dtype=x.dtype)
    return torch.tensor([(function(x + e) - function(x - e)) / (2 * h) for e in steps], dtype=x.dtype)


def gradient(state) -> torch.Tensor:
    return state.d.tree()


# -- the inexact gradient ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [lambda: least_squares(n=50, m=5, cond=5.0), quadratic])
def test_the_bound_holds_and_the_gradient_agrees_with_differences(make):
    """|d - grad Phi| <= omega at every step; to 1e-8 where omega is small."""
    problem, close = make().problem, 0
    of_x = phi(problem)
    for event in iterate(problem, MAID(tol=1e-8), max_steps=60):
        s = event.state
        error = float((gradient(s) - differences(of_x, s.x.tree())).norm())
        assert error <= s.omega + 1e-8
    oracle, solver = problem.oracle(), MAID(tol=1e-8)
    s = solver.init(oracle, problem.begin(oracle, None))
    while s.omega > 1e-9:
        s = solver._finer(oracle, s)
        close += 1
    assert close > 3
    assert float((gradient(s) - differences(of_x, s.x.tree())).norm()) <= 1e-8


def test_the_bound_holds_where_second_derivatives_change():
    """Denoising: g_yy and g_xy change with y; the truth by a solved lower level."""
    problem = denoising(dims=1, size=24).problem
    for event in iterate(problem, MAID(), max_steps=12):
        s = event.state
        true = hypergradient(problem, s.x.tree())
        assert true.status is Status.CONVERGED
        assert float((gradient(s) - true.value).norm()) <= s.omega


def test_every_accepted_step_lowers_the_hyper_objective():
    instance = least_squares(n=50, m=5, cond=5.0)
    for solver in (MAID(), MAID.paper()):
        of_x, values = phi(instance.problem), []
        for event in iterate(instance.problem, solver, max_steps=40):
            values.append(of_x(event.state.x.tree()))
        assert all(b < a for a, b in itertools.pairwise(values))


# -- acceptance -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("solver", "outer", "lower"),
    [(MAID(), (60, 200), (800, 3000)), (MAID.paper(), (214, 511), (8663, 20017))],
    ids=["default", "paper"],
)
def test_counts_on_the_quadratic(solver, outer, lower):
    """(Phi - Phi*) / (Phi_0 - Phi*) of 5e-3, then of 1e-6."""
    instance = least_squares(n=200, m=10, cond=5.0)
    problem, best, marks = instance.problem, instance.solution[0], [5e-3, 1e-6]
    of_x = phi(problem)
    first, least, seen = of_x(problem.x), of_x(best.x), []
    for event in iterate(problem, solver, max_steps=1000):
        while marks and of_x(event.state.x.tree()) - least <= marks[0] * (first - least):
            marks.pop(0)
            seen.append((event.k, event.calls.by["solve"]["lower"].gradients))
        if not marks:
            break
    assert all(k <= most for (k, _), most in zip(seen, outer, strict=True)), seen
    assert all(count <= most for (_, count), most in zip(seen, lower, strict=True)), seen


@pytest.mark.parametrize("solver", [MAID(), pytest.param(MAID(mu=0.04), marks=pytest.mark.slow)])  # 1 / cond^2 by construction
def test_it_converges_to_the_closed_form(solver):
    instance = least_squares(n=200, m=10, cond=5.0)
    result = solve(instance.problem, solver)
    assert result.status is Status.CONVERGED, result
    assert instance.error(result.x) <= 1e-5
    assert result.state.mu == pytest.approx(0.04, rel=1e-6)
    assert {"upper", "lower"} <= set(result.calls.by["solve"])


def test_a_curved_lower_level():
    """y^3 + y = x (the root of g_y), f = (y - 1)^2 / 2 + (x - 3)^2 / 20: d/dx f = (y - 1) / (3 y^2 + 1) + (x - 3) / 10 = 0."""
    one = BilevelProblem(
        upper=lambda x, y: (0.5 * (y - 1) ** 2 + 0.05 * (x - 3) ** 2).sum(),
        lower=lambda x, y: (0.25 * y**4 + 0.5 * y**2 - x * y).sum(),
        x=vector(0.0),
        y=vector(0.0),
    )
    result = solve(one, MAID())
    assert result.status is Status.CONVERGED, result
    x, y = float(result.x), float(result.y)
    assert y**3 + y == pytest.approx(x, abs=1e-6)
    assert (y - 1) / (3 * y**2 + 1) + (x - 3) / 10 == pytest.approx(0, abs=2e-6)


# -- honest ends ------------------------------------------------------------------------------------------------------------
def test_a_singular_lower_level_is_refused():
    result = solve(quadratic(rank=12).problem, MAID())
    assert result.status is Status.SINGULAR, result


def test_a_lower_level_without_a_minimum():
    one = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2 + x**2).sum(), lower=lambda x, y: (x * y - y**2).sum(), x=vector(1), y=vector(0)
    )
    result = solve(one, MAID(), max_steps=50)
    assert result.status.done
    assert not result.success


def test_an_upper_level_without_a_minimum():
    one = BilevelProblem(upper=lambda x, y: (y + x).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=vector(0), y=vector(0))
    result = solve(one, MAID(), max_steps=50)
    assert not result.success


# -- spectra ----------------------------------------------------------------------------------------------------------------
def test_lowest_and_operator_norm_against_numpy():
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((120, 120)))
    A = torch.from_numpy((Q * np.linspace(0.01, 3.0, 120)) @ Q.T)
    start = direction(Vec.of(torch.zeros(120, dtype=F64)), torch.Generator().manual_seed(0))
    found = lowest_from_scratch(lambda v: v.map(lambda t: A @ t), start)
    assert 0.01 - 1e-9 <= found.value <= 0.0105
    again = lowest(lambda v: v.map(lambda t: A @ t), found.vector, 4)
    assert 0.01 - 1e-9 <= again.value <= found.value + 1e-12
    B = torch.from_numpy(rng.standard_normal((30, 120)))
    most, _ = operator_norm(lambda v: v.map(lambda t: B @ t), lambda u: u.map(lambda t: B.T @ t), start, 200)
    true = float(torch.linalg.matrix_norm(B, 2))
    assert 0.98 * true <= most <= true + 1e-9


def test_operator_norm_of_zero_and_lowest_of_nan():
    one = Vec.of(torch.ones(3, dtype=F64))
    assert operator_norm(lambda v: v * 0.0, lambda v: v * 0.0, one, 5)[0] == 0.0
    assert np.isnan(lowest(lambda v: v * float("nan"), one, 3).value)
