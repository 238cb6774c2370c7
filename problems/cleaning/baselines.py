"""What hyper-cleaning is measured against, and how a learned weighting is judged.

Every method is judged alike: it keeps some training samples, and a fresh model is trained on them from the same start w_0 by

    argmin_w  sum_i u_i CE_i(w) / sum_i u_i + ridge/2 |w|^2     (bias included; ridge 1e-2 linear, 3e-3 mlp)

with L-BFGS, without and with the clean images. Baselines that train a model to filter with it train it in the same way.

References: Northcutt, Jiang, Chuang, "Confident Learning", arXiv 1911.00068 (`confident`).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from constrained.core.errors import OptionError, extra
from constrained.core.shared_state import generators_kept

from .data import CLASSES, CleaningData

PIXELS, HIDDEN, FOLDS = 64, 64, 5
RIDGE = {"linear": 1e-2, "mlp": 3e-3}
# To fit many wrong labels the mlp takes 2,000-5,000 evaluations to 1e-5 and a third of that to 1e-4. Means over seeds 0-4 of
# `uniform` and `confident` differ by .007 at most, while rounding alone moves one seed's `uniform` by .01.
TOLERANCE = {"linear": 1e-5, "mlp": 1e-4}


@dataclass(frozen=True)
class Row:
    """How well a method finds the samples whose given label is right, and the test accuracy its answer leads to; all in [0, 1].

    f1, auc: right labels are the positive class. None where the method keeps no training samples on purpose; auc also where
        it has no score to rank by, or where all given labels are right.
    accuracy: trained on the kept samples alone (a learned weighting: on all samples, weighted by sigmoid(x)). None where
        nothing is kept.
    with_clean: trained on the kept samples and the clean images, equally weighted.
    """

    name: str
    f1: float | None
    auc: float | None
    accuracy: float | None
    with_clean: float | None


def network(model: str, seed: int = 0) -> nn.Module:
    """The model at its start w_0, float64: "linear", 64 -> 10, zeros, or "mlp", 64 -> 64 -> tanh -> 10.

    The weights of the second are drawn from N(0, 1/fan_in) by the seed, its biases are zero.
    """
    if not isinstance(model, str) or model not in RIDGE:
        raise OptionError(f"network(model=...): expected one of {', '.join(map(repr, RIDGE))}, got {model!r}")
    if model == "linear":
        return _layer(PIXELS, CLASSES, None)
    generator = torch.Generator().manual_seed(seed)
    return nn.Sequential(_layer(PIXELS, HIDDEN, generator), nn.Tanh(), _layer(HIDDEN, CLASSES, generator))


def _layer(fan_in: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """Weights N(0, 1/fan_in), or zero without a generator; biases zero. The global generator is left as it was."""
    with generators_kept(torch_alone=True):  # nn.Linear draws weights of its own first
        layer = nn.Linear(fan_in, outputs, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.zero_()
        if generator is None:
            layer.weight.zero_()
        else:
            layer.weight.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
    return layer


def train(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ridge: float,
    tolerance: float = 1e-5,
    max_steps: int = 20_000,
) -> nn.Module:
    """A trained copy of the module, started at its own w: argmin_w  sum_i u_i CE_i(w) / sum_i u_i + ridge/2 |w|^2.

    inputs: (n, d), n >= 1; labels: (n,) int64; weights u: (n,), finite, >= 0, not all zero, or None for the plain mean.
    Stops where no entry of the gradient exceeds the tolerance; a RuntimeWarning says where that was not reached. Raises
    OptionError for weights that are none, and for no samples.
    """
    if weights is None:
        weights = torch.ones(labels.shape, dtype=torch.float64, device=labels.device)
    if (
        weights.shape != labels.shape
        or not bool(torch.isfinite(weights).all())
        or bool((weights < 0).any())
        or not weights.sum() > 0
    ):
        raise OptionError(
            f"train(weights=...): expected {len(labels)} finite numbers >= 0 with a positive sum, got shape "
            f"{tuple(weights.shape)}, sum {float(weights.sum()):g}"
        )
    trained = copy.deepcopy(module).to(inputs.device)
    parameters = list(trained.parameters())
    sizes = [p.numel() for p in parameters]
    flat = nn.utils.parameters_to_vector(parameters).detach()
    for p, part in zip(parameters, flat.split(sizes)):
        p.data = part.view_as(p)  # one copy into `flat` now sets all parameters
    start = flat.double().cpu().numpy().copy()
    inputs = inputs.to(flat.dtype)
    shares = (weights / weights.sum()).to(flat)

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        flat.copy_(torch.from_numpy(w))
        with torch.enable_grad():
            loss = F.cross_entropy(trained(inputs), labels, reduction="none") @ shares
            gradient = torch.autograd.grad(loss, parameters)
        g = torch.cat([part.reshape(-1) for part in gradient]).double().cpu().numpy()
        return loss.item() + 0.5 * ridge * float(w @ w), g + ridge * w

    # ftol = 0: only the gradient decides. These vectors are too short for BLAS threads: with two cores, one of them busy,
    # they made training two to three times slower.
    options = {"maxcor": 20, "gtol": tolerance, "ftol": 0.0, "maxiter": max_steps, "maxfun": 2 * max_steps}
    with extra("threadpoolctl", "zoo").threadpool_limits(limits=1, user_api="blas"):
        found = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    flat.copy_(torch.from_numpy(found.x))
    largest = np.abs(found.jac).max()
    if not largest <= tolerance:
        reason = f"train: stopped at a gradient of {largest:.1e}, above {tolerance:g} ({found.message})"
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
    return trained


# -- rows ---------------------------------------------------------------------------------------------------------------
def evaluate(data: CleaningData, model: str, x: Tensor, name: str = "bilevel") -> Row:
    """The row of a learned weighting sigmoid(x), x: (n,) finite. Kept are the samples with x > 0, x itself is the score."""
    x = torch.as_tensor(x, dtype=torch.float64, device=data.given.device).detach()
    if x.shape != data.given.shape or not bool(torch.isfinite(x).all()):
        raise OptionError(
            f"evaluate(x=...): expected {len(data.given)} finite logits, got shape {tuple(x.shape)}, "
            f"{int((~torch.isfinite(x)).sum())} of them not finite"
        )
    # sigmoid(x)/sum without underflow: a weighting that is tiny everywhere is still a weighting.
    return _row(data, model, name, x > 0, score=x, weights=F.logsigmoid(x).softmax(0))


def uniform(data: CleaningData, model: str) -> Row:
    """No cleaning: all samples are kept."""
    return _row(data, model, "no cleaning", torch.ones_like(data.wrong))


def clean_only(data: CleaningData, model: str) -> Row:
    """The clean images alone: no training sample is used, so that only `with_clean` has a value."""
    trained = _fit(data, model, data.clean_inputs, data.clean_labels)
    return Row("clean images only", None, None, None, _accuracy(data, trained))


def oracle(data: CleaningData, model: str) -> Row:
    """What no method can know: exactly the samples with right labels are kept."""
    return _row(data, model, "oracle", ~data.wrong)


def filtered(data: CleaningData, model: str, rounds: int = 1) -> Row:
    """Keep where a model trained on the clean images predicts the given label; each further round adds what was kept.

    The score is the probability of the given label. One round is the limit sigma -> infinity of a first penalty gradient.
    rounds >= 1.
    """
    if rounds < 1:
        raise OptionError(f"filtered(rounds=...): expected an integer >= 1, got {rounds!r}")
    keep, score = torch.zeros_like(data.wrong), None
    for _ in range(rounds):
        trained = _fit(data, model, *_added(data, keep))
        keep, score = _agreement(trained, data.inputs, data.given)
    name = "clean-only filter" + (f", {rounds} rounds" if rounds > 1 else "")
    return _row(data, model, name, keep, score=score)


def confident(data: CleaningData, model: str) -> Row:
    """Confident learning by argmax: keep where a model that has not seen the sample predicts its given label.

    Five folds, stratified by the given labels; each model is trained on the other four and on all clean images.
    """
    folds = extra("sklearn.model_selection", "zoo").StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    keep, score = torch.zeros_like(data.wrong), torch.zeros_like(data.given, dtype=torch.float64)
    for _, rows in folds.split(np.zeros(len(data.given)), data.given.cpu().numpy()):
        held_out = torch.zeros_like(data.wrong)
        held_out[rows] = True
        trained = _fit(data, model, *_added(data, ~held_out))
        keep[held_out], score[held_out] = _agreement(trained, data.inputs[held_out], data.given[held_out])
    return _row(data, model, "confident learning", keep, score=score)


BASELINES: tuple[Callable[[CleaningData, str], Row], ...] = (
    uniform,
    clean_only,
    filtered,
    partial(filtered, rounds=4),
    confident,
    oracle,
)


def baselines(data: CleaningData, model: str) -> list[Row]:
    """All rows to compare with, in the order of `BASELINES`."""
    return [baseline(data, model) for baseline in BASELINES]


def _row(
    data: CleaningData, model: str, name: str, keep: Tensor, *, score: Tensor | None = None, weights: Tensor | None = None
) -> Row:
    """weights: of all samples, for a soft `accuracy`; without them it is that of the kept ones."""
    metrics = extra("sklearn.metrics", "zoo")
    right = (~data.wrong).cpu().numpy()
    mixed = bool(right.any()) and not bool(right.all())
    if weights is not None:
        accuracy = _accuracy(data, _fit(data, model, data.inputs, data.given, weights))
    elif keep.any():
        accuracy = _accuracy(data, _fit(data, model, data.inputs[keep], data.given[keep]))
    else:
        accuracy = None
    return Row(
        name=name,
        f1=float(metrics.f1_score(right, keep.cpu().numpy(), zero_division=0.0)),
        auc=float(metrics.roc_auc_score(right, score.cpu().numpy())) if score is not None and mixed else None,
        accuracy=accuracy,
        with_clean=_accuracy(data, _fit(data, model, *_added(data, keep))),
    )


def _fit(data: CleaningData, model: str, inputs: Tensor, labels: Tensor, weights: Tensor | None = None) -> nn.Module:
    """Trained from the w_0 that all rows of this data share."""
    start = network(model, data.seed)
    return train(start, inputs, labels, weights, ridge=RIDGE[model], tolerance=TOLERANCE[model])


def _added(data: CleaningData, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The kept training samples followed by the clean ones."""
    return torch.cat([data.inputs[keep], data.clean_inputs]), torch.cat([data.given[keep], data.clean_labels])


@torch.no_grad()
def _agreement(trained: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the model predicts the label, and the probability it gives to it."""
    logits = trained(inputs.double())
    return logits.argmax(1) == labels, logits.softmax(1).gather(1, labels[:, None])[:, 0]


def _accuracy(data: CleaningData, trained: nn.Module) -> float:
    hit, _ = _agreement(trained, data.test_inputs, data.test_labels)
    return float(hit.double().mean())
