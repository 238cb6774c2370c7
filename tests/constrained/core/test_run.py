"""The loop: budgets, events, callbacks, false claims, Ctrl-C, results; options refused before any work."""

import copy
import itertools
import math
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from bilevel import Auto, BilevelProblem, Box, Checkpoint, Feature, History, Penalty, PenaltySGD, Point, Status, iterate, solve
from constrained.core.errors import BilevelError, OptionError, SolveFailed, Unsuitable
from constrained.core.options import Positive
from constrained.core.result import Result
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.vec import Vec
from problems.quadratic import quadratic

F64 = torch.float64


def bowl(**changed):
    """min |y - 1|^2 + |x|^2 with y = x: x = y = 1/2."""
    options = {
        "upper": lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(),
        "lower": lambda x, y: ((y - x) ** 2).sum(),
        "x": torch.zeros(2, dtype=F64),
        "y": torch.zeros(2, dtype=F64),
    }
    return BilevelProblem(**{**options, **changed})


@solver_state("WalkState")
class WalkState:
    k: int
    x: Vec
    y: Vec


@dataclass(frozen=True, kw_only=True)
class Walk(Solver):
    """x and y go half of the way to `goal` at every step; claims `claim` after `after` steps, right or wrong."""

    supports: ClassVar[Feature] = Feature.LOWER
    tol: Positive | None = None
    goal: float = 0.5
    after: int = 3
    claim: str = "CONVERGED"
    interrupt: int = -1
    spoil: int = -1

    def init(self, oracle, start):
        return WalkState(0, start.x, start.y)

    def step(self, oracle, s):
        x, y = (v.map(lambda leaf: (leaf + self.goal) / 2) for v in (s.x, s.y))
        if s.k + 1 == self.interrupt:
            s.x.leaves[0].fill_(777.0)  # a step may write into its state: half of one is done
            raise KeyboardInterrupt
        if s.k + 1 == self.spoil:
            x = x * float("nan")
        return WalkState(s.k + 1, x, y)

    def terminate(self, oracle, s):
        return Status[self.claim] if s.k >= self.after else Status.RUNNING

    def answer(self, oracle, s):
        return Point(s.x, s.y)

    def monitor(self, s):
        return {"size": s.x.norm()}


NEVER = 10**6


def test_claim_that_holds():
    result = solve(bowl(), Walk(after=40))
    assert result.status is Status.CONVERGED
    assert result.steps == 40
    assert result.x.numpy() == pytest.approx([0.5, 0.5], abs=1e-9)


def test_false_claim_of_convergence_is_stalled():
    """A solver that lies: STALLED, with the residuals of the problem in the message."""
    result = solve(bowl(), Walk(goal=3.0))
    assert result.status is Status.STALLED
    assert not result.success
    assert "lower" in result.message
    assert "upper" in result.message
    with pytest.raises(SolveFailed):
        result.raise_for_status()


def test_claim_within_a_loose_tolerance_only():
    assert solve(bowl(), Walk(after=3), tol=10.0).status is Status.CONVERGED
    assert solve(bowl(), Walk(after=3), tol=1e-3).status is Status.STALLED


def test_claim_at_a_lower_point_that_is_not_the_lowest():
    """y at a local minimiser of g that is not global: `certify` is what is believed."""
    double = bowl(
        lower=lambda x, y: ((y**2 - 1) ** 2 + 0.1 * y).sum() + 0 * x.sum(), upper=lambda x, y: (x**2).sum() + 0 * y.sum()
    )
    local = float(np.sort(np.roots([4, 0, -4, 0.1]).real)[2])
    at = Point(torch.zeros(2, dtype=F64), torch.full((2,), local, dtype=F64))
    assert max(double.residuals(at).values()) < 1e-6
    result = solve(double, StandStill(), start=at)
    assert result.status is Status.STALLED
    assert "lower_gap" in result.message


@dataclass(frozen=True, kw_only=True)
class StandStill(Walk):
    """Claims that its start is the answer."""

    after: int = 0


