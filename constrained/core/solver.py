"""Solver: a method as options and four pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from .moved import forward_names
from .options import Options
from .problem import Oracle, Point
from .status import WELCOME, Feature, Status

OracleT = TypeVar("OracleT", bound=Oracle)
StateT = TypeVar("StateT")


class Solver(Options, ABC, Generic[OracleT, StateT]):
    """A method: frozen keyword-only options and four pure methods. All its memory is the state it returns.

    `init` makes the state, with `k = 0`; `step` does the paper's iteration and returns a state with k + 1; `terminate` says
    how it stands; `answer` gives the point to report. Solvers never differentiate, sample, print, time or move devices: they
    ask the oracle. `step` may reuse the memory of the state it is given; who keeps a state calls `copy(state)`.
    """

    supports: ClassVar[Feature] = Feature(0)
    requires: ClassVar[Feature] = Feature(0)
    stochastic: ClassVar[bool] = False  # then `solve` asks for max_steps
    curved: ClassVar[bool] = False  # asks for second derivatives, which are then tried before the first step
    reuses: ClassVar[bool] = True  # `step` may write into the memory of the state it is given

    tol: Any

    @property
    def tolerance(self) -> float:
        """`tol` as the run resolved it."""
        assert self.tol is not None
        return self.tol

    @property
    def exact(self) -> bool:
        """It solves the problem itself, so that the problem's residuals may make it CONVERGED; a surrogate's solver does not."""
        return True

    @property
    def max_steps(self) -> int | None:
        """The solver's own step limit."""
        return None

    @abstractmethod
    def init(self, oracle: OracleT, start: Point) -> StateT: ...

    @abstractmethod
    def step(self, oracle: OracleT, state: StateT) -> StateT: ...

    @abstractmethod
    def terminate(self, oracle: OracleT, state: StateT) -> Status: ...

    @abstractmethod
    def answer(self, oracle: OracleT, state: StateT) -> Point: ...

    def monitor(self, state: StateT) -> Mapping[str, float | Tensor]:
        """Numbers of the state worth watching, by name."""
        return {}

    def notes(self, state: StateT) -> tuple[str, ...]:
        """Sentences the result must carry."""
        return ()

    def revisit(self, oracle: OracleT, state: StateT) -> bool:
        """Ask what the next step asks first, so that it stands from the step before; False: nothing. A resumed run does too."""
        return False

    def retry(self, oracle: OracleT, state: StateT, status: Status, residuals: Mapping[str, float]) -> StateT:
        """A state to go on from after an end without success, `residuals` as far as the problem was asked; the same: none."""
        return state

    def sharpened(self, oracle: OracleT, state: StateT) -> StateT:
        """A state to go on from after `tol` was lowered, which was not low enough for the answer to be near a solution."""
        again: Any = self.init(oracle, self.answer(oracle, state))
        return replace(again, k=cast("Any", state).k)

    def current(self, state: StateT | None = None) -> Solver[Any, Any]:
        """The solver itself; of an `Auto` the candidate that runs, the first where nothing runs yet."""
        return self

    def tried(self, state: StateT) -> tuple[Any, ...]:
        """What ended without success: of an `Auto`, the candidates it left."""
        return ()

    @classmethod
    def lacks(cls, features: Feature) -> Feature:
        """What of a problem this solver cannot handle, or needs and does not find."""
        return (features & ~(cls.supports | WELCOME)) | (cls.requires & ~features)


forward_names(__name__, dict.fromkeys(("Problem", "Multipliers"), "constrained.core.problem"))
