"""SingleLoop: what the stochastic loops over mini-batches have in common; the step and the state stay with each method.

start      the size of the start, the largest curvature of g where a step size comes from it
terminate  DIVERGED once x or a lower copy is `GROWTH` times larger than the start; RUNNING else, until `max_steps`
monitor    the values on the last batch
answer     x, or its average over the last half (`AveragedLoop`), with the last lower copy
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from constrained.core.optimizers import TailAverage
from constrained.core.options import Positive, Schedule, at
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.linear.spectrum import curvature

from .oracle import BilevelOracle

GROWTH = 1e10  # of the iterates over their start, beyond which the run has diverged


class LoopState(Protocol):
    """What the base asks of a method's state."""

    @property
    def k(self) -> int: ...
    @property
    def x(self) -> Vec: ...
    @property
    def scale(self) -> float: ...  # 1 + the norm of the start


class AveragedState(LoopState, Protocol):
    @property
    def average(self) -> TailAverage: ...  # of x


LoopT = TypeVar("LoopT", bound=LoopState)
AveragedT = TypeVar("AveragedT", bound=AveragedState)


@dataclass(frozen=True, kw_only=True)
class SingleLoop(Solver[BilevelOracle, LoopT]):
    """A stochastic loop that ends at `max_steps`, or as DIVERGED."""

    supports: ClassVar[Feature] = Feature.LOWER | Feature.SAMPLES | Feature.X_SET
    requires: ClassVar[Feature] = Feature.LOWER
    stochastic: ClassVar[bool] = True
    monitored: ClassVar[tuple[str, ...]] = ("upper", "lower")  # fields of the state, known after the first step

    tol: Positive | None = None

    @abstractmethod
    def copies(self, state: LoopT) -> tuple[Vec, ...]:
        """The copies of the lower variable. The last one is reported."""

    def terminate(self, oracle: BilevelOracle, state: LoopT) -> Status:
        return grown(state.scale, state.x, *self.copies(state))

    def monitor(self, state: LoopT) -> dict[str, float | Tensor]:
        return {name: getattr(state, name) for name in self.monitored} if state.k else {}

    def answer(self, oracle: BilevelOracle, state: LoopT) -> Point:
        return Point(state.x, self.copies(state)[-1])


class AveragedLoop(SingleLoop[AveragedT]):
    """A single loop that reports x averaged over the last half."""

    def answer(self, oracle: BilevelOracle, state: AveragedT) -> Point:
        return Point(oracle.X.project(state.average.mean), self.copies(state)[-1])


def size(*vectors: Vec) -> float:
    """1 + the norms: what the growth of a run is measured against."""
    return 1.0 + sum(float(v.norm()) for v in vectors)


def grown(start: float, *vectors: Vec) -> Status:
    """DIVERGED where a vector is GROWTH times larger than the start."""
    return Status.DIVERGED if max(float(v.norm()) for v in vectors) > GROWTH * start else Status.RUNNING


def nothing(like: Vec) -> Tensor:
    """0 where the last batch's numbers will stand."""
    return torch.zeros((), dtype=torch.float64, device=like.device)


def step_size(option: float | Schedule | None, k: int, measured: float) -> float:
    """The option's value at step k; where it is None, the one that was measured."""
    return measured if option is None else at(option, k)


def largest_curvature(oracle: BilevelOracle, x: Vec, y: Vec) -> float:
    """The largest |eigenvalue| of g_yy at (x, y) on the first batch; 1 where it is 0."""
    zeta = oracle.g.draw(0)
    return curvature(lambda y: oracle.g.grad_y(x, y, zeta), oracle.Y, y) or 1.0


def curvature_for(oracle: BilevelOracle, start: Point, *options: float | Schedule | None) -> float:
    """`largest_curvature` at the start where a step size is not given; else 1, and no gradient."""
    return largest_curvature(oracle, start.x, start.y) if None in options else 1.0
