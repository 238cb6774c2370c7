"""Small problems whose solutions are known to many digits."""

from __future__ import annotations

import numpy as np
import torch

from bilevel.problem import BilevelProblem
from constrained.core.problem import Point
from constrained.sets import Box

from .arguments import placed, whole
from .instance import Instance

# Stationary points of f(x, -x) on [0, 3] that are minima, best first.
PL_MINIMA = (1.2151454755, 0.3823600748, 2.8296418000)


def pl_toy(*, seed: int | None = None, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Instance:
    """A lower level that is not convex but satisfies the Polyak-Lojasiewicz inequality (arXiv 2302.05185).

    f(x, y) = cos(4y + 2) / (1 + exp(2 - 4x)) + 1/2 log((4x - 2)^2 + 1),  g(x, y) = (x + y)^2 + x sin^2(x + y),  x in [0, 3].
    S(x) = {-x}, so that the problem is min f(x, -x): three local minima, x = 1.2151454755 with f = 0.1999108877 the global one.
    seed: of the start x0 ~ U(0, 3), y0 ~ U(-5, 8.5); None starts at (1.5, 0).
    """
    if seed is not None:
        whole("pl_toy(seed=...)", seed, 0)
    device = placed("pl_toy", dtype, device)
    rng = np.random.default_rng(seed)
    x0, y0 = (1.5, 0.0) if seed is None else (rng.uniform(0, 3), rng.uniform(-5, 8.5))

    def scalar(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=dtype, device=device)

    def upper(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cos(4 * y + 2) / (1 + torch.exp(2 - 4 * x)) + 0.5 * torch.log((4 * x - 2) ** 2 + 1)

    def lower(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y) ** 2 + x * torch.sin(x + y) ** 2

    minima = tuple(Point(scalar(x), scalar(-x)) for x in PL_MINIMA)
    return Instance(
        name="pl-toy",
        problem=BilevelProblem(
            upper=upper,
            lower=lower,
            x=scalar(x0),
            y=scalar(y0),
            X=Box(0.0, 3.0),
            lower_solution=lambda x: -x,
        ),
        source="Shen and Chen, arXiv 2302.05185; the minima are those of f(x, -x), which has one variable",
        solution=minima,
    )
