"""A bilevel problem as its solvers see it: f and g of (x, y) with their partial derivatives, the sets, the draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from constrained.core.autodiff import Draw, Linearization, Objective, gradient, gradients, split
from constrained.core.calls import Calls
from constrained.core.constraint import Constraint
from constrained.core.errors import ProblemError
from constrained.core.live import Ranks
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


class Sources(Objective):
    """The losses l_1, ..., l_m of a mixture's sources, functions of (y, batch), with weights p from x. Counted as g."""

    def __init__(self, weights: Callable[..., Any], losses: Callable[..., Any], g: Level):
        where: dict[str, Any] = {"sampler": g.sampler, "seed": g.seed, "stream": g.stream, "random": g.random, "ranks": g.ranks}
        super().__init__("lower", losses, g.calls, **where)
        self._weights = Constraint("weights", weights, Calls())  # of m numbers: not worth counting

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources, where the sampler knows them; none otherwise."""
        return tuple(getattr(self.sampler, "names", ()))

    def weights(self, x: Vec) -> Tensor:
        """p(x), 1-D float64."""
        return self._weights.value((x,))

    def pull(self, x: Vec, d: Tensor) -> Vec:
        """The gradient of p(x)'d in x: for the softmax p (d - p'd), entry by entry."""
        return self._weights.vjp((x,), d)[0]

    def losses(self, y: Vec, draw: Draw, p: Tensor, moving: Sequence[bool] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """(l(y), the gradient of p'l in the leaves of y that are moving, None for the others): one gradient."""
        count = self.calls.of(self.name)
        count.gradients += 1
        count.rows += draw.rows
        kept: list[Tensor] = []

        def weighted(trees: list[Any]) -> Tensor:
            each = self.call(trees, draw)
            if not isinstance(each, Tensor) or each.shape != p.shape:
                got = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
                raise ProblemError(f"Mixture: losses: expected {len(p)} losses, one a weight, as a 1-D tensor, got {got}")
            kept.append(each.detach().double())
            return p.to(each.dtype) @ each

        grads = gradients([weighted], (y,), (0,), moving=moving, ranks=self.ranks)
        if self.ranks is not None:
            self.ranks.mean_(kept)
        return kept[0], grads


class BilevelOracle(Oracle):
    """f, g, the constraints and sets of a problem, with one tally for all of them. `sources` where g is a mixture, else None."""

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
        mixture: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
        ranks: Ranks | None = None,
    ):
        self.calls = Calls()
        self.variables = variables
        self.X, self.Y = X, Y
        both: dict[str, Any] = {"seed": seed, "random": random, "ranks": ranks}
        self.f = Level("upper", upper, self.calls, sampler=samplers[0], stream=UPPER_STREAM, **both)
        self.g = Level("lower", lower, self.calls, sampler=samplers[1], stream=LOWER_STREAM, **both)
        self.sources = None if mixture is None else Sources(*mixture, self.g)
        self.constraints = {name: Constraint(name, call, self.calls) for name, call in constraints.items()}

    def penalised(
        self, sigma: float, x: Vec, y: Vec, xi: Draw | None = None, zeta: Draw | None = None, *, wrt: tuple[int, ...] = (1,)
    ):
        """Values (f, g) at (x, y) and the gradients of sigma f + g in `wrt` (0: x, 1: y): one backward, two gradients counted."""
        return gradient([(sigma, self.f, xi), (1.0, self.g, zeta)], (x, y), wrt)

    def upper(self, x: Vec, y: Vec, draw: Draw, moving: Sequence[bool] | None = None) -> tuple[Tensor, Vec, list[Tensor | None]]:
        """f, f_x, and f_y in the leaves of y that are moving, None for the others: one gradient."""
        count = self.calls.of("upper")
        count.gradients += 1
        count.rows += draw.rows
        kept: list[Tensor] = []

        def value(trees: list[Any]) -> Tensor:
            kept.append(self.f.evaluate(trees, draw))
            return kept[0]

        both = None if moving is None else [*(True for _ in x.leaves), *moving]
        grads = gradients([value], (x, y), (0, 1), moving=both, ranks=self.f.ranks)
        values = [kept[0].detach().double()]
        if self.f.ranks is not None:
            self.f.ranks.mean_(values)
        n = len(x.leaves)
        return values[0], split(grads[:n], (x,), (0,))[0], grads[n:]
