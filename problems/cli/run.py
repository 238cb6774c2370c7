"""`bilevel run`: solve an instance for one or several seeds, print a table, write the files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from constrained.core.callbacks import Checkpoint, History, Progress, write_text
from constrained.core.errors import CheckpointError, OptionError, OutputError, extra
from constrained.core.live import sharded
from constrained.core.result import Result
from constrained.core.run import solve
from constrained.core.status import Feature
from constrained.core.vec import Vec
from constrained.core.version import VERSION

from .. import ZOO
from ..instance import ConstrainedInstance, Instance
from .distributed import first, spread
from .words import DTYPES, choose, deterministic, make, pairs

CHECKPOINT = "checkpoint.pt"
UPRIGHT = 3  # seeds up to which the table has a column for each
WIDTH = 130  # of tables in files and pipes
LISTED = 10_000  # entries of a variable up to which result.json holds them


@dataclass
class Run:
    """One seed: the instance, its result, the residuals from the problem, the study's rows."""

    seed: int
    instance: Instance
    result: Result
    residuals: dict[str, float]
    history: History
    rows: list[Any]


def run(args: argparse.Namespace) -> int:
    """The command. Returns the exit code."""
    from rich.console import Console

    if args.seeds < 1:
        raise OptionError(f"--seeds: expected an integer >= 1, got {args.seeds}")
    if args.resume and args.out is None:
        raise OptionError("--resume: needs --out DIR, the folder with the checkpoint")
    console, runs = Console(quiet=not first()), []
    if not console.is_terminal:
        console = Console(width=WIDTH, quiet=not first())
    for seed in range(args.seed, args.seed + args.seeds):
        one = _solve(args, seed, _folder(args, seed))
        runs.append(one)
        if args.out is not None and first():
            _write(one, _folder(args, seed))
    console.print(_table(args, runs))
    for note in dict.fromkeys(note for one in runs for note in one.result.notes):
        console.print(f"note: {note}", highlight=False)
    study = runs[0].instance.study
    if study is not None:
        for table in study.tables([one.rows for one in runs]):
            console.print(table)
        for claim in study.claims:
            console.print(claim, highlight=False)
        if args.out is not None and len(runs) > 1 and first():
            write_text(args.out / "summary.json", _json(study.summary([one.rows for one in runs])))
    if args.out is not None:
        console.print(f"files in {args.out}", highlight=False)
    return 0 if all(one.result.status.ok or one.result.status.budget for one in runs) else 1


def _folder(args: argparse.Namespace, seed: int) -> Path | None:
    return args.out if args.out is None or args.seeds == 1 else args.out / f"seed-{seed}"


def _solve(args: argparse.Namespace, seed: int, folder: Path | None) -> Run:
    arguments = pairs(args.arguments, "--with")
    arguments.setdefault("seed", seed)
    if args.dtype is not None:
        arguments["dtype"] = DTYPES[args.dtype]
    if args.device is not None:
        arguments["device"] = _device(args.device)
    if args.distributed:
        spread(ZOO[args.name], args.name, arguments)
    instance = make(ZOO[args.name], args.name, arguments)
    chosen = choose(instance, args.solver, pairs(args.options, "--set"))
    instance = deterministic(instance, chosen.solver)
    history = History()
    callbacks: list[Any] = [Progress(), history]
    resume = None
    if folder is not None:
        # A checkpoint a second at most: a killed run loses little, a short run is not slowed.
        callbacks.append(Checkpoint(folder / CHECKPOINT, seconds=1.0))
        if args.resume:
            resume = folder / CHECKPOINT
            if not resume.exists():
                raise CheckpointError(f"--resume: no checkpoint in {folder}")
    result = solve(
        instance.problem,
        chosen.solver,
        start=instance.start if isinstance(instance, ConstrainedInstance) and resume is None else None,
        seed=seed,
        tol=args.tol,
        max_steps=args.max_steps if args.max_steps is not None else chosen.max_steps,
        max_seconds=args.max_seconds,
        resume=resume,
        callbacks=callbacks,
    )
    rows = instance.study.rows(result) if instance.study is not None else []
    _ = result.fun  # of several processes all must evaluate
    return Run(seed, instance, result, result.residuals(), history, rows)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a meta tensor holds no number
    except (RuntimeError, AssertionError) as cause:
        raise OptionError(f"--device {name}: not available here ({str(cause).splitlines()[0]})") from cause
    return device


