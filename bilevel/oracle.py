"""A bilevel problem as its solvers see it: f and g of (x, y) with their partial derivatives, the sets, the draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from constrained.core.derivatives.constraint import Constraint
from constrained.core.derivatives.counts import Calls
from constrained.core.derivatives.leaves import split
from constrained.core.derivatives.objective import Draw, Linearization, Objective, accumulated, gradient
from constrained.core.errors import ProblemError
from constrained.core.problem import Oracle
from constrained.core.processes import Ranks
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

    def evaluate(self, args: Sequence[Any], draw: Draw) -> Tensor:
        """l(y), checked to be 1-D and real."""
        each = self.call(args, draw)
        if not isinstance(each, Tensor) or each.ndim != 1 or not each.is_floating_point() or each.device.type == "meta":
            tensor = isinstance(each, Tensor)
            got = f"shape {tuple(each.shape)}, dtype {each.dtype} on {each.device.type}" if tensor else type(each).__name__
            raise ProblemError(f"Mixture: losses: expected a 1-D floating-point tensor, one loss a source, got {got}")
        return each


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
        self.lost_twice: str | None = None  # why g has no second derivatives, '' where it has, None where nobody tried
        self.X, self.Y = X, Y
        both: dict[str, Any] = {"seed": seed, "random": random, "ranks": ranks}
        self.f = Level("upper", upper, self.calls, sampler=samplers[0], stream=UPPER_STREAM, **both)
        self.g = Level("lower", lower, self.calls, sampler=samplers[1], stream=LOWER_STREAM, **both)
        self.sources = None if mixture is None else Sources(*mixture, self.g)
        self.constraints = {name: Constraint(name, call, self.calls) for name, call in constraints.items()}

    @property
    def functions(self) -> Sequence[Level | Constraint]:
        return self.f, self.g, *self.constraints.values()

    def penalised(
        self, sigma: float, x: Vec, y: Vec, xi: Draw | None = None, zeta: Draw | None = None, *, wrt: tuple[int, ...] = (1,)
    ):
        """Values (f, g) at (x, y) and the gradients of sigma f + g in `wrt` (0: x, 1: y): one backward, two gradients counted."""
        return gradient([(sigma, self.f, xi), (1.0, self.g, zeta)], (x, y), wrt)

    def mixed(
        self,
        x: Vec,
        y: Vec,
        p: Tensor,
        zetas: Sequence[Draw],
        xis: Sequence[Draw] = (),
        *,
        weight: float = 0.0,
        moving: Sequence[bool] | None = None,
    ) -> Mixed:
        """The gradient of the mean over draws of p'l(y; zeta) + weight f(x, y; xi), one backward a draw, in the leaves of y that
        are moving, with the means of l, f and f_x on the way: one gradient each draw of a level.
        """
        sources, f, A = self.sources, self.f, len(zetas)
        assert sources is not None  # Feature.MIXTURE is required
        losses: list[Tensor] = []
        values: list[Tensor] = []

        def lower(zeta: Draw, trees: list[Any]) -> Tensor:
            each = sources.evaluate(trees[1:], zeta)
            if each.shape != p.shape:
                raise ProblemError(f"Mixture: losses: expected {len(p)} losses, one a weight, got {len(each)}")
            losses.append(each.detach().double() / A)
            return p.to(each.dtype) @ each / A

        def upper(xi: Draw, trees: list[Any]) -> Tensor:
            value = f.evaluate(trees, xi)
            values.append(value.detach().double() / A)
            return value * (weight / A)

        for level, draws in ((sources, zetas), (f, xis)):
            count = self.calls.of(level.name)
            count.gradients += len(draws)
            count.rows += sum(draw.rows for draw in draws)
            count.tokens += sum(draw.tokens for draw in draws)
        terms = [*(partial(lower, zeta) for zeta in zetas), *(partial(upper, xi) for xi in xis)]
        both = None if moving is None else [*(bool(xis) for _ in x.leaves), *moving]
        grads = accumulated(terms, (x, y), (0, 1), moving=both, ranks=f.ranks)
        means = [torch.stack(losses).sum(0), torch.stack(values).sum() if values else losses[0].new_zeros(())]
        if f.ranks is not None:
            f.ranks.mean_(means)
        n = len(x.leaves)
        f_x = split(grads[:n], (x,), (0,))[0] / weight if xis else x.zeros()
        return Mixed(means[0], means[1], f_x, grads[n:])


@dataclass(frozen=True)
class Mixed:
    """What `BilevelOracle.mixed` gives."""

    losses: Tensor  # l(y), float64
    upper: Tensor  # f(x, y), float64; 0 where it was not asked
    x: Vec  # f_x(x, y)
    y: list[Tensor | None]  # leaves of the gradient in y, None for those that rest