@pytest.mark.parametrize("claim", ["UNBOUNDED", "LOWER_UNSOLVED", "SINGULAR", "DIVERGED", "LOCALLY_INFEASIBLE", "DEGENERATE"])
def test_other_ends_are_reported_as_they_are(claim):
    result = solve(bowl(), Walk(claim=claim))
    assert result.status is Status[claim]
    assert result.message == Status[claim].value
    with pytest.raises(SolveFailed) as caught:
        result.raise_for_status()
    assert caught.value.result is result
    assert isinstance(caught.value, RuntimeError)


def test_budgets():
    assert solve(bowl(), Walk(after=NEVER), max_steps=7).steps == 7
    assert solve(bowl(), Walk(after=NEVER), max_steps=7).status is Status.MAX_STEPS
    at_once = solve(bowl(), Walk(after=NEVER), max_steps=0)
    assert (at_once.status, at_once.steps) == (Status.MAX_STEPS, 0)
    assert torch.equal(at_once.x, torch.zeros(2, dtype=F64))
    late = solve(bowl(), Walk(after=NEVER), max_seconds=0)
    assert (late.status, late.steps) == (Status.MAX_SECONDS, 0)
    later = solve(bowl(), Walk(after=NEVER), max_seconds=0.02)
    assert later.status is Status.MAX_SECONDS
    assert later.seconds >= 0.02
    for result in (at_once, late, later):
        assert result.raise_for_status() is result
        assert not result.success


def test_convergence_at_the_last_step_counts():
    assert solve(bowl(), Walk(after=40), max_steps=40).status is Status.CONVERGED
    assert solve(bowl(), StandStill(), start=Point(*[torch.full((2,), 0.5, dtype=F64)] * 2), max_steps=0).success


