"""What a run remembers of the user's functions: each point costs one call of each, whoever asks again.

Values and gradients by the bytes of the point, and of each function the graph of its last evaluation: the next one lets it go
first. Only small variables are remembered: for large ones the functions are dear, and so are copies and graphs.

A resumed run remembers nothing. So within `solve` nothing is known but what the same step asked (`step_begins`), and its counts
are those of an uninterrupted run; answers and certificates know all that is kept, but the point that is certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..deadline import look
from ..live import LiveVec
from ..vec import Vec
from .counts import Calls

SMALL = 10_000  # entries of a point, up to which it is remembered
POINTS = 300  # values and gradients of so many points

Key = tuple[str, bytes]


@dataclass
class Known:
    """A function at a point: its value, and those gradients that were asked for, by argument; of rows the last product w'J."""

    value: Tensor
    grads: dict[int, Vec] = field(default_factory=dict)
    product: tuple[bytes, list[Vec]] | None = None


class Memory:
    """Of one oracle. `now`: what the step at hand asked; `before`: what is older."""

    def __init__(self, calls: Calls):
        self.calls = calls
        self.now: dict[Key, Known] = {}
        self.before: dict[Key, Known] = {}
        self.graphs: dict[str, tuple[Key, Any]] = {}  # of the last evaluation of each function
        self.kept: dict[str, tuple[Key, Any]] = {}  # beside it, until the next step
        self.made: tuple[Any, Any] = None, None  # a solver's last state, and what it was made from

    def key(self, name: str, args: Sequence[Vec]) -> Key | None:
        """Of a function at a point; None where that is not remembered."""
        leaves: list[Tensor] = []
        for vec in args:
            if isinstance(vec, LiveVec):
                return None
            leaves += vec.leaves
        if sum([leaf.numel() for leaf in leaves]) > SMALL:
            return None
        return name, b"".join([leaf.numpy(force=True).tobytes() for leaf in leaves])

    def known(self, key: Key | None) -> Known | None:
        if key is None:
            return None
        look()
        found = self.now.get(key)
        return found if found is not None or self.calls.purpose == "solve" else self.before.get(key)

    def learn(self, key: Key, value: Tensor, graph: Any = None) -> Known:
        """The value of an evaluation that was just made, and its graph."""
        while len(self.now) >= POINTS:
            del self.now[next(iter(self.now))]
        found = self.now.setdefault(key, Known(value))
        if graph is not None:
            self.hold(key, graph)
        return found

    def hold(self, key: Key, graph: Any) -> None:
        self.graphs[key[0]] = key, graph

    def graph(self, key: Key | None) -> Any:
        """What the last evaluation of the function left, where that was at this point."""
        held = [] if key is None else [one.get(key[0]) for one in (self.graphs, self.kept)]
        return next((graph for at, graph in filter(None, held) if at == key), None)

    def keep(self) -> None:
        """What the last evaluations left, at the start or at an answer, stands while functions are asked elsewhere."""
        self.kept = dict(self.graphs)

    def behind(self, state: Any) -> Any:
        """What the solver made this state from, where it is the last one."""
        return self.made[1] if self.made[0] is state else None

    def evaluating(self, name: str) -> None:
        """A function is about to be called: its last graph goes first."""
        self.graphs.pop(name, None)

    def step_begins(self, *, with_graphs: bool) -> None:
        """What the next step asks, it asks anew."""
        self.kept = {}
        self.before.update(self.now)
        self.now = {}
        while len(self.before) > POINTS:
            del self.before[next(iter(self.before))]
        if not with_graphs:
            self.graphs.clear()

    def forget_at(self, args: Sequence[Vec]) -> None:
        """One point, so that what is said of it is not what the solver saw: a function may say something else the next time."""
        key = self.key("", args)
        if key is None:
            return
        for known in (self.now, self.before):
            for at in [at for at in known if at[1] == key[1]]:
                del known[at]
        for held in (self.graphs, self.kept):
            for name in [name for name, (at, _) in held.items() if at[1] == key[1]]:
                del held[name]

    def forget(self) -> None:
        """All of it, so that functions are asked whether they say the same again."""
        self.now, self.before, self.graphs, self.kept, self.made = {}, {}, {}, {}, (None, None)
