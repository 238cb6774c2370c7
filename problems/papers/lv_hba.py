"""Yao, Yu, Zeng and Zhang: Constrained bi-level optimization: proximal Lagrangian value function approach and Hessian-free
algorithm. ICLR 2024, arXiv 2401.16164.

Its two synthetic problems by its own iteration with the numbers of the authors' scripts, by this library's forms, and the
support vector machines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bilevel.problem import BilevelProblem
from bilevel.solvers.implicit import Implicit
from bilevel.solvers.lv_hba import LVHBA
from bilevel.solvers.lv_hba_single import LVHBASingleLoop
from constrained.core.options import Power
from constrained.core.problem import Multipliers
from constrained.core.run import iterate, solve
from constrained.core.solver import Solver

from ..coupled import coupled_toy, llc, llsc, svm_weights
from ..instance import Instance
from .page import Finding, Page
from .plots import side_by_side

PAPER = "Yao, Yu, Zeng and Zhang, arXiv 2401.16164"
READ = "at hand: abstract, reviews, authors' scripts"


def lv_hba(*, seeds: int = 5, steps: int = 20_000, svm: Sequence[tuple[str, int, int]] | None = None) -> Page:
    """The page: data sets of the strongly convex problem and starts of the toy, steps of the published iteration; svm: data,
    training and validation rows.
    """
    rows = svm or (("diabetes", 500, 150), ("fourclass", 500, 150), ("gisette", 60, 30))
    return Page(
        "lv-hba",
        (PAPER,),
        [merely_convex(steps), strongly_convex(max(1, steps // 20)), inequality(seeds), machines(rows), sizes()],
    )


# -- 1: the merely convex problem -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Setting:
    """The numbers of one script for Algorithm 1. c_k = c (k + 1)^0.3."""

    alpha: float
    beta: float
    eta: float
    gamma1: float
    gamma2: float
    c: float
    r: float


OFFICIAL = Setting(0.008, 0.02, 0.01, 10.0, 10.0, 0.025, 1000.0)
SETTINGS = {
    "authors' script": OFFICIAL,
    "second script, r = 1": Setting(0.005, 0.002, 0.03, 10.0, 10.0, 1.0, 1.0),
    "second script, r = 1000": Setting(0.005, 0.002, 0.03, 10.0, 10.0, 1.0, 1000.0),
    "third script, r = 1": Setting(0.005, 0.002, 0.03, 10.0, 1.0, 1.0, 1.0),
    "shorter eta, r = 1000": Setting(0.005, 0.02, 0.005, 10.0, 10.0, 1.0, 1000.0),
}


@dataclass(frozen=True)
class Trace:
    """Relative errors of x and y after each step, and the multiplier at the end."""

    x: np.ndarray
    y: np.ndarray
    multiplier: float


def published(one: Setting, steps: int, n: int = 100) -> Trace:
    """Algorithm 1 on the problem of `lv_hba.llc` as the authors' script runs it, the constraint's row of length sqrt(3n)."""
    e = np.ones(n)
    x, y = -20.0 * e, 10.0 * np.ones(2 * n)  # 10 e, projected as there
    th, la, z = 10.0 * np.ones(2 * n), 1.0, -1.0
    errors = np.empty((steps, 2))
    for k in range(steps):
        c = one.c * (k + 1) ** 0.3
        slope = np.concatenate([th[:n] - x, e]) + la + (th - y) / one.gamma1
        rise = x.sum() + th.sum() - (la - z) / one.gamma2
        th, la = th - one.eta * slope, float(np.clip(la + one.eta * rise, -one.r, one.r))
        d_x = (x - y[n:]) / c - y[:n] + th[:n] - la
        d_y = np.concatenate([(y[:n] - 1) / c + y[:n] - x, (y[n:] - x) / c + e]) - (y - th) / one.gamma1
        x, y = x - one.alpha * d_x, y - one.alpha * d_y
        shift = (x.sum() + y.sum()) / (3 * n)
        x, y = x - shift, y - shift
        z = float(np.clip(z + one.beta * (la - z) / one.gamma2, -one.r, one.r))
        far = np.linalg.norm(y - np.concatenate([0.7 * e, -0.4 * e])) / np.sqrt(0.65 * n)
        errors[k] = np.linalg.norm(x + 0.3) / np.sqrt(0.09 * n), far
    return Trace(errors[:, 0], errors[:, 1], la)


def merely_convex(steps: int) -> Finding:
    """Relative errors on LLC by the settings of the scripts, and by the library's two forms."""
    instance = llc()
    (known,) = instance.solution
    rows, curves = [], {}
    for name, one in SETTINGS.items():
        found = published(one, steps)
        for last in dict.fromkeys((min(1500, steps), steps) if one is OFFICIAL else (steps,)):
            x, y = found.x[:last], found.y[:last]
            cells = [f"{value:.2g}" for value in (x[-1], y[-1], x.min())]
            rows.append([name, f"{last:,}", f"{4 * last:,}", *cells, f"{found.multiplier:.4g}" if last == steps else ""])
        if name in ("authors' script", "second script, r = 1", "shorter eta, r = 1000"):
            curves[name] = 4 * np.arange(1, steps + 1), found
    ours: dict[str, tuple[Solver, int | None]] = {
        "`LVHBASingleLoop.paper()`": (LVHBASingleLoop.paper(), min(1500, steps)),
        "`LVHBASingleLoop()`": (LVHBASingleLoop(), min(5500, steps)),
        "`LVHBA()`": (LVHBA(), None),
    }
    for name, (solver, most) in ours.items():
        points, last = [], None
        for event in iterate(instance.problem, solver, max_steps=most):
            if most is None or event.k % 50 == 0 or event.status.done:
                points.append((event.calls.gradients, instance.error(event.answer.x), relative(event.answer.y, known.y)))
            last = event
        assert last is not None
        gradients, x, y = np.array(points).T
        multiplier = _lower(last.answer.multipliers, "equality")
        cells = [f"{value:.2g}" for value in (x[-1], y[-1], x.min())]
        rows.append([name, f"{last.k:,}", f"{gradients[-1]:,.0f}", *cells, f"{multiplier:.4g}"])
        if "paper" not in name:
            curves[name.strip("`")] = gradients, Trace(x, y, multiplier)
    return Finding(
        name="llc",
        title="The merely convex problem, 100 and 200 variables",
        published="One run of 1,500 steps from x = y = 10 e, drawn as log of the relative error of x against seconds; the "
        f"solution is x = -0.3 e, y = (0.7 e, -0.4 e), f = 5 ({PAPER}; {READ}, not its plots).",
        here="Above, Algorithm 1 in numpy on the constraint as it is, with the script's start and numbers: it oscillates, "
        "after 1,500 steps x is further away than at the start (66), and the least error, after 434 steps, is only passed "
        "through. A second and a third script, by the same group, converge since their bound r = 1 on the multiplier is the "
        "multiplier itself (-1): with r = 1000 the second does not. With eta = .005 the iteration converges, to the bias of "
        "its slowly growing c. Below, this library: rows normalised, `LVHBASingleLoop` with estimated step sizes, `LVHBA` with "
        "c grown and extrapolated; their answer's y is a lower solution. Gradients are those of both levels.",
        columns=["iteration", "steps", "gradients", "error of x", "error of y", "least error of x", "multiplier"],
        rows=rows,
        picture=lambda: side_by_side(
            "Merely convex lower level, n = 100",
            "gradients of f and g",
            {
                "relative error of x": {name: (k, found.x) for name, (k, found) in curves.items()},
                "relative error of y": {name: (k, found.y) for name, (k, found) in curves.items()},
            },
            marker="",
        ),
    )


