"""Rows with keep_feasible=True: fun is asked only where they hold, and is infinite elsewhere, its derivatives 0.

No line search accepts a value that is not finite. So each solver stays within such rows, whatever it knows of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.errors import ProblemError
from .constraints import Piece


@dataclass(frozen=True)
class Kept:
    """x -> whether the inequalities of some constraints hold to the last bit. `numbers`: of these among all."""

    pieces: Sequence[Piece]
    numbers: Sequence[int]

    @staticmethod
    def of(given: Sequence[Piece], start: np.ndarray) -> Kept | None:
        """None where no row is to be kept. Raises ProblemError where the start violates one that is."""
        numbers = [i for i, piece in enumerate(given) if bool((piece.keep & ~piece.equal).any())]
        found = Kept([given[i] for i in numbers], numbers)
        for i, broken, value, low, high in found._broken(start):
            raise ProblemError(
                f"constraints[{i}]: keep_feasible=True: expected a start x0 where its values are within lb and ub, got "
                f"{value:.17g} in component {broken}, not in [{low:g}, {high:g}]"
            )
        return found if numbers else None

    def __call__(self, x: np.ndarray) -> bool:
        return next(iter(self._broken(x)), None) is None

    def _broken(self, x: np.ndarray) -> Iterable[tuple[int, int, float, float, float]]:
        """Number of the constraint, component, value and its bounds, of the rows that do not hold at x."""
        for i, piece in zip(self.numbers, self.pieces):
            with torch.no_grad():
                value = piece.value(torch.as_tensor(np.array(np.real(x), dtype=np.float64)).to(piece.low)).reshape(-1)
            held = (piece.low <= value) & (value <= piece.high)  # NaN holds nowhere
            for row in (piece.keep & ~piece.equal & ~held).nonzero().ravel().tolist():
                yield i, row, float(value[row]), float(piece.low[row]), float(piece.high[row])
