"""What every solver must do: each check is a function of a `Case`, and raises AssertionError where the solver does not."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import tempfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Case
from harness import (
    CALLABLES,
    errors_of,
    finite,
    outcome,
    random_state_kept,
    restructured,
    run,
    same,
    trees_of,
    values,
    variables_in,
    with_feature,
    wrapped,
)
from torch import Tensor

import bilevel
import constrained
from bilevel import Event, Point, Status, iterate
from constrained.core import data, errors, optimizers, options
from constrained.core.derivatives.counts import Count
from constrained.core.run import default_solver
from constrained.core.status import Feature
from constrained.core.vec import Vec, leaves_by_path, tensors
from constrained.sets import Everywhere

CHECKS: list[Callable[[Case], None]] = []
MANY = 50_000  # calls of a function after NaN after which a run counts as hanging
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def check(function: Callable[[Case], None]) -> Callable[[Case], None]:
    CHECKS.append(function)
    return function


# -- options ----------------------------------------------------------------------------------------------------------------
@check
def default_constructible(case: Case) -> None:
    """The solver can be made without arguments."""
    assert type(case.solver)() == type(case.solver)()


@check
def frozen(case: Case) -> None:
    """No attribute can be set, and the solver can be a key."""
    for field in dataclasses.fields(case.solver):  # pyright: ignore[reportArgumentType]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(case.solver, field.name, None)
    assert hash(case.solver) == hash(dataclasses.replace(case.solver))  # pyright: ignore[reportArgumentType]


@check
def repr_is_code(case: Case) -> None:
    """`eval(repr(solver)) == solver`, with the library's public names."""
    assert eval(repr(case.solver), {**vars(constrained), **vars(optimizers), **vars(bilevel)}) == case.solver


@check
def bad_options_are_refused(case: Case) -> None:
    """Every value outside an option's range raises OptionError, which names solver, option, range and value."""
    solver = type(case.solver)
    bad = list(options.outside(solver))
    assert {name for name, _ in bad} == set(options.ranges(solver))
    for name, value in bad:
        with pytest.raises(errors.OptionError) as caught:
            solver(**{name: value})
        wanted = [solver.__name__, f"{name} must be", repr(value), *map(options.words, options.ranges(solver)[name])]
        assert not [part for part in wanted if part not in str(caught.value)], str(caught.value)


@check
def misspelt_options_are_refused(case: Case) -> None:
    """A misspelt option raises OptionError, which names the solver and the option that was meant."""
    solver = type(case.solver)
    for name in options.ranges(solver):
        with pytest.raises(errors.OptionError, match=solver.__name__) as caught:
            solver(**{name + "s": 1})
        assert repr(name + "s") in str(caught.value)
        assert f"did you mean {name}?" in str(caught.value)


# -- purity -----------------------------------------------------------------------------------------------------------------
@check
def problem_and_start_are_untouched(case: Case) -> None:
    """A run changes neither the problem, its variables, the start nor any global random state, and shares no memory with them."""
    problem: Any = case.instance().problem
    oracle = problem.oracle()
    start = Point(**{name: (vec * 1.0 + vec.map(torch.ones_like) * 0.01).tree() for name, vec in oracle.variables.items()})
    kept = {name: values(getattr(problem, name)) for name in oracle.variables}
    checked_start = {name: values(getattr(start, name)) for name in oracle.variables}
    fields = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)}
    for steps in (0, case.few):
        with random_state_kept():
            result = run(case, problem, start=start, max_steps=steps)
            result.residuals()
        at_own_start = run(case, problem, max_steps=steps)
        for one, name in itertools.product((result, at_own_start), oracle.variables):
            for leaf in tensors(getattr(one, name)):
                leaf.add_(1.0)  # whoever writes into a result changes the result only
        now = {name: values(getattr(start, name)) for name in oracle.variables}
        assert same(now, checked_start), f"the start was written to ({steps} steps)"
        assert same({name: values(getattr(problem, name)) for name in kept}, kept), f"the problem was written to ({steps} steps)"
    assert all(getattr(problem, name) is value for name, value in fields.items())
    for module in (value for value in fields.values() if isinstance(value, torch.nn.Module)):
        assert all(p.grad is None and p.requires_grad for p in module.parameters())


