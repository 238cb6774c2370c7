"""Problem, Solver, Point, Status, Feature: what a solver is and what it is given."""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from .calls import Calls
from .data import Sampler, exact
from .errors import OptionError
from .options import Options
from .states import state_enum
from .vec import Tree, Vec


class Feature(enum.Flag):
    """What a problem has, and so what a solver must support."""

    LOWER = enum.auto()
    SAMPLES = enum.auto()
    NO_HVP = enum.auto()
    X_SET = enum.auto()
    Y_SET = enum.auto()
    LOWER_EQUALITY = enum.auto()
    LOWER_INEQUALITY = enum.auto()
    UPPER_EQUALITY = enum.auto()
    UPPER_INEQUALITY = enum.auto()
    EQUALITY = enum.auto()
    INEQUALITY = enum.auto()
    MIXTURE = enum.auto()
    LIVE = enum.auto()

    def words(self) -> str:
        """The features as a message names them."""
        return ", ".join(WORDS[feature] for feature in self)


WORDS = {
    Feature.LOWER: "a lower level",
    Feature.SAMPLES: "mini-batches",
    Feature.NO_HVP: "functions without second derivatives",
    Feature.X_SET: "a set X",
    Feature.Y_SET: "a set Y",
    Feature.LOWER_EQUALITY: "lower_equality constraints",
    Feature.LOWER_INEQUALITY: "lower_inequality constraints",
    Feature.UPPER_EQUALITY: "upper_equality constraints",
    Feature.UPPER_INEQUALITY: "upper_inequality constraints",
    Feature.EQUALITY: "equality constraints",
    Feature.INEQUALITY: "inequality constraints",
    Feature.MIXTURE: "a Mixture as its lower level",
    Feature.LIVE: "a live module as its lower variable",
}
WELCOME = Feature.MIXTURE  # what no solver refuses: a function like any other to those that do not ask for its parts


@state_enum
class Status(enum.Enum):
    """How a solve stands; the value is its sentence.

    `done`: not RUNNING. `ok`: CONVERGED, and nothing else. `budget`: a limit that the caller set ended the run.
    """

    RUNNING = "Running."
    CONVERGED = "Converged: the residuals computed from the problem are within the tolerance."
    MAX_STEPS = "Stopped at the step limit."
    MAX_SECONDS = "Stopped at the time limit."
    STOPPED = "Stopped on request."
    STALLED = "Stalled: the solver ended, but the residuals computed from the problem are above the tolerance."
    PRECISION = "Round-off limits further progress."
    LINE_SEARCH = "The line search found no better point."
    LOCALLY_INFEASIBLE = "Ended at a point where the constraint violation cannot be reduced locally."
    UNBOUNDED = "The objective decreases without bound."
    DEGENERATE = "The constraints satisfy no qualification at the point reached."
    SINGULAR = "The lower Hessian is singular, and no hypergradient could be computed there."
    LOWER_UNSOLVED = "The lower level could not be solved."
    NONFINITE = "A function returned NaN or infinity; the point is the last finite one."
    DIVERGED = "The iterates grow without bound."

    @property
    def done(self) -> bool:
        return self is not Status.RUNNING

    @property
    def ok(self) -> bool:
        return self is Status.CONVERGED

    @property
    def budget(self) -> bool:
        return self in (Status.MAX_STEPS, Status.MAX_SECONDS, Status.STOPPED)


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """L = f + lam'c + mu'h with mu >= 0; bounds: mu >= 0 on the active side. None where there is no such constraint."""

    equality: Tensor | None = None
    inequality: Tensor | None = None
    lower: Tree | None = None
    upper: Tree | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """Where to start, or what a solver answers: x, the lower variable y where there is one, multipliers.

    >>> Point(x=torch.tensor(1.0)).y is None
    True
    """

    x: Tree
    y: Tree = None
    multipliers: Multipliers | None = None


class Oracle(ABC):
    """A problem as a solver sees it: functions that differentiate, draw and count. `variables`: by name, at the start."""

    calls: Calls
    variables: dict[str, Vec]


OracleT = TypeVar("OracleT", bound=Oracle)
StateT = TypeVar("StateT")


class Problem(ABC):
    """What `solve` takes. Residuals and certificates are computed here, from the problem, never by a solver."""

    features: Feature

    @abstractmethod
    def oracle(self, seed: int = 0) -> Oracle: ...

    @abstractmethod
    def begin(self, oracle: Any, start: Point | None) -> Point:
        """The start as Vecs, checked: shapes, dtypes, finite values. Raises ProblemError before any work is done."""

    @abstractmethod
    def finish(self, point: Point) -> Point:
        """A solver's answer in the user's structures."""

    @abstractmethod
    def fun(self, point: Point) -> float:
        """The objective, of bilevel problems the upper one."""

    @abstractmethod
    def residuals(self, point: Point) -> dict[str, float]:
        """Optimality residuals at a point, unscaled."""

    @abstractmethod
    def certify(self, point: Point) -> dict[str, float]:
        """Residuals and what takes more work: the lower level re-solved from several starts."""

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """Names, shapes, dtypes, features and sampler lengths: what a checkpoint must match."""

    @abstractmethod
    def fingerprint(self, oracle: Any) -> list[float]:
        """Numbers that tell two problems of one signature apart: values and gradient norms at the problem's own variables.

        Empty where the problem is not `exact`: the batches they would be taken on cannot be had again.
        """

    def samplers(self) -> dict[str, Sampler]:
        """Where its batches come from, by name. The state of one that has a `state_dict` travels in checkpoints."""
        return {}

    @property
    def exact(self) -> bool:
        """Batches are a function of (seed, stream, n), so that a resumed run equals an uninterrupted one bit for bit."""
        return all(exact(sampler) for sampler in self.samplers().values())

    def module(self, point: Point) -> torch.nn.Module:
        raise OptionError("module(): the lower variable of this problem is not an nn.Module")


class Solver(Options, ABC, Generic[OracleT, StateT]):
    """A method: frozen keyword-only options and four pure methods. All its memory is the state it returns.

    `init` makes the state, with `k = 0`; `step` does the paper's iteration and returns a state with k + 1; `terminate` says
    how it stands; `answer` gives the point to report. Solvers never differentiate, sample, print, time or move devices: they
    ask the oracle. `step` may reuse the memory of the state it is given; who keeps a state calls `copy(state)`.
    """

    supports: ClassVar[Feature] = Feature(0)
    requires: ClassVar[Feature] = Feature(0)
    stochastic: ClassVar[bool] = False  # then `solve` asks for max_steps

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

    def again(self, oracle: OracleT, state: StateT, status: Status, residuals: Mapping[str, float]) -> StateT:
        """A state to go on from after an end without success, `residuals` as far as the problem was asked; the same: none."""
        return state

    def acting(self, state: StateT | None = None) -> Solver[Any, Any]:
        """The solver itself; of an `Auto` the candidate that runs, the first where nothing runs yet."""
        return self

    def tried(self, state: StateT) -> tuple[Any, ...]:
        """What ended without success: of an `Auto`, the candidates it left."""
        return ()

    @classmethod
    def lacks(cls, features: Feature) -> Feature:
        """What of a problem this solver cannot handle, or needs and does not find."""
        return (features & ~(cls.supports | WELCOME)) | (cls.requires & ~features)
