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
from ..vec import Tree, Vec, tensors
from .counts import Calls
from .function import Function
from .graph import Backward, Graph, backward, backwards
from .leaves import differentiable, leaves_of, shaped, split
from .memory import Key, Memory


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
        self.memory: Memory | None = None  # of the oracle of a run or a certificate
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
        if self.memory is not None:
            self.memory.evaluating(self.name)
        out = self.call(args, draw)
        tensor = isinstance(out, Tensor)
        if not tensor or out.numel() != 1 or not out.is_floating_point() or out.device.type == "meta":
            shape = f"shape {tuple(out.shape)}, dtype {out.dtype} on {out.device.type}" if tensor else ""
            got = shape or f"{type(out).__name__} {out!r:.60}"
            raise ProblemError(f"{self.name}: expected a scalar floating-point tensor, got {got}")
        return out.reshape(())

    def value(self, args: Sequence[Vec], draw: Draw | None = None, *, remember: bool = True) -> Tensor:
        """0-dim float64. remember: False at points that nobody asks about again."""
        key = self._key(args) if remember else None
        if self.memory is not None and (known := self.memory.known(key)) is not None:
            return known.value
        self.calls.of(self.name).values += 1
        trees = leaves_of(args, self.own.gradient is None)
        alive = any(isinstance(vec, live.LiveVec) for vec in args)  # whose forward would prepare its backward
        with torch.no_grad() if alive else torch.enable_grad():
            out = self.evaluate(trees, self._at(draw))
        value = out.detach().double()
        live.resharded(trees)
        if self.memory is not None and key is not None:
            graph = Graph(out, [tensors(tree) for tree in trees], args) if self.own.gradient is None else None
            self.memory.learn(key, value, graph)
        if self.ranks is not None:
            self.ranks.mean_([value])
        return value

    def gradient(self, args: Sequence[Vec], draw: Draw | None = None, wrt: Sequence[int] = (0,)) -> tuple[Tensor, list[Vec]]:
        """Value and the gradients in the arguments `wrt`, by one backward."""
        key, at = self._key(args), self._at(draw)
        if self.memory is None or key is None:
            (value,), grads = gradient([(1.0, self, draw)], args, wrt)
            return value, grads
        known = self.memory.known(key)
        missing = [i for i in wrt if known is None or i not in known.grads]
        graph = self.memory.graph(key)
        if missing and (known is None or not isinstance(graph, Graph)):
            self._tick(at)
            if self.own.gradient is not None:
                value, found = self._own_gradient(args, at, missing)
            else:
                with torch.enable_grad():
                    trees, _ = differentiable(args, ())
                    graph = Graph(self.evaluate(trees, at), [tensors(tree) for tree in trees], args)
                value, found = graph.out.detach().double(), graph.pull(missing)
            older = {} if known is None else known.grads
            known = self.memory.learn(key, value, graph)
            known.grads.update({**older, **dict(zip(missing, found))})
        elif missing and known is not None:
            known.grads.update(zip(missing, graph.pull(missing)))
        assert known is not None
        return known.value, [known.grads[i] for i in wrt]

    def recalled(self, args: Sequence[Vec], wrt: Sequence[int]) -> tuple[Tensor, list[Vec]] | None:
        """What `gradient` gives, where nothing has to be evaluated for it."""
        known = None if self.memory is None else self.memory.known(self._key(args))
        return None if known is None or any(i not in known.grads for i in wrt) else (known.value, [known.grads[i] for i in wrt])

    def _key(self, args: Sequence[Vec]) -> Key | None:
        """Of a point that is remembered; a random function has another value the next time."""
        return None if self.memory is None or self.random else self.memory.key(self.name, args)

    def _tick(self, at: Draw) -> None:
        count = self.calls.of(self.name)
        count.gradients += 1
        count.rows += at.rows
        count.tokens += at.tokens

    def graph(self, args: Sequence[Vec], draw: Draw | None = None) -> Tensor:
        """The value with its graph."""
        key = self._key(args)
        known = None if self.memory is None else self.memory.graph(key)
        if known is not None and known.out is not None:
            return known.out
        with torch.enable_grad():
            return self.evaluate(differentiable(args, ())[0], self._at(draw))

    def linearize(self, args: Sequence[Vec], draw: Draw | None = None) -> Linearization:
        """The gradient at a point with its graph kept, for products with second derivatives. Counts one gradient."""
        key = self._key(args)
        graph = None if self.memory is None else self.memory.graph(key)
        if isinstance(graph, Linearization):
            return graph
        new = Linearization(self, args, self._at(draw), graph)
        if self.memory is not None and key is not None:
            self.memory.learn(key, new.value, new).grads.update(enumerate(new.grads))
        return new

    def _at(self, draw: Draw | None) -> Draw:
        found = draw or self._whole
        if found is None:
            raise ProblemError(f"{self.name}: a stochastic function needs a draw")
        return found

    def _own_gradient(
        self, args: Sequence[Vec], draw: Draw, wrt: Sequence[int], value: Tensor | None = None
    ) -> tuple[Tensor, list[Vec]]:
        """Value, where it is not known, and gradients by the user's own function."""
        assert self.own.gradient is not None
        trees = [vec.detach().tree() for vec in args]
        batch = (draw.batch,) if self.takes_batch else ()
        with torch.enable_grad():
            value = self.evaluate(trees, draw).detach() if value is None else value
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
        f._tick(at)
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

    def __init__(self, objective: Objective, args: Sequence[Vec], draw: Draw, graph: Graph | None = None):
        if not objective.second_order:
            raise Unsuitable(f"{objective.name}: no second derivatives: give Function(..., hvp=, jvp=)")
        if any(isinstance(vec, live.LiveVec) for vec in args):
            raise Unsuitable(f"{objective.name}: no second derivatives in a live module: give the module, not Live(module)")
        self.objective, self.args, self.draw = objective, list(args), draw
        own = objective.own
        self.out: Tensor | None = None  # the value with its graph, where there is one
        self._graph: list[Tensor | None] = []
        if own.torch and (own.gradient is None or own.hvp is None or (own.jvp is None and len(args) > 1)):
            graph = graph if self.args[0].device.type != "cuda" else None  # which cuDNN may have made
            if graph is None:
                objective._tick(draw)
            self.value, self.grads = self._differentiate(graph)
        else:
            objective._tick(draw)
            self.value, self.grads = objective._own_gradient(args, draw, range(len(args)))

    def _differentiate(self, graph: Graph | None = None) -> tuple[Tensor, list[Vec]]:
        every = range(len(self.args))
        with torch.enable_grad(), without_cudnn(self.args[0].device):
            if graph is None:
                trees, self._inputs = differentiable(self.args, every)
                out = self.objective.evaluate(trees, self.draw)
            else:
                out, self._inputs = graph.out, [leaf for leaves in graph.inputs for leaf in leaves]
            self.out = out
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
