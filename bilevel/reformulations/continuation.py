"""Continuation: a reformulation is minimised stage by stage, each at another penalty or accuracy.

    (a) while R > enough:  x <- one step of the outer method on the reformulation
    (b) where its line search fails, or R no longer falls:  theta <- a tenth of theta, and evaluate again at x
    (c) where theta is at its end too:  round-off limits the stage
    (d) R <= enough:  the next stage, or the end

R the residual of the stage's objective at x, theta the accuracy of what is solved inside, relative to R. A method says what its
objective is, which R is enough, and what the next stage is.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from constrained.core.solver import Solver
from constrained.core.status import Feature, Status
from constrained.descent import Descent, DescentStatus, Method, Reformulation

from ..oracle import BilevelOracle

LOWER = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.LOWER_UNSOLVED}
UPPER = {DescentStatus.NONFINITE: Status.NONFINITE, DescentStatus.UNBOUNDED: Status.UNBOUNDED}


def verdict(inner: DescentStatus, outer: DescentStatus) -> Status:
    """How a stage stands, from why its inner and its outer minimisation ended."""
    return LOWER.get(inner) or UPPER.get(outer) or Status.RUNNING


@dataclass(frozen=True)
class Stage:
    """What every continuation keeps; a method adds its own fields."""

    k: int  # completed outer steps
    outer: Descent  # the outer method's own state
    theta: float  # inner accuracy
    residual: float  # R
    best: float  # smallest R seen
    stale: int  # steps since R last fell
    outcome: Status


StageT = TypeVar("StageT", bound=Stage)
ReformulationT = TypeVar("ReformulationT", bound=Reformulation)


class Continuation(Solver[BilevelOracle, StageT], Generic[StageT, ReformulationT]):
    """The steps (a) to (d); a method defines `objective`, `read`, `enough` and `next_stage`."""

    requires: ClassVar[Feature] = Feature.LOWER
    patience: ClassVar[int] = 50  # steps without a smaller R after which the inner accuracy is raised
    tightest: ClassVar[float] = 1e-6  # of theta at the start of a stage

    theta: Any  # inner accuracy at the start of a stage
    outer: Any  # the method
    max_outer: Any

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    # -- what a method defines --------------------------------------------------------------------------------------------
    @abstractmethod
    def objective(self, oracle: BilevelOracle, s: StageT) -> ReformulationT:
        """The stage's objective, with what the state knows."""

    @abstractmethod
    def read(self, oracle: BilevelOracle, s: StageT, objective: ReformulationT, outer: Descent) -> StageT:
        """The state with what the objective and the outer method now hold, and the verdict."""

    @abstractmethod
    def enough(self, s: StageT) -> float:
        """R at which the stage ends."""

    @abstractmethod
    def next_stage(self, oracle: BilevelOracle, s: StageT) -> StageT:
        """The state at the start of the next stage, or at the end."""

    # -- what it may define -----------------------------------------------------------------------------------------------
    def counted(self, before: StageT, after: StageT) -> StageT:
        """`stale` after a step: 0 where it made progress."""
        return replace(after, stale=0 if after.residual < 0.9 * before.best else before.stale + 1)

    def tighter(self, theta: float) -> float:
        return 0.1 * theta

    def helped(self, before: StageT, after: StageT) -> bool:
        """A more accurate evaluation at the same point gives reason to go on from it."""
        return True

    def spent(self, oracle: BilevelOracle, s: StageT) -> StageT | None:
        """The next stage where round-off ends this one short of `enough`; None: the run ends here."""
        return None

    # -- the steps --------------------------------------------------------------------------------------------------------
    def step(self, oracle: BilevelOracle, state: StageT) -> StageT:
        new = replace(state, k=state.k + 1)
        return self.descended(oracle, new) if state.residual > self.enough(state) else self.next_stage(oracle, new)  # (d)

    def descended(self, oracle: BilevelOracle, s: StageT) -> StageT:
        """One outer step, and what follows where it made no progress."""
        objective = self.objective(oracle, s)
        moved = self.method(objective).step(objective, objective.set, s.outer)  # (a)
        new = self.counted(s, self.read(oracle, s, objective, moved))
        if new.outcome is not Status.RUNNING or (moved.reason is DescentStatus.RUNNING and new.stale <= self.patience):
            return new
        if new.theta > self.theta * self.tightest:  # (b)
            again = self.refreshed(oracle, replace(new, theta=self.tighter(new.theta), stale=0))
            if self.helped(new, again):
                return again
            new = again
        later = self.spent(oracle, new)  # (c)
        failed = Status.LINE_SEARCH if moved.reason is DescentStatus.LINE_SEARCH else Status.PRECISION
        return replace(new, outcome=failed) if later is None else later

    def refreshed(self, oracle: BilevelOracle, s: StageT) -> StageT:
        """Evaluated afresh at the same point: at the start, and where the stage or the accuracy changed. Memory is kept."""
        objective = self.objective(oracle, s)
        outer = self.method(objective).init(objective, objective.set, s.outer.x, s.outer.memory)
        return self.read(oracle, s, objective, outer)

    def method(self, objective: ReformulationT) -> Method:
        return self.outer.for_set(objective.set)

    def sharpened(self, oracle: BilevelOracle, state: StageT) -> StageT:
        return self.refreshed(oracle, replace(state, outcome=Status.RUNNING, theta=self.theta, stale=0))

    def terminate(self, oracle: BilevelOracle, state: StageT) -> Status:
        return state.outcome
