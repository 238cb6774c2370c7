"""Models in torch: 24 small ones of Hock and Schittkowski, and dense ones with a logistic objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from constrained import ConstrainedProblem
from problems.cutest import cutest

from .model import TorchModel

F64 = torch.float64
SMALL = (6, 7, 26, 27, 28, 39, 40, 42, 46, 47, 48, 49, 50, 51, 52, 61, 77, 78, 79, *(43, 71, 100, 104, 113))  # the last with h


def small() -> Iterator[TorchModel]:
    for number in SMALL:
        yield TorchModel(name=f"HS{number}", problem=cutest(name=f"HS{number}").problem)


def dense() -> Iterator[TorchModel]:
    for n in (300, 1000):
        for kind in ("eq", "ineq"):
            yield TorchModel(name=f"logistic-{n}-{kind}", problem=logistic(n, kind))


def logistic(n: int, kind: str) -> ConstrainedProblem:
    """f(x) = mean log(1 + exp(-a_i'x)) + 1e-3/2 |x|^2; n / 3 rows t + t^3 / 3 of t = Bx, equal to or at most their values at a
    drawn point.
    """
    generator = torch.Generator().manual_seed(n)
    A = torch.randn(3 * n, n, generator=generator, dtype=F64)
    B = torch.randn(n // 3, n, generator=generator, dtype=F64) / n**0.5
    x = torch.randn(n, generator=generator, dtype=F64) / n**0.5
    A = A * torch.sign(A @ x + 0.5 * torch.randn(3 * n, generator=generator, dtype=F64))[:, None]

    def f(x: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-(A @ x)).mean() + 5e-4 * (x**2).sum()

    def rows(x: Tensor) -> Tensor:
        t = B @ x
        return t + t**3 / 3

    level = rows(x)

    def less(x: Tensor) -> Tensor:
        return rows(x) - level

    own: dict[str, Callable[[Tensor], Tensor]] = {"equality" if kind == "eq" else "inequality": less}
    return ConstrainedProblem(objective=f, x=torch.zeros(n, dtype=F64), **own)  # pyright: ignore[reportArgumentType]
