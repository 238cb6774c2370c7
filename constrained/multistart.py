"""Several starts of one solve: local optima are then a choice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .core.arguments import expect
from .core.errors import OptionError, Unsuitable, extra
from .core.options import Positive, Steps
from .core.problem import Point, Problem
from .core.result import Result
from .core.run import solve
from .core.solver import Solver
from .core.status import Feature
from .core.vec import Vec

FAR = 1e30  # beyond any bound


def multistart(
    problem: Problem,
    solver: Solver[Any, Any] | None = None,
    n: int = 10,
    *,
    spread: float = 1.0,
    seed: int = 0,
    jobs: int = 1,
    **options: Any,
) -> tuple[Result, ...]:
    """`n` runs of `solve`, the best result first: CONVERGED ones before the others, then by `fun`.

    The first start is the problem's own x. The others are uniform in X where each of its entries has two finite bounds, else the
    projection on X of x + spread N(0, 1); y starts where the problem says. Start i uses the seed seed + i. jobs: processes
    (joblib; each on one thread of torch), -1: one a core. options: of `solve`.

    Raises OptionError for n < 1, spread <= 0 or jobs = 0, Unsuitable for a live variable, MissingExtra without joblib
    where jobs is not 1.

    >>> from constrained import ConstrainedProblem, AugmentedLagrangian, Box
    >>> two = torch.full((1,), 2.0, dtype=torch.float64)
    >>> wave = ConstrainedProblem(objective=lambda x: (3 * x).sin().sum() + 0.1 * (x**2).sum(), x=two, X=Box(-4, 4))
    >>> found = multistart(wave, AugmentedLagrangian(), 8)
    >>> [round(one.fun, 3) for one in found[:2]], round(found[-1].fun, 3)
    ([-0.973, -0.973], 0.314)
    """
    expect("n", n, Steps)
    expect("spread", spread, Positive)
    if expect("jobs", jobs, int) == 0:
        raise OptionError("jobs: expected the number of processes, or -1 for one a core, got 0")
    if Feature.LIVE in problem.features:
        raise Unsuitable("multistart: does not handle a live module: every run would move the same one")
    starts = [None, *(_start(problem, spread, seed + i) for i in range(1, n))]
    todo = [(problem, solver, start, seed + i, options) for i, start in enumerate(starts)]
    if jobs == 1:
        found = [solve(problem, solver, start=start, seed=one, **options) for _, _, start, one, _ in todo]
    else:
        joblib = extra("joblib", "search")
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            runs = joblib.Parallel(n_jobs=jobs)(joblib.delayed(_run)(*one) for one in todo)
        found = [result.on(problem) for result in runs]
    return tuple(sorted(found, key=lambda result: (not result.success, result.fun if math.isfinite(result.fun) else math.inf)))


def _start(problem: Any, spread: float, seed: int) -> Point:
    x: Vec = problem.variables()["x"].detach()
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    if problem.X.entrywise and not problem.X.whole:
        low, high = (problem.X.project(x.map(lambda leaf, far=far: torch.full_like(leaf, far))) for far in (-FAR, FAR))
        if max(float(low.max_norm()), float(high.max_norm())) < 0.1 * FAR:
            share = x.map(lambda leaf: torch.as_tensor(rng.uniform(size=leaf.shape)).to(leaf))
            return Point((low + (high - low).times(share)).tree())
    moved = x.map(lambda leaf: leaf + spread * torch.as_tensor(rng.normal(size=leaf.shape)).to(leaf))
    return Point(problem.X.project(moved).tree())


def _run(problem: Problem, solver: Solver | None, start: Point | None, seed: int, options: dict[str, Any]) -> Result:
    """In a process of its own."""
    return solve(problem, solver, start=start, seed=seed, **options)
