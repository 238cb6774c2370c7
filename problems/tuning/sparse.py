"""The lasso's and the elastic net's penalties chosen on validation data: a lower level on the edge of differentiability.

    lower  g(x, w) = 1/(2n) |b - A w|^2 + exp(x1) |w|_1 + 1/2 exp(x2) |w|^2     n training rows A, b; lasso: without the last
    upper  f(w)    = mean (V w - v)^2                                           validation rows V, v
    start  w = 0, float64

|w|_1 is no smooth function. So y = (p, q), w = p - q with p, q >= 0, and sum (p + q) takes its place: at the minimum p or q is
zero in each entry, and g is smooth in y. g_yy is singular, along p = q, but not on the entries that are positive at a solution,
as long as the columns of A that belong to them are independent.

With F the entries of w that are not zero, s their signs, C = A_F'A_F / n + exp(x2) I (lasso: without the last):

    w_F = C^-1 (A_F'b / n - exp(x1) s)

w is continuous in x, and smooth as long as F and s stay. Where they change Phi(x) = f(w(x)) has a kink; between two kinks Phi of
the lasso is a parabola in exp(x). There are local minima, smooth ones and kinks.

Data: as in `ridge.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from bilevel.problem import BilevelProblem
from constrained.core.problem import Point
from constrained.sets import Box

from ..arguments import placed, whole
from ..instance import Instance
from .ridge import NEWTON, Rows

LAST = 2**32 - 6  # seed: RandomState takes five more, which the elastic net uses
RANGE = 6.0  # x1 from log(amax) - 6 to log(amax), the least penalty with w = 0
RIDGE = (-8.0, 2.0)  # x2
GRID = 11  # values of x2, before the search between two of them


def lasso(*, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Instance:
    """The lasso with one penalty for 300 coefficients: x in [log(amax) - 6, log(amax)], amax = max |A'b| / n; start: the middle.

    300 training and 300 validation rows, k = 20, snr = 3. seed: the data are those of RandomState(seed + 2); 0 is the published
    set. solution: the least value on the whole path of solutions, whose corners are scikit-learn's (`lars_path_gram`). For
    seed 0: f = 2.29779905446 at x = -2.6705307092, between two kinks 0.0008 apart, with 88 coefficients.

    There are four more local minima, of 2.30040 at x = -2.4789 and up: where a descent ends depends on the start. With six of
    the seeds 0 to 9 the least value is at a kink, where no gradient vanishes.
    """
    whole("lasso(seed=...)", seed, 0, LAST)
    device = placed("lasso", dtype, device)
    rows = Rows.drawn(seed + 2, train=300, validate=300, p=300, k=20, snr=3.0)
    top = np.log(np.abs(rows.c).max())
    _, x1, w = along(rows, 0.0, top - RANGE)
    best = settled(rows, np.array([x1]), w, np.array([top - RANGE]), np.array([top]))
    return _instance("lasso", rows, np.array([top - RANGE / 2]), Box(top - RANGE, top), best, dtype, device)


def elastic_net(*, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Instance:
    """The elastic net with both penalties for 100 coefficients: x1 as in `lasso`, x2 in [-8, 2], start in the middle.

    80 training and 200 validation rows, k = 30, snr = 2. seed: the data are those of RandomState(seed + 5).
    solution: for each x2 the least value on the path in x1; of these the least over x2 by a grid and Brent's method; then
    Newton's method on the smooth piece, if the optimum is in one. For seed 0: f = 13.6154947874 at x = (-2.2258017648,
    -1.6157343512), with 58 coefficients; at x2 = -8 the least is 14.41.
    """
    from scipy.optimize import minimize_scalar

    whole("elastic_net(seed=...)", seed, 0, LAST)
    device = placed("elastic_net", dtype, device)
    rows = Rows.drawn(seed + 5, train=80, validate=200, p=100, k=30, snr=2.0)
    top = np.log(np.abs(rows.c).max())
    low, high = np.array([top - RANGE, RIDGE[0]]), np.array([top, RIDGE[1]])

    def least(x2: float) -> float:
        return along(rows, np.exp(x2), low[0])[0]

    grid, step = np.linspace(*RIDGE, GRID, retstep=True)
    middle = grid[np.argmin([least(x2) for x2 in grid])]
    bounds = max(middle - step, RIDGE[0]), min(middle + step, RIDGE[1])
    between = minimize_scalar(least, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    x2 = min((between.x, *bounds), key=least)  # pyright: ignore[reportAttributeAccessIssue]
    _, x1, w = along(rows, np.exp(x2), low[0])
    best = settled(rows, np.array([x1, x2]), w, low, high)
    return _instance(
        "elastic-net", rows, (low + high) / 2, Box(torch.from_numpy(low), torch.from_numpy(high)), best, dtype, device
    )


def _instance(
    name: str, rows: Rows, start: np.ndarray, box: Box, best: Piece, dtype: torch.dtype, device: torch.device
) -> Instance:
    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, dtype)

    A, b, V, v = (tensor(array) for array in (rows.A, rows.b, rows.V, rows.v))

    def upper(x: Tensor, y: Tensor) -> Tensor:
        p, q = y
        return ((V @ (p - q) - v) ** 2).mean()

    def lower(x: Tensor, y: Tensor) -> Tensor:
        p, q = y
        fit = 0.5 * ((b - A @ (p - q)) ** 2).mean() + x[0].exp() * y.sum()
        return fit if len(x) == 1 else fit + 0.5 * x[1].exp() * ((p - q) ** 2).sum()

    return Instance(
        name=name,
        problem=BilevelProblem(
            upper=upper,
            lower=lower,
            x=tensor(start),
            y=A.new_zeros(2, A.shape[1]),
            X=box,
            Y=Box(0.0, float("inf")),
        ),
        source="regression on drawn data; optimum of f(w(x)) from the path of solutions by scikit-learn, then its formula",
        solution=(Point(tensor(best.x), tensor(np.maximum([best.w, -best.w], 0.0))),),
    )


# -- the optima, in numpy and scikit-learn ----------------------------------------------------------------------------------
def along(rows: Rows, ridge: float, lowest: float) -> tuple[float, float, np.ndarray]:
    """The least f on the path of solutions x1 -> w for one exp(x2), with its x1 and w. The path is linear in exp(x1) between
    its corners, so that f = mean (e + t d)^2 for the errors e at one corner and e + d at the next: t = -e'd / d'd.
    """
    from sklearn.linear_model import lars_path_gram

    n, p = rows.A.shape
    gram = n * (rows.G + ridge * np.eye(p))
    corners, _, W = lars_path_gram(n * rows.c, gram, n_samples=n, method="lasso", alpha_min=np.exp(lowest))  # pyright: ignore[reportAssignmentType]
    errors = rows.V @ W - rows.v[:, None]
    e, d = errors[:, :-1], np.diff(errors)
    t = np.clip(-(e * d).sum(0) / (d * d).sum(0), 0.0, 1.0)
    values = ((e + t * d) ** 2).mean(0)
    i = int(values.argmin())
    between = np.array([1 - t[i], t[i]])
    return values[i], np.log(between @ corners[i : i + 2]), W[:, i : i + 2] @ between


class Piece:
    """Phi(x) = mean (V w - v)^2 where the entries F of w with their signs s do not change, with its gradient and Hessian.

    C w = c - exp(x1) s,  C q = 2 V'(V w - v) / m,  C = G + exp(x2) I, all of F;  w_1 = -exp(x1) C^-1 s,  w_2 = -exp(x2) C^-1 w:
    gradient w_i'C q,  Hessian 2 (V w_i)'V w_j / m + w_ij'C q,  w_11 = w_1,  w_12 = -exp(x2) C^-1 w_1,  w_22 = w_2 + 2 (..)_2 w_2.
    """

    def __init__(self, rows: Rows, signs: np.ndarray, x: np.ndarray):
        self.x, self.V = x, rows.V[:, signs != 0]
        F, n = np.flatnonzero(signs), len(signs)
        ridge = np.exp(x[1]) if len(x) == 2 else 0.0
        self.solve = partial(np.linalg.solve, rows.G[np.ix_(F, F)] + ridge * np.eye(len(F)))
        w = self.solve(rows.c[F] - np.exp(x[0]) * signs[F])
        self.w = np.zeros(n)
        self.w[F] = w
        error = self.V @ w - rows.v
        self.value = np.mean(error**2)
        self.b = 2 * self.V.T @ error / len(error)
        self.shrink = lambda u: -ridge * self.solve(u)
        moves = [-np.exp(x[0]) * self.solve(signs[F]), self.shrink(w)]
        self.moves = np.array(moves[: len(x)])  # w_1 and w_2
        self.gradient = self.moves @ self.b

    def hessian(self) -> np.ndarray:
        VM = self.V @ self.moves.T
        first = self.moves[0]
        second = [[first]]
        if len(self.x) == 2:
            cross, last = self.shrink(first), self.moves[1] + 2 * self.shrink(self.moves[1])
            second = [[first, cross], [cross, last]]
        return 2 * VM.T @ VM / len(VM) + np.array(second) @ self.b


def settled(rows: Rows, x: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray) -> Piece:
    """Newton's method on the piece of x, from near an optimum, on the entries that the gradient does not hold at a bound. Where
    it leads out of the piece the optimum is a kink: x itself.
    """
    phi = partial(Piece, rows, np.sign(w))
    at = start = phi(x)
    for _ in range(NEWTON):
        free = ~((at.x == low) & (at.gradient > 0) | (at.x == high) & (at.gradient < 0))
        step = np.zeros_like(x)
        step[free] = np.linalg.solve(at.hessian()[np.ix_(free, free)], at.gradient[free])
        at = phi(np.clip(at.x - step, low, high))
    pull = np.abs(rows.c - rows.G @ at.w)[w == 0]
    inside = (np.sign(at.w) == np.sign(w)).all() and (pull <= np.exp(at.x[0])).all()
    return at if inside else start
