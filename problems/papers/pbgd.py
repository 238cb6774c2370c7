"""Shen and Chen: On penalty-based bilevel gradient descent method. ICML 2023, arXiv 2302.05185.

Its toy by 1,000 runs of the authors' script and by this library's forms, the bias against gamma and its bound, the trap of the
gradient's penalty, fixed steps on quadratics, and hyper-cleaning with the scripts' numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bilevel.problem import BilevelProblem
from bilevel.solvers.pbgd import GPBGD, VPBGD
from bilevel.solvers.pbgd_fixed import GPBGDFixedStep, VPBGDFixedStep
from constrained.core.run import solve
from constrained.core.solver import Solver

from ..instance import Instance
from ..quadratic import quadratic
from ..report.pictures import figure, headline, plain
from ..toy import PL_MINIMA, pl_toy
from .page import Finding, Page
from .pbgd_cleaning import PAPER, READ, cleaning
from .penalty import QuadraticTruth
from .plots import COLOURS, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pbgd(*, seeds: int = 5, starts: int = 1000, fixed_steps: int = 2000, cleaning_steps: int = 2000) -> Page:
    """The page: seeds of hyper-cleaning, and four times as many starts of the library's forms on the toy; starts of the
    script's iteration there; steps of the fixed-step forms.
    """
    runs = [toy(starts, 4 * seeds), bias(), trap(), fixed(fixed_steps), cleaning(min(seeds, 3), cleaning_steps)]
    return Page("pbgd", (PAPER,), runs)


# -- 1: the toy -------------------------------------------------------------------------------------------------------------
def gradients(x: np.ndarray, y: np.ndarray, slip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """grad f of the toy; slip: with the denominator of the authors' script, 1 + exp(2 - 4x)^2 for (1 + exp(2 - 4x))^2."""
    e = np.exp(2 - 4 * x)
    under = 1 + e**2 if slip else (1 + e) ** 2
    return 4 * e * np.cos(4 * y + 2) / under + 4 * (4 * x - 2) / ((4 * x - 2) ** 2 + 1), -4 * np.sin(4 * y + 2) / (1 + e)


