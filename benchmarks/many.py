"""How long 64 starts of a small problem take side by side, to one solve.

    python benchmarks/many.py [--starts 64] [--spread 1.0] [--repeats 5] [--device cpu] [--only HS71 HS78 ...]

one        the smallest process time of `solve` from the collection's start, milliseconds
many       the same of `solve_many` from as many starts, drawn as `multistart` draws them
ratio      of the two
steps      of the one, the median of the many, the most of them
solved     CONVERGED of the many, each with residuals within 1e-8, asked of the problem again
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from constrained import ConstrainedProblem, solve, solve_many
from problems.cutest import cutest

NAMES = ("HS6", "HS7", "HS26", "HS39", "HS78", "HS80", "HS71", "HS43", "HS35", "HS76", "HS65", "HS100", "HS113")


def drawn(problem: ConstrainedProblem, count: int, spread: float) -> torch.Tensor:
    """The problem's start, then x + spread N(0, 1); uniform in a box whose sides are all finite."""
    x, rng = problem.x, np.random.default_rng(0)
    low, high = (torch.from_numpy(end).to(x) for end in problem.oracle().bounds)
    if bool((high - low).isfinite().all()):
        moved = low + (high - low) * torch.from_numpy(rng.uniform(size=(count, len(x)))).to(x)
    else:
        moved = torch.clamp(x + spread * torch.from_numpy(rng.normal(size=(count, len(x)))).to(x), low, high)
    return torch.cat([x[None], moved[1:]])


def least(work: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> tuple[float, Any]:
    best, found = math.inf, None
    for _ in range(repeats):
        began = clock()
        found = work()
        best = min(best, clock() - began)
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=64)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", default=NAMES)
    options = parser.parse_args()
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    print(f"{'problem':8} {'one':>8} {'many':>8} {'ratio':>6}   steps            solved")
    ratios = []
    for name in options.only:
        problem = cutest(name=name, device=options.device).problem
        X = drawn(problem, options.starts, options.spread)
        solve(problem)
        solve_many(problem, X[:2])
        one, alone = least(lambda problem=problem: solve(problem), options.repeats, clock)
        many, found = least(lambda problem=problem, X=X: solve_many(problem, X), options.repeats, clock)
        steps = sorted(result.steps for result in found)
        solved = sum(result.success and max(result.residuals().values()) <= 1e-8 for result in found)
        ratios.append(many / one)
        listed = f"{alone.steps:3d} {steps[len(steps) // 2]:4d} {steps[-1]:4d}"
        print(f"{name:8} {1e3 * one:8.1f} {1e3 * many:8.1f} {ratios[-1]:6.1f}   {listed}   {solved:9d}", flush=True)
    print(f"geometric mean of the ratios {math.exp(sum(map(math.log, ratios)) / len(ratios)):.1f}")


if __name__ == "__main__":
    main()
