"""Do limits bind? Every problem of the zoo with every solver that suits it, under max_seconds=1 and under Ctrl-C after a second.

    PYTHONPATH=. python benchmarks/limits.py [NAME ...]

Prints the seconds until `solve` is back, beside the longest call of a user's function on the way; `late` where it took more than
two seconds and that call. Wall time: run it alone on the machine.
"""

from __future__ import annotations

import dataclasses
import inspect
import signal
import sys
import time
from typing import Any

import torch

import bilevel
import bilevel.solvers
import constrained.solvers
from constrained.core.errors import BilevelError, MissingExtra, OptionError
from problems import ZOO

SECONDS, ALLOWED = 1.0, 2.0
FUNCTIONS = ("upper", "lower", "objective", "equality", "inequality", "lower_equality", "lower_inequality")
CUTEST = ("HS6", "HS28", "BT4")


class Slowest:
    """The longest call of the wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watching(self, function: Any) -> Any:
        if function is None or not inspect.isfunction(function):
            return function

        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds = max(self.seconds, time.perf_counter() - start)

        return call


def instances(names: list[str]) -> Any:
    for name, make in ZOO.items():
        if names and name not in names:
            continue
        for options in [{"name": one} for one in CUTEST] if name == "cutest" else [{}]:
            try:
                yield f"{name} {options.get('name', '')}".strip(), make(**options).problem
            except (BilevelError, TypeError) as error:  # data that has to be fetched
                print(f"{name}: left out: {error}")


def solvers(problem: Any) -> Any:
    module = bilevel.solvers if isinstance(problem, bilevel.BilevelProblem) else constrained.solvers
    for name in module.__all__:
        kind = getattr(module, name)
        try:
            if not kind.lacks(problem.features):
                yield name, kind()
        except (OptionError, TypeError):  # needs options
            continue


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def timed(problem: Any, solver: Any, how: str) -> tuple[float, str, float]:
    slowest = Slowest()
    own = {name: slowest.watching(getattr(problem, name)) for name in FUNCTIONS if hasattr(problem, name)}
    watched = dataclasses.replace(problem, **own)
    limit: dict[str, Any] = {"max_seconds": SECONDS} if how == "max_seconds" else {}
    start = time.perf_counter()
    if how == "ctrl-c":
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        said = bilevel.solve(watched, solver, max_steps=10**9, **limit).status.name
    except KeyboardInterrupt:  # before there was a state
        said = "KeyboardInterrupt"
    except (BilevelError, MissingExtra) as error:
        said = type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - start, said, slowest.seconds


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, interrupt)
    late = runs = 0
    for name, problem in instances(names):
        for label, solver in solvers(problem):
            for how in ("max_seconds", "ctrl-c"):
                seconds, said, call = timed(problem, solver, how)
                over = seconds > ALLOWED + call
                late, runs = late + over, runs + 1
                flag = "late" if over else ""
                print(f"{name:24s} {label:22s} {how:12s} {seconds:6.2f} s  call {call:5.2f} s  {said:18s} {flag}", flush=True)
    print(f"{late} of {runs} late")
    return late


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
