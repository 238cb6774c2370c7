"""A bilevel problem as its solvers see it: f and g of (x, y) with their partial derivatives, the sets, the draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from constrained.core.autodiff import Constraint, Draw, Linearization, Objective, gradient
from constrained.core.calls import Calls
from constrained.core.solver import Oracle
from constrained.core.vec import Vec
from constrained.sets import ConvexSet

UPPER_STREAM, LOWER_STREAM = 0, 1


class Level(Objective):
    """f or g: a scalar function of (x, y) and a batch, with the names of the papers for its derivatives."""

    @property
    def second_order(self) -> bool:
        """Products with g_yy and g_xy exist."""
        return self.own.torch or None not in (self.own.hvp, self.own.jvp)

    def grad(self, x: Vec, y: Vec, draw: Draw | None = None) -> tuple[Vec, Vec]:
        """(d/dx, d/dy) by one backward."""
        _, (gx, gy) = self.gradient((x, y), draw, (0, 1))
        return gx, gy

    def grad_x(self, x: Vec, y: Vec, draw: Draw | None = None) -> Vec:
        return self.gradient((x, y), draw, (0,))[1][0]

    def grad_y(self, x: Vec, y: Vec, draw: Draw | None = None) -> Vec:
        return self.gradient((x, y), draw, (1,))[1][0]

    def at(self, x: Vec, y: Vec, draw: Draw | None = None) -> LevelAt:
        """Both gradients at (x, y), and products with g_yy and g_xy there."""
        return LevelAt(self.linearize((x, y), draw))


class LevelAt:
    """Derivatives at one point from one kept graph: `x`, `y` the gradients; `yy(v)` = g_yy v; `xy(v)` = g_xy v, shaped like x."""

    def __init__(self, linear: Linearization):
        self._linear = linear
        self.value = linear.value
        self.x, self.y = linear.grads

    def yy(self, v: Vec) -> Vec:
        return self._linear.product(v, 1, 1)

    def yy_batch(self, vs: Vec) -> Vec:
        """The same for a stack of vectors: every leaf with one leading dimension more, in and out."""
        return self._linear.products(vs, 1, 1)

    def xy(self, v: Vec) -> Vec:
        return self._linear.product(v, 0, 1)


class BilevelOracle(Oracle):
    """f, g, the constraints and sets of a problem, with one tally for all of them."""

    def __init__(
        self,
        upper: Callable[..., Any],
        lower: Callable[..., Any],
        constraints: dict[str, Callable[..., Any]],
        samplers: tuple[Any, Any],
        variables: dict[str, Vec],
        X: ConvexSet,
        Y: ConvexSet,
        seed: int,
        random: bool,
    ):
        self.calls = Calls()
        self.variables = variables
        self.X, self.Y = X, Y
        self.f = Level("upper", upper, self.calls, sampler=samplers[0], seed=seed, stream=UPPER_STREAM, random=random)
        self.g = Level("lower", lower, self.calls, sampler=samplers[1], seed=seed, stream=LOWER_STREAM, random=random)
        self.constraints = {name: Constraint(name, call, self.calls) for name, call in constraints.items()}

    def penalised(
        self, sigma: float, x: Vec, y: Vec, xi: Draw | None = None, zeta: Draw | None = None, *, wrt: tuple[int, ...] = (1,)
    ):
        """Values (f, g) at (x, y) and the gradients of sigma f + g in `wrt` (0: x, 1: y): one backward, two gradients counted."""
        return gradient([(sigma, self.f, xi), (1.0, self.g, zeta)], (x, y), wrt)
