"""Derivatives of functions of several Vecs, counted.

Measured (torch 2.13, CPU): `torch.autograd.grad` beats `torch.func.grad` 2 to 4 times at tiny sizes and equals it at large
ones; double backward beats forward-over-reverse for Hessian-vector products. Batched products are a batched backward of the
double-backward graph; `backwards` says how it is batched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import live
from ..data import Batch, NoData, Sampler, rows, tokens
from ..errors import ProblemError, Unsuitable
from ..processes import Ranks
from ..shared_state import Randomness, without_cudnn
from ..vec import Tree, Vec
from .counts import Calls
from .function import Function
from .leaves import differentiable, leaves_of, shaped, split


# -- a scalar function, ready to differentiate ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Draw:
    """A batch and where it came from: the generator of module randomness is seeded by the same numbers."""

    batch: Batch
    key: tuple[int, int, int] | None
    rows: int
    tokens: int


class Objective:
    """A scalar function of Vecs, its sampler and its tally. `call(*trees, *batch)` is the user's function."""

    def __init__(
        self,
        name: str,
        call: Callable[..., Any],
        calls: Calls,
        *,
        sampler: Sampler | None = None,
        seed: int = 0,
        stream: int = 0,
        random: bool = False,
        ranks: Ranks | None = None,
    ):
        self.name = name
        self.own = call if isinstance(call, Function) else Function(call)
        self.calls = calls
        self.sampler = sampler or NoData()
        self.takes_batch = not isinstance(self.sampler, NoData)
        self.seed = seed
        self.stream = stream
        self.randomness = Randomness(random)
        self.random = random or self.sampler.stochastic  # may use module randomness (dropout)
        self.ranks = ranks  # processes that share batches: values and gradients are means over them
        self._whole = None if self.sampler.stochastic else self.draw(0)

    @property
    def second_order(self) -> bool:
        """Products with second derivatives exist."""
        return self.own.second_order

    def draw(self, n: int) -> Draw:
        """The n-th batch; for a deterministic function always the same one."""
        batch = self.sampler.draw(self.seed, self.stream, n)
        batch = batch if self.ranks is None else self.ranks.share(self.sampler, batch)
        key = (self.seed, self.stream, n) if self.random else None
        return Draw(batch, key, *((rows(batch), tokens(batch)) if self.takes_batch else (0, 0)))

    def call(self, args: Sequence[Tree], draw: Draw) -> Any:
        """What the user's function returns on trees."""
        batch = (draw.batch,) if self.takes_batch else ()
        with self.randomness(draw.key, args):
            try:
                return self.own.value(*args, *batch)
            except Exception as error:
                error.add_note(f"raised by the function given as {self.name}")
                raise

    def evaluate(self, args: Sequence[Tree], draw: Draw) -> Tensor:
        """The user's value on trees, checked to be a 0-dim tensor."""
        out = self.call(args, draw)
        tensor = isinstance(out, Tensor)
        if not tensor or out.numel() != 1 or not out.is_floating_point() or out.device.type == "meta":
            shape = f"shape {tuple(out.shape)}, dtype {out.dtype} on {out.device.type}" if tensor else ""
            got = shape or f"{type(out).__name__} {out!r:.60}"
            raise ProblemError(f"{self.name}: expected a scalar floating-point tensor, got {got}")
        return out.reshape(())

    def value(self, args: Sequence[Vec], draw: Draw | None = None) -> Tensor:
        """0-dim float64."""
        self.calls.of(self.name).values += 1
        trees = leaves_of(args, self.own.gradient is None)
        alive = any(isinstance(vec, live.LiveVec) for vec in args)  # whose forward would prepare its backward
        with torch.no_grad() if alive else torch.enable_grad():
            value = self.evaluate(trees, self._at(draw)).detach().double()
        live.resharded(trees)
        if self.ranks is not None:
            self.ranks.mean_([value])
        return value

    def gradient(self, args: Sequence[Vec], draw: Draw | None = None, wrt: Sequence[int] = (0,)) -> tuple[Tensor, list[Vec]]:
        """Value and the gradients in the arguments `wrt`, by one backward."""
        (value,), grads = gradient([(1.0, self, draw)], args, wrt)
        return value, grads

    def depends(self, args: Sequence[Vec], draw: Draw | None = None) -> bool:
        """Whether the value depends on any argument by a graph of autograd."""
        return self.graph(args, draw).requires_grad

    def graph(self, args: Sequence[Vec], draw: Draw | None = None) -> Tensor:
        """The value with its graph."""
        with torch.enable_grad():
            return self.evaluate(differentiable(args, ())[0], self._at(draw))

    def linearize(self, args: Sequence[Vec], draw: Draw | None = None) -> Linearization:
        """The gradient at a point with its graph kept, for products with second derivatives. Counts one gradient."""
        return Linearization(self, args, self._at(draw))

    def _at(self, draw: Draw | None) -> Draw:
        found = draw or self._whole
        if found is None:
            raise ProblemError(f"{self.name}: a stochastic function needs a draw")
        return found

    def _own_gradient(self, args: Sequence[Vec], draw: Draw, wrt: Sequence[int]) -> tuple[Tensor, list[Vec]]:
        assert self.own.gradient is not None
        trees = [vec.detach().tree() for vec in args]
        batch = (draw.batch,) if self.takes_batch else ()
        with torch.enable_grad():
            value = self.evaluate(trees, draw).detach()
            with self.randomness(draw.key, trees):
                given = self.own.gradient(*trees, *batch)
        parts = (given,) if len(args) == 1 else given
        if not isinstance(parts, (tuple, list)) or len(parts) != len(args):
            raise ProblemError(
                f"{self.name}.gradient: expected {len(args)} gradients, one an argument, got {type(given).__name__}"
            )
        return value.double(), [shaped(parts[i], args[i], f"{self.name}.gradient") for i in wrt]


