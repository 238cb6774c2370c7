"""Constraints without rows are as none; rows that change are refused; boxes that fix entries are solved. By every solver."""

import pytest
import torch

from constrained import ConstrainedProblem, Function, MiniBatches, Point, Status, solve
from constrained.core.errors import ProblemError
from constrained.core.problem import Multipliers
from constrained.descent import NewtonCG
from constrained.sets import Ball, Box
from constrained.solvers import SLSQP, AugmentedLagrangian, AugmentedLagrangianSGD, SketchedNewton, TrustConstr

F64 = torch.float64
ZERO = torch.zeros(2, dtype=F64)
SOLVERS = [AugmentedLagrangian(), AugmentedLagrangian(inner=NewtonCG()), SLSQP(), TrustConstr()]
EVERY = pytest.mark.parametrize("solver", SOLVERS, ids=["lbfgs", "newton-cg", "slsqp", "trust-constr"])


def plane(**changed):
    return ConstrainedProblem(**{"objective": lambda x: ((x - 1) ** 2).sum(), "x": ZERO, **changed})


NONE = {
    "new": lambda x: x.new_zeros(0),
    "a slice": lambda x: x[:0],
    "own Jacobian": Function(
        lambda x: x.new_zeros(0), jacobian=lambda x: x.new_zeros(0, 2), hessian=lambda x, w: x.new_zeros(2, 2)
    ),
}


@pytest.mark.parametrize("none", NONE.values(), ids=NONE)
@EVERY
def test_constraints_without_rows_are_as_none(solver, none):
    free, half = torch.ones(2, dtype=F64), torch.full((2,), 0.5, dtype=F64)
    for parts, wanted in (
        ({"inequality": none}, free),
        ({"equality": none, "inequality": none}, free),
        ({"equality": lambda x: x.sum() - 1, "inequality": none}, half),
    ):
        result = solve(plane(**parts), solver)
        assert result.status is Status.CONVERGED
        torch.testing.assert_close(result.x, wanted, atol=1e-6, rtol=0)
        assert max(result.residuals().values()) <= 1e-8
        assert result.problem.check().ok


def test_newton_and_mini_batches_without_rows():
    none, rows = NONE["new"], torch.ones(20, 2, dtype=F64)
    assert solve(plane(equality=none), SketchedNewton()).status is Status.CONVERGED
    problem = ConstrainedProblem(
        objective=lambda x, b: ((b * x - 1) ** 2).mean(), equality=none, inequality=none, x=ZERO, data=MiniBatches(rows, 5)
    )
    torch.testing.assert_close(
        solve(problem, AugmentedLagrangianSGD(), max_steps=100).x, torch.ones(2, dtype=F64), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("solver", [None, TrustConstr()])
def test_a_recording_without_rows(solver):
    assert solve(plane(equality=NONE["new"]).traced(), solver).status is Status.CONVERGED


@pytest.mark.parametrize("name", ["equality", "inequality"])
@pytest.mark.parametrize("at", [2, 4, 6])
@EVERY
def test_another_number_of_rows_at_a_later_call_is_refused_by_name(solver, at, name):
    for count in (0, 1, 3):
        calls = [0]

        def rows(x, calls=calls, count=count):
            calls[0] += 1
            found = torch.stack([x[0] - x[1], x[0] * x[1] - 0.1, x.sum() - 1])
            return found[: count if calls[0] == at else 2]

        with pytest.raises(ProblemError, match=f"{name}: expected . rows, .* got "):
            solve(plane(**{name: rows}), solver).certify()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Multipliers(equality=torch.zeros(3, dtype=F64)), "equality: expected 3 rows, .* got 1"),
        (Multipliers(inequality=torch.zeros(0, dtype=F64)), "inequality: expected 0 rows, .* got 2"),
        (Multipliers(equality=[1.0]), r"multipliers.equality: expected a vector .* got \[1.0\]"),
        (Multipliers(inequality=torch.zeros(2, dtype=torch.int64)), "multipliers.inequality: expected a vector"),
        (Multipliers(equality=torch.zeros((), dtype=F64)), "multipliers.equality: expected a vector"),
    ],
)
def test_multipliers_that_do_not_fit_are_refused(given, words):
    problem, point = plane(equality=lambda x: x.sum() - 1, inequality=lambda x: x - 3), Point(ZERO, None, given)
    with pytest.raises(ProblemError, match=words):
        problem.residuals(point)
    with pytest.raises(ProblemError, match=words):
        solve(problem, start=point)


@EVERY
def test_a_box_that_fixes_every_entry_is_solved(solver):
    at = torch.tensor([0.25, 0.5], dtype=F64)
    for parts in ({}, {"inequality": lambda x: x.sum() - 1}, {"equality": lambda x: x.sum() - 0.75}):
        result = solve(plane(X=Box(at, at), **parts), solver)
        assert result.status is Status.CONVERGED
        assert torch.equal(result.x, at)
    assert not solve(plane(X=Box(at, at), equality=lambda x: x.sum() - 1), solver).status.ok


@EVERY
def test_a_box_that_fixes_one_entry_is_solved(solver):
    result = solve(plane(X=Box([0.25, -3.0], [0.25, 3.0]), inequality=lambda x: x.sum() - 1), solver, tol=1e-6)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.x, torch.tensor([0.25, 0.75], dtype=F64), atol=1e-5, rtol=0)


def test_a_ball_of_one_point():
    assert torch.equal(solve(plane(X=Ball(0.0))).x, ZERO)
