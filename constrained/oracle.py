"""A constrained problem as its solvers see it: f, c, h with their derivatives, the set, the draws."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core.data import Sampler
from .core.derivatives.constraint import Constraint
from .core.derivatives.counts import Calls
from .core.derivatives.graph import Graph
from .core.derivatives.objective import Draw, Objective
from .core.derivatives.replay import Replay
from .core.derivatives.tape import Tape
from .core.problem import Oracle
from .core.vec import Vec
from .sets import ConvexSet


class ConstrainedOracle(Oracle):
    """f = objective, c = equality and h = inequality (None where there is none), the set X, with one tally for all.

    replay: f, c and h recorded before (`recorded`), in place of tapes.
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

    @property
    def functions(self) -> Sequence[Objective | Constraint]:
        return [self.f, *self.rows]

    @property
    def rows(self) -> list[Constraint]:
        """c and h, those there are."""
        return [one for one in (self.c, self.h) if one is not None]

    @functools.cached_property
    def unrecorded(self) -> ConstrainedOracle:
        """The same functions, what is remembered of them and their tally, without a recording: that is of its own time."""
        if self.replay is None:
            return self
        twin = copy.copy(self)
        twin.replay = None
        return twin

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """low and high of each entry, where X bounds entries: flat, float64, infinite without a bound."""
        x = self.variables["x"]
        if self.X.whole:
            return np.full(x.size, -math.inf), np.full(x.size, math.inf)
        ends = (self.X.project(x.map(lambda leaf, end=end: torch.full_like(leaf, end))) for end in (-math.inf, math.inf))
        low, high = (end.ravel().double().cpu().numpy() for end in ends)
        return low, high

    def tape(self, x: Vec, draw: Draw | None = None) -> Tape:
        """f and c at x, ready to differentiate."""
        rows = [] if self.c is None else [self.c]
        held = self._held("stacked", x)
        found = self._tape("tape", rows, x, draw) if held is None or self.h is None else held.first(len(rows))
        return found if self.calls.purpose != "solve" else found.afresh()

    def stacked(self, x: Vec, draw: Draw | None = None) -> Tape:
        """f and the rows (c, h) at x, ready to differentiate; with what was computed there before."""
        return self._tape("tape" if self.h is None else "stacked", self.rows, x, draw)

    def parted(self, tape: Tape) -> tuple[int, Tensor, Tensor | None]:
        """The rows of c, how many, and those of h, of a stacked tape; float64."""
        m = tape.m - (0 if self.h is None else len(tape.split(tape.c)[-1]))
        return m, tape.c[:m].double(), None if self.h is None else tape.c[m:].double()

    def remembers(self, x: Vec) -> bool:
        """Whether a tape at x, once there, is not made again in a step."""
        return self.memory is not None and not self.f.random and self.memory.key("tape", (x,)) is not None

    def _held(self, name: str, x: Vec) -> Tape | None:
        """The last tape of this kind, if it is at x."""
        memory = None if self.f.random or self.replay is not None else self.memory
        return None if memory is None else memory.graph(memory.key(name, (x,)))

    def _tape(self, name: str, rows: list[Constraint], x: Vec, draw: Draw | None) -> Tape:
        memory = None if self.f.random else self.memory
        name = name if self.replay is None else f"recorded {name}"
        key = None if memory is None else memory.key(name, (x,))
        if memory is None or key is None:
            return self._new(rows, x, draw)
        tape = memory.graph(key)
        if tape is None:
            memory.evaluating(name)
            tape = self._new(rows, x, draw)
            memory.hold(key, tape)
            for part, out in tape.graph_outs:
                graph = Graph(out, [[tape.x]], (x,)) if out.requires_grad else None
                memory.learn((part.name, key[1]), out.detach().double(), graph)
        return tape

    def _new(self, rows: list[Constraint], x: Vec, draw: Draw | None) -> Tape:
        return Tape(self.f, rows, x, draw) if self.replay is None else self.replay.tape(self.f, rows, x, draw)

    def recorded(self) -> Replay:
        """f, c and h as programs, or why not: for an oracle of the same problem that is asked often."""
        return Replay.of(self.f, self.rows, self.variables["x"])
