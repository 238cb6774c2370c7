"""Functions whose derivatives are known, and what compares them: shared by the tests of derivatives."""

import torch
from torch import Tensor

from constrained.core.derivatives.counts import Calls
from constrained.core.derivatives.objective import Objective
from constrained.core.vec import Vec

F64 = torch.float64
NX, NY, M = 3, 4, 5


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# g(x, y) = y'Ay / 2 + x'By + c'y + d'x, all derivatives known
root = randn(NY, NY, seed=1)
A, B, c, d = root @ root.T, randn(NX, NY, seed=2), randn(NY, seed=3), randn(NX, seed=4)
X, Y = randn(NX, seed=5), randn(NY, seed=6)
DATA = randn(10, NY, seed=14)


def quadratic(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * y @ A @ y + x @ B @ y + c @ y + d @ x


def smooth(x: dict, y: tuple) -> Tensor:
    """Nothing about it is linear, and both arguments are trees."""
    u, (v, w) = x["a"] * x["b"].exp(), y
    return (u.sin() @ v.tanh().T).square().sum() * (1 + w.square()).log() + (x["a"].prod() * v.sum()).cos() / (1 + w**4)


SX = Vec.of({"a": randn(2, 3, seed=7), "b": randn(3, seed=8)})
SY = Vec.of((randn(4, 3, seed=9), randn(seed=10)))


def objective(call, **options) -> Objective:
    return Objective("g", call, Calls(), **options)


def numeric(f, v: Vec, h: float = 1e-5) -> Tensor:
    """Central differences of a vector-valued function of v: one row an entry of v."""
    flat, rows = v.ravel(), []
    for i in range(v.size):
        step = torch.zeros_like(flat)
        step[i] = h
        rows.append((f(v.unravel(flat + step)) - f(v.unravel(flat - step))) / (2 * h))
    return torch.stack(rows)


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)
