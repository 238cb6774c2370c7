"""Problems drawn small, with what is true of a point computed in numpy, without the library.

Constrained  f(x) = x'Ax / 2 - b'x + q sum x^4 / 4,  Cx = d,  Gx <= h,  x in X
Bilevel      g(x, y) = y'Hy / 2 - y'(Mx + c) + q sum y^4 / 4 + sum log(1 + exp(Zy)),  f(x, y) = |y - a|^2 / 2 + r |x - b|^2 / 2,
             with sets, or with rows Ey + Fx = e or <= e on the lower level
Mixture      g = sum_i softmax(x)_i |y - a_i|^2 / 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.optimize import nnls

from bilevel import Ball, BilevelProblem, Box, Everywhere, MiniBatches, Mixture, Simplex
from constrained import ConstrainedProblem

Array = Any
Truth = Callable[[Any], dict[str, float]]
LIMIT = 60_000  # scipy's SLSQP in float32 may take its 1,000 iterations, each with up to 17 values of three functions


class Hang(BaseException):
    """More calls of the user's functions than any run of these sizes needs."""


class Own(Exception):
    """What the user's functions raise."""


@dataclass
class Calls:
    """Of all the user's functions together. `around(name, k, function, args)` is what a hostile one puts in place of a call."""

    count: int = 0
    around: Callable[..., Any] | None = None
    by: dict[str, int] = field(default_factory=dict)

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            self.count += 1
            self.by[name] = self.by.get(name, 0) + 1
            if self.count > LIMIT:
                raise Hang(f"{self.count} calls: {self.by}")
            return function(*args) if self.around is None else self.around(name, self.by[name], function, args)

        return called


@dataclass
class Drawn:
    problem: Any
    truth: Truth  # of a result: residuals that a CONVERGED promises to be small
    calls: Calls
    text: str
    samples: bool = False
    size: float = 1.0  # of the terms that the residuals are differences of

    def __repr__(self) -> str:
        return self.text


# -- sets and structures ----------------------------------------------------------------------------------------------------
def project(kind: str, v: Array) -> Array:
    if kind == "box":
        return np.clip(v, -0.5, 0.75)
    if kind == "ball":
        return v / max(1.0, np.linalg.norm(v) / 0.8)
    if kind == "simplex":
        low = np.sort(v)[::-1]
        sums = (np.cumsum(low) - 1) / np.arange(1, len(v) + 1)
        return np.maximum(v - sums[np.nonzero(low > sums)[0][-1]], 0)
    return v


def convex_set(kind: str) -> Any:
    return {"box": Box(-0.5, 0.75), "ball": Ball(0.8), "simplex": Simplex(), "": Everywhere()}[kind]


class Held(torch.nn.Module):
    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = torch.nn.Parameter(value.clone())
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self) -> torch.Tensor:
        return self.value


def structured(kind: str, value: torch.Tensor, inside: str) -> Any:
    if kind == "dict" and inside not in ("ball", "simplex"):  # those take one tensor
        return {"a": value[:1].clone(), "b": [value[1:].clone()]} if len(value) > 1 else {"a": value.clone()}
    return Held(value) if kind == "module" else value.clone()


def flat(value: Any) -> torch.Tensor:
    if isinstance(value, torch.nn.Module):
        return value()
    if isinstance(value, dict):
        return value["value"] if "value" in value else torch.cat([value["a"], *value.get("b", [])])
    return value


def numpy(value: Any) -> Array:
    return flat(value).detach().double().numpy()


