"""Models: min f(x) subject to c(x) = 0, h(x) <= 0, low <= x <= high, as functions that all solvers get and a tally counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from constrained import Box, ConstrainedProblem, Function, Point
from constrained.core.deadline import look
from constrained.core.vec import Vec
from constrained.extend import ConstrainedOracle
from constrained.peers.reference import View
from constrained.sets import Everywhere


@dataclass
class Tally:
    """Calls, and the points asked at, by what was asked for: "f", "c", "h", and of each its first and second derivatives, "f'",
    "f''". Only calls of the solver's own count, and the first one at the start, which its check asks for. Others of
    checks, and those of answers and certificates, are `beside`.
    """

    calls: Counter = field(default_factory=Counter)
    points: dict[str, set[bytes]] = field(default_factory=dict)
    beside: int = 0
    aside: bool = False  # a check of the start or a certificate is at work
    oracle: ConstrainedOracle | None = None  # of the run

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any, *rest: Any) -> Any:
            look()
            apart = self.oracle is not None and self.oracle.calls.purpose != "solve"
            if self.aside or (apart and name in self.calls):
                self.beside += 1
            else:
                self.calls[name] += 1
                self.points.setdefault(name.strip("fch") or "value", set()).add(_bytes(x))
            return function(x, *rest)

        return call

    def at(self, order: str) -> int:
        """Points where something of this order was asked for: "value", "'" or "''"."""
        return len(self.points.get(order, ()))

    def of(self, order: str) -> int:
        """Calls of this order, those of f, c and h added up."""
        return sum(count for name, count in self.calls.items() if (name.strip("fch") or "value") == order)


def _bytes(x: Any) -> bytes:
    return x.detach().numpy().tobytes() if isinstance(x, torch.Tensor) else np.asarray(x).tobytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted(ConstrainedProblem):
    """A problem that tells its tally when its functions are called for the truth and not for the solver."""

    tally: Tally

    def begin(self, oracle: ConstrainedOracle, start: Point | None) -> Point:
        self.tally.oracle, self.tally.aside = oracle, False
        return super().begin(oracle, start)

    def _aside(self, work: Callable[[], Any]) -> Any:
        before, self.tally.aside = self.tally.aside, True
        try:
            return work()
        finally:
            self.tally.aside = before

    def certify(self, *args: Any, **more: Any) -> Any:
        return self._aside(lambda: super(Counted, self).certify(*args, **more))

    def progress(self, *args: Any, **more: Any) -> Any:
        return self._aside(lambda: super(Counted, self).progress(*args, **more))

    def residuals(self, *args: Any, **more: Any) -> Any:
        return self._aside(lambda: super(Counted, self).residuals(*args, **more))


@dataclass(frozen=True, kw_only=True)
class Part:
    """f, c or h in numpy. first: gradient or Jacobian; second: hess f(x), or sum w_i hess c_i of (x, w)."""

    value: Callable[..., Any]
    first: Callable[..., Any]
    second: Callable[..., Any]

    def counted(self, name: str, tally: Tally) -> Part:
        named = {name: self.value, f"{name}'": self.first, f"{name}''": self.second}
        return Part(**dict(zip(("value", "first", "second"), (tally.counted(key, part) for key, part in named.items()))))

    def function(self, *, objective: bool = False) -> Function:
        first = {"gradient" if objective else "jacobian": self.first}
        return Function.numpy(self.value, **first, hessian=self.second)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A problem in numpy with all its derivatives, dense or sparse."""

    name: str
    x0: np.ndarray
    low: np.ndarray
    high: np.ndarray
    f: Part
    c: Part | None = None
    h: Part | None = None

    @property
    def size(self) -> int:
        return len(self.x0)

    def warm(self) -> None:
        """Let what is compiled at the first call be compiled."""
        for part, weighted in ((self.f, False), (self.c, True), (self.h, True)):
            if part is not None:
                rows = np.ones(np.shape(part.value(self.x0)))
                part.first(self.x0)
                part.second(self.x0, *([rows] if weighted else []))

    def ours(self, tally: Tally) -> Counted:
        tally.aside = True  # until the run begins: the default solver is chosen by a trial
        parts = {name: part and part.counted(name, tally) for name, part in (("f", self.f), ("c", self.c), ("h", self.h))}
        free = not (np.isfinite(self.low).any() or np.isfinite(self.high).any())
        assert parts["f"] is not None
        return Counted(
            objective=parts["f"].function(objective=True),
            equality=parts["c"] and parts["c"].function(),
            inequality=parts["h"] and parts["h"].function(),
            x=torch.from_numpy(self.x0.copy()),
            X=Everywhere() if free else Box(torch.from_numpy(self.low), torch.from_numpy(self.high)),
            tally=tally,
        )

    def view(self, tally: Tally) -> Plain:
        return Plain(self, tally)

    def counts(self, tally: Tally) -> dict[str, int]:
        return {
            "f": tally.at("value"),
            "g": tally.at("'"),
            "H": tally.at("''"),
            "f_calls": tally.calls["f"],
            "g_calls": tally.calls["f'"],
            "H_calls": tally.of("''"),
            "beside": tally.beside,
        }


