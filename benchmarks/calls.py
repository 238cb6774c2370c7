"""How often the user's functions are called, how many points they are asked at, and who asks at a point once more.

    python benchmarks/calls.py [--only TEXT] [--repeats] [--seconds N]

calls    calls of the problem's own functions, counted by wrapping them
points   distinct arguments of these calls, by their bytes and the batch; a ratio of 1 asks each function once a point
counted  evaluations that `result.calls` tells, every purpose together
worst    the function with the largest ratio

`--repeats`: where repeated calls come from, `first asked by > asked again by`: the choice of a solver, the start look, the
solver, its answer, the certificate's parts. `--seconds N`: instead, the smallest process time of N solves with the problem's own
functions, milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

import bilevel
import constrained
from bilevel import LVHBA, MAID, Implicit, Penalty
from constrained import AugmentedLagrangian, Function, Result, SketchedNewton
from constrained.core.problem import Problem
from constrained.core.vec import tensors
from problems import ZOO, elastic_net, lasso, logistic, logistic_penalties, pl_toy, quadratic, ridge_1, ridge_50
from problems.cutest import cutest

FUNCTIONS = (
    *("upper", "lower", "lower_equality", "lower_inequality", "upper_equality", "upper_inequality"),
    *("objective", "equality", "inequality"),
)
PARTS = {  # functions of the library, the innermost of which says who asks
    "default_solver": "choice",
    "check_start": "start",
    "expect_right": "derivatives at the start",
    "lost_twice": "second derivatives",
    "residuals": "residuals",
    "lower_gap": "lower gap",
    "wrong": "derivatives",
    "shares": "progress",
    "answer": "answer",
    "init": "init",
    "step": "step",
    "terminate": "step",
    "sharpened": "sharpened",
}
RUNS: dict[str, tuple[Callable[[], Problem], Any]] = {
    "HS6": (lambda: cutest(name="HS6").problem, None),
    "HS28": (lambda: cutest(name="HS28").problem, None),
    "HS78": (lambda: cutest(name="HS78").problem, None),
    "BT4": (lambda: cutest(name="BT4").problem, None),
    "HS28, SketchedNewton": (lambda: cutest(name="HS28").problem, SketchedNewton()),
    "HS6, AugmentedLagrangian": (lambda: cutest(name="HS6").problem, AugmentedLagrangian()),
    "BT4, AugmentedLagrangian": (lambda: cutest(name="BT4").problem, AugmentedLagrangian()),
    "logistic": (lambda: logistic(data="synthetic", n=20, N=200).problem, None),
    "quadratic": (lambda: quadratic().problem, None),
    "quadratic, Penalty": (lambda: quadratic().problem, Penalty()),
    "quadratic, MAID": (lambda: quadratic().problem, MAID()),
    "pl-toy": (lambda: pl_toy().problem, None),
    "ridge-1": (lambda: ridge_1().problem, None),
    "ridge-1, Implicit": (lambda: ridge_1().problem, Implicit()),
    "ridge-50": (lambda: ridge_50().problem, None),
    "elastic-net": (lambda: elastic_net().problem, None),
    "lasso": (lambda: lasso().problem, None),
    "logistic-penalties": (lambda: logistic_penalties().problem, None),
    "coupled-toy, LVHBA": (lambda: ZOO["coupled-toy"]().problem, LVHBA()),
}


class Watched:
    """A function of the user's with every call noted: its arguments, and who asked."""

    def __init__(self, call: Any):
        self.own, self.calls = call, 0
        self.first: dict[str, str] = {}  # point -> who asked first
        self.again: Counter[tuple[str, str]] = Counter()  # (first, again)

    def __call__(self, *args: Any) -> Any:
        point = hashlib.sha256()
        for leaf in tensors([list(one.parameters()) if isinstance(one, torch.nn.Module) else one for one in args]):
            point.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        who, key = asked_by(), point.hexdigest()
        self.calls += 1
        if key in self.first:
            self.again[self.first[key], who] += 1
        self.first.setdefault(key, who)
        return self.own(*args)


def asked_by() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        part = PARTS.get(frame.f_code.co_name)
        if part is not None and frame.f_globals["__name__"].split(".")[0] in ("bilevel", "constrained"):
            return part
        frame = frame.f_back
    return "elsewhere"


def watch(problem: Problem) -> tuple[Problem, dict[str, Watched]]:
    """The same problem with its functions watched."""
    watched, fields = {}, {}
    for name in FUNCTIONS:
        own = getattr(problem, name, None)
        if own is None:
            continue
        one = watched[name] = Watched(own.value if isinstance(own, Function) else own)
        fields[name] = dataclasses.replace(own, value=one) if isinstance(own, Function) else one
    return dataclasses.replace(problem, **fields), watched  # pyright: ignore[reportArgumentType]


def solved(problem: Problem, solver: Any) -> Result:
    steps = 200 if problem.features & constrained.Feature.SAMPLES else None  # a stochastic default
    return (bilevel if isinstance(problem, bilevel.BilevelProblem) else constrained).solve(problem, solver, max_steps=steps)


def counted(result: Result) -> int:
    """Evaluations that the tally tells: of a bilevel problem each gradient is one, of a constrained one all are values."""
    total = sum((result.calls.total(purpose).values for purpose in result.calls.by), 0)
    if isinstance(result.problem, bilevel.BilevelProblem):
        total += sum((result.calls.total(purpose).gradients for purpose in result.calls.by), 0)
    return total


def ratios(only: str, repeats: bool) -> None:
    print(f"{'':28}{'status':>10}{'calls':>8}{'points':>8}{'ratio':>7}{'counted':>9}  worst")
    for name, (make, solver) in RUNS.items():
        if only not in name:
            continue
        problem, watched = watch(make())
        result = solved(problem, solver)
        calls, points = (sum(found) for found in zip(*((one.calls, len(one.first)) for one in watched.values())))
        worst = max(watched, key=lambda key: watched[key].calls / max(1, len(watched[key].first)))
        ratio = watched[worst].calls / max(1, len(watched[worst].first))
        numbers = f"{calls:8,}{points:8,}{calls / points:7.2f}{counted(result):9,}"
        print(f"{name:28}{result.status.name:>10}{numbers}  {worst} {ratio:.2f}", flush=True)
        if repeats:
            again = sum((one.again for one in watched.values()), Counter())
            for (first, later), n in again.most_common(12):
                print(f"{'':30}{n:6,}  {first} > {later}")


def seconds(only: str, n: int) -> None:
    for name, (make, solver) in RUNS.items():
        if only not in name:
            continue
        found = []
        for _ in range(n):
            problem = make()
            start = time.process_time()
            solved(problem, solver)
            found.append(time.process_time() - start)
        print(f"{name:28}{1e3 * min(found):10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    parser.add_argument("--repeats", action="store_true", help="where repeated calls come from")
    parser.add_argument("--seconds", type=int, metavar="N", help="process time instead, of N solves")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.seconds:
        seconds(args.only, args.seconds)
    else:
        ratios(args.only, args.repeats)


if __name__ == "__main__":
    main()
