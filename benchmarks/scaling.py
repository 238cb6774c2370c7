"""Is CONVERGED true in other units? Twelve small problems with f, g, c scaled and x, y substituted, each solved again.

    python benchmarks/scaling.py [--values 1e-8,1e-4,1,1e4,1e8] [--units 1e-6,1e-3,1,1e3,1e6] [--solvers default,VPBGD]
                                 [--only ridge,hs28] [--seconds 5]

A run prints its status and the share of the possible improvement that is missing,

    (Phi(x) - Phi*) / (Phi(x0) - Phi*),   constrained: f + w |c|_1 in place of Phi, w twice the largest multiplier at the solution

Phi* the least value that SciPy finds from x, or that of an accurate unscaled solve. False: CONVERGED with more than 0.1 %, but
for points where Phi bends down, a saddle or the plateau of a sigmoid, which no measure of first order tells from a minimum.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor

import bilevel
import constrained
from bilevel import BilevelProblem, Box
from constrained import ConstrainedProblem
from problems import cutest, pl_toy

FALSE = 1e-3
DTYPE = torch.float64
Numbers = tuple[float, float]


def real(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DTYPE)


# -- the problems, unscaled --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Two:
    """f, g, the start, and y(x) as torch operations; x between low and high."""

    f: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor, Tensor], Tensor]
    response: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    low: float = -math.inf
    high: float = math.inf

    def scaled(self, value: Numbers, unit: Numbers) -> BilevelProblem:
        (a, b), (u, v) = value, unit
        X = bilevel.Everywhere() if math.isinf(self.high) else Box(self.low * u, self.high * u)
        f, g = lambda x, y: a * self.f(x / u, y / v), lambda x, y: b * self.g(x / u, y / v)
        return BilevelProblem(upper=f, lower=g, x=self.x * u, y=self.y * v, X=X)

    def missing(self, x: Tensor, y: Tensor) -> float:
        """x with y(x): what y itself misses counts too."""
        here, least = float(self.phi(x)), lowest(self.phi, x, self.low, self.high)
        return (max(here, float(self.f(x, y))) - min(here, least)) / (float(self.phi(self.x)) - min(here, least))

    def phi(self, x: Tensor) -> Tensor:
        return self.f(x, self.response(x))

    def bends_down(self, x: Tensor) -> bool:
        """The Hessian of Phi in the entries off their bounds has a negative eigenvalue."""
        free = (x - self.low > 1e-3) & (self.high - x > 1e-3)
        hessian = torch.autograd.functional.hessian(self.phi, x)[free][:, free]
        return bool(free.any()) and float(torch.linalg.eigvalsh(hessian)[0]) < 0


@dataclass(frozen=True)
class One:
    """f, c = 0, h <= 0, and the box; the least merit and its weight come from an accurate unscaled solve."""

    f: Callable[[Tensor], Tensor]
    x: Tensor
    c: Callable[[Tensor], Tensor] | None = None
    h: Callable[[Tensor], Tensor] | None = None
    low: float = -math.inf
    high: float = math.inf

    def scaled(self, value: Numbers, unit: Numbers) -> ConstrainedProblem:
        (a, b), (u, _) = value, unit
        X = constrained.Everywhere() if math.isinf(self.high) else Box(self.low * u, self.high * u)
        c, h = (None if part is None else (lambda x, part=part: b * part(x / u)) for part in (self.c, self.h))
        return ConstrainedProblem(objective=lambda x: a * self.f(x / u), equality=c, inequality=h, x=self.x * u, X=X)

    def violation(self, x: Tensor) -> float:
        equal = 0.0 if self.c is None else float(self.c(x).abs().sum())
        return equal + (0.0 if self.h is None else float(self.h(x).clamp(min=0).sum()))

    def missing(self, x: Tensor, y: Tensor | None = None) -> float:
        known = constrained.solve(self.scaled((1, 1), (1, 1)), tol=1e-10)
        given = [known.multipliers.equality, known.multipliers.inequality] if known.multipliers else []
        w = 2 * max([1e-3, *(float(part.abs().max()) for part in given if part is not None and part.numel())])
        here, first, least = (float(self.f(z)) + w * self.violation(z) for z in (x, self.x, known.x))
        return (here - min(least, here)) / (first - min(least, here))


def lowest(phi: Callable[[Tensor], Tensor], x: Tensor, low: float, high: float) -> float:
    def both(flat: Any) -> tuple[float, Any]:
        at = torch.tensor(flat, dtype=DTYPE).reshape(x.shape).requires_grad_()
        value = phi(at)
        value.backward()
        return float(value.detach()), at.grad.reshape(-1).numpy()

    bounds = None if math.isinf(high) else [(low, high)] * x.numel()
    options = {"ftol": 1e-16, "gtol": 1e-12}
    return float(minimize(both, x.reshape(-1).numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)


def problems() -> dict[str, One | Two]:
    gen = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen, dtype=DTYPE)

    A, n = normal(40, 6), 6
    b = A[:, :2].sum(1) + 0.5 * normal(40)
    gram, right = A[:20].T @ A[:20] / 20, A[:20].T @ b[:20] / 20
    ridge = Two(
        f=lambda x, w: ((A[20:] @ w - b[20:]) ** 2).mean(),
        g=lambda x, w: ((A[:20] @ w - b[:20]) ** 2).mean() + (x.exp() * w**2).sum(),
        response=lambda x: torch.linalg.solve(gram + torch.diag(x.exp()), right),
        x=torch.zeros(n, dtype=DTYPE), y=torch.zeros(n, dtype=DTYPE), low=-6.0, high=4.0,
    )  # fmt: skip
    H, B, goal = torch.diag(torch.logspace(0, 2, 5, dtype=DTYPE)), normal(5, 3), normal(5)
    quadratic = Two(
        f=lambda x, y: ((y - goal) ** 2).sum() + 0.1 * ((x - 1) ** 2).sum(),
        g=lambda x, y: 0.5 * y @ H @ y - y @ (B @ x),
        response=lambda x: torch.linalg.solve(H, B @ x),
        x=torch.zeros(3, dtype=DTYPE), y=torch.zeros(5, dtype=DTYPE),
    )  # fmt: skip
    labels = (A @ real(1, -1, 0.5, 0, 0, 0) + 0.7 * normal(40) > 0).to(DTYPE)

    def fitted(x: Tensor) -> Tensor:
        w = torch.zeros(n, dtype=DTYPE)
        for _ in range(12):
            p = torch.sigmoid(A[:20] @ w)
            hessian = (A[:20] * (p * (1 - p))[:, None]).T @ A[:20] / 20 + x.exp() * torch.eye(n, dtype=DTYPE)
            w = w - torch.linalg.solve(hessian, A[:20].T @ (p - labels[:20]) / 20 + x.exp() * w)
        return w

    cross = torch.nn.functional.binary_cross_entropy_with_logits
    logistic = Two(
        f=lambda x, w: cross(A[20:] @ w, labels[20:]),
        g=lambda x, w: cross(A[:20] @ w, labels[:20]) + 0.5 * x.exp().sum() * (w**2).sum(),
        response=fitted, x=real(1.0), y=torch.zeros(n, dtype=DTYPE), low=-8.0, high=4.0,
    )  # fmt: skip
    toy = pl_toy().problem
    pl = Two(f=toy.upper, g=toy.lower, response=lambda x: -x, x=toy.x, y=toy.y, low=0.0, high=3.0)
    M, t = normal(8, 4), normal(8)
    valley = Two(  # f is ill-conditioned: 1e4
        f=lambda x, y: 0.5 * (real(1e2, 1.0, 1e-2) * (y - 1) ** 2).sum(),
        g=lambda x, y: 0.5 * ((y - x) ** 2).sum() + 0.05 * (y**4).sum(),
        response=lambda x: cubic(x),
        x=torch.zeros(3, dtype=DTYPE), y=torch.zeros(3, dtype=DTYPE),
    )  # fmt: skip
    weights = Two(  # weights of rows
        f=lambda x, y: ((M[4:] @ y - t[4:]) ** 2).mean() + 1e-2 * (y**2).sum(),
        g=lambda x, y: (torch.sigmoid(x) * (M[:4] @ y - t[:4]) ** 2).sum() + 0.1 * (y**2).sum(),
        response=lambda x: torch.linalg.solve(
            M[:4].T @ (torch.sigmoid(x)[:, None] * M[:4]) + 0.1 * torch.eye(4, dtype=DTYPE), M[:4].T @ (torch.sigmoid(x) * t[:4])
        ),
        x=torch.zeros(4, dtype=DTYPE), y=torch.zeros(4, dtype=DTYPE), low=-5.0, high=5.0,
    )  # fmt: skip

    def zoo(name: str) -> One:
        p = cutest(name=name).problem
        return One(p.objective, p.x, p.equality)

    S = normal(5, 5)
    S = S @ S.T + 0.1 * torch.eye(5, dtype=DTYPE)
    ones = torch.ones(5, dtype=DTYPE)
    return {
        "ridge": ridge,
        "quadratic": quadratic,
        "logistic": logistic,
        "pl": pl,
        "valley": valley,
        "weights": weights,
        "hs6": zoo("HS6"),
        "hs28": zoo("HS28"),
        "hs48": zoo("HS48"),
        "hs77": zoo("HS77"),
        "portfolio": One(lambda x: x @ S @ x, ones / 5, c=lambda x: (x.sum() - 1)[None], low=0.0, high=1.0),
        "disc": One(rosenbrock, real(-1.2, 1.0), h=lambda x: ((x**2).sum() - 1.5)[None]),
    }


def rosenbrock(x: Tensor) -> Tensor:
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


def cubic(x: Tensor) -> Tensor:
    """y with y - x + y^3 / 5 = 0."""
    y = torch.zeros_like(x)
    for _ in range(40):
        y = y - (y - x + 0.2 * y**3) / (1 + 0.6 * y**2)
    return y


# -- the runs ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Found:
    name: str
    solver: str
    value: Numbers
    unit: Numbers
    status: str
    missing: float
    gradients: int
    seconds: float
    message: str

    bent: bool = False

    @property
    def false(self) -> bool:
        return self.status == "CONVERGED" and not self.missing <= FALSE and not self.bent

    def __str__(self) -> str:
        where = f"f {self.value[0]:g} g {self.value[1]:g} x {self.unit[0]:g} y {self.unit[1]:g}"
        mark = "  FALSE" if self.false else "  bends down" if self.bent else ""
        figures = f"{self.missing:8.1e} {self.gradients:6d} {self.seconds:5.1f} s{mark}"
        return f"{self.name:10s} {self.solver:20s} {where:34s} {self.status:18s} {figures}"


def run(name: str, problem: One | Two, solver: str, value: Numbers, unit: Numbers, seconds: float) -> Found:
    package: Any = bilevel if isinstance(problem, Two) else constrained
    method = None if solver == "default" else getattr(package, solver)()
    began, scaled = time.perf_counter(), problem.scaled(value, unit)
    try:
        found = package.solve(scaled, method, max_seconds=seconds)
    except package.BilevelError as error:
        return Found(name, solver, value, unit, type(error).__name__, math.nan, 0, time.perf_counter() - began, str(error))
    took = time.perf_counter() - began
    missing = problem.missing(found.x / unit[0], None if found.y is None else found.y / unit[1])
    bent = isinstance(problem, Two) and not missing <= FALSE and problem.bends_down(found.x / unit[0])
    return Found(name, solver, value, unit, found.status.name, missing, found.calls.gradients, took, found.message, bent)


def scalings(values: list[float], units: list[float]) -> Iterator[tuple[Numbers, Numbers]]:
    """f and g alike with x and y alike, all of them; then f, g, x or y alone."""
    for a, u in itertools.product(values, units):
        yield (a, a), (u, u)
    for a in values:
        yield from (((a, 1.0), (1.0, 1.0)), ((1.0, a), (1.0, 1.0))) if a != 1 else ()
    for u in units:
        yield from (((1.0, 1.0), (u, 1.0)), ((1.0, 1.0), (1.0, u))) if u != 1 else ()


def table(
    values: list[float],
    units: list[float],
    solvers: list[str],
    only: list[str],
    seconds: float,
    say: Callable[[str], Any] = print,
) -> list[Found]:
    rows = []
    for name, problem in problems().items():
        if only and name not in only:
            continue
        package: Any = bilevel if isinstance(problem, Two) else constrained
        for solver in solvers:
            if solver != "default" and solver not in package.solvers.__all__:
                continue
            for value, unit in scalings(values, units):
                if isinstance(problem, One) and unit[0] == 1 != unit[1]:
                    continue  # there is no y
                rows.append(run(name, problem, solver, value, unit, seconds))
                say(str(rows[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--values", type=lambda text: [float(part) for part in text.split(",")], default=[1e-8, 1e-4, 1.0, 1e4, 1e8]
    )
    parser.add_argument(
        "--units", type=lambda text: [float(part) for part in text.split(",")], default=[1e-6, 1e-3, 1.0, 1e3, 1e6]
    )
    parser.add_argument("--solvers", type=lambda text: text.split(","), default=["default"])
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = table(args.values, args.units, args.solvers, args.only, args.seconds, lambda line: print(line, flush=True))
    counts = Counter(row.status for row in rows).most_common()
    print(f"{len(rows)} runs: " + ", ".join(f"{count} {status}" for status, count in counts))
    false, lost = sum(row.false for row in rows), sum(row.status != "CONVERGED" and row.missing <= 1e-6 for row in rows)
    bent = sum(row.bent and row.status == "CONVERGED" for row in rows)
    print(f"{false} false CONVERGED, {bent} more where Phi bends down; {lost} not CONVERGED with less than 1e-6 missing")


if __name__ == "__main__":
    main()
