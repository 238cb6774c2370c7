"""The penalty papers of Kwon, Kwon, Wright and Nowak: arXiv 2309.01753 (ICLR 2024) and F2SA, arXiv 2301.10945 (ICML 2023).

Both are papers of theorems. Reproduced here: the order of the bias (value and gradient), the gradient formula for lower
levels with several solutions, how fast Algorithms 1 and 2 and F2SA become stationary for their gradients, and F2SA's task,
hyper-cleaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bilevel.reformulations.nested_penalty import Inner, NestedPenalty
from bilevel.solvers.f2sa import F2SA
from bilevel.solvers.kwon import KwonDoubleLoop, KwonSingleLoop
from bilevel.solvers.penalty_sgd import PenaltySGD
from constrained.core.run import iterate, solve
from constrained.core.solver import Solver
from constrained.core.vec import Vec
from constrained.descent import LBFGS

from ..cleaning.baselines import evaluate
from ..cleaning.problem import hyper_cleaning
from ..instance import Instance
from ..quadratic import quadratic
from ..toy import pl_toy
from .page import Finding, Page
from .plots import side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KWON, ANCESTOR = "Kwon, Kwon, Wright and Nowak, arXiv 2309.01753", "Kwon, Kwon, Wright and Nowak, arXiv 2301.10945"
NOISE = 0.01


def penalty(*, seeds: int = 5, budget: int = 9000, cleaning_steps: int | None = None) -> Page:
    """The page: seeds for the averages, gradients a run on the quadratic, steps on hyper-cleaning (None: the recommended)."""
    runs = [bias(), *rates(seeds, budget), cleaning(seeds, cleaning_steps)]
    return Page("penalty", (KWON, ANCESTOR), runs)


# -- truth ------------------------------------------------------------------------------------------------------------------
class QuadraticTruth:
    """The hyper-objective of a quadratic instance without noise by linear algebra: y minimises f over {y: g_y(x, y) = 0}."""

    def __init__(self, instance: Instance):
        problem: Any = instance.problem
        self.f, self.g = problem.upper, problem.lower
        self.x, self.y = problem.x, problem.y
        both = (torch.zeros_like(self.x), torch.zeros_like(self.y))
        self.F, self.G = (torch.autograd.functional.hessian(f, both) for f in (self.f, self.g))
        self.f_0, self.g_0 = (torch.autograd.functional.jacobian(f, both) for f in (self.f, self.g))
        _, values, V = torch.linalg.svd(self.G[1][1])
        self.N = V[values <= 1e-10 * values[0]].T  # null space of g_yy

    def lower(self, x: Tensor) -> Tensor:
        """The best of the lower solutions at x."""
        y = torch.linalg.pinv(self.G[1][1]) @ -(self.g_0[1] + self.G[1][0] @ x)
        if self.N.shape[1]:
            slope = self.N.T @ (self.f_0[1] + self.F[1][0] @ x + self.F[1][1] @ y)
            y = y - self.N @ torch.linalg.pinv(self.N.T @ self.F[1][1] @ self.N) @ slope
        return y

    def value(self, x: Tensor) -> float:
        return float(self.f(x, self.lower(x)))

    def gradient(self, x: Tensor) -> Tensor:
        """The papers' formula: f_x - g_xy g_yy^+ f_y at the best lower solution."""
        y = self.lower(x)
        f_x = self.f_0[0] + self.F[0][0] @ x + self.F[0][1] @ y
        f_y = self.f_0[1] + self.F[1][0] @ x + self.F[1][1] @ y
        return f_x - self.G[0][1] @ torch.linalg.pinv(self.G[1][1]) @ f_y

    def difference(self, x: Tensor, h: float = 1e-3) -> Tensor:
        """Central differences of the value: exact for quadratics but for rounding."""
        steps = h * torch.eye(len(x), dtype=x.dtype)
        return torch.tensor([(self.value(x + e) - self.value(x - e)) / (2 * h) for e in steps], dtype=x.dtype)


class ToyTruth:
    """S(x) = {-x}: the hyper-objective is f(x, -x)."""

    def __init__(self, instance: Instance):
        problem: Any = instance.problem
        self.x, self.y, self.f = problem.x, problem.y, problem.upper

    def value(self, x: Tensor) -> float:
        return float(self.f(x, -x))

    def gradient(self, x: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(lambda t: self.f(t, -t), x)

    def difference(self, x: Tensor, h: float = 1e-5) -> Tensor:
        return torch.tensor((self.value(x + h) - self.value(x - h)) / (2 * h), dtype=x.dtype)


# -- 1: the bias ------------------------------------------------------------------------------------------------------------
SIGMAS = tuple(10.0**-e for e in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0))
GAPS = ("|psi_s - psi|", "|grad psi_s - grad psi|")
ASYMPTOTIC = slice(3, None)  # those of which the order is read off
BIASED: dict[str, tuple[Callable[[], Instance], type]] = {
    "strongly convex": (quadratic, QuadraticTruth),
    "many solutions, equally good": (lambda: quadratic(rank=12, flat=True), QuadraticTruth),
    "many solutions, one best": (lambda: quadratic(rank=12), QuadraticTruth),
    "not convex, PL": (pl_toy, ToyTruth),
}


