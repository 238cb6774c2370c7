"""The command line: bilevel list | show NAME | run NAME | reproduce PAPER."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from constrained.core.errors import BilevelError, OptionError
from constrained.core.version import VERSION

from . import ZOO
from .cli.distributed import joined
from .cli.run import WIDTH, run
from .cli.words import DTYPES, SOLVERS, choose, make, pairs
from .papers import PAPERS


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="bilevel", description="Bilevel problems of the zoo: list them, look at one, solve one.")
    top.add_argument("--version", action="version", version=VERSION)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the problems and the solvers")
    show = commands.add_parser("show", help="one problem: formulas, arguments, source, recommended solvers")
    go = commands.add_parser("run", help="solve a problem and say how well")
    paper = commands.add_parser("reproduce", help="what a paper published beside what runs here: tables and plots")
    paper.add_argument("paper", choices=sorted(PAPERS), metavar="PAPER", help=f"one of {', '.join(sorted(PAPERS))}")
    paper.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds of the averages (default 5)")
    paper.add_argument("--out", type=Path, metavar="DIR", help="write findings.md, findings.json and the plots there")
    for one in (show, go):
        one.add_argument("name", choices=sorted(ZOO), metavar="NAME", help="a name that `bilevel list` prints")
        more = {"action": "append", "default": [], "metavar": "ARGUMENT=VALUE", "help": "an argument of the problem"}
        one.add_argument("--with", dest="arguments", **more)
    go.add_argument("--solver", choices=sorted(SOLVERS), help="default: the problem's first recommended")
    go.add_argument("--set", dest="options", action="append", default=[], metavar="OPTION=VALUE", help="an option of the solver")
    go.add_argument("--seed", type=int, default=0, metavar="S", help="of the problem's data and of the solver (default 0)")
    go.add_argument("--seeds", type=int, default=1, metavar="N", help="run the seeds S, S+1, ..., S+N-1")
    go.add_argument("--tol", type=float, help="tolerance on the residuals")
    go.add_argument("--max-steps", type=int, help="step limit")
    go.add_argument("--max-seconds", type=float, help="limit on the solver's own time")
    go.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...")
    go.add_argument("--dtype", choices=sorted(DTYPES), default=None)
    go.add_argument("--threads", type=int, default=1, help="torch threads (default 1, the fastest for small models)")
    go.add_argument("--distributed", action="store_true", help="as one of the processes of torchrun; prints in the first")
    go.add_argument("--out", type=Path, metavar="DIR", help="write result.json, history.csv, pictures and a checkpoint there")
    go.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 when the status is ok or a budget ended, 1 for any other status or error, 2 for usage."""
    args = parser().parse_args(argv)
    try:
        if args.command == "list":
            return _list()
        if args.command == "show":
            return _show(args)
        if args.command == "reproduce":
            return _reproduce(args)
        torch.set_num_threads(max(1, args.threads))
        if not args.distributed:
            return run(args)
        with joined() as device:
            args.device = device if args.device is None else args.device
            return run(args)
    except BilevelError as error:
        print(f"bilevel: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _reproduce(args: argparse.Namespace) -> int:
    from rich.console import Console

    if args.seeds < 1:
        raise OptionError(f"--seeds: expected an integer >= 1, got {args.seeds}")
    torch.set_num_threads(1)
    page = PAPERS[args.paper](seeds=args.seeds)
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    for one in page.findings:
        console.print(one.table())
        for label, text in (("published", one.published), ("here", one.here)):
            console.print(f"{label}: {text}\n", highlight=False)
    if args.out is not None:
        page.write(args.out)
        console.print(f"files in {args.out}", highlight=False)
    return 0


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="problems")
    for column in ("name", "what"):
        table.add_column(column)
    for name, factory in ZOO.items():
        table.add_row(name, inspect.getdoc(factory).splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    solvers = Table(title="solvers")
    for column in ("name", "what"):
        solvers.add_column(column)
    for name, cls in SOLVERS.items():
        solvers.add_row(name, inspect.getdoc(cls).splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    console = Console()
    console.print(table)
    console.print(solvers)
    return 0


def _show(args: argparse.Namespace) -> int:
    factory = ZOO[args.name]
    instance = make(factory, args.name, pairs(args.arguments, "--with"))
    variables = instance.problem.variables()
    lines = [inspect.getdoc(factory) or "", ""]
    defaults = [f"{p.name}={p.default}" for p in inspect.signature(factory).parameters.values()]
    lines.append(f"arguments    {', '.join(defaults)}")
    lines.append(f"variables    {', '.join(f'{name} with {vec.size} entries' for name, vec in variables.items())}")
    lines.append(f"features     {instance.features.words()}")
    lines.append(f"source       {instance.source}")
    known = f"{len(instance.solution)} known" if instance.solution else "not known in closed form"
    lines.append(f"solutions    {known}")
    found = [choose(instance, None, {})] if not instance.recommended else instance.recommended.values()
    lines += [f"solver       {one.solver}" + (f", max_steps={one.max_steps}" if one.max_steps else "") for one in found]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
