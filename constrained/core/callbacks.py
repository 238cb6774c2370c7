"""Callbacks: functions of an `Event`. One that returns True stops the run. Those with `state_dict` travel in checkpoints."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import OptionError, OutputError
from .run import Event


class History:
    """One row an event: k, seconds, gradients, rows and what the solver monitors; with `residuals=True` the residuals
    too, as `residual_upper`, `residual_lower`, ...

    `rows` is a list of dicts, `write(path)` a CSV. A run resumed from a checkpoint continues the rows saved in it. every: record
    each so many steps, and the end. Raises OptionError for `every` < 1.

    >>> import torch, bilevel
    >>> one, history = torch.ones((), dtype=torch.float64), History()
    >>> problem = bilevel.BilevelProblem(upper=lambda x, y: (y - 2) ** 2, lower=lambda x, y: (y - x) ** 2, x=one, y=one)
    >>> _ = bilevel.solve(problem, bilevel.Penalty(), max_steps=2, callbacks=[history])
    >>> [row["k"] for row in history.rows]
    [0, 1, 2]
    """

    def __init__(self, *, every: int = 1, residuals: bool = False):
        self.every = _steps("History", "every", every)
        self.residuals = residuals
        self.rows: list[dict[str, Any]] = []

    def __call__(self, event: Event) -> None:
        if (event.k % self.every and not event.status.done) or (self.rows and self.rows[-1]["k"] == event.k):
            return
        total = event.calls.total()
        row = {"k": event.k, "seconds": event.seconds, "gradients": total.gradients, "rows": total.rows, **event.monitor}
        found = event.residuals() if self.residuals else {}
        self.rows.append({**row, **{f"residual_{name}": value for name, value in found.items()}})

    def write(self, path: Path) -> None:
        """Write the rows as CSV, floats to the last bit."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(
            {name: repr(value) if isinstance(value, float) else value for name, value in row.items()} for row in self.rows
        )
        write_text(path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]


class Checkpoint:
    """Writes `path` every `every` steps, at most once in `seconds`, and at the end. Resume with `solve(..., resume=path)`.

    List it after callbacks with a state of their own (History), so that these are saved as they stand. The file is replaced
    atomically, the one before stays as NAME.previous. Raises OutputError at once where the folder cannot be written.

    >>> import tempfile
    >>> saver = Checkpoint(Path(tempfile.mkdtemp()) / "run.pt", every=10)
    """

    def __init__(self, path: Path | str, *, every: int = 1, seconds: float = 0.0):
        self.path = Path(path)
        self.every = _steps("Checkpoint", "every", every)
        self.seconds = seconds
        self._last = float("-inf")
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise OutputError(f"Checkpoint: the folder {folder} cannot be made: {cause}") from cause
        if not os.access(folder, os.W_OK):
            raise OutputError(f"Checkpoint: the folder {folder} cannot be written")

    def __call__(self, event: Event) -> None:
        due = event.k % self.every == 0
        if due and self.seconds:  # clocks differ between processes
            due = event.agreed(time.monotonic() - self._last) >= self.seconds
        if event.status.done or due:
            event.save(self.path)
            self._last = time.monotonic()


class StopWhen:
    """Stops the run when `test(event)` has held at `times` events in a row.

    >>> cheap = StopWhen(lambda event: event.calls.gradients > 1000)
    """

    def __init__(self, test: Callable[[Event], bool], *, times: int = 1):
        if not callable(test):
            raise OptionError(f"StopWhen: test must be a function of an Event, got {test!r:.60}")
        self.test = test
        self.times = _steps("StopWhen", "times", times)
        self.held = 0

    def __call__(self, event: Event) -> bool:
        self.held = self.held + 1 if self.test(event) else 0
        return self.held >= self.times

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state["held"]


class Progress:
    """A progress line by rich on standard error, silent where that is no terminal: steps, gradients, what the solver monitors."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            console = Console(stderr=True)
            self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
            self._task = self._bar.add_task("solve", total=event.max_steps, figures="")
            self._bar.start()
        figures = "  ".join(f"{name} {value:.3g}" for name, value in event.monitor.items())
        self._bar.update(
            self._task, completed=event.k, description=f"step {event.k}", figures=f"{event.calls.gradients} gradients  {figures}"
        )
        if event.status.done:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path = Path(path)
    spare = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        spare.write_text(text)
        os.replace(spare, path)
    except OSError as cause:
        raise OutputError(f"{path}: cannot be written: {cause}") from cause


def _steps(owner: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{owner}: {name} must be an integer >= 1, got {value!r}")
    return value
