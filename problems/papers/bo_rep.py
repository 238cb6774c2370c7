"""BO-REP: bilevel optimization under unbounded smoothness, arXiv 2401.09587 (ICLR 2024).

Where normalised steps arrive and steps along the gradient overflow, where they have no advantage, label cleaning with a GRU and a
recurrent encoder for many tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bilevel.solvers.bo_rep import BORep
from bilevel.solvers.soba import SOBA
from bilevel.solvers.stocbio import StocBiO
from constrained.core.derivatives.counts import Calls
from constrained.core.run import iterate
from constrained.core.solver import Solver
from constrained.core.status import Status

from ..exponential import GROWTH, exponential
from ..instance import Instance
from .bo_rep_text import PAPER, READ, cleaning, representation
from .page import Finding, Page
from .plots import side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS = 24  # points of a curve


def bo_rep(*, seeds: int = 5, steps: int = 2000, share: float = 1.0) -> Page:
    """The page. seeds: of the averages, three at most on the steep problem, elsewhere two; steps: of BORep on the exponential
    problems, which sets the cost for all; share: of the recommended steps that the texts get.
    """
    few = min(seeds, 2)
    runs = [separation(min(seeds, 3), steps), level(few, steps), cleaning(few, share), representation(few, share)]
    return Page("bo-rep", (PAPER,), runs)


# -- runs -------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trace:
    """A run on an exponential problem: its cost at some steps and |grad Phi| there, how it ended, and its calls."""

    cost: np.ndarray
    slope: np.ndarray
    status: Status
    steps: int
    calls: Calls

    @property
    def overflowed(self) -> bool:
        return self.status in (Status.DIVERGED, Status.NONFINITE)


def spent(calls: Calls) -> int:
    """Gradients and products with second derivatives, one each."""
    return calls.gradients + calls.hvps + calls.jvps


def slope(instance: Instance, x: torch.Tensor) -> float:
    """|grad Phi| of an exponential problem, whose A is orthogonal: 2 |sinh(3 A x)|."""
    problem: Any = instance.problem
    return 2 * float(torch.sinh(GROWTH * problem.lower_solution(x)).norm())


def trace(instance: Instance, solver: Solver, seed: int, budget: float, steps: int | None = None) -> Trace:
    """A run until `steps`, or until the budget of gradients and products is spent."""
    most = steps if steps is not None else 100_000
    points, last = [], None
    for event in iterate(instance.problem, solver, seed=seed, max_steps=most):
        cost, last = spent(event.calls), event
        done = cost >= budget if steps is None else event.k >= steps
        if done or event.status.done or not points or cost >= points[-1][0] + (budget / LOOKS):
            points.append((cost, slope(instance, event.answer.x)))
        if done:
            break
    assert last is not None  # iterate gives the start at least
    cost, values = np.array(points).T
    return Trace(cost, values, last.status, last.k, last.calls.copy())


# -- 1: the separation ------------------------------------------------------------------------------------------------------
Methods = Mapping[str, Solver]
STEEP: Methods = {
    **{f"StocBiO, alpha = {alpha:g}": StocBiO(alpha=alpha) for alpha in (1e-1, 1e-3, 1e-6, 3e-7, 1e-7, 1e-8)},
    **{f"SOBA, alpha = {alpha:g}": SOBA(alpha=alpha) for alpha in (1e-6, 1e-7)},
}


def separation(seeds: int, steps: int) -> Finding:
    """|grad Phi| from x = 6, where it is 6.6e7: BORep, and the grids of the others for the same cost."""
    rows, curves = compared(lambda seed: exponential(seed=seed), {"BORep": BORep()}, STEEP, seeds, steps)
    long = trace(exponential(), StocBiO(alpha=1e-7), 0, math.inf, steps)
    rows.append([f"StocBiO, alpha = 1e-07, {steps:,} steps, seed 0", *cells([long])])
    return Finding(
        name="separation",
        title="An upper level that grows exponentially",
        published="An eps-stationary point after O(eps^-4) gradients and products, up to logarithms, without a bound on the "
        "gradient and without a Lipschitz constant of it: the local one may grow with the gradient's norm. Normalised momentum "
        f"for x, refinement at the start and y renewed now and then are what the proof needs ({PAPER}, abstract; {READ}). A "
        "theorem: no figure was published for a problem such as this.",
        here="f = (exp(3y) + exp(-3y) - 2) / 3, g = (y - a x)^2 / 2 with a = 1 or -1, noise 0.1 relative in f and absolute in "
        f"g_y, from x = 6 with |grad Phi| = 6.6e7; default options but for alpha; {seeds} seeds from 0. BORep takes {steps:,} "
        "steps; the others run until they have spent as many gradients and products, and one run as many steps. Columns: |grad "
        "Phi| at the answer, median and range; runs that ended with a number that overflowed or grew without bound, and the "
        "step where the last of them did. The answers of StocBiO and SOBA are averages over the last half. Not the paper's "
        "experiment: it has none like it.",
        columns=COLUMNS,
        rows=rows,
        picture=lambda: picture("x from 6, one variable", {"|grad Phi|": curves}),
    )


COLUMNS = ["method", "norm of grad Phi", "smallest to largest", "overflowed", "gradients", "products"]


def compared(
    make: Callable[[int], Instance], ours: Methods, others: Methods, seeds: int, steps: int
) -> tuple[list[list[str]], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Rows of the table and the first seed's curves of those that did not overflow."""
    instances = [make(seed) for seed in range(seeds)]
    found: dict[str, list[Trace]] = {}
    for name, solver in ours.items():
        found[name] = [trace(instance, solver, seed, steps, steps) for seed, instance in enumerate(instances)]
    budgets = [max(spent(runs[seed].calls) for runs in found.values()) for seed in range(seeds)]
    for name, solver in others.items():
        found[name] = [trace(instance, solver, seed, budgets[seed]) for seed, instance in enumerate(instances)]
    curves = {name: (runs[0].cost, runs[0].slope) for name, runs in found.items() if not runs[0].overflowed}
    return [[name, *cells(runs)] for name, runs in found.items()], curves


