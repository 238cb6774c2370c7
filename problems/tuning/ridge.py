"""Ridge penalties chosen on validation data: a strongly convex lower level, a box, optima known to many digits.

    lower  g(x, w) = 1/(2n) |b - A w|^2 + 1/2 sum_j exp(x_j) w_j^2      n training rows A, b; ridge-1: one x for all j
    upper  f(w)    = 1/2 mean (V w - v)^2                               m validation rows V, v
    start  w = 0, float64

Data: rows of N(0, S), S_ij = 0.5^|i-j|; responses linear in k of the p features with N(0, 1) coefficients, plus normal noise of
standard deviation std(signal) / snr; all from numpy's RandomState.

At w = 0 the residual `upper` is 0 for every x, since g_xw = diag(exp(x_j) w_j): it says something only where `lower` is small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from bilevel.problem import BilevelProblem
from constrained.core.problem import Point
from constrained.sets import Box

from ..arguments import placed, whole
from ..instance import Instance

LAST = 2**32 - 2  # seed: RandomState takes one more, which ridge-50 uses
STARTS = (-6.0, -4.0, -2.0, 0.0, 1.0)  # of the searches for the optima of ridge-50
APART = 1e-3  # optima that differ less are one
NEWTON = 4  # steps after a search; two are enough for seed 0


@dataclass(frozen=True, eq=False)
class Rows:
    """Training rows A with responses b, validation rows V with responses v."""

    A: np.ndarray
    b: np.ndarray
    V: np.ndarray
    v: np.ndarray

    @classmethod
    def drawn(cls, seed: int, *, train: int, validate: int, p: int, k: int, snr: float) -> Rows:
        """The data of the module's docstring. The order of the draws is part of the definition."""
        rng, feature = np.random.RandomState(seed), np.arange(p)
        S = 0.5 ** np.abs(feature[:, None] - feature)
        X = rng.randn(train + validate, p) @ np.linalg.cholesky(S).T
        coefficients, w = rng.randn(k), np.zeros(p)
        w[rng.choice(p, k, replace=False)] = coefficients
        signal = X @ w
        y = signal + rng.randn(train + validate) * signal.std() / snr
        return cls(X[:train], y[:train], X[train:], y[train:])

    @cached_property
    def G(self) -> np.ndarray:
        """A'A / n."""
        return self.A.T @ self.A / len(self.b)

    @cached_property
    def c(self) -> np.ndarray:
        """A'b / n."""
        return self.A.T @ self.b / len(self.b)