@check
def same_seed_same_bits(case: Case) -> None:
    """Two runs with one seed agree bit for bit, whatever the global generators say; with another seed iff nothing is drawn."""
    problem = case.instance().problem
    first = run(case, problem)
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        again = run(case)
    other = run(case, problem, seed=case.seed + 1)
    assert same(outcome(first), outcome(again))
    stochastic = Feature.SAMPLES in problem.features or case.draws
    assert same(outcome(first)[:3], outcome(other)[:3]) != stochastic


@check
def resume_is_exact(case: Case) -> None:
    """A run resumed from a checkpoint, early or late, equals the uninterrupted one bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        for steps, places in ((case.few, (0, 1, 2)), (6 * case.few, (3 * case.few,))):

            def save(event: Event, places: tuple[int, ...] = places) -> None:
                if not event.status.done and (event.k in places or case.max_steps is None):  # one that may end before
                    event.save(Path(folder) / str(event.k))

            whole = run(case, max_steps=steps, callbacks=[save])
            for k in {min(place, whole.steps - 1) for place in places}:
                resumed = run(case, max_steps=steps, resume=Path(folder) / str(k))
                assert same(outcome(resumed), outcome(whole)), f"resumed at step {k} of {steps}"
                assert resumed.steps == whole.steps


@check
def states_are_plain(case: Case) -> None:
    """A state holds tensors, numbers, words and enums, `k` counts its steps; its checkpoint loads with `weights_only=True`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        for event in iterate(case.instance().problem, case.solver, max_steps=case.few, seed=case.seed):
            assert event.state.k == event.k
            for name, leaf in leaves_by_path(event.state).items():
                assert isinstance(leaf, (Tensor, bool, int, float, str, Enum, type(None))), f"{name}: {type(leaf).__name__}"
                assert not (isinstance(leaf, Tensor) and leaf.requires_grad), f"{name} carries a graph"
            with pytest.raises(dataclasses.FrozenInstanceError):
                event.state.k = -1
        event.save(path)
        content = torch.load(path, weights_only=True)
        assert all(isinstance(leaf, Tensor) for leaf in content["tensors"].values())
        assert isinstance(content["header"], str)


@check
def dtype_and_device_are_kept(case: Case) -> None:
    """The answer and every variable of the state have the problem's structure, shapes, dtype and device."""
    problem = case.instance().problem
    result = run(case, problem)

    def kind(vec: Vec) -> tuple[Any, ...]:
        return str(vec.spec), [(leaf.dtype, leaf.device, leaf.shape) for leaf in vec.leaves]

    variables = {name: kind(vec) for name, vec in problem.oracle(0).variables.items()}
    for name, wanted in variables.items():
        assert kind(Vec.of(getattr(result, name))) == wanted
    size = sum(vec.size for vec in problem.oracle(0).variables.values())  # a larger one is all of them with multipliers
    assert all(vec.size > size or kind(vec) in variables.values() for _, vec in variables_in(result.state))
    dtypes = {leaf.dtype for leaf in tensors(result.state) if leaf.is_floating_point()}
    assert dtypes <= {problem.oracle(0).variables["x"].dtype, torch.float64}


# -- structures -------------------------------------------------------------------------------------------------------------
@check
def structure_does_not_matter(case: Case) -> None:
    """As flat tensors, as dicts and as nn.Modules the variables go through the same iterates, to rounding."""
    problem: Any = case.instance().problem
    runs = [run(case, restructured(problem, kind)) for kind in ("tensor", "dict", "module")] + [run(case, problem)]
    eps = torch.finfo(next(iter(problem.oracle().variables.values())).dtype).eps
    for name in problem.oracle().variables:
        reference = Vec.of(getattr(runs[-1], name)).ravel()
        for other in runs[:-1]:
            gap = float((Vec.of(getattr(other, name)).ravel() - reference).norm())
            assert gap <= 1e4 * eps * max(1.0, float(reference.norm())), f"{name}: {gap:.1e}"


