"""The answer that a run fell back on: it was within the tolerance, and the solver went on for a nearer one."""

from __future__ import annotations

import dataclasses
from typing import Any

from .problem import Multipliers, Point
from .states import solver_state


@solver_state("Accepted")
class Accepted:
    """What the problem said of an answer, and the solver's state and `tol` there."""

    state: Any
    tol: float | None
    found: dict[str, float]  # its residuals
    details: str  # in words
    measured: bool  # relative to the start too
    x: Any
    y: Any
    multipliers: dict[str, Any] | None

    @property
    def point(self) -> Point:
        return Point(self.x, self.y, None if self.multipliers is None else Multipliers(**self.multipliers))


def accepted(state: Any, tol: float | None, found: dict[str, float], details: str, measured: bool, point: Point) -> Accepted:
    """What to fall back on. `state` and `point` have memory of their own."""
    many = point.multipliers
    known = None if many is None else {field.name: getattr(many, field.name) for field in dataclasses.fields(many)}
    return Accepted(state, tol, found, details, measured, point.x, point.y, known)
