"""Reformulation: a problem written as one smooth objective over a set, for the methods of this room."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from ..core.errors import Unsuitable
from ..core.vec import Vec
from ..sets import ConvexSet
from .method import DescentStatus


class Reformulation(ABC):
    """A problem as an objective of one variable: value and gradient at a Vec, and products with its Hessian where it has them.

    set: where the variable lives. reason: CONVERGED, or why what the last evaluation had to solve inside was not solved.
    """

    set: ConvexSet
    reason: DescentStatus = DescentStatus.CONVERGED

    @abstractmethod
    def __call__(self, x: Vec) -> tuple[float, Vec]:
        """Value and gradient."""

    def products(self, x: Vec) -> Callable[[Vec], Vec]:
        """v -> H(x) v. Raises Unsuitable where there are none."""
        raise Unsuitable(f"{type(self).__name__}: no second derivatives: take a first-order method such as LBFGS()")
