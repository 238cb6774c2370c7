"""The only loop: `iterate` and `solve`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch

from .arguments import expect
from .choice import default_solver, suit, tolerance
from .derivatives.leaves import no_inference_mode
from .errors import NonFiniteGradient, OptionError
from .event import Callback, Event
from .options import INF, Count, Range, Steps
from .problem import Point, Problem, expect_point
from .result import Result
from .running import Run
from .solver import Solver
from .status import Feature, Status

Seconds = Annotated[float, Range(0, INF, "a number >= 0")]
PATIENCE = 0.5  # seconds for the answer after Ctrl-C


def iterate(
    problem: Problem,
    solver: Solver[Any, Any] | None = None,
    *,
    start: Point | None = None,
    resume: Path | str | None = None,
    seed: int = 0,
    tol: float | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    check_every: int = 1,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
) -> Iterator[Event]:
    """Run a solver and yield an `Event` every `check_every` steps, the first before any step, the last with a final status.

    Arguments as in `solve`. The checks of problem and options are done when it is called, not at the first event. An event's
    state is lent; `copy` it to keep it.

    >>> import bilevel
    >>> one = torch.ones((), dtype=torch.float64)
    >>> problem = bilevel.BilevelProblem(upper=lambda x, y: (y - 2) ** 2, lower=lambda x, y: (y - x) ** 2, x=one, y=one)
    >>> [event.status.name for event in iterate(problem, bilevel.Penalty(), max_steps=1)]
    ['RUNNING', 'MAX_STEPS']
    """
    run = _prepare(problem, solver, start, resume, seed, tol, max_steps, max_seconds, check_every, callbacks, progress)
    with torch.no_grad():
        run.open(None if resume is None else Path(resume))
    return _events(run, check_every)


def solve(
    problem: Problem,
    solver: Solver[Any, Any] | None = None,
    *,
    start: Point | None = None,
    resume: Path | str | None = None,
    seed: int = 0,
    tol: float | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    check_every: int = 1,
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
) -> Result:
    """Solve a problem and say how well.

    solver: None picks one by the problem's features. start: where to begin, the problem's own variables if None. resume: a
    checkpoint file of the same problem, data, solver and seed. tol: on the absolute residuals (float64 1e-6 bilevel, 1e-8
    constrained; float32 1e-3, 1e-4). max_steps: the solver's own if None; with mini-batches it must be given. max_seconds:
    of the solver's own time, inside its steps too; its answer and the certificate may take half as much beside. check_every:
    steps between looks at the state. callbacks: functions of an `Event`; one that returns True stops the run. progress: a
    progress line on the terminal.

    Raises ProblemError, OptionError, Unsuitable or CheckpointError before any work is done. Ctrl-C ends the run with status
    STOPPED and the result so far.

    >>> import bilevel
    >>> one = torch.ones((), dtype=torch.float64)
    >>> f, g = lambda x, y: (y - 2) ** 2 + (x - 1) ** 2, lambda x, y: (y - x) ** 2
    >>> result = solve(bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one))
    >>> result.status.name, round(float(result.x), 6)
    ('CONVERGED', 1.5)
    """
    run = _prepare(problem, solver, start, resume, seed, tol, max_steps, max_seconds, check_every, callbacks, progress)
    return ended(run, check_every, None if resume is None else Path(resume))


def ended(run: Run, check_every: int = 1, resume: Path | None = None) -> Result:
    """The end of a run. One that has a state already goes on from there."""
    status, problem = Status.RUNNING, run.problem
    try:
        with torch.no_grad():
            if run.state is None:
                run.open(resume)
        for event in _events(run, check_every):
            status = event.status
        with torch.no_grad():
            found = run.answer()
    except KeyboardInterrupt:
        status = Status.STOPPED
        if run.last is not None:  # the step at hand may have written half of its state
            run.state, run.k = run.last, getattr(run.last, "k", run.k)
        with torch.no_grad():
            found = run.answer(PATIENCE)
    finally:
        for callback in run.callbacks:
            close = getattr(callback, "close", None)
            if close is not None:
                close()
    if found is run.start and run.k > 0:  # the answer itself met NaN
        status = Status.NONFINITE
    if status not in (Status.NONFINITE, Status.MAX_SECONDS, Status.STOPPED):
        with torch.no_grad():
            found = run.completed(found)
    point = problem.finish(found)
    sentence = run.sentence if status in (Status.CONVERGED, Status.STALLED) and run.sentence else status.value
    message = sentence if not run.details else f"{sentence[:-1]}: {run.details}."
    notes = run.notes if run.state is None else (*run.solver.notes(run.state), *run.notes)
    if status is Status.CONVERGED and run.k <= 1 and not run.measured and Feature.LOWER in problem.features:
        notes += ("The residuals were within tol almost at the start: if the objectives are small, rescale them or lower tol.",)
    if not problem.exact:
        notes += ("Batches come from a stream: a resumed run need not equal an uninterrupted one bit for bit.",)
    return Result(
        point.x,
        point.y,
        point.multipliers,
        status,
        message,
        run.k,
        run.seconds,
        run.oracle.calls.copy(),
        notes,
        run.state,
        dataclasses.replace(run.solver, tol=run.asked),  # pyright: ignore[reportArgumentType]
        run.seed,
        problem,
        problem.exact,
    )


def _events(run: Run, check_every: int) -> Iterator[Event]:
    with torch.no_grad():
        status = run.verdict()
    while True:
        event = Event(run, status)
        # Every callback sees every event; any of them may stop the run.
        if any([bool(callback(event)) for callback in run.callbacks]) and not status.done:
            event.status = status = Status.STOPPED
        yield event
        if status.done:
            return
        with torch.no_grad():
            until = run.k + check_every
            while run.k < until and not (run.max_steps is not None and run.k >= run.max_steps) and not (run.broken or run.late):
                try:
                    run.timed(run.stepped)
                    run.k += not run.late
                except NonFiniteGradient:
                    run.broken = True
            status = run.verdict()


def _prepare(
    problem: Any,
    solver: Any,
    start: Any,
    resume: Any,
    seed: Any,
    tol: Any,
    max_steps: Any,
    max_seconds: Any,
    check_every: Any,
    callbacks: Iterable[Callback],
    progress: bool,
) -> Run:
    if not isinstance(problem, Problem):
        raise OptionError(f"problem: expected a Problem, got {type(problem).__name__}")
    problem.expect_values()
    if solver is not None and not isinstance(solver, Solver):
        hint = f": write {solver.__name__}()" if inspect.isclass(solver) else ""
        raise OptionError(f"solver: expected a Solver, got {solver!r:.60}{hint}")
    seed, max_steps = expect("seed", seed, Count), expect("max_steps", max_steps, Count | None)
    expect("check_every", check_every, Steps)
    expect("max_seconds", max_seconds, Seconds | None)
    if start is not None:
        expect_point("start", start)
    if resume is not None and not isinstance(resume, (str, Path)):
        raise OptionError(f"resume: expected the path of a checkpoint, got {resume!r:.60}")
    if start is not None and resume is not None:
        raise OptionError("start and resume exclude each other: a checkpoint holds its own point")
    callbacks = list(callbacks) if isinstance(callbacks, Iterable) else callbacks
    if not isinstance(callbacks, list) or not all(callable(callback) and not inspect.isclass(callback) for callback in callbacks):
        raise OptionError(f"callbacks: expected a list of functions of an Event, got {callbacks!r:.60}")
    tol = tolerance(problem, tol if tol is not None or solver is None else solver.tol)
    no_inference_mode()
    solver = default_solver(problem) if solver is None else solver  # which may try the functions
    suit(problem, solver)
    solver = dataclasses.replace(solver, tol=tol)  # pyright: ignore[reportArgumentType]
    if max_steps is None and solver.stochastic:
        raise OptionError(f"max_steps: {type(solver).__name__} runs on mini-batches and needs max_steps=, got None")
    if progress:
        from .callbacks import Progress

        callbacks.append(Progress())
    run = Run(problem, solver, seed, solver.max_steps if max_steps is None else max_steps, max_seconds, callbacks)
    with torch.no_grad():
        run.begin(start)
    return run


__all__ = ["Callback", "Event", "Result", "default_solver", "iterate", "solve"]