def _lower(multipliers: Multipliers | None, kind: str) -> float:
    """The one multiplier of a lower level with one constraint."""
    assert multipliers is not None
    assert multipliers.lower is not None
    return float(multipliers.lower[kind])


def relative(found: Tensor, known: Tensor) -> float:
    return float((found - known).norm() / known.norm())


# -- 2: the strongly convex problem -----------------------------------------------------------------------------------------
def strongly_convex(steps: int) -> Finding:
    """f and the relative error of x on LLSC, from the authors' start and from a near one."""
    script = LVHBASingleLoop(alpha=0.02, beta=0.001, eta=0.1, c=Power(1.0, -0.3), r=1e9)
    runs: dict[str, tuple[Solver, int | None, float]] = {
        "script's numbers": (script, steps, 10.0),
        "script's numbers, near": (script, 3 * steps, 0.1),
        "`LVHBASingleLoop()`, near": (LVHBASingleLoop(), 3 * steps, 0.1),
        "`LVHBA()`": (LVHBA(), steps, 10.0),
        "`LVHBA()`, near": (LVHBA(), None, 0.1),
    }
    rows = []
    for name, (solver, most, start) in runs.items():
        instance = llsc(start=start)
        best, problem = instance.solution[0], cast(BilevelProblem, instance.problem)
        least = float(problem.upper(best.x, best.y))
        result = solve(problem, solver, max_steps=most)
        counts = [f"{start:g}", f"{result.steps:,}", f"{result.calls.gradients:,}", f"{result.fun:.7f}"]
        rows.append([name, *counts, f"{float(result.fun) - least:.1e}", f"{relative(result.x, best.x):.1e}", result.status.name])
    return Finding(
        name="llsc",
        title="The strongly convex problem, 100 and 100 variables, 90 coupled rows",
        published="f against seconds, 1,000 steps from x = y = 10 e; with the authors' matrices its least value is -0.7193 "
        f"({PAPER}; {READ}).",
        here="Matrices drawn by seed with the same sizes, ranks and condition 300 of the reduced problem, not the authors' "
        "files. f is at the answer's lower solution, the error of x against the best minimiser. f has several local minima; "
        "from 10 e neither the script's numbers nor `LVHBA` come near the best, and `LVHBA` ends there without a proof "
        "(PRECISION). The iteration runs on orthonormalised rows, the script on raw ones: a run of 3,000 steps with the "
        "authors' matrices, before this page was written, came to f = -0.41 and a relative error of x of 0.74.",
        columns=["iteration", "start", "steps", "gradients", "f", "above least", "error of x", "status"],
        rows=rows,
    )


