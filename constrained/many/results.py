"""Results: what `solve_many` returns, a sequence of `Result`s in the order of the starts, and their numbers as tensors."""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..core.derivatives.counts import Calls
from ..core.problem import Point
from ..core.result import Result
from ..core.solver import Solver
from ..core.status import Status
from ..core.vec import Tree, Vec


def not_begun(problem: Any, solver: Solver[Any, Any], start: Vec, status: Status, message: str, seconds: float) -> Result:
    """Of a lane that took no step."""
    at = problem.finish(Point(start.clone()))
    return Result(at.x, None, None, status, message, 0, seconds, Calls(), (), None, solver, 0, problem, problem.exact)


class Results(Sequence[Result]):
    """Results in the order of the starts, each as `solve` returns it. Of all of them, with a leading axis:

    `x`, `fun`, `success`; `statuses`; `residuals()`; `best()`: CONVERGED before the others, then the least `fun`. seconds: of all
    together; a result's own are those from the beginning to its end.
    """

    def __init__(self, results: Sequence[Result], seconds: float):
        self._results, self.seconds = tuple(results), seconds

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Result, ...]: ...
    def __getitem__(self, index: int | slice) -> Result | tuple[Result, ...]:
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    @functools.cached_property
    def x(self) -> Tree:
        """The answers: the problem's structure, every leaf with a leading axis."""
        vecs = [Vec.of(result.x) for result in self]
        return vecs[0].like(torch.stack(leaves) for leaves in zip(*(vec.leaves for vec in vecs))).tree()

    @functools.cached_property
    def fun(self) -> Tensor:
        """f at the answers, float64."""
        return torch.tensor([result.fun for result in self], dtype=torch.float64)

    @property
    def statuses(self) -> tuple[Status, ...]:
        return tuple(result.status for result in self)

    @property
    def success(self) -> Tensor:
        """Which are CONVERGED."""
        return torch.tensor([result.success for result in self])

    def residuals(self) -> dict[str, Tensor]:
        """`Result.residuals` of each, by name, float64: computed from the problem, one answer after another."""
        found = [result.residuals() for result in self]
        return {name: torch.tensor([one[name] for one in found], dtype=torch.float64) for name in found[0]}

    def best(self) -> Result:
        """The result with the least f of those that are CONVERGED, of all where none is."""
        order = [(not result.success, f if math.isfinite(f) else math.inf) for result, f in zip(self, self.fun.tolist())]
        return self[min(range(len(self)), key=order.__getitem__)]

    def __repr__(self) -> str:
        counts = collections.Counter(status.name for status in self.statuses)
        listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        return f"Results: {listed}; {self.seconds:.2f} s"
