"""One solver on one model: what it found, what it asked for, how long it took, and what the judge says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import constrained
from constrained import BilevelError
from constrained.core.deadline import OutOfTime, within
from constrained.core.vec import Vec
from constrained.peers.reference import Reference, View

from .judge import At, residual
from .model import Model, Plain, Tally, TorchModel
from .multipliers import judged, off

LEVELS = (1e-4, 1e-6, 1e-8)
FALSE = 1e-4  # a claim with a residual above is false


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the CSV. seconds: of the whole call; own: of the solver alone, without checks of the start and certificates.

    licq, strict: of the answer (multipliers.py); off: of the solver's multipliers from those of least squares. Not in the CSV: x
    and z, the answer and its multipliers.
    """

    set: str
    problem: str
    n: int
    m: int
    solver: str
    said: str
    claimed: bool
    residual: float
    objective: float
    iterations: int
    seconds: float
    own: float
    counts: dict[str, int]
    licq: float
    strict: float
    off: float
    x: np.ndarray
    z: np.ndarray | None

    def solved(self, level: float) -> bool:
        return self.residual <= level

    @property
    def false(self) -> bool:
        return self.claimed and not self.residual <= FALSE

    def flat(self) -> dict[str, Any]:
        own = dict(vars(self))
        return {**{name: own[name] for name in own if name not in ("counts", "x", "z")}, "false": self.false, **self.counts}


def named(name: str) -> Any:
    """A solver of `constrained` by its class; None for what `solve` chooses."""
    if name != "default" and not hasattr(constrained, name):
        raise SystemExit(f"--solvers: expected default or a solver of constrained, got {name}")
    return None if name == "default" else getattr(constrained, name)()


def run(group: str, model: Model | TorchModel, name: str, cap: float, repeats: int) -> Row:
    """The least time of the repeats; all else is of the last."""
    rows = [_run(group, model, name, cap) for _ in range(repeats)]
    last = rows[-1]
    best = {field: min(getattr(row, field) for row in rows) for field in ("seconds", "own")}
    return Row(**{**vars(last), **best})


def _run(group: str, model: Model | TorchModel, name: str, cap: float) -> Row:
    tally, solver, start = Tally(), named(name), time.perf_counter()
    side = _theirs if isinstance(solver, Reference) else _ours
    try:
        end = side(model, solver, tally, cap)
    except BilevelError as error:
        end = End(None, f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    at, x = _at(model, end.x), end.x
    z, says = end.stacked(at), judged(at)
    return Row(
        set=group,
        problem=model.name,
        n=len(at.x),
        m=len(at.c) + len(at.h),
        solver=name,
        said=end.said,
        claimed=end.claimed,
        residual=np.inf if x is None else residual(at),
        objective=np.nan if x is None else at.f,
        iterations=end.iterations,
        seconds=seconds,
        own=min(end.own, seconds),
        counts=model.counts(tally) if tally.oracle is not None or isinstance(model, Model) else {},
        licq=says.licq if says else np.nan,
        strict=says.strict if says else np.nan,
        off=off(z, says and says.z),
        x=at.x,
        z=z,
    )


@dataclass(frozen=True)
class End:
    """Where a solver ended, and what it says. multipliers: of c, h, low and high, where it has them."""

    x: np.ndarray | None
    said: str
    claimed: bool = False
    iterations: int = 0
    own: float = np.inf
    multipliers: tuple[Any, ...] = (None, None, None, None)

    def stacked(self, at: At) -> np.ndarray | None:
        """z of multipliers.py, 0 for what there is none of; None where a kind that the problem has is missing."""
        sizes = (len(at.c), len(at.h), len(at.x), len(at.x))
        needed = (*(size > 0 for size in sizes[:2]), np.isfinite(at.low).any(), np.isfinite(at.high).any())
        if any(part is None and need for part, need in zip(self.multipliers, needed)):
            return None
        lam, mu, low, high = (np.zeros(size) if part is None else part for part, size in zip(self.multipliers, sizes))
        fixed = at.low == at.high
        return np.concatenate([lam, mu, np.where(fixed, 0.0, low), np.where(fixed, high - low, high)])


def _ours(model: Model | TorchModel, solver: Any, tally: Tally, cap: float) -> End:
    result = constrained.solve(model.ours(tally), solver, max_seconds=cap)
    iterations = int(getattr(result.state, "iterations", result.steps))
    own = (getattr(result.multipliers, name, None) for name in ("equality", "inequality", "low", "high"))
    parts = tuple(None if part is None else _flat(part) for part in own)
    return End(_flat(result.x), result.status.name, result.status.ok, iterations, result.seconds, parts)


def _flat(tree: Any) -> np.ndarray:
    return Vec.of(tree).ravel().double().numpy()


def _theirs(model: Model | TorchModel, solver: Reference, tally: Tally, cap: float) -> End:
    view: Any = model.view(tally)
    try:
        with within(cap):
            found = solver.run(view)
    except OutOfTime:
        return End(view.seen, "out of time")
    except (ArithmeticError, ValueError, RuntimeError) as error:  # of their linear algebra
        return End(view.seen, f"{type(error).__name__}: {error}")
    multipliers = (found.lam, found.mu, found.low, found.high)
    return End(found.x, found.said, found.solved, found.iterations, np.inf, multipliers)


def _at(model: Model | TorchModel, x: np.ndarray | None) -> At:
    """By the functions themselves, which no tally counts."""
    view: Any
    if isinstance(model, Model):
        view, x = Plain(model, Tally()), model.x0 if x is None else x
    else:
        problem = model.problem
        view = View(problem.oracle(), problem.variables()["x"])
        x = view.x0 if x is None else x
    none = np.zeros((0, len(x)))
    return At(
        x=x,
        f=view.f(x),
        g=view.gradient(x),
        c=view.c(x),
        J=view.own_jacobian(x) if view.equalities else none,
        h=view.h(x) if view.inequalities else np.zeros(0),
        Jh=view.own_h_jacobian(x) if view.inequalities else none,
        low=view.low,
        high=view.high,
    )
