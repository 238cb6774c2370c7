"""The lower level at one x: g(x, .) for `descent`, and its minimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from constrained.core.vec import Vec
from constrained.descent import LBFGS, Method, Minimum, minimise
from constrained.descent.curvature_pairs import Pairs
from constrained.descent.newton_cg import NewtonCG
from constrained.linear.diagonal import Diagonal

from ..oracle import BilevelOracle, LevelAt

UNKNOWNS = 100_000  # of the lower level, beyond which no residual or certificate solves a linear system


class Lower:
    """g(x, .) for `descent`, with products of g_yy. Each evaluation keeps its graph, so that a point is differentiated once."""

    def __init__(self, oracle: BilevelOracle, x: Vec, diagonal: Diagonal):
        self.oracle, self.x, self.diagonal = oracle, x, diagonal
        self.scale = diagonal.inverse()
        self.last: tuple[Vec, LevelAt] | None = None

    def __call__(self, y: Vec) -> tuple[float, Vec]:
        known = self.oracle.g.recalled((self.x, y), (1,))
        if known is not None:  # searches at round-off come back to a point, and may need no products there
            return float(known[0]), known[1][0]
        here = self.at(y)
        return float(here.value), here.y

    def products(self, y: Vec) -> Callable[[Vec], Vec]:
        self.scale = self.diagonal.inverse()
        return self.diagonal.watching(self.at(y).yy)

    def precondition(self, v: Vec) -> Vec:
        """v -> v / D, D as it was when products were last asked for: fixed during one run of conjugate gradients."""
        return self.scale(v)

    def minimised(self, method: Method, y: Vec, tol: float, *, max_steps: int, memory: Pairs | float | None = None) -> Minimum:
        """argmin over Y from y; a NewtonCG without a preconditioner gets the diagonal."""
        if isinstance(method, NewtonCG) and method.preconditioner is None:
            method = replace(method, preconditioner=self.precondition)
        return minimise(method, self, y, tol=tol, X=self.oracle.Y, max_steps=max_steps, memory=memory)

    def at(self, y: Vec) -> LevelAt:
        if self.last is None or self.last[0] is not y:
            self.last = None  # lets its graph go before the next is made
            self.last = y, self.oracle.g.at(self.x, y)
        return self.last[1]


def solve_lower(oracle: BilevelOracle, x: Vec, y: Vec, tol: float, *, max_steps: int = 10_000) -> Minimum:
    """argmin over Y of g(x, .), from y, by first derivatives: L-BFGS, projected on a box, SPG on other sets.

    Its steps stay in the range of g_yy, so that of several minimisers one next to y is found.
    """

    def lower(w: Vec) -> tuple[float, Vec]:
        value, (gy,) = oracle.g.gradient((x, w), wrt=(1,))
        return float(value), gy

    return minimise(LBFGS(), lower, y, tol=tol, X=oracle.Y, max_steps=max_steps)