Weighted = tuple[float, Objective, Draw | None]


def gradient(terms: Sequence[Weighted], args: Sequence[Vec], wrt: Sequence[int]) -> tuple[list[Tensor], list[Vec]]:
    """Values of the terms, and the gradient of their weighted sum in the arguments `wrt`: one backward for all autodiff terms."""
    values: list[Tensor | None] = [None] * len(terms)
    total: list[Vec] | None = None
    auto = []
    for i, (weight, f, draw) in enumerate(terms):
        at = f._at(draw)
        count = f.calls.of(f.name)
        count.gradients += 1
        count.rows += at.rows
        count.tokens += at.tokens
        if f.own.gradient is None:
            auto.append((i, weight, f, at))
            continue
        values[i], own = f._own_gradient(args, at, wrt)
        scaled = own if weight == 1.0 else [g * weight for g in own]
        total = scaled if total is None else [a + b for a, b in zip(total, scaled)]
    if auto:
        outs: list[Tensor] = []

        def term(weight: float, f: Objective, at: Draw, trees: list[Tree]) -> Tensor:
            outs.append(f.evaluate(trees, at))
            return outs[-1] if weight == 1.0 else weight * outs[-1]

        ranks = auto[0][2].ranks
        found = gradients([partial(term, weight, f, at) for _, weight, f, at in auto], args, wrt, ranks=ranks)
        grads = split(found, args, wrt)
        total = grads if total is None else [a + b for a, b in zip(total, grads)]
        for (i, *_), value in zip(auto, outs):
            values[i] = value.detach().double()
        if ranks is not None:
            ranks.mean_([value for value in values if value is not None])
    assert total is not None
    return [v for v in values if v is not None], total


def gradients(
    terms: Sequence[Callable[[list[Tree]], Tensor]],
    args: Sequence[Vec],
    wrt: Sequence[int],
    *,
    moving: Sequence[bool] | None = None,
    ranks: Ranks | None = None,
) -> list[Tensor | None]:
    """The gradient of a sum of scalar functions of trees in every leaf of the arguments `wrt`; None where none depends on it.

    One backward for all terms; with live variables one a term. moving: the leaves to differentiate in, all by default.
    """
    if any(isinstance(vec, live.LiveVec) for vec in args):
        return live.gradients(terms, args, wrt, moving, ranks)
    with torch.enable_grad():
        trees, inputs = differentiable(args, wrt)
        for leaf, moves in zip(inputs, moving or ()):
            leaf.requires_grad_(moves)
        outs = [term(trees) for term in terms]
        out = outs[0] if len(outs) == 1 else torch.stack(outs).sum()
        open_ = [leaf for leaf in inputs if leaf.requires_grad]
        found = iter(torch.autograd.grad(out, open_, allow_unused=True) if out.requires_grad else [None] * len(open_))
    return [next(found) if leaf.requires_grad else None for leaf in inputs]