# -- 3: an inequality -------------------------------------------------------------------------------------------------------
def inequality(seeds: int) -> Finding:
    """x, y and the multiplier of the toy with one inequality, from random starts."""
    rng = np.random.default_rng(0)
    starts = [(0.0, 0.0), (5.0, -3.0), *(tuple(rng.uniform(-5, 5, 2)) for _ in range(seeds))]
    runs: dict[str, tuple[Solver, int | None]] = {"`LVHBASingleLoop()`": (LVHBASingleLoop(), 500), "`LVHBA()`": (LVHBA(), None)}
    rows = []
    for name, (solver, most) in runs.items():
        found = []
        for start in starts:
            result = solve(coupled_toy(start=start).problem, solver, max_steps=most)
            multiplier = _lower(result.multipliers, "inequality")
            point: Any = result.x, result.y
            errors = [abs(float(value) - 0.5) for value in point]
            found.append((*errors, abs(multiplier - 0.5), result.calls.gradients, result.success))
        x, y, multiplier, gradients, success = np.array(found, dtype=float).T
        worst = [f"{values.max():.1e}" for values in (x, y, multiplier)]
        rows.append([name, *worst, f"{gradients.mean():,.0f}", f"{success.sum():.0f} of {len(starts)}"])
    return Finding(
        name="inequality",
        title="One coupled inequality",
        published="Nothing: no such toy is in the scripts, whose inequalities are those of the support vector machines "
        f"({PAPER}).",
        here=f"f = (x - 1)^2 + (y - 1)^2, g = (y - 2x)^2 / 2, x + y <= 1: x = y = multiplier = 1/2 by hand. {len(starts)} "
        "starts in [-5, 5]^2; largest errors over them, mean gradients.",
        columns=["iteration", "error of x", "error of y", "error of multiplier", "gradients", "converged"],
        rows=rows,
    )


# -- 4: support vector machines ---------------------------------------------------------------------------------------------
def eliminated(instance: Instance) -> BilevelProblem:
    """`svm_weights` without constraints: at the lower solution xi = max(0, 1 - margin), so that y = (w, b) is left."""
    problem: Any = instance.problem
    free = torch.zeros_like(problem.y["xi"])

    def full(x: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**y, "xi": problem.lower_inequality(x, {**y, "xi": free}).clamp(min=0)}

    return BilevelProblem(
        upper=lambda x, y: problem.upper(x, full(x, y)),
        lower=lambda x, y: problem.lower(x, full(x, y)),
        x=problem.x,
        y={name: problem.y[name] for name in ("w", "b")},
    )


SCRIPT = LVHBASingleLoop(alpha=0.01, beta=0.1, eta=0.01, gamma1=10.0, gamma2=10.0, c=Power(1.0, -0.5), r=200.0)


