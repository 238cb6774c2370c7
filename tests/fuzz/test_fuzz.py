"""Runs of drawn problems by drawn solvers hold what `properties.py` says; 200 examples, and as many as wanted by `make fuzz`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_options import SOLVERS, made, refused, run_options_refused
from drawn_problems import Drawn, bilevel_problems, constrained_problems, mixtures, problems
from fuzz_profile import share
from harness import outcome, same
from hostile import Hostile, hostiles
from hypothesis import event, given, note
from hypothesis import strategies as st
from properties import ended, run

from bilevel import Auto, BilevelError, BilevelProblem, OptionError, Result, Unsuitable, solve
from constrained.core.errors import ProblemError


@st.composite
def solvers_for(draw: st.DrawFn, drawn: Drawn) -> Any:
    """One that fits, None or an Auto; seldom any at all."""
    features = drawn.problem.features
    fitting = [name for name in sorted(SOLVERS) if not SOLVERS[name].lacks(features)]
    how = draw(st.integers(0, 15))
    if how == 0 or not fitting:
        return draw(st.sampled_from(sorted(SOLVERS)).flatmap(lambda name: made(SOLVERS[name])))
    if how == 1:
        return None
    if how == 2:
        names = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=2))
        return Auto(candidates=tuple(draw(made(SOLVERS[name])) for name in names))
    return draw(made(SOLVERS[draw(st.sampled_from(fitting))]))


@st.composite
def budgets(draw: st.DrawFn) -> dict[str, Any]:
    """Few steps, now and then enough to converge; a limit of time that may end a run anywhere."""
    found: dict[str, Any] = {"max_steps": draw(st.sampled_from([0, 1, 2, 3, 5, 5, 40]))}
    found |= {"max_seconds": draw(st.sampled_from([0.0, 1e-4, 0.01]))} if draw(st.integers(0, 5)) == 5 else {}
    found |= {"tol": draw(st.sampled_from([1e-4, 1e-2, 0.3]))} if draw(st.booleans()) else {}
    found |= {"seed": draw(st.integers(0, 3))} if draw(st.booleans()) else {}
    found |= {"check_every": draw(st.integers(1, 4))} if draw(st.integers(0, 3)) == 3 else {}
    return found


def tried(data: st.DataObject, drawn: Drawn, hostile: Hostile | None = None) -> None:
    try:
        solver, budget = data.draw(solvers_for(drawn), "solver"), data.draw(budgets(), "budget")
    except OptionError:  # candidates that exclude each other
        return
    result = run(drawn, solver, hostile, **budget)
    event(type(result).__name__ if not isinstance(result, Result) else result.status.name)
    note(f"{result}, {drawn.calls.count} calls")


@share(25)
@given(constrained_problems, st.data())
def test_constrained_runs(drawn, data):
    tried(data, drawn)


@share(35)
@given(bilevel_problems | bilevel_problems | mixtures, st.data())
def test_bilevel_runs(drawn, data):
    tried(data, drawn)


@share(25)
@given(problems, hostiles, st.data())
def test_hostile_functions(drawn, hostile, data):
    tried(data, drawn, hostile)


@share(5)
@given(problems, st.data())
def test_resumed_runs_have_the_same_bits(drawn, data):
    fitting = [name for name in sorted(SOLVERS) if not SOLVERS[name].lacks(drawn.problem.features)]
    if not fitting:
        return
    solver = data.draw(made(SOLVERS[data.draw(st.sampled_from(fitting))]), "solver")
    options = {"max_steps": data.draw(st.integers(1, 5)), "seed": data.draw(st.integers(0, 3))}
    with tempfile.TemporaryDirectory() as folder:

        def save(at: Any) -> None:
            if not at.status.done:
                at.save(Path(folder) / str(at.k))

        try:
            with ended():
                whole = solve(drawn.problem, solver, callbacks=[save], **options)
        except BilevelError:
            return
        for path in sorted(Path(folder).iterdir()):
            resumed = solve(drawn.problem, solver, resume=path, **options)
            assert same(outcome(resumed), outcome(whole)), f"resumed at step {path.name}"
            assert (resumed.steps, resumed.message) == (whole.steps, whole.message)


@share(5)
@given(refused)
def test_options_out_of_range_are_refused(case):
    solver, (name, value) = case
    with pytest.raises(OptionError, match=name):
        solver(**{name: value})


@share(5)
@given(problems, run_options_refused)
def test_arguments_out_of_range_are_refused(drawn, options):
    with pytest.raises(BilevelError):
        solve(drawn.problem, **{"max_steps": 2, **options})


# -- refused before any work ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_by_name(dtype):
    one = torch.ones(2, dtype=dtype)
    with pytest.raises((ProblemError, Unsuitable), match=str(dtype)):
        solve(BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=one, y=one))


@pytest.mark.parametrize("name", ["x", "y"])
def test_variables_without_entries_are_refused(name):
    one = torch.ones(2, dtype=torch.float64)
    more = {"x": one, "y": one, name: one[:0]}
    with pytest.raises(ProblemError, match=name):
        solve(BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=lambda x, y: (y**2).sum() + x.sum(), **more))