def accumulated(
    terms: Sequence[Callable[[list[Tree]], Tensor]],
    args: Sequence[Vec],
    wrt: Sequence[int],
    *,
    moving: Sequence[bool] | None = None,
    ranks: Ranks | None = None,
) -> list[Tensor | None]:
    """`gradients` with one backward a term, so that the graph of one term at a time is in memory."""
    if any(isinstance(vec, live.LiveVec) for vec in args):
        return live.gradients(terms, args, wrt, moving, ranks)
    total = gradients(terms[:1], args, wrt, moving=moving)
    for term in terms[1:]:
        new = gradients([term], args, wrt, moving=moving)
        total = [b if a is None else a if b is None else _added(a, b) for a, b in zip(total, new)]
    return total


def _added(a: Tensor, b: Tensor) -> Tensor:
    """a + b in the memory of a, unless that is one number for many entries, as the gradient of a sum is."""
    return a.add_(b) if a.is_contiguous() else a + b


class Linearization:
    """Gradients of an objective at a point, and products with its second derivatives there, from one kept graph.

    `grads[i]` is the gradient in argument i; `product(v, row, col)` = d/d(argument row) <grads[col], v>, so that
    `product(v, 1, 1)` = g_yy v and `product(v, 0, 1)` = g_xy v for g(x, y).
    """

    def __init__(self, objective: Objective, args: Sequence[Vec], draw: Draw):
        if not objective.second_order:
            raise Unsuitable(f"{objective.name}: no second derivatives: give Function(..., hvp=, jvp=)")
        if any(isinstance(vec, live.LiveVec) for vec in args):
            raise Unsuitable(f"{objective.name}: no second derivatives in a live module: give the module, not Live(module)")
        self.objective, self.args, self.draw = objective, list(args), draw
        own = objective.own
        count = objective.calls.of(objective.name)
        count.gradients += 1
        count.rows += draw.rows
        count.tokens += draw.tokens
        self._graph: list[Tensor | None] = []
        if own.torch and (own.gradient is None or own.hvp is None or (own.jvp is None and len(args) > 1)):
            self.value, self.grads = self._differentiate()
        else:
            self.value, self.grads = objective._own_gradient(args, draw, range(len(args)))

    def _differentiate(self) -> tuple[Tensor, list[Vec]]:
        every = range(len(self.args))
        with torch.enable_grad(), without_cudnn(self.args[0].device):
            trees, self._inputs = differentiable(self.args, every)
            out = self.objective.evaluate(trees, self.draw)
            found = (
                torch.autograd.grad(out, self._inputs, create_graph=True, allow_unused=True)
                if out.requires_grad
                else [None] * len(self._inputs)
            )
        self._graph = [g if g is None or g.requires_grad else g.detach() for g in found]
        return out.detach().double(), [g.detach() for g in split(found, self.args, every)]

    def product(self, v: Vec, row: int, col: int) -> Vec:
        self._tick(row, col, 1)
        own = self._own(row, col)
        if own is not None:
            return shaped(self._call_own(own, v), self.args[row], f"{self.objective.name}: own second derivative")
        return self.args[row].like(self._backward(v.leaves, row, col, backward))

    def products(self, vs: Vec, row: int, col: int) -> Vec:
        """The same for a stack of vectors: every leaf has one leading dimension more, in and out."""
        n = len(vs.leaves[0])
        if self._own(row, col) is None:
            self._tick(row, col, n)
            return self.args[row].like(self._backward(vs.leaves, row, col, backwards))
        each = [self.product(self.args[col].like(leaf[i] for leaf in vs.leaves), row, col) for i in range(n)]
        return self.args[row].like(torch.stack([e.leaves[j] for e in each]) for j in range(len(self.args[row].leaves)))

    def _own(self, row: int, col: int) -> Callable[..., Any] | None:
        own, last = self.objective.own, len(self.args) - 1
        if row == col == last:
            return own.hvp
        return own.jvp if (row, col) == (0, 1) else None

    def _call_own(self, own: Callable[..., Any], v: Vec) -> Tree:
        batch = (self.draw.batch,) if self.objective.takes_batch else ()
        with torch.enable_grad(), self.objective.randomness(self.draw.key, self.args):
            return own(*[vec.detach().tree() for vec in self.args], v.detach().tree(), *batch)

    def _backward(self, v: Sequence[Tensor], row: int, col: int, back: Backward) -> Sequence[Tensor]:
        if not self._graph and self.objective.own.torch:
            self._differentiate()  # a block that the user's own products leave out
        if not self._graph:
            raise Unsuitable(f"{self.objective.name}: this second derivative is not given: Function(..., hvp=, jvp=)")
        start = [0]
        for vec in self.args:
            start.append(start[-1] + len(vec.leaves))
        pairs = [
            (g, w.to(g.dtype)) for g, w in zip(self._graph[start[col] : start[col + 1]], v) if g is not None and g.requires_grad
        ]
        inputs = self._inputs[start[row] : start[row + 1]]
        if not pairs:
            lead = v[0].shape[: v[0].ndim - self.args[col].leaves[0].ndim]
            return [leaf.new_zeros(lead + leaf.shape) for leaf in inputs]
        try:
            with without_cudnn(inputs[0].device):
                return back([g for g, _ in pairs], [w for _, w in pairs], inputs)
        except RuntimeError as cause:
            raise twice_missing(self.objective.name, cause) from cause

    def _tick(self, row: int, col: int, n: int) -> None:
        count = self.objective.calls.of(self.objective.name)
        if row == col:
            count.hvps += n
        else:
            count.jvps += n


