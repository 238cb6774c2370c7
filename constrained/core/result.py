"""Result: what a solve returns."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from .derivatives.counts import Calls
from .errors import OptionError, SolveFailed
from .problem import Point, Problem
from .solver import Solver
from .status import Status
from .vec import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What a solve returns.

    `x`, `y` in the structures of the problem; `status` and its sentence with figures, `message`; `steps`, `seconds` (of the
    solver alone), `calls` (by function and purpose); `notes`, sentences that qualify the answer; `state`, the solver's last
    state; `exact`: a resumed run equals an uninterrupted one bit for bit, False where a sampler is a `Stream`. `residuals()`
    and `certify()` are computed from the problem at (x, y).
    """

    x: Tree
    y: Tree | None
    multipliers: Any
    status: Status
    message: str
    steps: int
    seconds: float
    calls: Calls
    notes: tuple[str, ...]
    state: Any = dataclasses.field(repr=False)
    solver: Solver
    seed: int
    problem: Problem | None = dataclasses.field(repr=False)
    exact: bool = True

    @property
    def success(self) -> bool:
        """The status is CONVERGED."""
        return self.status.ok

    @functools.cached_property
    def fun(self) -> float:
        """The upper objective at (x, y), on all of the data; on the first batch of a `Stream`."""
        return self._problem().fun(self.point)

    @property
    def tried(self) -> tuple[Any, ...]:
        """What an `Auto` ran and left without success, each solver with its status, steps and residuals, in order."""
        return () if self.state is None else self.solver.tried(self.state)

    @property
    def point(self) -> Point:
        return Point(self.x, self.y, self.multipliers)

    def residuals(self) -> dict[str, float]:
        """Optimality residuals at (x, y), unscaled 2-norms, computed from the problem and not by the solver.

        Those that depend on a `Stream` are taken on its first batch, and their names end in `_estimate`.
        """
        return self._problem().residuals(self.point)

    def certify(self) -> dict[str, float]:
        """`residuals()` and the checks that take more work: the lower level re-solved from several starts."""
        return self._problem().certify(self.point)

    def raise_for_status(self) -> Result:
        """This result, or SolveFailed where the run ended without an answer; an ended budget is not a failure."""
        if not (self.status.ok or self.status.budget):
            raise SolveFailed(self.message, self)
        return self

    def module(self) -> torch.nn.Module:
        """A copy of the user's nn.Module with y as its parameters."""
        return self._problem().module(self.point)

    def on(self, problem: Problem) -> Result:
        """This result attached to a problem, after unpickling."""
        return dataclasses.replace(self, problem=problem)

    def _problem(self) -> Problem:
        if self.problem is None:
            raise OptionError("this result was unpickled without its problem: attach one with result.on(problem)")
        return self.problem

    def __getstate__(self) -> dict[str, Any]:
        return {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "problem": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        lines = [f"Result: {self.message}"]
        lines += [f"  {name}: {_show(value)}" for name, value in (("x", self.x), ("y", self.y)) if value is not None]
        lines.append(
            f"  {self.steps} steps, {self.calls.gradients} gradients, {self.seconds:.2f} s, {self.solver.current(self.state)!r}"
        )
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _show(tree: Tree) -> str:
    text = " ".join(repr(tree).split())
    return text if len(text) <= 100 else text[:97] + "..."