def ridge_1(*, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Instance:
    """Ridge regression with one penalty for 200 coefficients: x in [-12, 4], start 0.

    400 training and 200 validation rows, k = 60, snr = 3. seed: the data are those of RandomState(seed); 0 is the published set.
    lower_solution: w = R (S U'b / n) / (S^2 / n + exp(x)), with A = U diag(S) R' computed once.
    solution: Brent's method on f(w(x)) by that formula, then Newton's method. For seed 0: f = 5.36254772576 at x = -2.0762056981,
    where the second derivative is 1.34: x is well determined.
    """
    from scipy.optimize import minimize_scalar

    whole("ridge_1(seed=...)", seed, 0, LAST)
    device, low, high = placed("ridge_1", dtype, device), -12.0, 4.0
    rows = Rows.drawn(seed, train=400, validate=200, p=200, k=60, snr=3.0)
    n = len(rows.b)
    U, S, Rt = np.linalg.svd(rows.A, full_matrices=False)
    e, a, VR = S**2 / n, S * (U.T @ rows.b) / n, rows.V @ Rt.T

    def exact(x: float) -> float:
        return 0.5 * np.mean((VR @ (a / (e + np.exp(x))) - rows.v) ** 2)

    brent = minimize_scalar(exact, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    phi = partial(Phi, rows, np.ones((200, 1)))
    best = phi(newton(phi, np.array([brent.x]), low, high))  # pyright: ignore[reportAttributeAccessIssue]
    R, eigenvalues, loads = (torch.from_numpy(array).to(device, dtype) for array in (Rt.T, e, a))

    def lower_solution(x: Tensor) -> Tensor:
        return R @ (loads / (eigenvalues + x.exp()))

    return _instance("ridge-1", rows, np.zeros(1), Box(low, high), lower_solution, [best], dtype, device)


def ridge_50(*, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Instance:
    """Ridge regression with a penalty for each of 50 features: x in [-10, 4]^50, start -2.

    100 training and 100 validation rows, k = 15, snr = 2. seed: the data are those of RandomState(seed + 1); 0 is the published
    set. lower_solution: (A'A / n + diag(exp(x))) w = A'b / n by Cholesky.
    solution: L-BFGS-B on f(w(x)) from x = -6, -4, -2, 0 and 1, then Newton's method: the different optima, the best first. For
    seed 0 f = 0.47490335, from 0 and 1, and 0.47578182, from the others. 200 random starts found no better one, but six more
    local optima: `error` is from the nearest of the two, and a solver may be right and far from both.

    x is ill determined. At the two optima 31 and 28 entries are at bounds, which gradients of 2e-8 to 3e-4 hold there; on the
    others the Hessian has eigenvalues from 2e-6 and 2e-7 to 0.1. With `upper` = 5e-5 an entry can be wrong by 5 and f by 1.5e-4;
    with 5e-7 `error` is 3e-4 and f right to 7e-11. So compare f(w(x)), and x only at tight tolerances.
    """
    whole("ridge_50(seed=...)", seed, 0, LAST)
    device, low, high = placed("ridge_50", dtype, device), -10.0, 4.0
    rows = Rows.drawn(seed + 1, train=100, validate=100, p=50, k=15, snr=2.0)
    phi = partial(Phi, rows, np.eye(50))
    found: list[Phi] = []
    for start in STARTS:
        one = phi(newton(phi, search(phi, np.full(50, start), low, high), low, high))
        if all(np.abs(one.x - other.x).max() > APART for other in found):
            found.append(one)
    found.sort(key=lambda one: one.value)
    G, c = (torch.from_numpy(array).to(device, dtype) for array in (rows.G, rows.c))

    def lower_solution(x: Tensor) -> Tensor:
        return torch.cholesky_solve(c[:, None], torch.linalg.cholesky(G + x.exp().diag()))[:, 0]

    return _instance("ridge-50", rows, np.full(50, -2.0), Box(low, high), lower_solution, found, dtype, device)


def _instance(
    name: str,
    rows: Rows,
    start: np.ndarray,
    box: Box,
    lower_solution: Callable[[Tensor], Tensor],
    optima: Sequence[Phi],
    dtype: torch.dtype,
    device: torch.device,
) -> Instance:
    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, dtype)

    A, b, V, v = (tensor(array) for array in (rows.A, rows.b, rows.V, rows.v))

    def upper(x: Tensor, w: Tensor) -> Tensor:
        return 0.5 * ((V @ w - v) ** 2).mean()

    def lower(x: Tensor, w: Tensor) -> Tensor:
        return 0.5 * ((b - A @ w) ** 2).mean() + 0.5 * (x.exp() * w**2).sum()

    return Instance(
        name=name,
        problem=BilevelProblem(
            upper=upper,
            lower=lower,
            x=tensor(start),
            y=torch.zeros_like(A[0]),
            X=box,
            lower_solution=lower_solution,
        ),
        source="ridge regression on drawn data; optima of f(w(x)) by scipy from exact values, then Newton's method",
        solution=tuple(Point(tensor(one.x), tensor(one.w)) for one in optima),
    )


# -- the optima, in numpy and scipy -----------------------------------------------------------------------------------------
class Phi:
    """Phi(x) = 1/2 mean (V w - v)^2 at the lower solution w for the log-penalties E x, with its gradient and Hessian.

    C w = A'b / n,  C q = V'(V w - v) / m,  C = A'A / n + D,  d = exp(E x),  s = d w,  capitals for diagonal matrices:
    gradient -E' (s q),  Hessian E' (S C^-1 (V'V / m) C^-1 S + S C^-1 D Q + Q D C^-1 S - S Q) E.
    """

    def __init__(self, rows: Rows, E: np.ndarray, x: np.ndarray):
        from scipy.linalg import cho_factor, cho_solve

        V, v, d = rows.V, rows.v, np.exp(E @ x)
        self.x, self.E, self.V, self.d = x, E, V, d
        self.solve = partial(cho_solve, cho_factor(rows.G + np.diag(d)))
        self.w = self.solve(rows.c)
        error = V @ self.w - v
        self.q = self.solve(V.T @ error / len(v))
        self.value = 0.5 * np.mean(error**2)
        self.gradient = -E.T @ (d * self.w * self.q)

    def hessian(self) -> np.ndarray:
        s, q = self.d * self.w, self.q
        CS = self.solve(np.diag(s))  # C^-1 S
        VCS, QDCS = self.V @ CS, (q * self.d)[:, None] * CS
        return self.E.T @ (VCS.T @ VCS / len(VCS) + QDCS.T + QDCS - np.diag(s * q)) @ self.E


def search(phi: Callable[[np.ndarray], Phi], start: np.ndarray, low: float, high: float) -> np.ndarray:
    """L-BFGS-B in u = 1 / (1 + exp(-x)): to both sides dPhi/dx vanishes like exp(-|x|), and dPhi/du = dPhi/dx / (u - u^2) not."""
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    def value(u: np.ndarray) -> tuple[float, np.ndarray]:
        at = phi(logit(u))
        return at.value, at.gradient / (u - u**2)

    lowest, highest = bounds = expit(low), expit(high)
    options = {"maxiter": 5000, "ftol": 0.0, "gtol": 1e-7}
    u = minimize(value, expit(start), jac=True, method="L-BFGS-B", bounds=[bounds] * len(start), options=options).x
    return np.select([u == lowest, u == highest], [low, high], logit(u))


def newton(phi: Callable[[np.ndarray], Phi], x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Newton's method from near an optimum, on the entries that the gradient does not hold at a bound."""
    for _ in range(NEWTON):
        at = phi(x)
        free = ~((x == low) & (at.gradient > 0) | (x == high) & (at.gradient < 0))
        step = np.zeros_like(x)
        step[free] = np.linalg.solve(at.hessian()[np.ix_(free, free)], at.gradient[free])
        x = np.clip(x - step, low, high)
    return x
