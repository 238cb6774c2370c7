"""Verdicts beside closed forms: no minimum, no multipliers, no bound."""

import math

import pytest
import torch

from constrained import Box, ConstrainedProblem, InteriorPoint, Status, solve
from problems.cutest import cutest
from problems.traps import trap

F64 = torch.float64
FIRST_QUADRANT = Box(0.0, math.inf)


def problem(f, x, c=None, h=None, X=None):
    more = {} if X is None else {"X": X}
    return ConstrainedProblem(objective=f, equality=c, inequality=h, x=torch.tensor(x, dtype=F64), **more)


# -- second order -----------------------------------------------------------------------------------------------------------
NO_MINIMUM = {
    "top of a hill": problem(lambda x: -(x**2).sum(), (0.0, 0.0), X=Box(-1, 1)),
    "saddle": problem(lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, (1.0, 0.0)),
    "furthest on a circle": problem(lambda x: x[0] + x[1], (1.0, 1.0), c=lambda x: (x**2).sum() - 2),
    "in a disc": problem(lambda x: x[0] * x[1], (0.0, 0.0), h=lambda x: (x**2).sum() - 1),
}
MINIMUM = {
    "least on a circle": problem(lambda x: x[0] + x[1], (-1.0, -1.0), c=lambda x: (x**2).sum() - 2),
    "held by bounds": problem(lambda x: x[0] - x[0] ** 2, (0.0, 0.0), X=Box(0, 0.4)),
    "held by a row": problem(lambda x: x[0] ** 2 - x[1] ** 2, (0.5, 0.0), c=lambda x: x[1]),
    "flat": problem(lambda x: x[0], (0.5, 0.5), X=Box(0, 1)),
    "of fourth order": problem(lambda x: (x**4).sum(), (0.0,)),
    "in a corner": problem(lambda x: x[0] * x[1], (0.0, 0.0), X=FIRST_QUADRANT),
    "to a corner": problem(lambda x: x[0] * x[1], (0.3, 0.2), X=FIRST_QUADRANT),
}


@pytest.mark.parametrize("name", NO_MINIMUM)
def test_a_saddle_or_a_maximum_is_told(name):
    result = solve(NO_MINIMUM[name], InteriorPoint())
    assert result.status is Status.CONVERGED
    assert any("no minimum" in note for note in result.notes)


@pytest.mark.parametrize("name", MINIMUM)
def test_a_minimum_is_not_called_something_else(name):
    result = solve(MINIMUM[name], InteriorPoint())
    assert result.status is Status.CONVERGED
    assert not any("no minimum" in note for note in result.notes)


# -- qualification ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("one", "best"),
    [
        (trap(name="no-multiplier").problem, 0.0),
        (cutest(name="HS13").problem, 1.0),
        (problem(lambda x: x[0], (1.0, 0.5), h=lambda x: torch.stack([x[1] - x[0] ** 3, -x[1]])), 0.0),  # a cusp
        (problem(lambda x: x[1], (0.3, 0.5), h=lambda x: ((x[0] - torch.tensor([1.0, -1.0])) ** 2 + x[1] ** 2) - 1), 0.0),
    ],
    ids=["x^2 = 0", "HS13", "cusp", "discs that touch"],
)
def test_solutions_without_multipliers_are_degenerate(one, best):
    result = solve(one, InteriorPoint())
    assert result.status is Status.DEGENERATE
    assert result.fun == pytest.approx(best, abs=0.05)  # such points are met slowly
    assert result.residuals()["feasibility"] <= 1e-4


@pytest.mark.parametrize("name", ["duplicate-rows", "redundant-rows"])
def test_dependent_rows_with_multipliers_are_not_degenerate(name):
    assert solve(trap(name=name).problem, InteriorPoint()).status is Status.CONVERGED


