"""An upper level that grows exponentially: no step along its gradient is safe.

    g(x, y) = 1/2 (y - A x)' H (y - A x)                        A orthogonal, so y = A x; H = I, or of condition cond
    f(x, y) = sum_i (exp(3 y_i) + exp(-3 y_i) - 2) / 3          least at y = 0, hence x = 0
    start   x = (size, ..., size), y standard normal, float64

f'' = 3 |f'| for large y: there is no Lipschitz constant of the gradient, but one relative to its length. noise: on batches g
gains noise zeta'y, and each term of f the factor 1 + noise xi_i, with zeta and xi standard normal.
"""

from __future__ import annotations

import math

import torch

from bilevel.problem import BilevelProblem
from bilevel.solvers.bo_rep import BORep
from constrained.core.data import NoData
from constrained.core.problem import Point

from .arguments import number, placed, whole
from .instance import Instance, Recommended
from .quadratic import Noise

GROWTH = 3.0


def exponential(
    *,
    n: int = 1,
    size: float = 6.0,
    noise: float = 0.1,
    cond: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """An exponentially growing f, which separates normalised steps from steps along the gradient.

    At x = 6 the gradient is 6.6e7. In 2,000 steps `BORep()` comes to |grad Phi| of about 0.1. `StocBiO` and `SOBA` overflow with
    alpha >= 1e-6 and leave some hundreds or more with 1e-7, 1e-8, ...; an alpha near 6 / 6.6e7, with which the first steps
    happen to end near x = 0, leaves 0.3 to 800. With n = 10 and size = 2 the gradient is 8e4 and the difference smaller.

    n: entries of x and y. size: of the entries of x at the start. noise: relative, of f's terms, and absolute, of g's gradient;
    0 is deterministic. cond: of the lower level, whose Hessian has eigenvalues from 1 to 1 / cond, evenly spaced in logarithms.
    seed: of A, which is 1 or -1 for n = 1, of H's eigenvectors and of y at the start.
    """
    whole("exponential(n=...)", n, 1)
    whole("exponential(seed=...)", seed, 0, 2**63 - 1)
    number("exponential(size=...)", size, 0)
    number("exponential(noise=...)", noise, 0)
    number("exponential(cond=...)", cond, 1)
    device = placed("exponential", dtype, device)
    generator = torch.Generator().manual_seed(seed)
    Q, R = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    y = torch.randn(n, generator=generator, dtype=torch.float64).to(device, dtype)
    A = (Q * R.diagonal().sign()).to(device, dtype)  # uniform among the orthogonal ones
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    root = (Q * torch.logspace(0, -0.5 * math.log10(cond), n, dtype=torch.float64)).T.to(device, dtype)  # H = root' root

    def upper(x: torch.Tensor, y: torch.Tensor, xi: torch.Tensor | None = None) -> torch.Tensor:
        terms = (torch.exp(GROWTH * y) + torch.exp(-GROWTH * y) - 2) / GROWTH
        return terms.sum() if xi is None else (terms * (1 + noise * xi)).sum()

    def lower(x: torch.Tensor, y: torch.Tensor, zeta: torch.Tensor | None = None) -> torch.Tensor:
        gap = y - A @ x
        value = 0.5 * ((gap if cond == 1 else root @ gap) ** 2).sum()
        return value if zeta is None else value + noise * (zeta @ y)

    zero = torch.zeros(n, dtype=dtype, device=device)
    sampler = Noise(zero) if noise else NoData()
    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.full_like(zero, size),
        y=y,
        upper_data=sampler,
        lower_data=sampler,
        lower_solution=lambda x: A @ x,
    )
    return Instance(
        name="exponential",
        problem=problem,
        source="f(x, A x) is a sum of hyperbolic cosines, least at x = 0; the class of problems of arXiv 2401.09587",
        solution=(Point(zero, zero.clone()),),
        recommended={BORep: Recommended(BORep(), 2000)},
    )
