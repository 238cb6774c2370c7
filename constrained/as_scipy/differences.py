"""The Jacobian of a function of an array by differences of its values, taken within bounds.

    3-point   (f(x + h e_i) - f(x - h e_i)) / 2h;  at a bound (-3 f(x) + 4 f(x + h e_i) - f(x + 2h e_i)) / 2h, h of either sign
    2-point   (f(x + h e_i) - f(x)) / h, h of either sign
    cs        Im f(x + i h e_i) / h

scipy's routine that knows bounds is private; its public `approx_fprime` has forward differences only, whose errors of 1e-8 are as
large as the tolerances here, and `scipy.differentiate` begins with steps of 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

EPS = float(np.finfo(np.float64).eps)
SHORTER = [10.0**-k for k in range(8)]  # of h, until the points are allowed
STEPS = {"3-point": EPS ** (1 / 3), "2-point": EPS ** (1 / 2), "cs": 1e-30}  # h over max(1, |x_i|)
ACCURACY = {"3-point": 1e-6, "2-point": 1e-5, "cs": 1e-8}  # residuals that can be reached with such derivatives

Values = Callable[[np.ndarray], np.ndarray]
Stencil = tuple[list[np.ndarray], Callable[[list[np.ndarray]], np.ndarray | None]]


@dataclass(frozen=True)
class Differences:
    """x -> J, m x n, of a function with m values: `known(x)` at x itself, `function` at points near it, `each` at all these.

    The column of an entry that bounds fix is 0: no difference tells it. relative, absolute: of the steps h, in place of STEPS.
    allowed: whether the function may be asked at a point; where no stencil is, sideways or shorter, the column is NaN.

    >>> free = np.full(2, np.inf)
    >>> square = lambda x: np.array([x[0] ** 2, x[0] * x[1]])
    >>> Differences(square, square, "3-point", -free, free)(np.array([1.0, 2.0])).round(8)
    array([[2., 0.],
           [2., 1.]])
    """

    function: Values
    known: Values
    scheme: str
    low: np.ndarray
    high: np.ndarray
    relative: Any = None
    absolute: Any = None
    each: Callable[[list[np.ndarray]], list[np.ndarray]] | None = None
    allowed: Callable[[np.ndarray], bool] | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        stencils = [self._stencil(x, i, float(h)) for i, h in enumerate(self._steps(x))]
        points = [point for there, _ in stencils for point in there]
        found = iter([self.function(point) for point in points] if self.each is None else self.each(points))
        columns = [weigh([next(found) for _ in there]) for there, weigh in stencils]
        size = next((column for column in columns if column is not None), None)
        zero = np.zeros_like(self.known(x) if size is None else size)
        return np.stack([zero if column is None else column for column in columns], axis=-1)

    def _steps(self, x: np.ndarray) -> np.ndarray:
        if self.absolute is not None:
            return np.broadcast_to(np.asarray(self.absolute, dtype=np.float64), x.shape)
        default = STEPS[self.scheme] * np.maximum(1.0, np.abs(x))
        if self.relative is None:
            return default
        asked = np.abs(np.asarray(self.relative, dtype=np.float64) * x)
        return np.where(x + asked == x, default, asked)

    def _stencil(self, x: np.ndarray, i: int, h: float) -> Stencil:
        """Where the function is needed for column i, and the column from its values there; None where bounds leave no room."""
        found = self._within(x, i, h)
        if self.allowed is None or all(map(self.allowed, found[0])):
            return found
        for share in SHORTER:
            for sign in (0.0, 1.0, -1.0):
                found = self._within(x, i, share * h, sign)
                if found[0] and all(map(self.allowed, found[0])):
                    return found
        return [], lambda _: self.known(x) * np.nan

    def _within(self, x: np.ndarray, i: int, h: float, side: float = 0.0) -> Stencil:
        """Within bounds. side: 1 or -1 for one-sided differences; 0 for what there is room for."""
        if self.scheme == "cs":
            return [_moved(x, i, 1j * h)], lambda f: np.imag(f[0]) / h
        down, up = x[i] - self.low[i], self.high[i] - x[i]
        if max(down, up) <= 0:
            return [], lambda _: None
        if self.scheme == "3-point" and side == 0 and min(down, up) >= h:
            above, below = _moved(x, i, h), _moved(x, i, -h)
            return [above, below], lambda f: (f[0] - f[1]) / (above[i] - below[i])
        sign, room = (1.0, up) if side > 0 or (side == 0 and up >= down) else (-1.0, down)
        if room <= 0:
            return [], lambda _: None
        if self.scheme == "2-point":
            there = _moved(x, i, sign * min(h, room))
            return [there], lambda f: (f[0] - self.known(x)) / (there[i] - x[i])
        near, far = _moved(x, i, sign * min(h, room / 2)), _moved(x, i, sign * min(2 * h, room))
        a, b = near[i] - x[i], far[i] - x[i]  # b = 2a but for rounding
        return [near, far], lambda f: (b / a * (f[0] - self.known(x)) - a / b * (f[1] - self.known(x))) / (b - a)


def _moved(x: np.ndarray, i: int, by: complex) -> np.ndarray:
    there = x.astype(np.result_type(x, type(by)))
    there[i] += by
    return there