def twice_missing(name: str, cause: RuntimeError) -> Exception:
    """Unsuitable, where torch says that an operator has no second derivative; else its own error."""
    if not any(words in str(cause) for words in ("derivative for", "once_differentiable")):
        return cause
    hint = ": attention has them under sdpa_kernel(SDPBackend.MATH)" if "attention" in str(cause) else ""
    return Unsuitable(f"{name}: no second derivatives: {cause}{hint}")


# -- backward of a kept graph -----------------------------------------------------------------------------------------------
Backward = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
BATCHED = 50  # entries of the largest tensor up to which the overhead of a batched backward outweighs its arithmetic


def backward(outs: Sequence[Tensor], weights: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """sum_i (d outs_i / d input)' weights_i for each input."""
    found = torch.autograd.grad(outs, inputs, weights, retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(at) if grad is None else grad for grad, at in zip(found, inputs))


def backwards(outs: Sequence[Tensor], stacks: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same for q weights an output, stacked: every result has q rows. One by one where an operator has no batching rule.

    Measured (torch 2.13, one thread): `torch.func.vmap` of the backward is the fastest or within 1.3 of it on logistic
    regression, stencils, chains and small networks. `is_grads_batched` costs 0.2 ms less a call, which is all at n = 5, but makes
    A'W from q products of A with one vector: 8 to 20 times slower at n = 500. A user's A @ X with one column is slow in both.
    """
    try:
        if max(t.numel() for t in (*outs, *inputs)) > BATCHED:
            return torch.func.vmap(backward, (None, 0, None))(outs, stacks, inputs)
        found = torch.autograd.grad(outs, inputs, stacks, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return tuple(at.new_zeros(len(stacks[0]), *at.shape) if grad is None else grad for grad, at in zip(found, inputs))
    except RuntimeError:
        each = [backward(outs, weights, inputs) for weights in zip(*stacks)]
        return tuple(torch.stack(rows) for rows in zip(*each))


# -- helpers ----------------------------------------------------------------------------------------------------------------