def machines(sets: Sequence[tuple[str, int, int]]) -> Finding:
    """Validation loss of the learned slack weights: at the solver's own y, and at the lower solution of its x."""
    rows = []
    for data, train, validate in sets:
        instance = svm_weights(data=data, train=train, validate=validate, corrupted=0.4 if data == "gisette" else 0.0)
        problem: Any = instance.problem
        free = eliminated(instance)
        runs: dict[str, tuple[BilevelProblem, Solver, int]] = {
            "start": (problem, SCRIPT, 0),
            "script's numbers": (problem, SCRIPT, 80),
            "`LVHBA()`": (problem, LVHBA(), 20),
            "`Implicit()`, xi eliminated": (free, Implicit(), 60 if train + validate > 200 else 4),
        }
        for name, (one, solver, most) in runs.items():
            start = time.process_time()
            last = None
            for event in iterate(one, solver, max_steps=most):
                last = event
            assert last is not None
            seconds, x = time.process_time() - start, last.state.x.tree()
            own = f"{float(problem.upper(x, last.state.y.tree())):.2f}" if one is problem else ""
            cells = [own, f"{float(free.value(x)):.2f}", f"{float((x - problem.x).norm()):.2g}"]
            rows.append([f"{data}, {train} + {validate}", name, str(last.k), *cells, f"{seconds:.1f}"])
    return Finding(
        name="svm",
        title="Slack weights of linear support vector machines, and data cleaning",
        published="Accuracy and loss on validation and test rows against seconds, 80 steps, 500 training and 150 validation "
        "rows of diabetes and fourclass; gisette with 40 % of the labels wrong, 400 training and 180 validation rows by a "
        f"summary of the paper, 500 and 150 in the script ({PAPER}; {READ}). The scripts judge the iterate w, b itself, which "
        "descends on the validation loss f / c_k directly, and their C never takes its gradient step: `data.add` there is not "
        "in place.",
        here="Rows drawn in the published shapes; gisette by fewer rows than published, with all 5,000 features. f is the sum "
        "over the validation rows, at the solver's own y and at the lower solution of its x; |x - x_0| is how far the weights "
        "went. With exp(x) about .004 the gap g - v hardly depends on x: in the published number of steps neither form learns "
        "the weights, and what changes is f at the iterate's own y, which solves no lower level. `LVHBA` is stopped after 20 "
        "steps; run to its end on 60 + 30 rows of either small set, before this page was written, it stopped at c = 10 with "
        "PRECISION, x as good as unmoved: on this problem it fails too. The last row is the same problem without the "
        "constraints (xi = max(0, 1 - margin) at any lower solution) by implicit differentiation (on gisette 4 steps): so far "
        "at least f can fall. f is not smooth at w = 0, where some of its runs end. Seconds are of a processor.",
        columns=["data", "iteration", "steps", "f at its y", "f at lower solution", "x moved", "seconds"],
        rows=rows,
    )


# -- 5: the cost by size ----------------------------------------------------------------------------------------------------
def sizes(convex: Sequence[int] = (50, 100, 200, 500, 1000), strongly: Sequence[int] = (50, 100, 200)) -> Finding:
    """Gradients and seconds of LVHBA to its default tolerance by n."""
    makers: list[tuple[str, Callable[..., Instance], Sequence[int]]] = [
        ("merely convex", llc, convex),
        ("strongly convex", llsc, strongly),
    ]
    rows = []
    for name, make, many in makers:
        for n in many:
            instance = make(n=n)
            start = time.process_time()
            result = solve(instance.problem, LVHBA())
            seconds = time.process_time() - start
            cells = [str(result.steps), f"{result.calls.gradients:,}", f"{instance.error(result.x):.0e}"]
            rows.append([name, f"{n:,}", *cells, f"{seconds:.1f}", result.status.name])
    return Finding(
        name="sizes",
        title="The cost by size",
        published=f"n = 100 in the scripts of both synthetic problems; 2,000 in a baseline's script for the first ({PAPER}; "
        f"{READ}).",
        here="`LVHBA` with its defaults, to 1e-6; gradients of both levels, seconds on one core of one run. The merely convex "
        "problem has one constraint, the strongly convex one 9 n / 10.",
        columns=["lower level", "n", "steps", "gradients", "error of x", "seconds", "status"],
        rows=rows,
    )
