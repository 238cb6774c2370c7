"""Callbacks: functions of an `Event`. One that returns True stops the run. Those with `state_dict` travel in checkpoints."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checkpoint_folder, files
from .arguments import expect
from .errors import OptionError, OutputError, extra
from .event import Event
from .options import NonNegative, Steps

WEIGHT = "weight "  # begins the names of sources' weights among what a solver monitors
SHOWN = 5  # weights on the progress line


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
        self.every = expect("History: every", every, Steps)
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
        self.rows = [{"k": row["k"], **row} for row in state["rows"]]


class Checkpoint:
    """Writes `path` every `every` steps, at most once in `seconds`, and at the end. Resume with `solve(..., resume=path)`.

    List it after callbacks with a state of their own (History), so that these are saved as they stand. The file is replaced
    atomically, the one before stays as NAME.previous; a link stays one, and the file that it names is replaced. A writer that is
    killed may leave NAME.<16 hex digits>.tmp, which you may delete. Raises OutputError at once where the folder cannot be
    written, or something else than a regular file is in the way.

    >>> import tempfile
    >>> saver = Checkpoint(Path(tempfile.mkdtemp()) / "run.pt", every=10)
    """

    def __init__(self, path: Path | str, *, every: int = 1, seconds: float = 0.0):
        self.path = _file("Checkpoint", path)
        self.every = expect("Checkpoint: every", every, Steps)
        self.seconds = seconds
        self._last = float("-inf")

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
        self.times = expect("StopWhen: times", times, Steps)
        self.held = 0

    def __call__(self, event: Event) -> bool:
        self.held = self.held + 1 if self.test(event) else 0
        return self.held >= self.times

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = int(state["held"])


class EarlyStopping:
    """Stops the run when `measure(event)`, a number that should fall, has not reached a new low for `patience` looks.

    It looks every `every` steps. `best` and `step`: the lowest value and where it was. path: a checkpoint is written there at
    each new low, so that `solve(..., resume=path, max_steps=stopper.step)` gives the best point back. NaN is no new low. least:
    how much lower a new low must be. Raises OptionError for `patience` or `every` < 1, OutputError for a `path` that cannot be
    written.

    >>> stopper = EarlyStopping(lambda event: event.monitor["upper"], patience=5, every=100)
    """

    def __init__(
        self,
        measure: Callable[[Event], float],
        *,
        patience: int = 10,
        every: int = 1,
        least: float = 0.0,
        path: Path | str | None = None,
    ):
        if not callable(measure):
            raise OptionError(f"EarlyStopping: measure must be a function of an Event, got {measure!r:.60}")
        self.measure = measure
        self.patience = expect("EarlyStopping: patience", patience, Steps)
        self.every = expect("EarlyStopping: every", every, Steps)
        self.least = expect("EarlyStopping: least", least, NonNegative)
        self.path = None if path is None else _file("EarlyStopping", path)
        self.best, self.step, self.waited, self.looked = math.inf, 0, 0, 0

    def __call__(self, event: Event) -> bool:
        if event.k % self.every or event.k == self.looked:  # a resumed run begins with the step at which it was saved
            return False
        self.looked = event.k
        value = event.agreed(float(self.measure(event)))
        if value < self.best - self.least:
            self.best, self.step, self.waited = value, event.k, 0
            if self.path is not None:
                event.save(self.path)
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "step": self.step, "waited": self.waited, "looked": self.looked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = float(state["best"])
        self.step, self.waited, self.looked = (int(state[name]) for name in ("step", "waited", "looked"))


class TensorBoard:
    """Writes what the solver monitors, the gradients, rows and tokens so far and tokens a second to a TensorBoard folder.

    One scalar a name, every `every` steps and at the end; weights of sources under `weight/`. Of several processes the first
    writes. Raises MissingExtra where tensorboard is not installed, OutputError where the folder cannot be made.

    >>> callbacks = [TensorBoard("runs/one", every=10)]  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str, *, every: int = 1):
        extra("tensorboard", "watch")
        self.folder = _folder("TensorBoard", Path(folder))
        self.every = expect("TensorBoard: every", every, Steps)
        self._writer: Any = None
        self._speed = Speed()

    def __call__(self, event: Event) -> None:
        if not event.first or (event.k % self.every and not event.status.done):
            return
        from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

        self._writer = self._writer or SummaryWriter(str(self.folder))
        total = event.calls.total()
        scalars = {**event.monitor, "gradients": total.gradients, "rows": total.rows}
        speed = self._speed(event)
        scalars |= {"tokens": total.tokens} if total.tokens else {}
        scalars |= {} if speed is None else {speed[0]: speed[1]}
        for name, value in scalars.items():
            self._writer.add_scalar(name.replace("weight ", "weight/").replace(" ", "_"), value, event.k)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Speed:
    """(what, how much) the solver does a second of its own time between two calls: tokens, or rows where there are none."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def __call__(self, event: Event) -> tuple[str, float] | None:
        total = event.calls.total()
        last, now = self._last, (event.seconds, total.tokens, total.rows)
        self._last = now
        if last is None or now[0] <= last[0] or now[2] == last[2]:
            return None
        name, i = ("tokens/s", 1) if now[1] > last[1] else ("rows/s", 2)
        return name, (now[i] - last[i]) / (now[0] - last[0])


class Progress:
    """A progress line by rich on standard error, silent where that is no terminal: steps, gradients, tokens or rows a second,
    what the solver monitors, the largest weights of sources last.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._speed = Speed()

    def __call__(self, event: Event) -> None:
        if not event.first:
            return
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
        speed = self._speed(event)
        parts = [f"{event.calls.gradients} gradients"] + ([] if speed is None else [f"{speed[1]:,.0f} {speed[0]}"])
        parts += [f"{name} {value:.3g}" for name, value in event.monitor.items() if not name.startswith(WEIGHT)]
        weights = {name[len(WEIGHT) :]: value for name, value in event.monitor.items() if name.startswith(WEIGHT)}
        parts += [f"{name} {weights[name]:.2f}" for name in sorted(weights, key=lambda name: -weights[name])[:SHOWN]]
        self._bar.update(self._task, completed=event.k, description=f"step {event.k}", figures="  ".join(parts))
        if event.status.done:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def write_text(path: Path | str, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            file.write(text.encode())
    except (OSError, TypeError, ValueError) as cause:  # TypeError: no path; ValueError: no name, or one with a null character
        raise OutputError(f"{path}: cannot be written: {cause}") from cause


def _folder(owner: str, folder: Path) -> Path:
    """The folder, made. Raises OutputError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as cause:  # ValueError: a name with a null character
        raise OutputError(f"{owner}: the folder {folder} cannot be made: {cause}") from cause
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{owner}: the folder {folder} cannot be written")
    return folder


def _file(owner: str, path: Path | str) -> Path:
    """The path of a checkpoint, its folder made. Raises OutputError where none can be written."""
    if not isinstance(path, (str, os.PathLike)):
        raise OptionError(f"{owner}: path: expected the path of a file, got {path!r:.60}")
    path = Path(path)
    _folder(owner, path.parent)
    try:
        sharded = path.is_symlink() and (path / checkpoint_folder.HEADER).is_file()
        folder = path.parent if sharded else files.target(path).parent  # a link leads elsewhere
    except OSError as cause:
        raise OutputError(f"{owner}: {path} cannot be written: {cause}") from cause
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{owner}: the folder {folder} cannot be written")
    return path
