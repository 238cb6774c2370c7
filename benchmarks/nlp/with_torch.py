"""Models in torch: 24 small ones of Hock and Schittkowski, and dense ones with a logistic objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from constrained import Box, ConstrainedProblem
from problems.cutest import cutest

from .model import TorchModel

F64 = torch.float64
EQUALITIES = (6, 7, 26, 27, 28, 39, 40, 42, 46, 47, 48, 49, 50, 51, 52, 61, 77, 78, 79)


def small() -> Iterator[TorchModel]:
    for number in EQUALITIES:
        yield TorchModel(name=f"HS{number}", problem=cutest(name=f"HS{number}").problem)
    for name, make in {"HS43": hs43, "HS71": hs71, "HS100": hs100, "HS104": hs104, "HS113": hs113}.items():
        yield TorchModel(name=name, problem=make())


def start(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=F64)


def hs43() -> ConstrainedProblem:
    def h(x: Tensor) -> Tensor:
        a, b, c, d = x
        first = a**2 + b**2 + c**2 + d**2 + a - b + c - d - 8
        return torch.stack([first, a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d - 10, 2 * a**2 + b**2 + c**2 + 2 * a - b - d - 5])

    def f(x: Tensor) -> Tensor:
        a, b, c, d = x
        return a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d

    return ConstrainedProblem(objective=f, inequality=h, x=torch.zeros(4, dtype=F64))


def hs71() -> ConstrainedProblem:
    return ConstrainedProblem(
        objective=lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equality=lambda x: (x**2).sum() - 40,
        inequality=lambda x: 25 - x.prod(),
        x=start(1, 5, 5, 1),
        X=Box(1.0, 5.0),
    )


def hs100() -> ConstrainedProblem:
    def f(x: Tensor) -> Tensor:
        a, b, c, d, e, u, v = x
        far = (a - 10) ** 2 + 5 * (b - 12) ** 2 + c**4 + 3 * (d - 11) ** 2
        return far + 10 * e**6 + 7 * u**2 + v**4 - 4 * u * v - 10 * u - 8 * v

    def h(x: Tensor) -> Tensor:
        a, b, c, d, e, u, v = x
        return torch.stack(
            [
                2 * a**2 + 3 * b**4 + c + 4 * d**2 + 5 * e - 127,
                7 * a + 3 * b + 10 * c**2 + d - e - 282,
                23 * a + b**2 + 6 * u**2 - 8 * v - 196,
                4 * a**2 + b**2 - 3 * a * b + 2 * c**2 + 5 * u - 11 * v,
            ]
        )

    return ConstrainedProblem(objective=f, inequality=h, x=start(1, 2, 0, 4, 0, 1, 1))


def hs104() -> ConstrainedProblem:
    def f(x: Tensor) -> Tensor:
        return 0.4 * ((x[0] / x[6]) ** 0.67 + (x[1] / x[7]) ** 0.67) + 10 - x[0] - x[1]

    def h(x: Tensor) -> Tensor:
        value = f(x)
        reactors = [4 * x[i] / x[i + 2] + 2 * x[i] ** -0.71 / x[i + 2] + 0.0588 * x[i] ** -1.3 * x[i + 4] - 1 for i in (2, 3)]
        feeds = [0.0588 * x[4] * x[6] + 0.1 * x[0] - 1, 0.0588 * x[5] * x[7] + 0.1 * (x[0] + x[1]) - 1]
        return torch.stack([*feeds, *reactors, 1 - value, value - 4.2])

    return ConstrainedProblem(objective=f, inequality=h, x=start(6, 3, 0.4, 0.2, 6, 6, 1, 0.5), X=Box(0.1, 10.0))


def hs113() -> ConstrainedProblem:
    def f(x: Tensor) -> Tensor:
        centres, weights = start(10, 5, 3, 1, 0, 11, 10, 7), start(1, 4, 1, 2, 5, 7, 2, 1)
        a, b = x[0], x[1]
        return a**2 + b**2 + a * b - 14 * a - 16 * b + (weights * (x[2:] - centres) ** 2).sum() + 45

    def h(x: Tensor) -> Tensor:
        a, b, c, d, e, u, v, w, y, z = x
        return torch.stack(
            [
                4 * a + 5 * b - 3 * v + 9 * w - 105,
                10 * a - 8 * b - 17 * v + 2 * w,
                -8 * a + 2 * b + 5 * y - 2 * z - 12,
                3 * (a - 2) ** 2 + 4 * (b - 3) ** 2 + 2 * c**2 - 7 * d - 120,
                5 * a**2 + 8 * b + (c - 6) ** 2 - 2 * d - 40,
                0.5 * (a - 8) ** 2 + 2 * (b - 4) ** 2 + 3 * e**2 - u - 30,
                a**2 + 2 * (b - 2) ** 2 - 2 * a * b + 14 * e - 6 * u,
                -3 * a + 6 * b + 12 * (y - 8) ** 2 - 7 * z,
            ]
        )

    return ConstrainedProblem(objective=f, inequality=h, x=start(2, 3, 5, 5, 1, 2, 7, 3, 6, 10))


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