def cells(runs: Sequence[Trace]) -> list[str]:
    """One method: the columns after its name."""
    lost = [run for run in runs if run.overflowed]
    ends = np.array([run.slope[-1] for run in runs if not run.overflowed])
    median, span = (f"{np.median(ends):.2g}", f"{ends.min():.2g} to {ends.max():.2g}") if len(ends) else ("", "")
    overflowed = f"{len(lost)} of {len(runs)}" + (f", by step {max(run.steps for run in lost)}" if lost else "")
    counts = [np.mean([run.calls.gradients for run in runs]), np.mean([run.calls.hvps + run.calls.jvps for run in runs])]
    return [median, span if len(runs) > 1 else "", overflowed, *(f"{count:,.0f}" for count in counts)]


def picture(title: str, diagrams: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
    return side_by_side(title, "gradients and products", diagrams, marker="", scale="semilogy")


# -- 2: no advantage --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Level:
    """A milder problem: what makes it, the share of BORep's steps that it needs, and the alphas of StocBiO."""

    make: Callable[[int], Instance]
    share: float
    alphas: tuple[float, ...]


LEVELS: Mapping[str, Level] = {
    "x from 2": Level(lambda seed: exponential(n=10, size=2.0, seed=seed), 1.0, (1e-3, 1e-4, 1e-5)),
    "x from 1": Level(lambda seed: exponential(n=10, size=1.0, seed=seed), 0.5, (1e-1, 1e-2, 1e-3)),
    "x from 1, condition 20": Level(lambda seed: exponential(n=10, size=1.0, cond=20.0, seed=seed), 0.5, (1e-1, 1e-2, 1e-3)),
}


def level(seeds: int, steps: int) -> Finding:
    """The same f in ten variables with milder starts, and with an ill-conditioned lower level."""
    rows, diagrams = [], {}
    for name, one in LEVELS.items():
        others = {f"StocBiO, alpha = {alpha:g}": StocBiO(alpha=alpha) for alpha in one.alphas}
        found, diagrams[name] = compared(one.make, {"BORep": BORep()}, others, seeds, max(1, round(one.share * steps)))
        rows += [[f"{name}: {row[0]}", *row[1:]] for row in found]
    starts = [f"{np.median([start(one.make(seed)) for seed in range(seeds)]):.2g}" for one in LEVELS.values()]
    return Finding(
        name="level",
        title="Where there is little or no advantage",
        published=f"Nothing: the paper shows problems of its class ({READ}).",
        here="f summed over ten variables, A orthogonal, from x = (2, ..., 2) and (1, ..., 1), the last also with a lower "
        f"level whose Hessian has eigenvalues from 1 to 1/20. At the starts |grad Phi| is {', '.join(starts)} (medians). BORep "
        f"takes {steps:,} steps, from 1 half as many; costs are equal as above; {seeds} seeds from 0. From 2 the difference is "
        "still large. From 1 StocBiO with the best alpha of the three does better, where it does not overflow: what BORep "
        "saves there is the search for alpha, and its own answers are no better than its last eta allows.",
        columns=COLUMNS,
        rows=rows,
        picture=lambda: picture("|grad Phi|", diagrams),
    )


def start(instance: Instance) -> float:
    """|grad Phi| at the start."""
    problem: Any = instance.problem
    return slope(instance, problem.x)
