"""Bilevel quadratics with a closed-form solution.

    g(x, y) = 1/2 (y - Mx - m)' H (y - Mx - m)              H >= 0, eigenvalues 1 .. 1/cond, the last ny - rank set to zero
    f(x, y) = 1/2 (y - a)' W (y - a) + 1/10 |x - b|^2 + x' C y
    start   x = 0, y = 0, float64

With rank < ny the lower solution is not unique: y = Mx + m + N n, N a basis of null(H). `flat=True` makes f ignore N, so that
every lower solution is equally good; else f is strongly convex on N and the optimistic n is part of the solution.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from bilevel.problem import BilevelProblem
from constrained.core.arguments import expect
from constrained.core.data import NoData, Sampler
from constrained.core.problem import Point

from .arguments import number, placed, whole
from .instance import Instance

RHO = 0.2


class Noise:
    """A batch is one standard normal vector shaped like `like`: noise that is added to a gradient."""

    stochastic = True

    def __init__(self, like: torch.Tensor):
        self.like = like

    def draw(self, seed: int, stream: int, n: int) -> torch.Tensor:
        rng = np.random.default_rng(np.random.SeedSequence([seed, stream, n]))
        return torch.from_numpy(rng.standard_normal(len(self.like))).to(self.like)

    def full(self) -> Sampler | None:
        return Mean(self.like)

    def __repr__(self) -> str:
        return f"Noise({len(self.like)})"


class Mean:
    """The expectation of `Noise`: zero."""

    stochastic = False

    def __init__(self, like: torch.Tensor):
        self.like = like

    def draw(self, seed: int, stream: int, n: int) -> torch.Tensor:
        return torch.zeros_like(self.like)

    def full(self) -> Sampler | None:
        return self

    def __repr__(self) -> str:
        return f"Mean({len(self.like)})"


def quadratic(
    *,
    nx: int = 10,
    ny: int = 20,
    cond: float = 10.0,
    rank: int | None = None,
    flat: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """The quadratic of this seed with its solution by one linear solve.

    nx, ny: sizes. cond >= 1: condition of H on its range. rank: of H (None: ny). noise: standard deviation of the gradient
    noise; 0 is deterministic, else f gains noise xi'(x, y) and g noise zeta'(x, y) with xi, zeta drawn afresh each step.
    """
    whole("quadratic(nx=...)", nx, 1)
    whole("quadratic(ny=...)", ny, 1)
    whole("quadratic(seed=...)", seed, 0, 2**63 - 1)
    number("quadratic(cond=...)", cond, 1)
    number("quadratic(noise=...)", noise, 0)
    if rank is not None:
        whole("quadratic(rank=...)", rank, 1, ny)
    expect("quadratic(flat=...)", flat, bool)
    device = placed("quadratic", dtype, device)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    Q, _ = torch.linalg.qr(normal(ny, ny))
    eigenvalues = torch.logspace(0, -math.log10(cond), ny, dtype=torch.float64)
    if rank is not None:
        eigenvalues[rank:] = 0
    H = Q @ torch.diag(eigenvalues) @ Q.T
    M, m, a, b = normal(ny, nx) / math.sqrt(nx), normal(ny), normal(ny), normal(nx)
    root = normal(ny, ny) / math.sqrt(ny)
    W, C = root @ root.T + 0.5 * torch.eye(ny, dtype=torch.float64), 0.02 * normal(nx, ny)
    if rank is not None and flat:
        P = Q[:, :rank] @ Q[:, :rank].T
        W, C = P @ W @ P, C @ P

    def upper(x: torch.Tensor, y: torch.Tensor, xi: torch.Tensor | None = None) -> torch.Tensor:
        value = 0.5 * (y - a) @ W @ (y - a) + 0.5 * RHO * ((x - b) ** 2).sum() + x @ C @ y
        return value if xi is None else value + noise * (xi @ torch.cat([x, y]))

    def lower(x: torch.Tensor, y: torch.Tensor, zeta: torch.Tensor | None = None) -> torch.Tensor:
        r = y - M @ x - m
        value = 0.5 * r @ H @ r
        return value if zeta is None else value + noise * (zeta @ torch.cat([x, y]))

    # y = B u + m with u = (x, n): minimise f over u, in float64.
    B = M if rank is None or flat else torch.cat([M, Q[:, rank:]], 1)
    E = torch.eye(nx, B.shape[1], dtype=torch.float64)
    cross = E.T @ C @ B
    u = torch.linalg.solve(B.T @ W @ B + RHO * E.T @ E + cross + cross.T, B.T @ W @ (a - m) + RHO * E.T @ b - E.T @ C @ m)
    solution = Point(u[:nx].to(device, dtype), (B @ u + m).to(device, dtype))

    H, M, m, a, b, W, C = (t.to(device, dtype) for t in (H, M, m, a, b, W, C))  # read by upper and lower
    sampler = Noise(torch.zeros(nx + ny, dtype=dtype, device=device)) if noise else NoData()
    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(nx, dtype=dtype, device=device),
        y=torch.zeros(ny, dtype=dtype, device=device),
        upper_data=sampler,
        lower_data=sampler,
        lower_solution=(lambda x: M @ x + m) if rank is None else None,
    )
    source = "closed form: y = Mx + m (+ N n), then one linear solve in (x, n)"
    return Instance(name="quadratic", problem=problem, source=source, solution=(solution,))