def written(name: str, arguments: dict[str, Any]) -> str:
    """The call that makes the problem again."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


# -- one level --------------------------------------------------------------------------------------------------------------
def constrained(
    *,
    n: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    scale: float = 1.0,
    m: int = 0,
    p: int = 0,
    X: str = "",
    convex: bool = True,
    q: float = 0.0,
    samples: bool = False,
    structure: str = "tensor",
    start: float = 0.0,
    shift: float = 0.0,  # of d: then there may be no feasible point
) -> Drawn:
    text, kind = written("constrained", locals()), X
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n))
    A = scale * (A @ A.T / n + 0.1 * np.eye(n) if convex else (A + A.T) / 2)
    b, C, G = scale * rng.normal(size=n), rng.normal(size=(m, n)), rng.normal(size=(p, n))
    inside = project(kind, 0.5 * rng.normal(size=n))
    d, h = C @ inside + shift, G @ inside + rng.choice([0.0, 0.5], size=p)
    data = [torch.as_tensor(part).to(dtype) for part in (A, b, C, d, G, h)]
    A_, b_, C_, d_, G_, h_ = data
    rows = torch.as_tensor(0.1 * rng.normal(size=(8, n))).to(dtype)
    rows = rows - rows.mean(0)
    calls = Calls()

    def objective(x: Any, batch: Any = None) -> torch.Tensor:
        x = flat(x)
        noise = 0 if batch is None else batch.mean(0) @ x
        return 0.5 * x @ A_ @ x - b_ @ x + scale * q / 4 * (x**4).sum() + noise

    more: dict[str, Any] = {}
    more |= {"equality": calls.of("equality", lambda x: C_ @ flat(x) - d_)} if m else {}
    more |= {"inequality": calls.of("inequality", lambda x: G_ @ flat(x) - h_)} if p else {}
    more |= {"data": MiniBatches(rows, 4)} if samples else {}
    x = structured(structure, torch.full((n,), start, dtype=dtype), kind)
    problem = ConstrainedProblem(objective=calls.of("objective", objective), x=x, X=convex_set(kind), **more)

    def truth(result: Any) -> dict[str, float]:
        at = numpy(result.x)
        grad = A @ at - b + scale * q * at**3
        found = {}
        many = result.multipliers
        lam, mu = (None if many is None else getattr(many, name) for name in ("equality", "inequality"))
        slack = h - G @ at
        if (m and lam is None) or (p and mu is None):
            found["stationarity"] = _stationarity(grad, C, G[slack < 1e-4]) if not kind else 0.0
        else:
            grad = grad + (0 if lam is None else C.T @ lam.double().numpy()) + (0 if mu is None else G.T @ mu.double().numpy())
            found["stationarity"] = float(np.linalg.norm(at - project(kind, at - grad)))
            if mu is not None:
                found["complementarity"] = float(np.linalg.norm(np.minimum(mu.double().numpy(), np.maximum(slack, 0))))
                found["sign"] = float(np.maximum(-mu.double().numpy(), 0).sum())
        violated = np.concatenate([C @ at - d, np.maximum(-slack, 0), at - project(kind, at)])
        return {**found, "feasibility": float(np.linalg.norm(violated))}

    return Drawn(problem, truth, calls, text, samples, max(1.0, scale))


def _stationarity(grad: Array, C: Array, G: Array) -> float:
    """The least |grad + C'lam + G'mu| over all lam and mu >= 0."""
    columns = np.vstack([C, -C, G]).T
    return float(nnls(columns, -grad)[1]) if columns.size else float(np.linalg.norm(grad))


# -- two levels -------------------------------------------------------------------------------------------------------------
def bilevel(
    *,
    nx: int = 1,
    ny: int = 1,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    kind: str = "quadratic",
    X: str = "",
    Y: str = "",
    rows: str = "",
    samples: bool = False,
    scale: float = 1.0,
    r: float = 0.1,
    x_structure: str = "tensor",
    y_structure: str = "tensor",
    start: float = 0.0,
) -> Drawn:
    text = written("bilevel", locals())
    rng = np.random.default_rng(seed)
    H = rng.normal(size=(ny, ny))
    H = H @ H.T / ny + 0.2 * np.eye(ny)
    if kind in ("singular", "indefinite"):
        H = np.diag([0.0 if kind == "singular" else -0.3, *([1.0] * (ny - 1))])
    M, c, a, b = rng.normal(size=(ny, nx)), rng.normal(size=ny), rng.normal(size=ny), rng.normal(size=nx)
    if kind == "singular":
        M[0], c[0] = 0, 0
    q, Z = float(kind in ("quartic", "indefinite")), rng.normal(size=(2, ny)) * (kind == "logistic")
    H, M, c, q, w = scale * H, scale * M, scale * c, scale * q, scale
    E, F, e = rng.normal(size=(1, ny)), 0.3 * rng.normal(size=(1, nx)), rng.normal(size=1)
    H_, M_, c_, a_, b_, Z_, E_, F_, e_ = (torch.as_tensor(part).to(dtype) for part in (H, M, c, a, b, Z, E, F, e))
    noise = torch.as_tensor(0.1 * rng.normal(size=(8, ny))).to(dtype)
    noise = noise - noise.mean(0)
    calls = Calls()

    def upper(x: Any, y: Any) -> torch.Tensor:
        return 0.5 * ((flat(y) - a_) ** 2).sum() + r / 2 * ((flat(x) - b_) ** 2).sum()

    def lower(x: Any, y: Any, batch: Any = None) -> torch.Tensor:
        x, y = flat(x), flat(y)
        value = 0.5 * y @ H_ @ y - y @ (M_ @ x + c_) + q / 4 * (y**4).sum()
        value = value + w * torch.nn.functional.softplus(Z_ @ y).sum() * (kind == "logistic")
        return value if batch is None else value + batch.mean(0) @ y

    more: dict[str, Any] = {"lower_data": MiniBatches(noise, 4)} if samples else {}
    if rows:
        Y = ""
        more[rows] = calls.of(rows, lambda x, y: E_ @ flat(y) + F_ @ flat(x) - e_)
    x, y = (
        structured(s, torch.full((size,), start, dtype=dtype), inside)
        for s, size, inside in ((x_structure, nx, X), (y_structure, ny, Y))
    )
    problem = BilevelProblem(
        upper=calls.of("upper", upper), lower=calls.of("lower", lower), x=x, y=y, X=convex_set(X), Y=convex_set(Y), **more
    )

    def truth(result: Any) -> dict[str, float]:
        x, y = numpy(result.x), numpy(result.y)
        s = 1 / (1 + np.exp(-Z @ y))
        g_y = H @ y - M @ x - c + q * y**3 + w * Z.T @ s * (kind == "logistic")
        g_yy = H + np.diag(3 * q * y**2) + w * Z.T @ np.diag(s * (1 - s)) @ Z * (kind == "logistic")
        outside = np.concatenate([x - project(X, x), y - project(Y, y)])
        if rows:
            level = E @ y + F @ x - e
            outside = np.append(outside, level if rows == "lower_equality" else np.maximum(level, 0))
            off = _stationarity(g_y, E, E[:0]) if rows == "lower_equality" else _stationarity(g_y, E[:0], E[level > -1e-4])
            return {"lower": off, "sets": float(np.abs(outside).max())}
        found = {"lower": float(np.linalg.norm(y - project(Y, y - g_y))), "sets": float(np.abs(outside).max())}
        free = np.ones(ny, dtype=bool)
        if Y == "box":
            far = np.abs(project(Y, y - g_y) - (y - g_y))
            free = far == 0
            if np.any((far < 1e-3) & ((np.abs(y - 0.75) < 1e-3) | (np.abs(y + 0.5) < 1e-3))):
                return found  # at a kink
        elif Y:
            return found
        inner = g_yy[np.ix_(free, free)]
        if free.any() and (low := np.linalg.eigvalsh(inner)[0]) <= 1e-8 * scale:
            return {**found, "convexity": max(-float(low), 0.0)}
        v = np.linalg.solve(inner, (y - a)[free])
        gradient = r * (x - b) + M[free].T @ v
        return {**found, "upper": float(np.linalg.norm(x - project(X, x - gradient)))}

    return Drawn(problem, truth, calls, text, samples, max(1.0, scale))


def mixture(*, dtype: torch.dtype = torch.float64, seed: int = 0, start: float = 0.0) -> Drawn:
    text = written("mixture", locals())
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(3, 2)), rng.normal(size=2)
    a_, b_ = torch.as_tensor(a).to(dtype), torch.as_tensor(b).to(dtype)
    calls = Calls()

    def losses(y: Any) -> torch.Tensor:
        return 0.5 * ((y - a_) ** 2).sum(1)

    def upper(x: Any, y: Any) -> torch.Tensor:
        return 0.5 * ((y - b_) ** 2).sum() + 0.05 * (x**2).sum()

    x, y = torch.full((3,), start, dtype=dtype), torch.full((2,), start, dtype=dtype)
    problem = BilevelProblem(upper=calls.of("upper", upper), lower=Mixture(calls.of("lower", losses)), x=x, y=y)

    def truth(result: Any) -> dict[str, float]:
        x, y = numpy(result.x), numpy(result.y)
        p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        pull = (np.diag(p) - np.outer(p, p)) @ a  # dy/dx'
        return {"lower": float(np.linalg.norm(y - p @ a)), "upper": float(np.linalg.norm(0.1 * x + pull @ (y - b)))}

    return Drawn(problem, truth, calls, text)


# -- strategies -------------------------------------------------------------------------------------------------------------
SETS = ("box", "ball", "simplex")
any_problem: dict[str, Any] = {
    "dtype": st.sampled_from([torch.float64, torch.float64, torch.float32]),
    "seed": st.integers(0, 10_000),
    "start": st.sampled_from([0.0, 0.3, -2.0]),
}
two_scales: dict[str, Any] = {
    "scale": st.sampled_from([1.0, 1.0, 1.0, 1e-3, 1e3]),
    "samples": st.sampled_from([False] * 3 + [True]),
}
structures = st.sampled_from(["tensor", "tensor", "dict", "module"])
constrained_problems = st.builds(
    constrained,
    n=st.integers(1, 3),
    m=st.sampled_from([0, 0, 1, 2]),
    p=st.sampled_from([0, 0, 1, 2]),
    X=st.sampled_from(["", "", *SETS]),
    convex=st.sampled_from([True, True, False]),
    q=st.sampled_from([0.0, 1.0]),
    structure=structures,
    shift=st.sampled_from([0.0, 0.0, 0.0, 5.0]),
    **any_problem,
    **two_scales,
)
bilevel_problems = st.builds(
    bilevel,
    nx=st.integers(1, 2),
    ny=st.integers(1, 3),
    kind=st.sampled_from(["quadratic", "quadratic", "quartic", "logistic", "singular", "indefinite"]),
    X=st.sampled_from(["", "", *SETS]),
    Y=st.sampled_from(["", "", "", *SETS]),
    rows=st.sampled_from(["", "", "", "", "lower_inequality", "lower_equality"]),
    r=st.sampled_from([0.1, 1.0, 0.0]),
    x_structure=structures,
    y_structure=structures,
    **any_problem,
    **two_scales,
)
mixtures = st.builds(mixture, **any_problem)
problems = constrained_problems | bilevel_problems | bilevel_problems | mixtures
