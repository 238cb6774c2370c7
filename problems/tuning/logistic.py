"""A penalty for each feature, or each class, of multinomial logistic regression on digits, chosen on validation data.

    lower  g(x, W) = mean CE(A W; train) + 1/2 sum_jk (exp(x_j) + 0.01) W_jk^2        x_k in place of x_j: per="class"
    upper  f(x, W) = mean CE(V W; validation)
    start  x = 0, W = 0, float64;  x in [-6, 2]

Data: scikit-learn's 1797 digits, 600 / 600 / 597 by class; features standardised on the training rows and cut at +-6, a column of
ones added: 65 features, 10 classes, 650 weights. Best known value for per="feature", seed 0: f = 0.2249975832 (L-BFGS-B on exact
hypergradients to a projected gradient of 1e-9); the start has 1.3218.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bilevel.problem import BilevelProblem
from constrained.core.derivatives.function import Function
from constrained.core.errors import OptionError
from constrained.sets import Box

from ..arguments import placed, whole
from ..instance import Instance

LEAST, LOW, HIGH, CUT = 1e-2, -6.0, 2.0, 6.0
BEST = 0.2249975832  # per="feature", seed=0


def rows(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(A, labels) of the training, validation and test parts."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    train, rest, y_train, y_rest = map(np.asarray, train_test_split(X, y, train_size=600, random_state=seed, stratify=y))
    again = train_test_split(rest, y_rest, train_size=600, random_state=seed, stratify=y_rest)
    validate, test, y_validate, y_test = map(np.asarray, again)
    mean, std = train.mean(0), train.std(0)
    std[std < 1e-8] = 1.0
    parts = ((train, y_train), (validate, y_validate), (test, y_test))
    return [(np.hstack([np.clip((part - mean) / std, -CUT, CUT), np.ones((len(part), 1))]), labels) for part, labels in parts]


def logistic_penalties(
    *,
    per: str = "feature",
    own: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """Log-penalties of logistic regression on digits.

    per: "feature" (65 penalties) or "class" (10). own: the derivatives are written out and handed over as a `Function`. seed: of
    the split.
    """
    whole("logistic_penalties(seed=...)", seed, 0)
    if per not in ("feature", "class"):
        raise OptionError(f"logistic_penalties(per=...): expected 'feature' or 'class', got {per!r}")
    device = placed("logistic_penalties", dtype, device)
    (A, a), (V, v), _ = [(torch.from_numpy(X).to(device, dtype), torch.from_numpy(y).to(device)) for X, y in rows(seed)]
    upper, lower = Fit(V, v), Penalised(A, a, along=1 if per == "feature" else 0)
    problem = BilevelProblem(
        upper=Function(upper, gradient=upper.gradient) if own else upper,
        lower=Function(lower, gradient=lower.gradient, hvp=lower.hvp, jvp=lower.jvp) if own else lower,
        x=torch.zeros(65 if per == "feature" else 10, dtype=dtype, device=device),
        y=torch.zeros(65, 10, dtype=dtype, device=device),
        X=Box(LOW, HIGH),
    )
    return Instance(name="logistic-penalties", problem=problem, source="multinomial logistic regression on scikit-learn's digits")


class Fit:
    """mean CE(A W; labels), with its derivatives written out; P = softmax(A W), Y the labels one-hot, n rows."""

    def __init__(self, A: Tensor, labels: Tensor):
        self.A, self.labels, self.n = A, labels, len(labels)
        self.Y = F.one_hot(labels, 10).to(A.dtype)
        self._at: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, W: Tensor) -> Tensor:
        return F.cross_entropy(self.A @ W, self.labels)

    def gradient(self, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """(0, A'(P - Y) / n)."""
        return torch.zeros_like(x), self.A.T @ (self._softmax(W) - self.Y) / self.n

    def product(self, W: Tensor, U: Tensor) -> Tensor:
        """A'(S - P row sums of S) / n, S = P * (A U)."""
        P = self._softmax(W)
        S = P * (self.A @ U)
        return self.A.T @ (S - P * S.sum(1, keepdim=True)) / self.n

    def _softmax(self, W: Tensor) -> Tensor:
        if self._at is None or not torch.equal(self._at[0], W):  # many products at one point
            self._at = W.clone(), torch.softmax(self.A @ W, 1)
        return self._at[1]


class Penalised(Fit):
    """Fit + 1/2 sum (exp(x) + 0.01) W^2, x along the rows (along=1) or the columns (along=0) of W."""

    def __init__(self, A: Tensor, labels: Tensor, along: int):
        super().__init__(A, labels)
        self.along = along

    def weights(self, x: Tensor) -> Tensor:
        return x.exp().unsqueeze(self.along) + LEAST

    def __call__(self, x: Tensor, W: Tensor) -> Tensor:
        return super().__call__(x, W) + 0.5 * (self.weights(x) * W * W).sum()

    def gradient(self, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """(exp(x) * |W|^2 / 2, gradient of the fit + (exp(x) + 0.01) W)."""
        _, fit = super().gradient(x, W)
        return 0.5 * x.exp() * (W * W).sum(self.along), fit + self.weights(x) * W

    def hvp(self, x: Tensor, W: Tensor, U: Tensor) -> Tensor:
        return self.product(W, U) + self.weights(x) * U

    def jvp(self, x: Tensor, W: Tensor, U: Tensor) -> Tensor:
        """d/dx <g_W, U> = exp(x) * <W, U>."""
        return x.exp() * (W * U).sum(self.along)