# -- counting ---------------------------------------------------------------------------------------------------------------
@check
def calls_are_counted(case: Case) -> None:
    """Each evaluation of a function is counted once, with its rows, and a step costs what the docstring says."""
    problem: Any = case.instance().problem
    levels, seen = len(problem.oracle().variables), {}

    def wrap(name: str, function: Callable) -> Callable:
        def counted(*args: Any) -> Any:
            rows = data.rows(args[levels]) if len(args) > levels else 0
            seen[name] = [a + b for a, b in zip(seen.get(name, [0, 0]), (1, rows))]
            return function(*args)

        return counted

    history: list[tuple[dict, Any, bool]] = []
    for event in iterate(wrapped(problem, wrap), case.solver, max_steps=case.few, seed=case.seed):
        history.append(({name: list(count) for name, count in seen.items()}, event.calls, event.status.done))
    doc = " ".join((type(case.solver).__doc__ or "").split())
    history = [entry for entry in history if levels == 2 or not entry[2]]  # at the end residuals are evaluated, apart
    for k, ((before, old, _), (after, new, _)) in enumerate(itertools.pairwise(history)):
        for name, count in new.by["solve"].items():
            last = old.by.get("solve", {}).get(name, Count())
            now, then = (one.values + (one.gradients if levels == 2 else 0) for one in (count, last))  # see `Count`
            spent = [now - then, count.rows - last.rows]
            true = [a - b for a, b in zip(after[name], before.get(name, [0, 0]))]
            assert spent == true, f"{name}: counted {spent} evaluations and rows, saw {true}"
        spent = new.gradients - old.gradients
        assert case.gradients in (None, spent) or (k == 0 and spent < case.gradients)  # copies that still stand at one point
    if case.gradients is not None:
        assert re.search(rf"\b{NUMBERS[case.gradients]}\b[^.]* gradients a step", doc), doc
    total = event.calls.total()
    if re.search("no second derivatives|first order only", doc.lower()):
        assert total.hvps == total.jvps == 0
    assert total.gradients > 0


# -- feasibility, failure, limits -------------------------------------------------------------------------------------------
@check
def iterates_stay_in_the_sets(case: Case) -> None:
    """Every answer and every variable of a state lies in its set, also from a start outside."""
    problem: Any = case.instance().problem
    variables = problem.oracle().variables
    eps = torch.finfo(variables["x"].dtype).eps
    far = Point(**{name: v.map(lambda t: torch.full_like(t, 3.5)).tree() for name, v in variables.items()})
    for start in (None, far):
        for event in iterate(problem, case.solver, start=start, max_steps=case.few, seed=case.seed):
            found = [*((name, Vec.of(getattr(event.answer, name))) for name in variables), *variables_in(event.state)]
            sets = {"x": problem.X} | ({"y": problem.Y, "z": problem.Y} if "y" in variables else {})
            for name, where in found:
                inside = sets.get(name, Everywhere())
                assert float(inside.distance(where)) <= 100 * eps, f"{name} left its set at step {event.k}"


@check
def nan_ends_a_run(case: Case) -> None:
    """Where a function turns NaN for good during a run, it ends soon, as NONFINITE, at a finite point."""
    problem: Any = case.instance().problem
    functions = [name for name in CALLABLES[type(problem)] if getattr(problem, name) is not None]
    seen, limits = dict.fromkeys(functions, 0), dict.fromkeys((*functions, "weights"), math.inf)

    def wrap(name: str, function: Callable) -> Callable:
        def turning(*args: Any) -> Any:
            if name in seen:
                seen[name] += 1
                assert seen[name] < limits[name] + MANY, "it hangs"
            return function(*args) * (math.nan if name in seen and seen[name] > limits[name] else 1.0)

        return turning

    sick = wrapped(problem, wrap)
    events = iter(iterate(sick, case.solver, max_steps=case.few, seed=case.seed))
    next(events)
    first = calls = dict(seen)
    for event in events:  # the last look at the answer may meet NaN around it and no harm is done
        calls = calls if event.status.done else dict(seen)
    for broken, share in itertools.product(functions, (0.3, 0.7)):
        limits.update(dict.fromkeys(functions, math.inf), **{broken: first[broken] + share * (calls[broken] - first[broken])})
        seen.update(dict.fromkeys(functions, 0))
        result = run(case, dataclasses.replace(sick), full=True)  # anew, or the start is not looked at again
        assert result.status is Status.NONFINITE, f"{broken} was NaN, the run ended with {result.status.name}"
        assert finite(result), f"{broken} was NaN, the answer is not finite"
        with pytest.raises(errors.SolveFailed):
            result.raise_for_status()


@check
def a_stop_is_honoured(case: Case) -> None:
    """A callback that returns True ends the run at that step with status STOPPED, which is no failure."""
    for k in (0, 2):
        result = run(case, full=True, callbacks=[lambda event, k=k: event.k == k])
        if result.steps < k or (result.steps == k and result.status is case.ends):
            continue  # it was done before
        assert (result.status, result.steps, result.state.k) == (Status.STOPPED, k, k)
        assert result.raise_for_status() is result
        assert not result.success