def bias() -> Finding:
    """|psi_s - psi| and |grad psi_s - grad psi| near the start, s from 0.1 to 1e-4."""
    rows, curves = [], {}
    for name, (make, truth_of) in BIASED.items():
        instance = make()
        truth = truth_of(instance)
        x = truth.x if truth.x.ndim else truth.x - 0.5
        value, gradient = truth.value(x), truth.gradient(x)
        formula = float((gradient - truth.difference(x)).norm() / gradient.norm())
        gaps = np.array([_gap(instance, x, s, value, gradient) for s in SIGMAS])
        slopes = [np.polyfit(np.log(SIGMAS[ASYMPTOTIC]), np.log(gap[ASYMPTOTIC]), 1)[0] for gap in gaps.T]
        rows.append([name, *(f"{slope:.2f}" for slope in slopes), *(f"{gap:.1e}" for gap in gaps[-1]), f"{formula:.0e}"])
        curves[name] = gaps
    return Finding(
        name="bias",
        title="The bias of the penalty is of order sigma",
        published="|psi_s - psi| = O(s) and |grad psi_s - grad psi| = O(s) under conditions of which the main one is a proximal "
        "error bound, and an explicit formula for grad psi where the lower level has several solutions: without constraints "
        f"f_x - g_xy g_yy^+ f_y at a best one ({KWON}, abstract).",
        here="Values and gradients of psi_s from `bilevel.reformulations.nested_penalty` (inner problems by L-BFGS) against "
        "the hyper-objective by linear algebra, or f(x, -x) for the PL toy, at the start (the toy: x = 1). The exponent "
        "is the slope of the line by the four smallest of seven s, 0.003 to 0.0001, in logarithms. In the third problem g"
        " is flat where f decides: s f + g has curvature O(s) there and the error bound does not hold uniformly; formula "
        "and order hold all the same. The last column compares the formula with finite differences of psi.",
        columns=[
            "lower level",
            "exponent, value",
            "exponent, gradient",
            "gap at s = .0001",
            "gradient's gap",
            "formula - differences",
        ],
        rows=rows,
        picture=lambda: _bias_picture(curves),
    )


def _gap(instance: Instance, x: Tensor, sigma: float, value: float, gradient: Tensor) -> tuple[float, float]:
    oracle: Any = instance.problem.oracle()
    y = oracle.variables["y"]
    inner = (Inner(0.0, y, None), Inner(sigma, y, None))
    psi = NestedPenalty(oracle, LBFGS(), inner, sigma, False, theta=1e-3, best=1e-5, max_inner=100_000)
    found, grad = psi(Vec.of(x))
    return abs(found - value), float((grad.tree() - gradient).norm())


def _bias_picture(curves: dict[str, np.ndarray]) -> Figure:
    diagrams = {title: {name: (SIGMAS, gaps[:, i]) for name, gaps in curves.items()} for i, title in enumerate(GAPS)}
    return side_by_side("Bias of the penalty", "s", diagrams)


# -- 2: stationarity for gradients ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Method:
    """A solver, the gradients that a step takes, and the exponent of its published rate: eps ~ gradients^-rate."""

    solver: Solver
    gradients: int
    noisy_rate: str
    exact_rate: str


METHODS = {
    "KwonDoubleLoop": Method(KwonDoubleLoop(), 33, "1/7", "1/3"),
    "KwonSingleLoop": Method(KwonSingleLoop(), 6, "1/5", "1/3"),
    "F2SA": Method(F2SA(), 3, "2/7 or 1/7", "2/3 or 1/3"),
    "PenaltySGD": Method(PenaltySGD(), 3, "none", "none"),
}


def rates(seeds: int, budget: int) -> list[Finding]:
    """|grad psi| at the reported x, and the error of x, against gradients: with noise and without."""
    found = []
    for noise, label in ((NOISE, "noisy"), (0.0, "exact")):
        instance = quadratic(noise=noise)
        truth = QuadraticTruth(quadratic())
        curves = {name: _curve(instance, truth, m, seeds if noise else 1, budget, noise > 0) for name, m in METHODS.items()}
        rows = []
        for name, (k, stationarity, error) in curves.items():
            late = k >= budget / 9
            slope = -np.polyfit(np.log(k[late]), np.log(stationarity[late]), 1)[0]
            rate = METHODS[name].noisy_rate if noise else METHODS[name].exact_rate
            rows.append([name, f"{k[-1]:.0f}", f"{stationarity[-1]:.3f}", f"{error[-1]:.3f}", f"{slope:.2f}", rate])
        found.append(_rate_finding(label, seeds if noise else 1, budget, rows, curves))
    return found


