"""Auto: solvers tried in turn, until one ends with residuals within the tolerance; else the best answer of all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from .errors import OptionError
from .options import Positive
from .problem import Oracle, Point
from .solver import Solver
from .states import solver_state
from .status import Feature, Status
from .vec import Vec, copy

SAYS_WHY = (Status.UNBOUNDED, Status.LOCALLY_INFEASIBLE)  # true of the problem, whatever another solver reached


@dataclass(frozen=True)
class Attempt:
    """One solver of an `Auto`: its name, the status it ended with, its steps, and the residuals computed from the problem."""

    solver: str
    status: Status
    steps: int
    residuals: Mapping[str, float]


@solver_state("AutoState")
class AutoState:
    """Which candidate runs, its state, the start of all, and what was tried before; the answer with the least residuals."""

    k: int
    index: int
    inner: Any
    x: Vec
    y: Vec | None
    ended: tuple[Status, ...]  # how the candidates before ended
    steps: tuple[int, ...]  # theirs
    found: tuple[dict[str, float], ...]  # their residuals
    least: float  # the largest residual of the best answer so far
    best: int  # the candidate that gave it
    kept: Any  # that candidate's last state
    chosen: bool  # all were tried, and `kept` runs as `inner` again


@dataclass(frozen=True, kw_only=True)
class Auto(Solver[Any, AutoState]):
    """The candidates in turn, until one is CONVERGED by the problem's own residuals.

    Where none is, the answer with the smallest residuals stands, unless the last one found the objective unbounded or the
    constraints infeasible. Each starts where the one before ended, if that was judged by residuals (PRECISION, LINE_SEARCH,
    STALLED), else from the start. `result.tried` lists what ran. Every candidate must suit the problem; without any, none does.

    >>> from bilevel import Implicit, Penalty
    >>> [type(one).__name__ for one in Auto(candidates=(Implicit(), Penalty())).candidates]
    ['Implicit', 'Penalty']
    """

    supports: ClassVar[Feature] = ~Feature(0)
    requires: ClassVar[Feature] = Feature(0)

    candidates: tuple[Solver, ...] = ()
    tol: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(one.stochastic for one in self.candidates):
            raise OptionError(f"Auto: candidates: expected deterministic solvers, got {self.candidates!r:.80}")

    def lacks(self, features: Feature) -> Feature:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What any of the candidates cannot handle."""
        missing = Feature(0) if self.candidates else features
        for one in self.candidates:
            missing |= type(one).lacks(features)
        return missing

    @property
    def curved(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(one.curved for one in self.candidates)

    @property
    def exact(self) -> bool:
        return all(one.exact for one in self.candidates)

    def current(self, state: AutoState | None = None) -> Solver[Any, Any]:
        return replace(self.candidates[0 if state is None else state.index], tol=self.tol)  # pyright: ignore[reportArgumentType]

    def init(self, oracle: Oracle, start: Point) -> AutoState:
        blank = AutoState(0, 0, None, start.x, start.y, (), (), (), math.inf, 0, None, False)
        return replace(blank, inner=self.current(blank).init(oracle, start))

    def step(self, oracle: Oracle, state: AutoState) -> AutoState:
        return replace(state, k=state.k + 1, inner=self.current(state).step(oracle, state.inner))

    def terminate(self, oracle: Oracle, state: AutoState) -> Status:
        solver = self.current(state)
        status = solver.terminate(oracle, state.inner)
        limited = solver.max_steps is not None and state.inner.k >= solver.max_steps
        return Status.MAX_STEPS if limited and not status.done else status

    def retry(self, oracle: Oracle, state: AutoState, status: Status, residuals: Mapping[str, float]) -> AutoState:
        """The next candidate, where this one ended without success; after the last, the best of all; then the same state."""
        if state.chosen:
            return state
        judged = bool(residuals) and all(map(math.isfinite, residuals.values()))
        last = state.index + 1 == len(self.candidates)
        new = replace(
            state,
            ended=(*state.ended, status),
            steps=(*state.steps, state.inner.k),
            found=(*state.found, dict(residuals)),
        )
        if judged and max(residuals.values()) < state.least:
            if last:
                return state
            new = replace(new, least=max(residuals.values()), best=state.index, kept=copy(state.inner))
        if last:
            stands = new.kept is None or status in SAYS_WHY
            return state if stands else replace(new, index=new.best, inner=new.kept, chosen=True)
        at = self.current(state).answer(oracle, state.inner) if judged else Point(state.x, state.y)
        new = replace(new, index=state.index + 1)
        return replace(new, inner=self.current(new).init(oracle, Point(*copy((at.x, at.y)))))

    def revisit(self, oracle: Oracle, state: AutoState) -> bool:
        return self.current(state).revisit(oracle, state.inner)

    def sharpened(self, oracle: Oracle, state: AutoState) -> AutoState:
        return replace(state, inner=self.current(state).sharpened(oracle, state.inner))

    def answer(self, oracle: Oracle, state: AutoState) -> Point:
        return self.current(state).answer(oracle, state.inner)

    def monitor(self, state: AutoState) -> Mapping[str, float | Tensor]:
        return self.current(state).monitor(state.inner)

    def notes(self, state: AutoState) -> tuple[str, ...]:
        own = self.current(state).notes(state.inner)
        if not state.ended:
            return own
        before = "; ".join(f"{type(one).__name__} ended as {ended.name}" for one, ended in zip(self.candidates, state.ended))
        what = "'s answer has the smallest residuals" if state.chosen else " was tried next"
        return (f"{before}: {type(self.candidates[state.index]).__name__}{what}.", *own)

    def tried(self, state: AutoState) -> tuple[Attempt, ...]:
        names = [type(one).__name__ for one in self.candidates]
        return tuple(Attempt(name, e, n, f) for name, e, n, f in zip(names, state.ended, state.steps, state.found))
