"""Instance: a zoo problem with its source, its solution where one is known, and what solves it well."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from constrained.core.problem import Point, Problem
from constrained.core.run import Result
from constrained.core.solver import Solver
from constrained.core.status import Feature
from constrained.core.vec import Vec


@dataclass(frozen=True)
class Recommended:
    """A solver with its options for one instance, and the steps it needs where it has no limit of its own."""

    solver: Solver
    max_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Instance:
    """name; problem; source (paper or closed form); solution(s), each a Point with y where it is known, the best first;
    scale: what each variable's size is, for relative errors; recommended: solver class -> how it solves this instance;
    preconditioner: Vec -> approximate inverse KKT product, where there is one; study: what the command line does with a result
    beyond the common table (pictures, task metrics).
    """

    name: str
    problem: Problem
    source: str
    solution: tuple[Point, ...] = ()
    scale: float = 1.0
    recommended: Mapping[type[Solver], Recommended] = field(default_factory=dict)
    preconditioner: Callable[[Any], Any] | None = None
    study: Study | None = None

    @property
    def features(self) -> Feature:
        return self.problem.features

    def error(self, x: Any) -> float:
        """Distance of x from the nearest known solution, relative to its norm (at least `scale`). NaN where none is known."""
        if not self.solution:
            return float("nan")
        found = Vec.of(x)
        far = [(found - Vec.of(point.x), Vec.of(point.x)) for point in self.solution]
        return min(float(gap.norm()) / max(float(known.norm()), self.scale) for gap, known in far)


class Study(ABC):
    """What a family makes of its results, beyond the table that every run prints."""

    claims: tuple[str, ...] = ()  # what the figures show and what they do not

    @abstractmethod
    def rows(self, result: Result) -> list[Any]:
        """The result's figures and those of its baselines, one dataclass a row with a `name`."""

    @abstractmethod
    def tables(self, runs: list[list[Any]]) -> list[Any]:
        """Rich tables of the rows of one or several seeds."""

    @abstractmethod
    def summary(self, runs: list[list[Any]]) -> dict[str, Any]:
        """The same figures for result.json: means over seeds and paired differences."""

    def draw(self, result: Result, folder: Path) -> None:
        """Pictures of one result into a folder; none unless a family has some."""
        return None


@dataclass(frozen=True, kw_only=True)
class ConstrainedInstance(Instance):
    """optimum: the least f known on the feasible set, NaN where none is; start: x0 with the multipliers lam0 that the source
    starts from.
    """

    start: Point
    optimum: float = math.nan
