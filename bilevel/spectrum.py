"""Extreme eigenvalues and norms of operators known by their products, followed from point to point.

`lowest` is a Lanczos sweep: its least Ritz value is an upper bound of the least eigenvalue, near it after a sweep from
the Ritz vector of a point nearby. `norm` is a power iteration: a lower bound, near the norm after one product from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from constrained.core.vec import Vec
from constrained.linear import Product

ENOUGH = 0.02  # relative change of an estimate between two sweeps below which it has settled


def random_like(v: Vec, seed: int) -> Vec:
    """A unit vector of v's structure, the same for the same seed and sizes."""
    generator = torch.Generator().manual_seed(seed)
    w = v.map(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t))
    return w / max(float(w.norm()), torch.finfo(v.dtype).tiny)


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
    eps, v = torch.finfo(start.dtype).eps, start / float(start.norm())
    basis, diagonal, beside, largest = [], [], [], 0.0
    for _ in range(min(steps, start.size)):
        q = product(v)
        basis.append(v)
        diagonal.append(float(v @ q))
        largest = max(largest, float(q.norm()))
        for b in basis * 2:  # twice is enough
            q = q.add(b, -float(b @ q))
        beside.append(float(q.norm()))
        if not math.isfinite(beside[-1]):
            return Lowest(math.nan, start, math.nan)
        if beside[-1] <= 1e3 * eps * largest:
            break
        v = q / beside[-1]
    off = beside[: len(basis) - 1]
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    ritz = start.zeros()
    for weight, b in zip(vectors[:, 0], basis):
        ritz = ritz.add(b, float(weight))
    return Lowest(float(values[0]), ritz, largest)


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
