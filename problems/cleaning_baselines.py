"""What hyper-cleaning is measured against, and how a learned weighting is judged.

Every row is judged alike: the same start w_0, the same retraining, the same test images. A *row* says which training
samples a method keeps, and how accurate a model is that is trained afresh on them, without and with the clean images.

Retraining minimises  sum_i u_i CE_i(w) / sum_i u_i + ridge/2 |w|^2  (bias included) by L-BFGS-B from w_0, ridge 1e-2 for the
linear model and 3e-3 for the network. The baselines that train a model in order to filter with it use the same ridge.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from constrained.core.errors import OptionError, extra

from .cleaning_data import CleaningData

PIXELS, HIDDEN, CLASSES = 64, 64, 10
RIDGE = {"linear": 1e-2, "mlp": 3e-3}
# Fitting half the labels wrong takes the network 2,000 to 5,000 evaluations to 1e-5 and a third of that to 1e-4; the
# accuracies differ by less than the choice of w_0 makes them differ.
TOLERANCE = {"linear": 1e-5, "mlp": 1e-4}
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Row:
    """How well one method finds the clean training samples, and what a model trained on its answer reaches.

    f1, auc: of finding the samples whose given label is right (the positive class). None where the method decides nothing,
        or has no score to rank by, or where only one class is present.
    accuracy: test accuracy after training on the kept samples only (a learned weighting: on all, softly weighted).
    with_clean: test accuracy after training on the kept samples and the clean images together.
    Both accuracies are in [0, 1]; None where there is nothing to train on.
    """

    name: str
    f1: float | None
    auc: float | None
    accuracy: float | None
    with_clean: float | None


def network(model: str, seed: int = 0) -> nn.Module:
    """The model at its start w_0, float64: "linear", 64 -> 10, zeros, or "mlp", 64 -> 64 -> tanh -> 10.

    The network's weights are drawn from N(0, 1/fan_in) by the seed, its biases are zero.
    """
    if model not in RIDGE:
        raise OptionError(f"network(model=...): expected one of {', '.join(map(repr, RIDGE))}, got {model!r}")
    if model == "linear":
        layers = [nn.utils.skip_init(nn.Linear, PIXELS, CLASSES, dtype=torch.float64)]
        built: nn.Module = layers[0]
    else:
        layers = [nn.utils.skip_init(nn.Linear, PIXELS, size, dtype=torch.float64) for size in (HIDDEN, CLASSES)]
        built = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            layer.bias.zero_()
            if model == "linear":
                layer.weight.zero_()
            else:
                layer.weight.normal_(generator=generator).div_(math.sqrt(layer.in_features))
    return built


def train(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ridge: float,
    tolerance: float = 1e-5,
    max_steps: int = MAX_STEPS,
) -> nn.Module:
    """A trained copy of the module: argmin_w  sum_i u_i CE_i(w) / sum_i u_i + ridge/2 |w|^2, from the module's own w.

    inputs: (n, 64), n >= 1; labels: (n,) int64; weights u: (n,), finite, >= 0, not all zero, or None for the plain mean.
    Stops when the largest entry of the gradient is at most the tolerance; warns (RuntimeWarning) where that is not reached.
    """
    if weights is None:
        weights = torch.ones(len(labels), dtype=torch.float64, device=inputs.device)
    if weights.shape != labels.shape or not torch.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
        raise OptionError(f"train(weights=...): expected {len(labels)} finite numbers >= 0, not all zero, got {weights!r}")
    trained = copy.deepcopy(module).to(inputs.device)
    parameters = list(trained.parameters())
    inputs = inputs.to(parameters[0].dtype)
    shares = (weights / weights.sum()).to(inputs)
    flat = torch.nn.utils.parameters_to_vector(parameters).detach()
    start = flat.cpu().double().numpy().copy()
    _share_memory(parameters, flat)

    def value_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        flat.copy_(torch.from_numpy(w))
        with torch.enable_grad():
            loss = F.cross_entropy(trained(inputs), labels, reduction="none") @ shares
            gradients = torch.autograd.grad(loss, parameters)
        gradient = torch.cat([part.reshape(-1) for part in gradients]).cpu().double().numpy()
        return loss.item() + 0.5 * ridge * float(w @ w), gradient + ridge * w

    options = {"maxcor": 20, "gtol": tolerance, "ftol": 0.0, "maxiter": max_steps, "maxfun": 2 * max_steps}
    # These vectors are too short for BLAS threads: on two cores, one of them busy, they made a step four times slower.
    with extra("threadpoolctl", "zoo").threadpool_limits(limits=1, user_api="blas"):
        found = extra("scipy.optimize", "zoo").minimize(
            value_and_gradient, start, jac=True, method="L-BFGS-B", options=options
        )
    flat.copy_(torch.from_numpy(found.x))
    largest = float(np.abs(found.jac).max())
    if not largest <= tolerance:
        warnings.warn(f"train: stopped at gradient {largest:.1e}, above {tolerance:g}: {found.message}", RuntimeWarning, stacklevel=2)
    return trained
