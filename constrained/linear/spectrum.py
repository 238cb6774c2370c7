"""Extreme eigenvalues and norms of operators known by their products, followed from point to point.

`lanczos` makes the small matrix whose eigenvalues, the Ritz values, lie inside the spectrum. `lowest` is such a sweep: its
least Ritz value is an upper bound of the least eigenvalue, near it after a sweep from the Ritz vector of a point nearby.
`power` is the power method: a lower bound of the norm. `operator_norm` takes it for M'M and follows it from point to point;
`largest` and `growth` start from a fixed vector, `curvature` takes differences of an operator that is not linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.derivatives.finite_differences import direction
from ..core.vec import Vec
from ..sets import ConvexSet
from .system import Operator

ENOUGH = 0.02  # relative change of an estimate between two sweeps below which it has settled
POWER = 20  # products of `largest` at most


class Krylov(NamedTuple):
    """What Lanczos made of a symmetric A: Q'A Q, tridiagonal; Q, an orthonormal basis; the largest |A q| of its columns."""

    small: Tensor
    basis: Tensor
    largest: float


def lanczos(product: Operator, start: Vec, steps: int) -> Krylov:
    """The Krylov space of `start` by Lanczos with full reorthogonalisation.

    `steps` products, fewer where the space is exhausted; a product that is not finite ends it and stays in Q'A Q.

    >>> A = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    >>> small, Q, _ = lanczos(lambda v: v.map(lambda t: A @ t), Vec.of(torch.ones(3, dtype=torch.float64)), 3)
    >>> torch.linalg.eigvalsh(small)
    tensor([1., 2., 3.], dtype=torch.float64)
    """
    v, steps, eps = start.ravel(), min(steps, start.size), torch.finfo(start.dtype).eps
    V, small = v.new_zeros(steps, len(v)), v.new_zeros(steps, steps)
    beta, largest, k = v.norm(), 0.0, 0
    while k < steps and float(beta) > 1e3 * eps * largest:
        V[k] = v / beta
        q = product(start.unravel(V[k])).ravel()
        largest = max(largest, float(q.norm()))
        small[k, k] = V[k] @ q
        for _ in range(2):  # twice is enough
            q = q - V[: k + 1].T @ (V[: k + 1] @ q)
        v, beta, k = q, q.norm(), k + 1
        if k < steps:
            small[k, k - 1] = small[k - 1, k] = beta
    return Krylov(small[:k, :k], V[:k].T, largest)


@dataclass
class Lowest:
    """The least Ritz value, its vector, and the largest length that a product gave a unit vector."""

    value: float
    vector: Vec
    largest: float


def lowest(product: Operator, start: Vec, steps: int) -> Lowest:
    """The least Ritz value of a symmetric operator on the Krylov space of `start`: NaN where a product is not finite.

    `steps` products, fewer where the space is exhausted. The basis is kept and orthogonalised in full.

    >>> A = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    >>> round(lowest(lambda v: v.map(lambda t: A @ t), Vec.of(torch.ones(3, dtype=torch.float64)), 3).value, 6)
    1.0
    """
    small, basis, largest = lanczos(product, start, steps)
    if not bool(small.isfinite().all()):
        return Lowest(math.nan, start, math.nan)
    values, vectors = torch.linalg.eigh(small)
    return Lowest(float(values[0]), start.unravel(basis @ vectors[:, 0]), largest)


def lowest_from_scratch(product: Operator, start: Vec, *, steps: int = 40, sweeps: int = 10) -> Lowest:
    """`lowest` from a random vector, each sweep from the last Ritz vector, until the value has settled to `ENOUGH`."""
    found = lowest(product, start, steps)
    for _ in range(sweeps if start.size > steps else 0):
        before, found = found, lowest(product, found.vector, steps)
        if not before.value - found.value > ENOUGH * abs(found.value):
            break
    return found


class Power(NamedTuple):
    """Of the unit vectors v tried: the last |A v|, NaN or infinite where it was, the largest, the next v, the products."""

    last: float
    largest: float
    vector: Vec
    products: int


def power(product: Operator, start: Vec, most: int, *, back: Operator | None = None, settled: float | None = None) -> Power:
    """The power method from `start`, for the largest |A v| / |v| from below; of a matrix that is not symmetric, `back` is A'.

    v <- A v / |A v|, with `back` v <- A'A v / |A'A v|. It ends after `most` products with A, where v is zero or not finite, and
    where |A v| changed by no more than the share `settled` of itself.

    >>> A = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    >>> round(power(lambda v: v.map(lambda t: A @ t), Vec.of(torch.ones(2, dtype=torch.float64)), 9).last, 6)
    3.0
    """
    v, last, largest, spent = start, 0.0, 0.0, 0
    while spent < most:
        size = float(v.norm())
        if not 0 < size < math.inf:
            break
        image, before = product(v / size), last
        spent, last = spent + 1, float(image.norm())
        largest = max(largest, last)  # NaN is left out
        v = image if back is None else back(image)
        if settled is not None and not abs(last - before) > settled * last:
            break
    return Power(last, largest, v, spent)


def operator_norm(forth: Operator, back: Operator, start: Vec, rounds: int) -> tuple[float, Vec]:
    """|M| = max |M v| / |v| by power iterations with M' M, M = `forth` and M' = `back`; and the v of the last one.

    >>> A = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    >>> one = Vec.of(torch.ones(2, dtype=torch.float64))
    >>> round(operator_norm(lambda v: v.map(lambda t: A @ t), lambda v: v.map(lambda t: A.T @ t), one, 3)[0], 6)
    2.0
    """
    found = power(forth, start, rounds, back=back, settled=1e-3)
    return found.last, found.vector if float(found.vector.norm()) > 0 else start  # M is zero along all that was tried


def unpatterned(like: Vec) -> Vec:
    """A fixed vector that no structure of a matrix is likely to be orthogonal to."""
    return like.unravel(torch.arange(1.0, like.size + 1, dtype=torch.float64, device=like.device).square().cos())


def largest(product: Operator, like: Vec) -> tuple[float, int]:
    """An estimate of |A| from below, settled to 1 %, NaN where a product is not finite; and its products, `POWER` at most.

    With random products: the largest |A_j v| / |v| met.
    """
    found = power(product, unpatterned(like), POWER, settled=0.01)
    return found.largest if math.isfinite(found.last) else math.nan, found.products


def growth(apply: Callable[[Tensor], Tensor], size: int, device: torch.device) -> float:
    """An estimate of |A| from below, of a third at least, by two products; infinite where one is not finite."""
    start = unpatterned(Vec.of(torch.zeros(size, dtype=torch.float64, device=device)))
    found = power(lambda v: v.map(apply), start, 2)
    return found.last if math.isfinite(found.last) else math.inf


def curvature(operator: Callable[[Vec], Vec], X: ConvexSet, x: Vec, rounds: int = 10, length: float | None = None) -> float:
    """The largest |F(x + d) - F(x)| / |d| along a power iteration inside X: of a gradient, the largest |eigenvalue| of a Hessian.

    rounds: evaluations of F. length: |d|, else as for central differences.
    """
    h = torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, float(x.max_norm())) if length is None else length
    tiny, base = torch.finfo(x.dtype).tiny, operator(x)

    def difference(v: Vec) -> Vec:
        step = X.project(x.add(v, h)) - x
        if float(step.norm()) < 1e-3 * h:  # X ends here: look the other way
            step = X.project(x.add(v, -h)) - x
        return (operator(x + step) - base) / max(float(step.norm()), tiny)

    return power(difference, direction(x, torch.Generator().manual_seed(0)), rounds - 1).largest