def test_more_equalities_than_unknowns_are_told():
    def rows(a):
        return lambda x: torch.stack([x[0] - 1, x[1] - 2, x[0] * x[1] - a])

    right = solve(problem(lambda x: (x**2).sum(), (0.0, 0.0), c=rows(2)), InteriorPoint())
    wrong = solve(problem(lambda x: (x**2).sum(), (0.0, 0.0), c=rows(4)), InteriorPoint())
    assert (right.status, wrong.status) == (Status.CONVERGED, Status.LOCALLY_INFEASIBLE)
    assert all(any("more equalities (3) than unknowns (2)" in note for note in result.notes) for result in (right, wrong))


# -- without end ------------------------------------------------------------------------------------------------------------
def test_a_fall_without_end_is_told_from_a_way_without_end():
    falls = solve(problem(lambda x: x[0], (0.0, 0.0), c=lambda x: x[1] - 1), InteriorPoint())
    assert falls.status is Status.UNBOUNDED
    away = solve(problem(lambda x: -torch.atan(x[0]), (1.0,)), InteriorPoint())  # there is an infimum, and no minimum
    assert away.status is not Status.UNBOUNDED
    assert -math.pi / 2 <= away.fun <= -math.pi / 2 + 1e-4


@pytest.mark.parametrize("name", ["HS26", "HS47", "HS50", "HS116"])
def test_constraints_in_small_units_are_told_no_worse(name):
    """Their multipliers are large, with f = 0 at the solution of three; the minimum of the fourth is held by its rows."""
    instance = cutest(name=name)
    one, less = instance.problem, lambda rows: None if rows is None else lambda x: 1e-4 * rows(x)
    small = ConstrainedProblem(
        objective=one.objective, equality=less(one.equality), inequality=less(one.inequality), x=one.x, X=one.X
    )
    result = solve(small, InteriorPoint())
    assert result.status is Status.CONVERGED
    assert result.fun == pytest.approx(instance.optimum, rel=1e-5, abs=1e-6)
    assert not any("no minimum" in note for note in result.notes)


@pytest.mark.parametrize("name", ["HS6", "HS7", "HS26", "HS77", "BT1"])
@pytest.mark.parametrize("unit", [1e-3, 1e6])
def test_feasible_constraints_are_not_called_infeasible_in_other_units_of_x(name, unit):
    instance = cutest(name=name)
    one = instance.problem
    scaled = ConstrainedProblem(
        objective=lambda x: one.objective(x / unit), equality=lambda x: one.equality(x / unit), x=one.x * unit
    )
    result = solve(scaled, InteriorPoint())
    assert result.status is Status.CONVERGED, result
    assert result.fun == pytest.approx(instance.optimum, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("value", "unit"), [(1.0, 1e-6), (1e-8, 1e6), (1e4, 1e-6)])
def test_a_box_smaller_than_a_distance_that_counts_as_met_is_no_degeneracy(value, unit):
    """min |x - p|^2 with sum x = 1 in [0, 1]^3: all entries p_i - t, one of them on its bound."""
    p = torch.tensor([0.9, 0.6, -0.4], dtype=F64)

    def f(x):
        return value * ((x / unit - p) ** 2).sum()

    one = torch.full((3,), unit / 3, dtype=F64)
    scaled = ConstrainedProblem(objective=f, equality=lambda x: x.sum() / unit - 1, x=one, X=Box(0.0, unit))
    result = solve(scaled, InteriorPoint())
    assert result.status in (Status.CONVERGED, Status.PRECISION), result
    assert (result.x / unit).tolist() == pytest.approx([0.65, 0.35, 0.0], abs=1e-6)


def test_a_barrier_beyond_all_numbers_falls_too():
    found = solve(problem(lambda x: ((x - 2) ** 2).sum(), (0.5,), X=Box(0.0, 1.0)), InteriorPoint(mu=1e300), max_steps=2000)
    assert found.status is Status.CONVERGED, found
    assert float(found.x) == pytest.approx(1, abs=1e-8)
