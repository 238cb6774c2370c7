"""Event: one moment of a run, as callbacks see it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from .problem import Oracle, Point, Problem
from .processes import Ranks
from .solver import Solver
from .status import Status

Callback = Callable[["Event"], "bool | None"]


class Running(Protocol):
    """What an event asks of the run that it belongs to."""

    problem: Problem
    solver: Solver
    oracle: Oracle
    ranks: Ranks | None
    max_steps: int | None
    k: int
    seconds: float
    state: Any

    def answer(self) -> Point: ...

    def agreed(self, value: float) -> float: ...

    def save(self, path: Path) -> None: ...


class Event:
    """One moment of a run: `k` completed steps, `status`, `seconds`, `calls`. `state` is lent: copy it to keep it."""

    def __init__(self, run: Running, status: Status):
        self._run = run
        self.k = run.k
        self.state = run.state
        self.status = status
        self.seconds = run.seconds
        self.calls = run.oracle.calls.copy()
        shown = {} if run.state is None else run.solver.monitor(run.state)
        self.monitor = {name: float(value) for name, value in shown.items()}

    @functools.cached_property
    def answer(self) -> Point:
        """What the solver would report now, in the user's structures. May cost gradients: untimed, counted apart."""
        return self._run.problem.finish(self._run.answer())

    def residuals(self) -> dict[str, float]:
        """Residuals of `answer`, computed from the problem. Untimed."""
        return self._run.problem.residuals(self.answer)

    def module(self) -> torch.nn.Module:
        """The user's module with the lower variable of `answer`; a live one itself: leave its mode and parameters as they are."""
        return self._run.problem.module(self.answer)

    def agreed(self, value: float) -> float:
        """Of several processes the first one's number: for decisions of a callback that all must take alike."""
        return self._run.agreed(value)

    def save(self, path: Path) -> None:
        """Write a checkpoint of the run at this moment; of several processes all must call it."""
        self._run.save(Path(path))

    @property
    def first(self) -> bool:
        """This process is the first, or alone: the one to print and write."""
        return self._run.ranks is None or self._run.ranks.rank == 0

    @property
    def max_steps(self) -> int | None:
        return self._run.max_steps

    def __repr__(self) -> str:
        return f"Event(k={self.k}, status={self.status.name}, seconds={self.seconds:.3g}, gradients={self.calls.gradients})"
