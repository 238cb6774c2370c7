"""CONVERGED does not depend on units: scaled problems, steep ones, starts at the solution, ties among lower solutions."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import bilevel
import constrained
from bilevel import BilevelProblem, Point
from constrained import ConstrainedProblem

F64 = torch.float64
FILE = Path(__file__).parent.parent / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def real(*values):
    return torch.tensor(values, dtype=F64)


QUICK = [
    ("ridge", "default", (1e-5, 1.0), (1.0, 1.0)),
    ("quadratic", "default", (1e-8, 1e-8), (1.0, 1.0)),
    ("logistic", "default", (1.0, 1.0), (1e6, 1e6)),
    ("hs77", "SketchedNewton", (1e-8, 1e-8), (1.0, 1.0)),
    ("portfolio", "AugmentedLagrangian", (1e-8, 1.0), (1.0, 1.0)),
    ("hs28", "default", (1e-8, 1e-8), (1e6, 1e6)),
]


@pytest.mark.parametrize(("name", "solver", "value", "unit"), QUICK)
def test_converged_is_true_in_other_units(scaling, name, solver, value, unit):
    found = scaling.run(name, scaling.problems()[name], solver, value, unit, seconds=20)
    assert not found.false, found
    assert found.status == "CONVERGED" or name == "hs77", found


@pytest.mark.slow
def test_converged_is_true_in_all_units(scaling):
    """Some minutes; all values and units take half an hour, by benchmarks/scaling.py."""
    rows = scaling.table([1e-8, 1.0, 1e8], [1e-6, 1.0, 1e6], ["default", "VPBGD", "GPBGD"], [], seconds=1)
    assert not [str(row) for row in rows if row.false]
    assert sum(row.bent and row.status == "CONVERGED" for row in rows) <= 3  # all on the plateau of the weights' sigmoid


def test_the_measures_have_no_units(scaling):
    """At points that are no solutions, all scalings of a problem say the same."""
    for name, step in (("ridge", 0.3), ("quadratic", 0.5), ("hs77", 0.8)):
        problem, shares = scaling.problems()[name], []
        for a, u in ((1.0, 1.0), (1e-6, 1e3), (1e6, 1e-3)):
            scaled = problem.scaled((a, a), (u, u))
            start = Point(scaled.x, getattr(scaled, "y", None))
            y = None if start.y is None else (problem.response(problem.x + step) + 1e-4) * u
            shares.append(scaled.progress(Point(start.x + step * u, y), start))
        for other in shares[1:]:
            assert other.keys() == shares[0].keys()
            assert all(other[key] == pytest.approx(value, rel=1e-2) for key, value in shares[0].items()), (name, shares)


def test_a_steep_problem_is_converged_where_no_digit_is_left():
    a = 1e10
    problem = ConstrainedProblem(
        objective=lambda x: a * ((x[0] - 1 / 3) ** 4 + (x[0] * x[1] - 0.7) ** 2),
        equality=lambda x: (x.sum() - 1.7)[None],
        x=real(3.0, 2.0),
    )
    found = constrained.solve(problem, constrained.SketchedNewton())
    assert found.status.name == "CONVERGED"
    assert found.residuals()["stationarity"] > found.solver.tol
    assert "those of rounding" in found.message
    near = Point(found.x * (1 + 1e-9), None)  # a residual that is not round-off
    assert constrained.solve(problem, constrained.SketchedNewton(), start=near, max_steps=0).status.name != "CONVERGED"


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-7])
def test_a_start_at_the_solution(gap):
    problem = ConstrainedProblem(objective=lambda x: ((x - 1) ** 2).sum() + 3, x=real(1.0, 1.0) + gap)
    assert constrained.solve(problem).status.name == "CONVERGED"
    two = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum() / 10,
        lower=lambda x, y: ((y - x) ** 2).sum(),
        x=real(1 / 1.1) + gap,
        y=real(1 / 1.1) - gap,
    )
    assert bilevel.solve(two).status.name == "CONVERGED"


def test_a_solver_keeps_the_tolerance_that_was_asked_for(scaling):
    problem = scaling.problems()["quadratic"].scaled((1e-6, 1e-6), (1.0, 1.0))
    found = bilevel.solve(problem, bilevel.Implicit())
    assert found.status.name == "CONVERGED"
    assert found.solver.tol == 1e-6
    assert max(found.residuals().values()) < 1e-9


def test_a_resumed_run_goes_on_with_the_lowered_tolerance(scaling, tmp_path):
    problem = scaling.problems()["quadratic"].scaled((1e-6, 1e-6), (1.0, 1.0))
    whole, path = bilevel.solve(problem, bilevel.Implicit()), tmp_path / "run.pt"
    bilevel.solve(problem, bilevel.Implicit(), max_steps=whole.steps - 1, callbacks=[bilevel.Checkpoint(path)])
    resumed = bilevel.solve(problem, bilevel.Implicit(), resume=path)
    assert resumed.steps == whole.steps
    assert torch.equal(resumed.x, whole.x)


def double_well(x, y):
    return y**4 / 4 - y**2 / 2 + 0 * x


@pytest.mark.parametrize("solver", [None, bilevel.Implicit(), bilevel.Penalty()])
def test_of_several_lower_solutions_the_best_for_f(solver):
    problem = BilevelProblem(
        upper=lambda x, y: (y - 1) ** 2 + (x - 0.3) ** 2,
        lower=double_well,
        x=torch.tensor(0.0, dtype=F64),
        y=torch.tensor(-0.5, dtype=F64),
    )
    found = bilevel.solve(problem, solver)
    if isinstance(solver, bilevel.Implicit):
        assert found.status.name == "STALLED"
        assert found.certify()["tie"] == pytest.approx(4.0)
    else:
        assert found.status.name == "CONVERGED"
        assert float(found.y) == pytest.approx(1.0, abs=1e-6)
        assert "tie" not in found.certify()