def _table(args: argparse.Namespace, runs: list[Run]) -> Any:
    from rich.table import Table

    names = list(dict.fromkeys(name for one in runs for name in one.residuals))
    error = any(math.isfinite(one.instance.error(one.result.x)) for one in runs)
    lines: dict[str, list[str]] = {}

    def line(name: str, cells: Iterable[str]) -> None:
        lines[name] = list(cells)

    line("seed", (str(one.seed) for one in runs))
    line("status", (one.result.status.name for one in runs))
    line("steps", (str(one.result.steps) for one in runs))
    kind = "upper objective" if Feature.LOWER in runs[0].instance.features else "objective"
    line(kind, (f"{one.result.fun:.6g}" for one in runs))
    for name in names:
        line(f"residual {name}", (f"{one.residuals.get(name, math.nan):.1e}" for one in runs))
    if error:
        line("error of x", (f"{one.instance.error(one.result.x):.1e}" for one in runs))
    for name in ("gradients", "hvps"):
        line(name, (str(getattr(one.result.calls.total(), name)) for one in runs))
    line("rows differentiated / 1000", (f"{one.result.calls.rows / 1000:.4g}" for one in runs))
    line("seconds", (f"{one.result.seconds:.2f}" for one in runs))
    table = Table(show_header=False, title=f"{args.name} by {type(runs[0].result.solver).__name__}")
    if len(runs) <= UPRIGHT:  # one column a seed
        for name, cells in lines.items():
            table.add_row(name, *cells)
        return table
    table.show_header = True
    for name in lines:
        table.add_column(name.replace("differentiated ", "").replace("residual ", "residual\n"), justify="right")
    for cells in zip(*lines.values()):
        table.add_row(*cells)
    return table


def _write(one: Run, folder: Path | None) -> None:
    """result.json, history.csv, convergence.png and the study's pictures."""
    assert folder is not None
    write_text(folder / "result.json", _json(_record(one)))
    one.history.write(folder / "history.csv")
    try:
        extra("matplotlib", "zoo")
        from ..report.pictures import convergence_picture

        watched = _watched(one.history.rows)
        if any(math.isfinite(value) for row in watched for name, value in row.items() if name not in ("k", "seconds")):
            convergence_picture(watched, folder / "convergence.png")
        if one.instance.study is not None:
            one.instance.study.draw(one.result, folder)
    except OSError as cause:
        raise OutputError(f"{folder}: a picture cannot be written: {cause}") from cause


def _watched(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the solver monitors, without counters and what never changes."""
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in ("gradients", "rows")]
    clock = ("k", "seconds")
    kept = [name for name in names if name in clock or len({row[name] for row in rows if name in row}) > 1]
    if all(name in clock for name in kept):  # too short a run for anything to change
        kept = names
    return [{name: row[name] for name in kept if name in row} for row in rows]


def _record(one: Run) -> dict[str, Any]:
    r = one.result
    record = {
        "problem": one.instance.name,
        "source": one.instance.source,
        "solver": repr(r.solver),
        "seed": one.seed,
        "status": r.status.name,
        "message": r.message,
        "notes": list(r.notes),
        "steps": r.steps,
        "seconds": r.seconds,
        "upper_objective": r.fun,
        "residuals": one.residuals,
        "calls": r.calls.as_dict(),
        "versions": {"bilevel": VERSION, "torch": torch.__version__},
        "rows": [dataclasses.asdict(row) for row in one.rows],
    }
    for name, tree in (("x", r.x), ("y", r.y)):
        vec = Vec.of(tree)
        if vec.size <= LISTED and not sharded(vec.leaves):
            record[name] = {path or name: leaf.tolist() for path, leaf in zip(vec.paths(), vec.leaves)}
    return record


def _json(record: dict[str, Any]) -> str:
    return json.dumps(_plain(record), indent=1, default=str, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """NaN and infinities, which JSON has not, as null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
