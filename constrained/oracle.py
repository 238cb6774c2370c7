"""A constrained problem as its solvers see it: f, c, h with their derivatives, the set, the draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .core.data import Sampler
from .core.derivatives.constraint import Constraint
from .core.derivatives.counts import Calls
from .core.derivatives.objective import Draw, Objective
from .core.derivatives.replay import Replay
from .core.derivatives.tape import Tape
from .core.problem import Oracle
from .core.vec import Vec
from .sets import ConvexSet


class ConstrainedOracle(Oracle):
    """f = objective, c = equality and h = inequality (None where there is none), the set X, with one tally for all.

    replay: f and c recorded before (`recorded`), in place of tapes.
    """

    def __init__(
        self,
        objective: Callable[..., Any],
        equality: Callable[..., Any] | None,
        inequality: Callable[..., Any] | None,
        sampler: Sampler,
        x: Vec,
        X: ConvexSet,
        seed: int,
        random: bool,
        replay: Replay | None = None,
    ):
        self.calls = Calls()
        self.variables = {"x": x}
        self.X = X
        self.replay = replay
        self.f = Objective("objective", objective, self.calls, sampler=sampler, seed=seed, random=random)
        self.c = None if equality is None else Constraint("equality", equality, self.calls)
        self.h = None if inequality is None else Constraint("inequality", inequality, self.calls)

    def tape(self, x: Vec, draw: Draw | None = None) -> Tape:
        """f and c at x, ready to differentiate."""
        return Tape(self.f, self.c, x, draw) if self.replay is None else self.replay.tape(self.f, self.c, x, draw)

    def recorded(self) -> Replay:
        """f and c as programs, or why not: for an oracle of the same problem that is asked often."""
        return Replay.of(self.f, self.c, self.variables["x"])
