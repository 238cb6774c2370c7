"""The two problems, written once for torch and once for jax, and the exact answers that every side is judged by.

lower  g(x, W) = 1/n sum_i s_i(x) CE_i(A W) + 1/2 sum_jk r_j(x) W_jk^2        upper  f(W) = mean CE(V W)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from hyperparameters import conjugate_gradients, softmax
from torch import Tensor

from problems.cleaning.data import CleaningData
from problems.cleaning.problem import RIDGE
from problems.tuning.logistic import HIGH, LEAST, LOW, rows


@dataclass(frozen=True, eq=False)
class Terms:
    """weights, ridge: s and r, of x and the module that has exp or sigmoid. slope: d/dx <g_W, U> of x, W, softmax - labels, U."""

    weights: Callable[[Any, Any], Any]
    ridge: Callable[[Any, Any], Any]
    slope: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Task:
    """One problem: data, start and bounds; `lower` and `upper` on torch tensors, `in_jax` the same on jax arrays."""

    name: str
    A: np.ndarray
    a: np.ndarray
    V: np.ndarray
    v: np.ndarray
    x: np.ndarray
    terms: Terms
    low: float = -np.inf
    high: float = np.inf
    y: np.ndarray = field(init=False)
    tensors: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", np.zeros((self.A.shape[1], 10)))
        object.__setattr__(self, "tensors", tuple(map(torch.from_numpy, (self.A, self.a, self.V, self.v))))

    def lower(self, x: Tensor, W: Tensor) -> Tensor:
        A, a, *_ = self.tensors
        losses = torch.nn.functional.cross_entropy(A @ W, a, reduction="none")
        return (self.terms.weights(x, torch) * losses).mean() + 0.5 * (self.terms.ridge(x, torch) * W * W).sum()

    def upper(self, x: Tensor, W: Tensor) -> Tensor:
        *_, V, v = self.tensors
        return torch.nn.functional.cross_entropy(V @ W, v)

    def in_jax(self, jax: ModuleType) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
        np_, terms = jax.numpy, self.terms

        def losses(X: np.ndarray, labels: np.ndarray, W: Any) -> Any:
            Z = X @ W
            return jax.nn.logsumexp(Z, axis=1) - Z[np_.arange(len(labels)), labels]

        def lower(x: Any, W: Any) -> Any:
            return (terms.weights(x, jax.nn) * losses(self.A, self.a, W)).mean() + 0.5 * (terms.ridge(x, np_) * W * W).sum()

        return lower, lambda x, W: losses(self.V, self.v, W).mean()


def penalties() -> Task:
    """`logistic-penalties`: r = exp(x) + 0.01, one x a feature."""
    (A, a), (V, v), _ = rows(0)

    def slope(x: np.ndarray, W: np.ndarray, D: np.ndarray, U: np.ndarray) -> np.ndarray:
        return np.exp(x) * (W * U).sum(1)

    terms = Terms(lambda x, m: 1.0, lambda x, m: m.exp(x)[:, None] + LEAST, slope)
    return Task("logistic-penalties", A, a, V, v, np.zeros(A.shape[1]), terms, LOW, HIGH)


def cleaning(data: CleaningData) -> Task:
    """`hyper-cleaning`, linear: s = sigmoid(x), one x a sample; the bias is a column of ones."""

    def rows_of(inputs: Tensor) -> np.ndarray:
        return np.hstack([inputs.numpy(), np.ones((len(inputs), 1))])

    def slope(x: np.ndarray, W: np.ndarray, D: np.ndarray, U: np.ndarray) -> np.ndarray:
        s = 1 / (1 + np.exp(-x))
        return s * (1 - s) * (D * (A @ U)).sum(1) / len(A)

    A = rows_of(data.inputs)
    terms = Terms(lambda x, m: m.sigmoid(x), lambda x, m: RIDGE, slope)
    clean = rows_of(data.clean_inputs), data.clean_labels.numpy()
    return Task("hyper-cleaning", A, data.given.numpy(), *clean, np.zeros(len(A)), terms)


class Exact:
    """Phi by Newton's method in numpy, from the last solution; its gradient by dense linear algebra."""

    def __init__(self, task: Task):
        self.task, self.W = task, task.y.copy()
        self.Y, self.Yv = np.eye(10)[task.a], np.eye(10)[task.v]

    def value(self, x: np.ndarray, tol: float = 1e-7) -> float:
        t, (s, r) = self.task, self._terms(x)
        for _ in range(200):
            P = softmax(t.A @ self.W)
            G = t.A.T @ (s * (P - self.Y)) / len(t.A) + r * self.W
            worst = np.abs(G).max()
            if worst <= tol:
                break
            diagonal = (t.A**2).T @ (s * P * (1 - P)) / len(t.A) + r

            def product(U: np.ndarray, P: np.ndarray = P) -> np.ndarray:
                S = P * (t.A @ U)
                return t.A.T @ (s * (S - P * S.sum(1, keepdims=True))) / len(t.A) + r * U

            self.W = self.W - conjugate_gradients(product, G, diagonal, min(0.1, max(worst, 1e-6)), 500)
        Q = softmax(t.V @ self.W)
        return float(-np.log(Q[np.arange(len(t.v)), t.v]).mean())

    def gradient(self, x: np.ndarray) -> np.ndarray:
        P, H = self._solved(x)
        t, shape = self.task, self.W.shape
        U = np.linalg.solve(H, (t.V.T @ (softmax(t.V @ self.W) - self.Yv) / len(t.v)).ravel()).reshape(shape)
        return -t.terms.slope(x, self.W, P - self.Y, U)

    def condition(self, x: np.ndarray) -> float:
        return float(np.linalg.cond(self._solved(x)[1]))

    def _solved(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """softmax(A W) and g_yy at the solution, which is kept."""
        self.value(x, 1e-14)
        t, (s, r) = self.task, self._terms(x)
        (p, k), n = self.W.shape, len(t.A)
        P = softmax(t.A @ self.W)
        H = np.zeros((p, k, p, k))
        for c in range(k):
            for d in range(k):
                H[:, c, :, d] = t.A.T @ (s * (P[:, [c]] * (c == d) - P[:, [c]] * P[:, [d]]) * t.A) / n
        return P, H.reshape(p * k, p * k) + np.diag(np.broadcast_to(r, (p, k)).ravel())

    def checked(self, x: np.ndarray, directions: int = 3, h: float = 1e-4) -> float:
        """The largest difference of `gradient` from central differences of `value`, over |gradient|."""
        g, worst = self.gradient(x), 0.0
        for d in np.random.default_rng(0).standard_normal((directions, len(x))):
            d = d / np.linalg.norm(d)
            slope = (self.value(x + h * d, 1e-13) - self.value(x - h * d, 1e-13)) / (2 * h)
            worst = max(worst, abs(slope - g @ d) / float(np.linalg.norm(g)))
        return worst

    def _terms(self, x: np.ndarray) -> tuple[Any, Any]:
        x = torch.from_numpy(x)
        s, r = self.task.terms.weights(x, torch), self.task.terms.ridge(x, torch)
        return (s.numpy()[:, None] if isinstance(s, Tensor) else s), (r.numpy() if isinstance(r, Tensor) else r)