@pytest.mark.parametrize("every", [1, 3, 4, 100])
def test_check_every(every):
    """Events at multiples; the limit of steps is kept; the end is seen at the first look after it."""
    ks = [event.k for event in iterate(bowl(), Walk(after=NEVER), check_every=every, max_steps=10)]
    assert ks == [*range(0, 10, every), 10]
    end = [event.k for event in iterate(bowl(), Walk(after=8, goal=0.5), check_every=every, max_steps=60)][-1]
    assert end == min(-(-8 // every) * every, 60)


def test_events():
    seen = []
    for event in iterate(bowl(), Walk(after=40), max_steps=3):
        seen.append(event)
        assert event.max_steps == 3
        assert event.monitor == {"size": pytest.approx(float(event.state.x.norm()))}
        assert torch.equal(event.answer.x, event.state.x.tree())
        assert event.residuals()["upper"] > 0
        assert f"k={event.k}" in repr(event)
    assert [event.k for event in seen] == [0, 1, 2, 3]
    assert [event.status for event in seen] == [Status.RUNNING] * 3 + [Status.MAX_STEPS]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(seen))


def test_iterate_is_solve():
    """The same steps, and what is looked at in between is not fed back."""
    instance = quadratic(seed=1)
    result = solve(instance.problem, max_steps=12)
    *_, last = (event for event in iterate(instance.problem, max_steps=12) if event.residuals())
    assert last.k == result.steps
    assert torch.equal(last.answer.x, result.x)
    assert last.calls.gradients == result.calls.gradients


def test_checks_come_with_the_call_not_with_the_first_event():
    with pytest.raises(OptionError):
        iterate(bowl(), Walk(), max_steps=-1)


def test_nothing_of_the_users_is_written():
    instance, before = quadratic(seed=2), torch.random.get_rng_state()
    x = torch.ones(10, dtype=F64, requires_grad=True)
    start = Point(x, torch.ones(20, dtype=F64))
    solve(instance.problem, start=start, max_steps=5)
    assert torch.equal(x, torch.ones(10, dtype=F64))
    assert x.grad is None
    assert torch.equal(start.y, torch.ones(20, dtype=F64))
    assert torch.equal(instance.problem.x, torch.zeros(10, dtype=F64))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ambient_no_grad_is_fine_and_stays():
    with torch.no_grad():
        result = solve(bowl())
        assert not torch.is_grad_enabled()
    assert result.success
    for _ in iterate(bowl(), Walk(after=NEVER), max_steps=2):
        assert torch.is_grad_enabled()


def test_nan_gives_the_last_finite_point():
    result = solve(bowl(), Walk(after=NEVER, spoil=4), max_steps=20)
    assert result.status is Status.NONFINITE
    assert result.x.numpy() == pytest.approx([0.5 * (1 - 0.5**3)] * 2, abs=1e-15)
    with pytest.raises(SolveFailed):
        result.raise_for_status()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_ctrl_c_gives_the_last_complete_state(k, tmp_path):
    """The interrupted step had already written into its state; result and checkpoint hold the step before."""
    path, history = tmp_path / "run.ckpt", History()
    result = solve(bowl(), Walk(after=NEVER, interrupt=k), callbacks=[history, Checkpoint(path)])
    assert result.status is Status.STOPPED
    assert result.steps == k - 1
    wanted = 0.5 * (1 - 0.5 ** (k - 1))
    assert result.x.numpy() == pytest.approx([wanted, wanted], abs=1e-15)
    assert result.raise_for_status() is result
    assert [row["k"] for row in history.rows] == list(range(k))
    rerun = solve(bowl(), Walk(after=NEVER, interrupt=k), resume=path, max_steps=k - 1, callbacks=[History()])
    assert torch.equal(rerun.x, result.x)


def test_ctrl_c_between_looks_gives_a_complete_state():
    result = solve(bowl(), Walk(after=NEVER, interrupt=6), check_every=4)
    assert result.status is Status.STOPPED
    assert result.steps == 4
    assert result.x.numpy() == pytest.approx([0.5 * (1 - 0.5**4)] * 2, abs=1e-15)


def test_ctrl_c_inside_the_users_function():
    calls = []

    def lower(x, y):
        calls.append(1)
        if len(calls) == 25:
            raise KeyboardInterrupt
        return ((y - x) ** 2).sum()

    result = solve(bowl(lower=lower))
    assert result.status is Status.STOPPED
    assert bool(result.x.isfinite().all())
    assert result.residuals()["lower"] < 1e-6


def test_ctrl_c_in_a_callback():
    def press(event):
        if event.k == 2:
            raise KeyboardInterrupt

    result = solve(bowl(), Walk(after=NEVER), callbacks=[press])
    assert (result.status, result.steps) == (Status.STOPPED, 2)


def test_other_errors_of_a_function_come_through():
    def lower(x, y):
        if float(x.sum()) != 0:
            raise ZeroDivisionError("mine")
        return ((y - x) ** 2).sum()

    with pytest.raises(ZeroDivisionError, match="mine"):
        solve(bowl(lower=lower))


# -- results ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def solved() -> Result:
    return solve(bowl())


def test_result(solved):
    assert solved.success
    assert solved.fun == pytest.approx(2 * 0.25 + 2 * 0.25, abs=1e-6)
    assert solved.seed == 0
    assert isinstance(solved.solver, Auto)
    assert solved.tried == ()
    assert solved.solver.tol == 1e-6
    assert set(solved.residuals()) == {"lower", "upper"}
    assert set(solved.certify()) == {"lower", "upper", "lower_gap"}
    text = repr(solved)
    assert text.startswith("Result: Converged")
    assert f"{solved.steps} steps, {solved.calls.gradients} gradients" in text
    assert "Implicit(" in text
    assert len(text) < 1000


@pytest.mark.parametrize("again", [lambda r: pickle.loads(pickle.dumps(r)), copy.copy, copy.deepcopy])
def test_pickle_and_copy_without_the_problem(solved, again):
    twin = again(solved)
    assert torch.equal(twin.x, solved.x)
    assert twin.status is solved.status
    assert twin.calls.gradients == solved.calls.gradients
    assert repr(twin) == repr(solved)
    assert twin.problem is None
    with pytest.raises(OptionError, match=r"on\(problem\)"):
        twin.residuals()
    assert twin.on(solved.problem).residuals() == solved.residuals()


def test_pickle_of_a_problem_of_lambdas_is_not_needed(solved):
    assert pickle.loads(pickle.dumps(solve(bowl(), PenaltySGD(), max_steps=3))).status is Status.MAX_STEPS


# -- refused before any work ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tol": 0}, ["tol: ", "0"]),
        ({"tol": -1.0}, ["tol: ", "-1.0"]),
        ({"tol": math.nan}, ["tol: ", "nan"]),
        ({"tol": 1e-14}, ["tol: ", "100 eps", "torch.float64", "1e-14"]),
        ({"tol": "small"}, ["tol: ", "'small'"]),
        ({"tol": True}, ["tol: ", "True"]),
        ({"seed": -1}, ["seed: ", ">= 0", "-1"]),
        ({"seed": 0.5}, ["seed: ", "integer", "0.5"]),
        ({"seed": None}, ["seed: ", "integer", "None"]),
        ({"max_steps": -1}, ["max_steps: ", ">= 0", "-1"]),
        ({"max_steps": 1.5}, ["max_steps: ", "integer", "1.5"]),
        ({"max_steps": True}, ["max_steps: ", "True"]),
        ({"max_seconds": -1}, ["max_seconds: ", "-1"]),
        ({"max_seconds": math.nan}, ["max_seconds: ", "nan"]),
        ({"max_seconds": "1"}, ["max_seconds: ", "'1'"]),
        ({"check_every": 0}, ["check_every: ", ">= 1", "0"]),
        ({"callbacks": [3]}, ["callbacks: ", "functions", "3"]),
        ({"callbacks": print}, ["callbacks: ", "print"]),
        ({"callbacks": 3}, ["callbacks: ", "3"]),
        ({"solver": Penalty}, ["solver: ", "Penalty()"]),
        ({"solver": "penalty"}, ["solver: ", "'penalty'"]),
        ({"start": Point(None), "resume": "x"}, ["start and resume"]),
        ({"resume": 3}, ["resume: ", "3"]),
        ({"solver": PenaltySGD()}, ["max_steps: ", "PenaltySGD"]),
    ],
    ids=str,
)
def test_options_are_refused(options, words):
    calls = []

    def lower(x, y):
        calls.append(1)
        return ((y - x) ** 2).sum()

    with pytest.raises(BilevelError) as caught:
        solve(bowl(lower=lower), **options)
    assert isinstance(caught.value, OptionError)
    assert str(caught.value).startswith(words[0])
    assert all(word in str(caught.value) for word in words), caught.value
    assert not calls, "refused after work was done"


def test_tolerance_of_float32():
    single = bowl(x=torch.zeros(2), y=torch.zeros(2))
    with pytest.raises(OptionError, match=r"100 eps of torch.float32"):
        solve(single, tol=1e-6)
    assert solve(single).solver.tol == 1e-3


def test_not_a_problem():
    for call in (solve, iterate):
        with pytest.raises(OptionError, match="problem: expected a Problem, got int"):
            call(3)


def test_unsuitable_solver_names_one_that_fits():
    with pytest.raises(Unsuitable, match=r"solver: Walk does not handle a set X; Implicit does"):
        solve(bowl(X=Box(0, 1)), Walk())


def test_misspelt_option():
    with pytest.raises(OptionError, match=r"Penalty has no option 'simga': did you mean sigma\?"):
        Penalty(simga=1.0)


def test_default_tolerance_belongs_to_the_solver():
    assert solve(bowl(), Walk(tol=10.0), max_steps=9).solver == replace(Walk(), tol=10.0)
    assert solve(bowl(), Walk(tol=10.0), tol=1e-3, max_steps=2).solver.tol == 1e-3