def _curve(
    instance: Instance, truth: QuadraticTruth, method: Method, seeds: int, budget: int, noisy: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cost = method.gradients if noisy or method.gradients != 6 else 3  # STORM without noise takes three
    looks = sorted({max(1, round(budget / cost * 2.0**-e)) for e in np.arange(0, 5, 0.5)})
    points = []
    for seed in range(seeds):
        values = []
        for event in iterate(instance.problem, method.solver, seed=seed, max_steps=looks[-1]):
            if event.k in looks:
                x = event.answer.x
                values.append((event.calls.gradients, float(truth.gradient(x).norm()), instance.error(x)))
        points.append(values)
    k, stationarity, error = np.array(points).mean(0).T
    return k, stationarity, error


def _rate_finding(
    label: str, seeds: int, budget: int, rows: Sequence[Sequence[str]], curves: dict[str, tuple[np.ndarray, ...]]
) -> Finding:
    noisy = label == "noisy"
    bound = "eps^-7 gradients for Algorithm 1, eps^-5 for Algorithm 2" if noisy else "eps^-3 gradients (by a summary)"
    older = "eps^-7/2" if noisy else "eps^-3/2"
    data = f"gradient noise {NOISE}, mean of {seeds} seeds" if noisy else "no noise"
    return Finding(
        name=f"rates-{label}",
        title=f"Stationarity for gradients, {'noisy' if noisy else 'exact'} gradients",
        published=f"An eps-stationary point of the penalised problem after O(.) of {bound} ({KWON}, abstract). F2SA: {older} "
        f"iterations ({ANCESTOR}, abstract); whether its eps bounds the gradient's norm or the square decides between the two "
        "exponents below. These are upper bounds for the worst problem, not figures of an experiment.",
        here=f"The quadratic of condition 10 (10 and 20 variables), {data}, default options, the averaged x after about {budget} "
        "gradients. grad psi is that of the bilevel problem, not of psi_s: the bias is in it. The measured exponent is the slope "
        "over the last factor 9 of gradients. Step sizes and sigma = 0.3 / sqrt(k + 1) are this library's, not the proofs': "
        "their constants no user knows; the batches of Algorithm 1 do not grow.",
        columns=["method", "gradients", "norm of grad psi", "relative error of x", "exponent here", "published bound"],
        rows=rows,
        picture=lambda: _rate_picture(label, curves),
    )


def _rate_picture(label: str, curves: dict[str, tuple[np.ndarray, ...]]) -> Figure:
    titles = {"|grad psi| at the averaged x": 1, "relative error of x": 2}
    diagrams = {title: {name: (found[0], found[i]) for name, found in curves.items()} for title, i in titles.items()}
    return side_by_side(f"Quadratic of condition 10, {label} gradients", "gradients", diagrams)


# -- 3: hyper-cleaning ------------------------------------------------------------------------------------------------------
CLEANERS: tuple[type[Solver], ...] = (F2SA, KwonDoubleLoop, KwonSingleLoop, PenaltySGD)


def cleaning(seeds: int, steps: int | None) -> Finding:
    """F1, AUC and test accuracy of the learned weights: linear model, 300 clean images, half of the labels wrong."""
    rows = []
    for cls in CLEANERS:
        found = np.array([_cleaned(cls, seed, steps) for seed in range(seeds)])
        mean, spread = found.mean(0), found.std(0, ddof=1) if seeds > 1 else np.full(found.shape[1], math.nan)
        cells = [f"{m:.3f} ± {s:.3f}" if seeds > 1 else f"{m:.3f}" for m, s in zip(mean[:4], spread[:4])]
        rows.append([cls.__name__, *cells, f"{mean[4]:.0f}", f"{mean[5] / 1000:.0f}"])
    return Finding(
        name="cleaning",
        title="Data hyper-cleaning",
        published=f"F2SA has a better practical performance than methods with second derivatives on hyper-cleaning of MNIST "
        f"({ANCESTOR}, abstract; its curves were not at hand).",
        here=f"scikit-learn's digits instead of MNIST: 1,000 training images, half of the labels wrong, 300 clean images, "
        f"softmax regression; {seeds} seeds from 0. Options chosen by hand for each method (`bilevel show hyper-cleaning`), "
        "sigma fixed at 10. No method with second derivatives runs beside them yet: the claim itself is not tested. A "
        "difference below .02 in accuracy means nothing on 497 test images.",
        columns=["method", "F1", "AUC", "accuracy", "accuracy + clean", "gradients", "rows / 1000"],
        rows=rows,
    )


def _cleaned(cls: type[Solver], seed: int, steps: int | None) -> list[float]:
    instance = hyper_cleaning(clean=300, seed=seed)
    one, study = instance.recommended[cls], instance.study
    result = solve(instance.problem, one.solver, seed=seed, max_steps=steps or one.max_steps)
    row = evaluate(study.data, study.model, result.x)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    scores = [row.f1, row.auc, row.accuracy, row.with_clean]
    return [math.nan if score is None else score for score in scores] + [result.calls.gradients, result.calls.rows]