class Plain:
    """What `constrained.peers.reference.View` offers other people's solvers, by the model's functions and nothing between."""

    def __init__(self, model: Model, tally: Tally):
        self.model, self.x0, self.low, self.high, self.seen = model, model.x0, model.low, model.high, model.x0
        self._f = model.f.counted("f", tally)
        self._c = model.c and model.c.counted("c", tally)
        self._h = model.h and model.h.counted("h", tally)
        self.equalities, self.inequalities, self.twice = model.c is not None, model.h is not None, True
        self.bounded = bool(np.isfinite(model.low).any() or np.isfinite(model.high).any())
        self.sparse = any(part is not None and not isinstance(part.first(model.x0), np.ndarray) for part in (model.c, model.h))
        self._last: dict[str, tuple[Any, Any]] = {}

    def _once(self, name: str, part: Part, x: np.ndarray, *weights: np.ndarray) -> Any:
        """A Hessian, kept while x and the weights stay: products with it ask again and again."""
        key = tuple(np.asarray(part).tobytes() for part in (x, *weights))
        if self._last.get(name, (None,))[0] != key:
            self._last[name] = key, part.second(np.array(x), *(np.array(w) for w in weights))
        return self._last[name][1]

    def tell(self, x: np.ndarray, state: Any = None) -> None:
        """Nobody watches."""

    def f(self, x: np.ndarray) -> float:
        return float(self._f.value(np.array(x)))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self.seen = np.array(x)
        return self._f.first(self.seen)

    def c(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(0) if self._c is None else self._c.value(np.array(x))

    def h(self, x: np.ndarray) -> np.ndarray:
        return np.zeros(0) if self._h is None else self._h.value(np.array(x))

    def own_jacobian(self, x: np.ndarray) -> Any:
        assert self._c is not None
        return self._c.first(np.array(x))

    def own_h_jacobian(self, x: np.ndarray) -> Any:
        assert self._h is not None
        return self._h.first(np.array(x))

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        return _dense(self.own_jacobian(x))

    def h_jacobian(self, x: np.ndarray) -> np.ndarray:
        return _dense(self.own_h_jacobian(x))

    def product(self, x: np.ndarray, lam: np.ndarray, v: np.ndarray) -> np.ndarray:
        Hv = self._once("f", self._f, x) @ v
        return Hv + self._once("c", self._c, x, lam) @ v if self._c is not None and np.any(lam) else Hv

    def h_product(self, x: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        assert self._h is not None
        return self._once("h", self._h, x, mu) @ v

    def hessian(self, x: np.ndarray, sigma: float, lam: np.ndarray, mu: np.ndarray) -> list[Any]:
        found = [sigma * self._once("f", self._f, x)]
        found += [self._once("c", self._c, x, lam)] if self._c is not None else []
        return found + ([self._once("h", self._h, x, mu)] if self._h is not None else [])


@dataclass(frozen=True, kw_only=True)
class TorchModel:
    """A problem in torch, differentiated by autograd: what has no graph of its own is counted by the library's tally."""

    name: str
    problem: ConstrainedProblem

    @property
    def size(self) -> int:
        return self.problem.variables()["x"].size

    def warm(self) -> None:
        """One product with second derivatives: torch.func and autograd build things at their first use."""
        view = View(self.problem.oracle(), Vec.of(self.problem.x))
        view.hessian(view.x0, 1.0, np.ones(len(view.c(view.x0))), np.ones(len(view.h(view.x0)) if view.inequalities else 0))

    def ours(self, tally: Tally) -> Counted:
        tally.aside = True
        own = {"f": self.problem.objective, "c": self.problem.equality, "h": self.problem.inequality}
        counted = [None if function is None else tally.counted(name, function) for name, function in own.items()]
        f, c, h = counted
        assert f is not None
        return Counted(objective=f, equality=c, inequality=h, x=self.problem.x, X=self.problem.X, tally=tally)

    def view(self, tally: Tally) -> View:
        problem = self.ours(tally)
        tally.oracle, tally.aside = problem.oracle(), False
        return View(tally.oracle, problem.variables()["x"])

    def counts(self, tally: Tally) -> dict[str, int]:
        assert tally.oracle is not None
        by = tally.oracle.calls.by.get("solve", {})
        total = tally.oracle.calls.total("solve")
        gradients = by["objective"].gradients if "objective" in by else 0
        found = {"f": tally.at("value"), "g": gradients, "H": total.hessians + total.hvps, "f_calls": tally.calls["f"]}
        return {**found, "g_calls": gradients, "H_calls": total.hessians + total.hvps, "beside": tally.beside}


def _dense(A: Any) -> np.ndarray:
    return A if isinstance(A, np.ndarray) else A.toarray()
