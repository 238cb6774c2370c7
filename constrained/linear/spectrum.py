"""Extreme eigenvalues and norms of operators known by their products, followed from point to point.

`lanczos` makes the small matrix whose eigenvalues, the Ritz values, lie inside the spectrum. `lowest` is such a sweep: its
least Ritz value is an upper bound of the least eigenvalue, near it after a sweep from the Ritz vector of a point nearby.
`norm` is a power iteration: a lower bound, near the norm after one product from there. `curvature` is one of differences of a
gradient.
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
from .system import Product

ENOUGH = 0.02  # relative change of an estimate between two sweeps below which it has settled


class Krylov(NamedTuple):
    """What Lanczos made of a symmetric A: Q'A Q, tridiagonal; Q, an orthonormal basis; the largest |A q| of its columns."""

    small: Tensor
    basis: Tensor
    largest: float


def lanczos(product: Product, start: Vec, steps: int) -> Krylov:
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


def lowest(product: Product, start: Vec, steps: int) -> Lowest:
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


def lowest_from_scratch(product: Product, start: Vec, *, steps: int = 40, sweeps: int = 10) -> Lowest:
    """`lowest` from a random vector, each sweep from the last Ritz vector, until the value has settled to `ENOUGH`."""
    found = lowest(product, start, steps)
    for _ in range(sweeps if start.size > steps else 0):
        before, found = found, lowest(product, found.vector, steps)
        if not before.value - found.value > ENOUGH * abs(found.value):
            break
    return found


def norm(forth: Product, back: Product, start: Vec, rounds: int) -> tuple[float, Vec]:
    """|M| = max |M v| / |v| by power iterations with M' M, M = `forth` and M' = `back`; and the v of the last one.

    >>> A = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    >>> one = Vec.of(torch.ones(2, dtype=torch.float64))
    >>> round(norm(lambda v: v.map(lambda t: A @ t), lambda v: v.map(lambda t: A.T @ t), one, 3)[0], 6)
    2.0
    """
    v, found = start, 0.0
    for _ in range(rounds):
        size = float(v.norm())
        if not size > 0:  # M is zero along all that was tried
            return found, start
        v = v / size
        image = forth(v)
        before, found = found, float(image.norm())
        v = back(image)
        if not abs(found - before) > 1e-3 * found:
            break
    return found, v if float(v.norm()) > 0 else start


def curvature(gradient: Callable[[Vec], Vec], X: ConvexSet, x: Vec, rounds: int = 10) -> float:
    """The largest |eigenvalue| of a Hessian at x, by power iterations on differences of its gradient inside X."""
    v, h = direction(x, torch.Generator().manual_seed(0)), torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, float(x.max_norm()))
    tiny, base, most = torch.finfo(x.dtype).tiny, gradient(x), 0.0
    for _ in range(rounds - 1):
        v = v / max(float(v.norm()), tiny)
        step = X.project(x.add(v, h)) - x
        if float(step.norm()) < 1e-3 * h:  # X ends here: look the other way
            step = X.project(x.add(v, -h)) - x
        v = (gradient(x + step) - base) / max(float(step.norm()), tiny)
        most = max(most, float(v.norm()))
    return most