@check
def unsuitable_problems_are_refused(case: Case) -> None:
    """A problem with a feature the solver does not support is refused: the message names both, and a solver that fits or none."""
    name = type(case.solver).__name__
    for feature in Feature:
        problem = with_feature(feature)
        assert feature in problem.features
        if not case.solver.lacks(problem.features):
            accepted = run(case, problem, max_steps=1)
            assert accepted.steps <= 1
            assert finite(accepted), f"{feature.name}: {accepted}"
            assert all(map(math.isfinite, accepted.residuals().values())), f"{feature.name}: {accepted.residuals()}"
            continue
        with pytest.raises(errors.Unsuitable) as caught:
            run(case, problem)
        text = str(caught.value)
        assert name in text
        assert (case.solver.lacks(problem.features) & problem.features).words() in text
        try:
            fits = default_solver(problem)
        except errors.Unsuitable:
            assert "no solver" in text
        else:
            assert not fits.lacks(problem.features)
            assert type(fits) is not type(case.solver)
            assert f"{type(fits.current()).__name__} does" in text


@check
def works_under_no_grad(case: Case) -> None:
    """Under `torch.no_grad()` a run has the same bits; the caller's grad mode is kept, and no answer carries a graph."""
    modes: list[bool] = []
    reference = run(case, callbacks=[lambda _: modes.append(torch.is_grad_enabled())])
    assert all(modes)
    with torch.no_grad():
        result = run(case)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert same(outcome(result), outcome(reference))
    answers = [getattr(reference, name) for name in ("x", "y") if getattr(reference, name) is not None]
    assert not any(leaf.requires_grad for leaf in tensors(answers))


@check
def an_ignored_argument_has_gradient_zero(case: Case) -> None:
    """Where f or g ignores x, or f ignores y, that gradient is zero, the solver runs, and x stays where nothing moves it."""
    problem: Any = case.instance().problem
    variables = problem.oracle().variables
    if "y" not in variables:
        pytest.skip("one level")
    held = {name: variables[name].detach().clone() for name in ("x", "y")}
    for ignored in ({"upper": 0}, {"lower": 0}, {"upper": 0, "lower": 0}, {"upper": 1}):

        def wrap(name: str, function: Callable) -> Callable:
            of_trees = trees_of(problem, function)

            def blind(*args: Any) -> Any:
                trees = list(args)
                if (at := ignored.get("lower" if name == "weights" else name)) is not None:  # noqa: B023  # a mixture's x
                    trees[at] = held["xy"[at]].tree()
                return of_trees(*trees)

            return blind

        ignoring = wrapped(problem, wrap, **{name: v.tree() for name, v in held.items()})
        oracle = ignoring.oracle(case.seed)
        full = problem.oracle(case.seed)
        at = [held["x"], held["y"] + held["y"].map(torch.ones_like)]
        for name, level, whole in (("upper", oracle.f, full.f), ("lower", oracle.g, full.g)):
            grads, wanted = (o.gradient(at, o.draw(0), (0, 1))[1] for o in (level, whole))
            for i in (0, 1):
                if ignored.get(name) == i:
                    assert same(grads[i], grads[i].zeros())
                elif name not in ignored:
                    assert same(grads[i], wanted[i])
        result = run(case, ignoring, max_steps=case.few + 1)
        assert finite(result)
        if len(ignored) == 2 and not problem.features & (Feature.LOWER_EQUALITY | Feature.LOWER_INEQUALITY):
            assert same(Vec.of(result.x), problem.X.project(held["x"]))


# -- accuracy ---------------------------------------------------------------------------------------------------------------
@check
def the_answer_is_right(case: Case) -> None:
    """A full run ends as the table says, within the tolerances: x, y, multipliers where they are known, or else the residuals."""
    instance = case.instance()
    result = run(case, instance.problem, full=True)
    assert result.status is case.ends, result.message
    residuals = result.residuals()
    if result.success:
        tol = result.solver.tol
        assert max(residuals.values()) <= tol
    found = errors_of(instance, result) or {"residuals": max(residuals.values())}
    allowed = {name: case.others.get(name, case.tolerance) for name in found}
    assert all(found[name] <= allowed[name] for name in found), f"{found}, allowed {allowed}; residuals {residuals}"
