"""Pan, Zhang, Zhang, Pan, Xu, Zhang, Pi, Wang and Zhang: ScaleBiO, ACL 2025, arXiv 2406.19976.

The published tables need models of 7 to 34 billion parameters, their data and a judge that is itself such a model. Reproduced
here is their shape, on problems whose right answer is known: the weights of logistic regression against alpha, ten sources with
more and more noise, other ways to weigh sources, a small decoder trained fully, by layers and in half precision, real text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bilevel.blocks import LISA
from bilevel.solvers.penalty import Penalty
from bilevel.solvers.scalebio import ScaleBiO
from constrained.core.callbacks import History
from constrained.core.optimizers import AdamW
from constrained.core.result import Result
from constrained.core.run import solve

from ..instance import Instance
from ..reweighting.decoder import DecoderTask, reweighting_lm, reweighting_text
from ..reweighting.labelled_sources import LabelledSources
from ..reweighting.problem import TEN, reweighting_logistic, reweighting_noise
from ..reweighting.study import LabelStudy, correlation, most
from .page import Finding, Page
from .plots import COLOURS, side_by_side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "Pan, Zhang, Zhang, Pan et al., arXiv 2406.19976"
READ = "read in the authors' code"
ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0)
SLOPED = slice(1, None)  # alpha 3 to 100
SIZES = (100, 100, 300, 300, 600, 600)  # of the table of baselines: the more, the worse
SGD, ADAM, BATCHES = "SGD, all rows", "AdamW, all rows", "AdamW, 10 rows a source"
METHODS = {SGD: ALPHAS, ADAM: (1.0, 10.0, 100.0), BATCHES: (10.0,)}


def scalebio(*, seeds: int = 5, steps: int = 2000, decoder_steps: int = 300, text_steps: int = 400) -> Page:
    """The page: seeds of the logistic problems, steps there (AdamW half of them), on the decoder and on the texts."""
    found = [*logistic(seeds, steps), noise(seeds, steps, decoder_steps), baselines(seeds, steps)]
    return Page("scalebio", (PAPER,), [*found, decoder(decoder_steps), text(text_steps)])


# -- 1: logistic regression -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Learned:
    """One run: weights, |w - u|, accuracies of u and w and of uniform weights, gradients."""

    clean: float
    noisy: float
    gap: float
    accuracy: float
    pulled: float
    uniform: float
    gradients: int


def learned(instance: Instance, solver: Any, steps: int | None, seed: int) -> Learned:
    """Solve a logistic problem and look at its weights."""
    result = solve(instance.problem, solver, seed=seed, max_steps=steps)
    data, p, u = _data(instance), _weights(result), torch.as_tensor(result.y)
    right = torch.tensor([share == 0 for share in data.wrong])
    w = result.state.w.tree() if isinstance(solver, ScaleBiO) else u
    uniform = data.accuracy(data.fitted(torch.ones_like(p) / len(p)))
    scores = data.accuracy(u), data.accuracy(w), uniform
    return Learned(float(p[right].sum()), float(p[~right].max()), float((w - u).norm()), *scores, result.calls.gradients)


def logistic(seeds: int, steps: int) -> list[Finding]:
    """Clean mass and accuracies against alpha, and how |w - u| falls."""
    rows, gaps = [], np.empty((0, seeds))
    for name, alphas in METHODS.items():
        table = []
        for alpha in alphas:
            runs = [_learned(name, alpha, steps, seed) for seed in range(seeds)]
            table.append([run.gap for run in runs])
            rows.append([name, f"{alpha:g}", *_cells(runs)])
        if name == SGD:
            gaps = np.array(table)  # (alphas, seeds)
    exact = [learned(reweighting_logistic(seed=seed), Penalty(max_outer=100), None, seed) for seed in range(seeds)]
    rows.append(["`Penalty()`, no alpha", "", *_cells(exact)])
    return [_alphas(rows, seeds, steps), _slopes(gaps)]


def _learned(name: str, alpha: float, steps: int, seed: int) -> Learned:
    instance = reweighting_logistic(seed=seed, batch=10 if name == BATCHES else None)
    solver = replace(_solver(instance), alpha=alpha)
    if name == ADAM:
        solver = replace(solver, inner=AdamW(lr=1e-2), outer=AdamW(lr=1e-2))
    return learned(instance, solver, steps if name == SGD else max(1, steps // 2), seed)


def _cells(runs: Sequence[Learned]) -> list[str]:
    clean, noisy = [run.clean for run in runs], max(run.noisy for run in runs)
    means = [np.mean([getattr(run, field) for run in runs]) for field in ("gap", "accuracy", "pulled", "uniform")]
    gradients = np.mean([run.gradients for run in runs])
    return [
        f"{np.mean(clean):.4f}",
        f"{min(clean):.4f}",
        f"{noisy:.4f}",
        f"{means[0]:.2g}" if means[0] else "",
        *(f"{mean:.3f}" for mean in means[1:]),
        f"{gradients:.0f}",
    ]


def _alphas(rows: Sequence[Sequence[str]], seeds: int, steps: int) -> Finding:
    return Finding(
        name="alpha",
        title="Weights of six sources against alpha",
        published="A first-order method with optimality of the learned weights and a rate for smooth and strongly convex "
        f"objectives ({PAPER}, abstract). alpha is 10 for GPT-2 and 100 for models of 8 and 34 billion parameters, lr of lambda "
        f".01 ({READ}).",
        here="Logistic regression on generated rows: six sources of 300, two clean, two with half of the labels random, two "
        f"with all labels flipped; 300 clean rows above, 4,000 to test; {seeds} seeds from 0. SGD: lr .5 for u, w and x, "
        f"{steps:,} steps, gradients of u and w divided by alpha, which the authors' code does not do. AdamW: half as many "
        "steps, lr .01 for all, or .003 and .01 with batches. Clean mass: sum of the two weights, mean and least of the seeds; "
        "largest noisy weight of any seed. `Penalty()` solves the same bilevel problem without learning rates, to small "
        "residuals and for fewer gradients: for a problem as small as this one take that. Accuracies are means: u, w, and the "
        "model of uniform weights fitted to the end.",
        columns=[
            "method",
            "alpha",
            "clean mass",
            "least",
            "largest noisy",
            "norm of w - u",
            "accuracy u",
            "accuracy w",
            "uniform",
            "gradients",
        ],
        rows=rows,
    )


def _slopes(gaps: np.ndarray) -> Finding:
    rows = []
    for part, where in (("3 to 100", SLOPED), ("1 to 100", slice(None))):
        slopes = [np.polyfit(np.log(ALPHAS[where]), np.log(column[where]), 1)[0] for column in gaps.T]
        rows.append([part, *(f"{slope:.3f}" for slope in (np.mean(slopes), min(slopes), max(slopes)))])
    curves: dict[str, tuple[Any, Any]] = {f"seed {seed}": (ALPHAS, column) for seed, column in enumerate(gaps.T[: len(COLOURS)])}
    return Finding(
        name="gap",
        title="w comes to u like 1 / alpha",
        published="The penalised problem comes to the bilevel one as alpha grows; the code can multiply alpha by tau in each "
        f"outer iteration, but its scripts have one of these, so that alpha is constant ({READ}).",
        here="The runs by SGD above: slope of the norm of w - u against alpha in logarithms, mean, least and largest of the "
        "seeds. At alpha = 1 the pull of f is as strong as g itself, and the law does not hold yet. It says nothing about the "
        "weights.",
        columns=["alpha", "slope", "least", "largest"],
        rows=rows,
        picture=lambda: side_by_side("w comes to u like 1 / alpha", "alpha", {"norm of w - u": curves}),
    )


# -- 2: ten sources ---------------------------------------------------------------------------------------------------------
def noise(seeds: int, steps: int, decoder_steps: int) -> Finding:
    """Weights of ten sources with more and more noise, and their rank correlation with it."""
    rates = [kind.random for kind in TEN]
    weights = []
    for seed in range(seeds):
        instance = reweighting_noise(seed=seed)
        result = solve(instance.problem, _solver(instance), seed=seed, max_steps=steps)
        weights.append(_weights(result).numpy())
    instance = reweighting_lm(rates=rates, batch=2)
    small = _weights(solve(instance.problem, _solver(instance), max_steps=decoder_steps)).numpy()
    mean, found = np.mean(weights, axis=0), [correlation(rates, one) for one in map(list, weights)]
    rows = [[f"{i}", f"{rate:g}", f"{mean[i]:.3f}", f"{small[i]:.3f}"] for i, rate in enumerate(rates)]
    known = [one for one in found if one is not None]
    rows.append(["rank correlation", "", f"{np.mean(known):.3f}", f"{correlation(rates, list(small)):.3f}"])
    rows.append(["its largest over the seeds", "", f"{max(known):.3f}", ""])
    rows.append(["the least there can be", "", f"{most(rates):.3f}", f"{most(rates):.3f}"])
    return Finding(
        name="noise",
        title="Ten sources with more and more noise",
        published="Alpaca's 52,000 instructions in ten equal sources; source i is corrupted at the rate min(1, i / 5), so 0, "
        f".2, .4, .6, .8 and five times 1, an answer becoming a full stop ({READ}). The weights found there were not at hand.",
        here=f"Logistic regression, 300 rows a source, of which that share has a random label: weights are means of {seeds} "
        "seeds. And the decoder below, that share of tokens replaced by uniform ones, 2 sequences a source and batch, one "
        "seed. Spearman's rank correlation of rate and weight; the five sources that are all noise have one rank, so that -1 "
        "cannot be reached. Weights go to the cleanest source, as they should where the clean rows above match it. Sources "
        "that have lost their weight have no gradient either: the order of the last few thousandths says little, which is what "
        "keeps the decoder's correlation from its bound.",
        columns=["source", "noise", "weight, logistic", "weight, decoder"],
        rows=rows,
    )


# -- 3: other ways to weigh -------------------------------------------------------------------------------------------------
def baselines(seeds: int, steps: int) -> Finding:
    """Test accuracy of learned weights beside those of other ways, with sources of different sizes."""
    runs = []
    for seed in range(seeds):
        instance = reweighting_logistic(sizes=SIZES, seed=seed)
        result = solve(instance.problem, _solver(instance), seed=seed, max_steps=steps)
        assert instance.study is not None
        runs.append(instance.study.rows(result))
    rows = []
    for same in zip(*runs):
        scores, clean = [row.accuracy for row in same], [row.clean for row in same]
        spread = f" ± {np.std(scores, ddof=1):.3f}" if seeds > 1 else ""
        rows.append([same[0].name, f"{np.mean(scores):.3f}{spread}", "" if clean[0] is None else f"{np.mean(clean):.3f}"])
    return Finding(
        name="baselines",
        title="Other ways to weigh sources",
        published="MT-Bench of Llama-3-8B: uniform 6.11, LESS 6.06, RHO-LOSS 6.89, ScaleBiO 7.12; of Qwen-2-7B 6.66, 7.18, "
        "7.34, 7.76; of Gemma-2-9B 5.31, 7.20, 7.38, 7.51. Qwen-2.5-32B, uniform to ScaleBiO: GSM8K 78.1 to 87.1, MATH 54.0 to "
        f"59.8 (by a third party's summary of {PAPER}).",
        here=f"The six sources above with sizes {', '.join(map(str, SIZES))}: the more rows, the worse. Every model but u and w "
        f"is fitted to the end; {seeds} seeds. Sampling plan: 600 rows drawn by the learned weights, as the paper draws 20,000, "
        "but without the validation rows added, as it adds them. size^(1/tau): proportional sampling at temperatures 1 and 2. "
        "EL2N and GraNd (Paul, Ganguli and Dziugaite, arXiv 2107.07075): means over a source's rows early in training; of the "
        "sources the half with the highest scores, as the paper chooses rows, and the other half. LESS and RHO-LOSS do not run "
        "here. A difference below .01 means nothing.",
        columns=["weights", "accuracy", "clean mass"],
        rows=rows,
    )


# -- 4: a small decoder -----------------------------------------------------------------------------------------------------
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "LISA, 1 of 2 layers": ({}, {"blocks": LISA(layers=1, every=20)}),
    "bfloat16": ({"precision": torch.bfloat16}, {}),
}


def decoder(steps: int) -> Finding:
    """Weights, cross-entropies and optimizer memory of a small decoder, trained fully, by layers and in half precision."""
    rows, task = [], _task(reweighting_lm())
    for name, (arguments, options) in FORMS.items():
        instance = reweighting_lm(**arguments)
        result = solve(instance.problem, replace(_solver(instance), **options), max_steps=steps)
        state: Any = result.state
        losses = [task.cross_entropy(task.filled(vec.plain().tree())) for vec in (state.u, state.w)]
        rows.append([name, *(f"{p:.3f}" for p in _weights(result).tolist()), *(f"{one:.3f}" for one in losses), _held(state)])
    for name, p in {"uniform weights": torch.full((3,), 1 / 3), "clean source alone": torch.tensor([1.0, 0.0, 0.0])}.items():
        net = task.trained(p, steps, 0)
        rows.append([name, *(f"{one:.3f}" for one in p.tolist()), f"{task.cross_entropy(net):.3f}", "", "2.00"])
    return Finding(
        name="decoder",
        title="A small decoder: full, by layers, in half precision",
        published="Models to 34 billion parameters on eight A40, later to about 30 on eight H100, by LISA, which trains 2 "
        f"layers (4 in the later scripts), drawn anew every 20 steps, with AdamW and bfloat16 ({PAPER}, abstract, and {READ}). "
        "GPT-2, by a third party's note: of 1,000 answers by GPT-4 and 9,000 by an older model the first get the weight.",
        here="A decoder of GPT-2's shape, 2 layers, width 64, 106,240 parameters, from a random start, not fine-tuned; walks "
        "of a Markov chain on 64 tokens: clean, half of the tokens noise, all noise; 6 sequences of each in a batch, 12 above, "
        f"{steps} steps, AdamW lr .001, lr of x .02, alpha 10, one seed. bfloat16: autocast, with losses and parameters in "
        "float32 (the authors' parameters are bfloat16). LISA draws one layer for u and w together, the authors one for each, "
        "and drops the moments of layers that rest, theirs stay. Cross-entropies are of 400 test sequences; Adam's numbers a "
        "parameter count the moments of u and w after the last step. Peak memory of a large model was not measured.",
        columns=["form", "clean", "half noise", "noise", "CE of u", "CE of w", "Adam's numbers a parameter"],
        rows=rows,
    )


def _held(state: Any) -> str:
    """The moments that both optimizers keep, for each parameter of one model."""
    kept = [
        one[name].numel() for inner in (state.inner_u, state.inner_w) for one in inner.values() for name in ("first", "second")
    ]
    return f"{sum(kept) / state.u.size:.2f}"


# -- 5: real text -----------------------------------------------------------------------------------------------------------
def text(steps: int) -> Finding:
    """The weights of texts along a run, for validation by held-out parts of one of them."""
    instance, history = reweighting_text(), History()
    task = _task(instance)
    result = solve(instance.problem, _solver(instance), max_steps=steps, callbacks=[history])
    state: Any = result.state
    looks = [history.rows[round(share * steps)] for share in (0.25, 0.5, 0.75, 1.0)]
    rows = [[name, *(f"{float(look[f'weight {name}']):.3f}" for look in looks)] for name in task.data.names]
    uniform = task.trained(torch.full((len(rows),), 1 / len(rows)), steps, 0)
    nets = {
        "CE of u": task.filled(state.u.plain().tree()),
        "CE of w": task.filled(state.w.plain().tree()),
        "CE, uniform": uniform,
    }
    rows += [[name, "", "", "", f"{task.cross_entropy(net):.3f}"] for name, net in nets.items()]
    curves = {name: [float(row[f"weight {name}"]) for row in history.rows[1:]] for name in task.data.names}
    return Finding(
        name="text",
        title="Real text",
        published="Weights of 18 instruction sets, 4.2 million samples, differ from model to model (by a third party's "
        f"summary). Those of ten sets of mathematics stay within a factor of 3.2 of one another ({READ}).",
        here="Bytes of texts that lie on any machine with this library: the reference of the Python language (`pydoc_data`), "
        "docstrings of numpy, scipy and torch, Debian's fortunes where installed, and the reference with its bytes shuffled. "
        f"Held-out parts of the reference above. The decoder with 128 tokens and 64 places; 4 sequences a source, {steps} "
        "steps, alpha 10, one seed. Texts depend on the versions installed, and figures with them. CE: nats a byte of "
        f"{len(task.data.test)} held-out sequences.",
        columns=["source", "weight, 1/4 of the run", "1/2", "3/4", "at the end"],
        rows=rows,
        picture=lambda: _text_picture(curves),
    )


def _text_picture(curves: dict[str, list[float]]) -> Figure:
    found: dict[str, tuple[Any, Any]] = {name: (range(1, len(values) + 1), values) for name, values in curves.items()}
    return side_by_side("Weights of the texts", "step", {"softmax of x": found}, marker="", scale="plot")


# -- helpers ----------------------------------------------------------------------------------------------------------------
def _weights(result: Result) -> torch.Tensor:
    return torch.softmax(torch.as_tensor(result.x).detach().double(), 0)


def _solver(instance: Instance) -> ScaleBiO:
    solver = instance.recommended[ScaleBiO].solver
    assert isinstance(solver, ScaleBiO)
    return solver


def _data(instance: Instance) -> LabelledSources:
    study = instance.study
    assert isinstance(study, LabelStudy)
    return study.data


def _task(instance: Instance) -> DecoderTask:
    return instance.study.task  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