def value_penalty(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """grad g of the toy: v = 0."""
    s = x + y
    return 2 * s + np.sin(s) ** 2 + x * np.sin(2 * s), 2 * s + x * np.sin(2 * s)


def gradient_penalty(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """grad |g_y|^2 / 2."""
    s = x + y
    g_y = 2 * s + x * np.sin(2 * s)
    return (2 + np.sin(2 * s) + 2 * x * np.cos(2 * s)) * g_y, (2 + 2 * x * np.cos(2 * s)) * g_y


@dataclass(frozen=True)
class Runs:
    """Where runs from many starts ended, after how many steps; `rest`: which of them came to rest."""

    x: np.ndarray
    y: np.ndarray
    steps: np.ndarray
    rest: np.ndarray


def descend(
    starts: np.ndarray,
    gamma: float,
    alpha: float,
    penalty: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = value_penalty,
    slip: bool = False,
    most: int = 20_000,
) -> Runs:
    """The script's iteration from all starts: projected steps on f + gamma p until |u - P(u - alpha grad)| <= 1e-5 alpha."""
    x, y = starts.T.copy()
    steps, going = np.zeros(len(x), dtype=int), np.arange(len(x))
    for _ in range(most):
        a, b = x[going], y[going]
        (f_x, f_y), (p_x, p_y) = gradients(a, b, slip), penalty(a, b)
        new_x, new_y = np.clip(a - alpha * (f_x + gamma * p_x), 0, 3), b - alpha * (f_y + gamma * p_y)
        x[going], y[going] = new_x, new_y
        steps[going] += 1
        going = going[np.hypot(new_x - a, new_y - b) > 1e-5 * alpha]
        if not len(going):
            break
    return Runs(x, y, steps, ~np.isin(np.arange(len(x)), going))


def toy(starts: int, few: int) -> Finding:
    """Ends of the script's iteration, and of the library's forms, against the minima of f(x, -x)."""
    rng = np.random.default_rng(0)
    drawn = np.column_stack([rng.uniform(0, 3.5, starts), rng.uniform(-5, 8.5, starts)])
    runs = {
        "V, gamma 10, script's gradient": descend(drawn, 10, 0.01, slip=True),
        "V, gamma 10": descend(drawn, 10, 0.01),
        "V, gamma 100": descend(drawn, 100, 0.001),
        "V, gamma 1": descend(drawn, 1, 0.1),
        "G, gamma 10": descend(drawn, 10, 0.001, gradient_penalty),
        "G, gamma 100": descend(drawn, 100, 0.0001, gradient_penalty),
    }
    rows = []
    for name, found in runs.items():
        rows.append([name, f"{starts:,}", *_ends(found), f"{np.median(found.steps):.0f}", f"{found.rest.mean():.0%}"])
    for solver in (VPBGD(), GPBGD()):
        results = [solve(pl_toy(seed=seed).problem, solver, tol=1e-5) for seed in range(few)]
        points: list[Any] = [(r.x, r.y) for r in results]
        ends = np.array([(float(x), float(y), r.calls.gradients, r.success) for (x, y), r in zip(points, results)]).T
        found = Runs(ends[0], ends[1], ends[2], ends[3] > 0)
        rows.append(
            [f"`{type(solver).__name__}()`", str(few), *_ends(found), f"{np.median(ends[2]):.0f}", f"{ends[3].mean():.0%}"]
        )
    return Finding(
        name="toy",
        title="A lower level that is not convex",
        published=f"The last iterates of 1,000 runs by V-PBGD lie at the three local minima of f(x, -x) ({PAPER}; a picture in "
        "the authors' repository). A third party's harness: 260.7 steps on average for V and 303.7 for G, residuals .030 and "
        ".081 (MLS-bench, its setting not the paper's).",
        here="The script's iteration with its numbers: x_0 in U(0, 3.5), y_0 in U(-5, 8.5), alpha = 0.1 / gamma, to 1e-5; for "
        "G, which the script has not, alpha = 0.01 / gamma. The script's gradient has a slip of precedence, 1 + exp(2 - 4x)^2 "
        "for (1 + exp(2 - 4x))^2, which moves its limits; all rows but the first have the right one. Counts: runs that end "
        f"nearest to {', '.join(f'{x:.4f}' for x in PL_MINIMA)}, with |x + y| <= 0.1, and the others (not a lower solution). "
        "Largest errors are over the former. The library's forms: from starts by seed, with x_0 in U(0, 3), to 1e-5, gradients "
        "in place of steps; GPBGD reports LOWER_UNSOLVED where it is stuck. In more than half of its runs with fixed steps G "
        "ends, at either gamma, where |g_y|^2 has a minimum of its own and g_y is not 0, most often on the bound x = 3.",
        columns=["method", "runs", "at minima", "elsewhere", "error of x", "|x + y|", "steps", "came to rest"],
        rows=rows,
        picture=lambda: _toy_picture(runs["V, gamma 10, script's gradient"], runs["V, gamma 10"], runs["G, gamma 10"]),
    )


def _ends(found: Runs) -> list[str]:
    gap = np.abs(found.x + found.y)
    near = gap <= 0.1
    far = np.abs(found.x[:, None] - np.array(PL_MINIMA))
    counts = np.bincount(far.argmin(1)[near], minlength=len(PL_MINIMA))
    worst = [f"{values[near].max():.1e}" if near.any() else "" for values in (far.min(1), gap)]
    return [" / ".join(map(str, counts)), str(int((~near).sum())), *worst]


def _toy_picture(slip: Runs, right: Runs, gradient: Runs) -> Figure:
    """f(x, -x) with the ends of V on it; the ends of V and G in the plane."""
    picture = figure(8.0, 3.5)
    line = np.linspace(0, 3, 400)
    left, plane = (picture.add_subplot(1, 2, place) for place in (1, 2))
    for axes, across, title in ((left, "x", "f(x, -x), and f at the ends"), (plane, "x", "y at the ends")):
        plain(axes)
        axes.set_xlabel(across)
        axes.set_title(title, fontsize=10, loc="left")
    left.plot(line, _toy_f(line, -line), color=COLOURS[-1], linewidth=1.2, label="y = -x")
    plane.plot(line, -line, color=COLOURS[-1], linewidth=1.2)
    marks = {"V, script's gradient": (slip, "x"), "V": (right, "o"), "G": (gradient, "+")}
    for (name, (found, mark)), colour in zip(marks.items(), COLOURS):
        if name != "G":
            left.plot(found.x, _toy_f(found.x, found.y), mark, color=colour, markersize=4, fillstyle="none")
        plane.plot(found.x, found.y, mark, color=colour, markersize=4, fillstyle="none", label=f"{name}, gamma = 10")
    handles = [*left.get_legend_handles_labels()[0], *plane.get_legend_handles_labels()[0]]
    picture.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    headline(picture, f"Ends of {len(slip.x):,} runs on the toy")
    return picture


def _toy_f(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.cos(4 * y + 2) / (1 + np.exp(2 - 4 * x)) + 0.5 * np.log((4 * x - 2) ** 2 + 1)


# -- 2: the bias ------------------------------------------------------------------------------------------------------------
GAMMAS = np.logspace(0, 4, 9)
SHOWN = 4  # gamma = 100
ASYMPTOTIC = slice(4, None)


def penalised(truth: QuadraticTruth, gamma: float, gradient: bool) -> tuple[Tensor, Tensor]:
    """The minimiser (x, y) of f + gamma p by linear algebra. p = g, whose minimum is 0 at every x; gradient: p = |g_y|^2 / 2."""
    H, slope = torch.cat([torch.cat(row, 1) for row in truth.F]), torch.cat(truth.f_0)
    if gradient:
        J = torch.cat(truth.G[1], 1)
        H_p, p = J.T @ J, J.T @ truth.g_0[1]
    else:
        H_p, p = torch.cat([torch.cat(row, 1) for row in truth.G]), torch.cat(truth.g_0)
    u = -torch.linalg.solve(H + gamma * H_p, slope + gamma * p)
    return u[: len(truth.x)], u[len(truth.x) :]


def bound(truth: QuadraticTruth, x: Tensor, y: Tensor, gamma: float) -> float:
    """L^2 rho / gamma^2: the paper's bound on p = g - v at a minimiser, eps_1 chosen best.

    rho = 2 / (least eigenvalue of g_yy that is not 0), L the largest |f_y| between y and its lower solution next to it.
    """
    values = torch.linalg.eigvalsh(truth.G[1][1])
    rho = 2 / float(values[values > 1e-10 * values[-1]].min())
    near = y - torch.linalg.pinv(truth.G[1][1]) @ (truth.g_0[1] + truth.G[1][0] @ x + truth.G[1][1] @ y)
    slopes = [truth.f_0[1] + truth.F[1][0] @ x + truth.F[1][1] @ at for at in (y, near)]
    return max(float(slope.norm()) for slope in slopes) ** 2 * rho / gamma**2


def bias() -> Finding:
    """|x_gamma - x*| and g - v at the minimisers of f + gamma p, gamma from 1 to 1e4, and the bound on the latter."""
    makers: dict[str, Callable[[], Instance]] = {"strongly convex": quadratic, "many solutions": lambda: quadratic(rank=12)}
    rows, errors, gaps = [], {}, {}
    for name, make in makers.items():
        instance = make()
        truth = QuadraticTruth(instance)
        for form in ("V", "G"):
            points = [penalised(truth, gamma, form == "G") for gamma in GAMMAS]
            error = np.array([float((x - instance.solution[0].x).norm()) for x, _ in points])
            gap = np.array([float(truth.g(x, y)) for x, y in points])
            most = np.array([bound(truth, x, y, gamma) for (x, y), gamma in zip(points, GAMMAS)])
            slopes = [-np.polyfit(np.log(GAMMAS[ASYMPTOTIC]), np.log(values[ASYMPTOTIC]), 1)[0] for values in (error, gap)]
            cells = [f"{values[SHOWN]:.1e}" for values in (error, gap)]
            rows.append([f"{name}, {form}", *(f"{s:.2f}" for s in slopes), *cells, f"{most[SHOWN]:.1e}" if form == "V" else ""])
            errors[f"{name}, {form}"], gaps[f"{name}, {form}"] = (GAMMAS, error), (GAMMAS, gap)
            if form == "V":
                gaps[f"{name}, bound"] = (GAMMAS, most)
    return Finding(
        name="bias",
        title="The bias against gamma",
        published="A global minimiser of f + gamma p has p <= (eps_1 + eps_2) / (gamma - gamma*) with gamma* = L^2 rho / (4 "
        "eps_1), where p >= d^2 / rho; a local one of V has |g_y| <= L / gamma and so p = O(gamma^-2), which f = y, g = y^2 "
        f"attains: y = -1 / (2 gamma) ({PAPER}; {READ}).",
        here="Minimisers of f + gamma p by linear algebra on two quadratics (10 and 20 variables, the second with 8 free "
        "directions in which f decides). p is g - v in both forms, |g_y|^2 / 2 being what G adds. The bound is the published "
        "one with eps_2 = 0 and the best eps_1, L^2 rho / gamma^2, L the largest |f_y| on the way to the nearest lower "
        "solution. Exponents: slopes in logarithms from gamma = 100 to 10,000.",
        columns=["problem", "exponent, x", "exponent, g - v", "error of x, gamma 100", "g - v, gamma 100", "bound"],
        rows=rows,
        picture=lambda: side_by_side("Bias at the minimisers of f + gamma p", "gamma", {"error of x": errors, "g - v": gaps}),
    )


# -- 3: the trap ------------------------------------------------------------------------------------------------------------
def trapped(start: float) -> BilevelProblem:
    """f = sin^2(y - 2 pi / 3) + x^2, g = y^2 + 2 sin^2 y: at y = 2 pi / 3 both f_y and g_yy are 0, and g_y = 2.457."""
    return BilevelProblem(
        upper=lambda x, y: (torch.sin(y - 2 * math.pi / 3) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y: (y**2 + 2 * torch.sin(y) ** 2).sum(),
        x=torch.tensor([0.5], dtype=torch.float64),
        y=torch.tensor([start], dtype=torch.float64),
    )


def trap() -> Finding:
    """Where the forms end on the paper's example of a stationary point of f + gamma |g_y|^2 that solves no lower level."""
    solvers = (VPBGDFixedStep(alpha=1e-3, gamma=10.0), GPBGDFixedStep(alpha=1e-3, gamma=10.0), VPBGD(), GPBGD())
    rows = []
    for solver in solvers:
        for start in (2.5, 2 * math.pi / 3):
            result = solve(trapped(start), solver, max_steps=1500)
            y: Any = result.state.y.tree() if isinstance(solver, VPBGDFixedStep | GPBGDFixedStep) else result.y
            cells = [f"{start:.4f}", f"{float(y):.4f}", f"{result.residuals()['lower']:.1e}", result.status.name]
            rows.append([f"`{type(solver).__name__}`", *cells])
    return Finding(
        name="trap",
        title="Where the gradient's penalty sticks",
        published="f = sin^2(y - 2 pi / 3), g = y^2 + 2 sin^2 y: y = 2 pi / 3 = 2.0944 is stationary for f + gamma |g_y|^2 at "
        f"every gamma, the only lower solution is y = 0 ({PAPER}; by a third party's note and our own check).",
        here="The same with x^2 added to f, from two y. V leaves; G stays, and the library's form says so. Fixed steps: alpha "
        "= .001, gamma = 10, 1,500 of them; V's y keeps its bias. The residual is that of the answer, whose y is z in V's "
        "fixed form.",
        columns=["method", "y at the start", "y at the end", "lower residual", "status"],
        rows=rows,
    )


# -- 4: fixed steps on quadratics -------------------------------------------------------------------------------------------
FIXED: dict[str, Solver] = {
    "V, script: gamma .2, beta .01": VPBGDFixedStep(alpha=0.1, gamma=0.2, beta=0.01),
    "V, gamma 10, beta .01": VPBGDFixedStep(alpha=0.01, gamma=10.0, beta=0.01),
    "V, gamma 10, beta .5": VPBGDFixedStep(alpha=0.01, gamma=10.0, beta=0.5),
    "V, gamma 100, beta .5": VPBGDFixedStep(alpha=0.001, gamma=100.0, beta=0.5),
    "G, script: gamma 37": GPBGDFixedStep(alpha=0.3 / 37, gamma=37.0),
    "`VPBGD()`": VPBGD(),
    "`GPBGD()`": GPBGD(),
}


def fixed(steps: int) -> Finding:
    """Relative errors of x on quadratics by the scripts' numbers, by better ones and by the forms without any."""
    makers = {"one solution": quadratic(), "many alike": quadratic(rank=12, flat=True), "one best": quadratic(rank=12)}
    rows = []
    for name, solver in FIXED.items():
        cells, spent = [], 0
        for instance in makers.values():
            own = isinstance(solver, VPBGD | GPBGD)
            result = solve(instance.problem, solver, max_steps=None if own else steps)
            cells.append(f"{instance.error(result.x):.1e} {result.status.name}")
            spent += result.calls.gradients + result.calls.hvps
        rows.append([name, *cells, f"{spent / len(makers):,.0f}"])
    return Finding(
        name="fixed",
        title="Fixed steps on quadratics",
        published="Steps and penalties of the scripts for hyper-cleaning, a linear model: V lr .1, beta .01, gamma to .2; G lr "
        f".3 and .5, gamma 37, the loss times min(1 / gamma, 1) ({PAPER}; {READ}).",
        here=f"Quadratics of condition 10, {steps:,} steps of the fixed forms, lower levels with one solution, with many that "
        "are equally good, with many of which one is best. Errors of x relative to its norm, with the status; gradients and "
        "products, the mean of the three. gamma = .2 is too weak here; with gamma = 10 and the script's beta z lags behind x "
        "and all three runs diverge. A status MAX_STEPS says that the run had not come to rest.",
        columns=["method", *makers, "gradients and products"],
        rows=rows,
    )
