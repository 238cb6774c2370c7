"""Derivatives of functions of several Vecs, counted. The only file that differentiates.

Measured (torch 2.13, CPU): `torch.autograd.grad` beats `torch.func.grad` 2 to 4 times at tiny sizes and equals it at large
ones; double backward beats forward-over-reverse for Hessian-vector products. Batched products run `is_grads_batched=True`
on the double-backward graph, and a loop where an operator has no batching rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Batch, NoData, Sampler, rows
from .errors import ProblemError, Unsuitable
from .vec import Tree, Vec, map_leaves


# -- counting ---------------------------------------------------------------------------------------------------------------
@dataclass
class Count:
    """How often one function was called.

    `gradients`: backward passes, one whether it gave one argument's gradient or all; `rows`: data rows in these (0 without
    data); `hvps`: products with a block d2/dy2; `jvps`: with a mixed block d2/dxdy; `vjps`: J'v of constraints; `values`:
    evaluations without a derivative.
    """

    values: int = 0
    gradients: int = 0
    rows: int = 0
    hvps: int = 0
    jvps: int = 0
    vjps: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Calls:
    """Calls of each function, by what they were for: `solve`, `answer` or `certificate`.

    `calls.gradients`, `.rows`, `.hvps`, ... add up the functions under `solve`; `calls.total("answer")` another purpose.
    """

    by: dict[str, dict[str, Count]] = field(default_factory=dict)
    purpose: str = "solve"

    def of(self, function: str) -> Count:
        return self.by.setdefault(self.purpose, {}).setdefault(function, Count())

    @contextlib.contextmanager
    def counting(self, purpose: str) -> Iterator[None]:
        """Count what runs inside under another purpose."""
        before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            self.purpose = before

    def total(self, purpose: str = "solve") -> Count:
        return sum(self.by.get(purpose, {}).values(), Count())

    def copy(self) -> Calls:
        return Calls({p: {name: Count() + c for name, c in one.items()} for p, one in self.by.items()}, self.purpose)

    def as_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        return {p: {name: dict(vars(count)) for name, count in one.items()} for p, one in self.by.items()}

    @classmethod
    def from_dict(cls, by: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Calls:
        return cls({p: {name: Count(**count) for name, count in one.items()} for p, one in by.items()})

    def __getattr__(self, name: str) -> int:
        if name in Count.__dataclass_fields__:
            return getattr(self.total(), name)
        raise AttributeError(name)


# -- a user's own derivatives -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Function:
    """A function with derivatives of its own, wherever a callable stands. What is missing is autodiff of `value`.

    For a scalar function of (x, y): `gradient(x, y)` -> (g_x, g_y); `hvp(x, y, v)` = g_yy v; `jvp(x, y, v)` = d/dx <g_y, v>,
    shaped like x. Of x alone: `gradient(x)` -> g_x, `hvp(x, v)`. For a constraint of (x, y): `jacobian(x, y)` -> (J_x, J_y)
    with one row a component; `vjp(x, y, w)` -> (J_x' w, J_y' w). Each gets the batch last where there is one, and the
    variables' structures go in and come out.

    >>> half_square = Function(lambda x, y: 0.5 * ((y - x) ** 2).sum(), gradient=lambda x, y: (x - y, y - x))
    """

    value: Callable[..., Any]
    gradient: Callable[..., Any] | None = None
    hvp: Callable[..., Any] | None = None
    jacobian: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    torch: bool = field(default=True, repr=False)

    @staticmethod
    def numpy(
        value: Callable[..., Any],
        *,
        gradient: Callable[..., Any] | None = None,
        hvp: Callable[..., Any] | None = None,
        jacobian: Callable[..., Any] | None = None,
        vjp: Callable[..., Any] | None = None,
        jvp: Callable[..., Any] | None = None,
    ) -> Function:
        """The same from functions that take and return numpy arrays (JAX, CasADi, ...): nothing is autodiffed.

        Raises ProblemError where no first derivative is given.
        """
        if gradient is None and jacobian is None and vjp is None:
            raise ProblemError("Function.numpy: expected gradient= (or jacobian= or vjp= for a constraint), got none: numpy code is not autodiffed")
        given = [None if f is None else _through_numpy(f) for f in (value, gradient, hvp, jacobian, vjp, jvp)]
        return Function(*given, torch=False)  # pyright: ignore[reportArgumentType]

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


def _through_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*trees: Tree) -> Tree:
        first = Vec.of(trees[0])

        def back(leaf: Any) -> Tensor:
            return torch.as_tensor(np.array(leaf), dtype=first.dtype, device=first.device)

        arrays = [map_leaves(lambda leaf: leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf, tree) for tree in trees]
        return map_leaves(back, function(*arrays))

    return call


# -- a scalar function, ready to differentiate ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Draw:
    """A batch and where it came from: the generator of module randomness is seeded by the same numbers."""

    batch: Batch
    key: tuple[int, int, int] | None
    rows: int


class Objective:
    """A scalar function of Vecs, its sampler and its tally. `call(*trees, *batch)` is the user's function."""

    def __init__(self, name: str, call: Callable[..., Any], calls: Calls, *, sampler: Sampler | None = None, seed: int = 0, stream: int = 0):
        self.name = name
        self.own = call if isinstance(call, Function) else Function(call)
        self.calls = calls
        self.sampler = sampler or NoData()
        self.takes_batch = not isinstance(self.sampler, NoData)
        self.seed = seed
        self.stream = stream
        self._whole = None if self.sampler.stochastic else self.draw(0)

    @property
    def second_order(self) -> bool:
        """Products with second derivatives exist."""
        return self.own.torch or self.own.hvp is not None

    def draw(self, n: int) -> Draw:
        """The n-th batch; for a deterministic function always the same one."""
        batch = self.sampler.draw(self.seed, self.stream, n)
        key = (self.seed, self.stream, n) if self.sampler.stochastic else None
        return Draw(batch, key, rows(batch) if self.takes_batch else 0)

    def evaluate(self, args: Sequence[Tree], draw: Draw) -> Tensor:
        """The user's value on trees, checked to be a 0-dim tensor."""
        batch = (draw.batch,) if self.takes_batch else ()
        with randomness(draw.key, args):
            out = self.own.value(*args, *batch)
        if not isinstance(out, Tensor) or out.numel() != 1 or not out.is_floating_point():
            got = f"shape {tuple(out.shape)}, dtype {out.dtype}" if isinstance(out, Tensor) else f"{type(out).__name__} {out!r:.60}"
            raise ProblemError(f"{self.name}: expected a scalar floating-point tensor, got {got}")
        return out.reshape(())

    def value(self, args: Sequence[Vec], draw: Draw | None = None) -> Tensor:
        """0-dim float64."""
        self.calls.of(self.name).values += 1
        with torch.no_grad():
            return self.evaluate([vec.detach().tree() for vec in args], self._at(draw)).double()

    def gradient(self, args: Sequence[Vec], draw: Draw | None = None, wrt: Sequence[int] = (0,)) -> tuple[Tensor, list[Vec]]:
        """Value and the gradients in the arguments `wrt`, by one backward."""
        (value,), grads = gradient([(1.0, self, draw)], args, wrt)
        return value, grads

    def depends(self, args: Sequence[Vec], draw: Draw | None = None) -> bool:
        """Whether the value depends on any argument by a graph of autograd."""
        with torch.enable_grad():
            return self.evaluate(_differentiable(args, range(len(args)))[0], self._at(draw)).requires_grad

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
        with torch.no_grad():
            value = self.evaluate(trees, draw)
            given = self.own.gradient(*trees, *batch)
        parts = (given,) if len(args) == 1 else given
        if not isinstance(parts, (tuple, list)) or len(parts) != len(args):
            raise ProblemError(f"{self.name}.gradient: expected {len(args)} gradients, one an argument, got {type(given).__name__}")
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
        if f.own.gradient is None:
            auto.append((i, weight, f, at))
            continue
        values[i], own = f._own_gradient(args, at, wrt)
        scaled = own if weight == 1.0 else [g * weight for g in own]
        total = scaled if total is None else [a + b for a, b in zip(total, scaled)]
    if auto:
        with torch.enable_grad():
            trees, inputs = _differentiable(args, wrt)
            outs = [f.evaluate(trees, at) for _, _, f, at in auto]
            weighted = [out if w == 1.0 else w * out for (_, w, _, _), out in zip(auto, outs)]
            out = weighted[0] if len(weighted) == 1 else torch.stack(weighted).sum()
            found = torch.autograd.grad(out, inputs, allow_unused=True) if out.requires_grad else [None] * len(inputs)
        grads = _split(found, inputs, args, wrt)
        total = grads if total is None else [a + b for a, b in zip(total, grads)]
        for (i, *_), value in zip(auto, outs):
            values[i] = value.detach().double()
    assert total is not None
    return [v for v in values if v is not None], total


class Linearization:
    """Gradients of an objective at a point, and products with its second derivatives there, from one kept graph.

    `grads[i]` is the gradient in argument i; `product(v, row, col)` = d/d(argument row) <grads[col], v>, so that
    `product(v, 1, 1)` = g_yy v and `product(v, 0, 1)` = g_xy v for g(x, y).
    """

    def __init__(self, objective: Objective, args: Sequence[Vec], draw: Draw):
        if not objective.second_order:
            raise Unsuitable(f"{objective.name}: no second derivatives: give Function(..., hvp=, jvp=)")
        self.objective, self.args, self.draw = objective, list(args), draw
        own = objective.own
        self._count = objective.calls.of(objective.name)
        self._count.gradients += 1
        self._count.rows += draw.rows
        if own.torch and (own.hvp is None or (own.jvp is None and len(args) > 1)):
            every = range(len(args))
            # cuDNN's RNN kernels have no double backward.
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                trees, self._inputs = _differentiable(args, every)
                out = objective.evaluate(trees, draw)
                found = torch.autograd.grad(out, self._inputs, create_graph=True, allow_unused=True) if out.requires_grad else [None] * len(self._inputs)
            self._graph = [g if g is None or g.requires_grad else g.detach() for g in found]
            self.value = out.detach().double()
            self.grads = [g.detach() for g in _split(found, self._inputs, args, every)]
        else:
            self._graph = []
            self.value, self.grads = objective._own_gradient(args, draw, range(len(args)))

    def product(self, v: Vec, row: int, col: int) -> Vec:
        self._tick(row, col, 1)
        own = self._own(row, col)
        if own is not None:
            return shaped(self._call_own(own, v), self.args[row], f"{self.objective.name}: own second derivative")
        return self._backward(v.leaves, row, col, batched=False)

    def products(self, vs: Vec, row: int, col: int) -> Vec:
        """The same for a stack of vectors: every leaf has one leading dimension more, in and out."""
        n = len(vs.leaves[0])
        self._tick(row, col, n)
        if self._own(row, col) is None:
            with contextlib.suppress(RuntimeError):  # an operator without a batching rule
                return self._backward(vs.leaves, row, col, batched=True)
        self._tick(row, col, -n)
        each = [self.product(self.args[col].like(leaf[i] for leaf in vs.leaves), row, col) for i in range(n)]
        return self.args[row].like(torch.stack([e.leaves[j] for e in each]) for j in range(len(self.args[row].leaves)))

    def _own(self, row: int, col: int) -> Callable[..., Any] | None:
        own, last = self.objective.own, len(self.args) - 1
        if row == col == last:
            return own.hvp
        return own.jvp if (row, col) == (0, 1) else None

    def _call_own(self, own: Callable[..., Any], v: Vec) -> Tree:
        batch = (self.draw.batch,) if self.objective.takes_batch else ()
        with torch.no_grad():
            return own(*[vec.detach().tree() for vec in self.args], v.detach().tree(), *batch)

    def _backward(self, v: Sequence[Tensor], row: int, col: int, batched: bool) -> Vec:
        if not self._graph:
            raise Unsuitable(f"{self.objective.name}: this second derivative is not given: Function(..., hvp=, jvp=)")
        start = [0]
        for vec in self.args:
            start.append(start[-1] + len(vec.leaves))
        pairs = [(g, w.to(g.dtype)) for g, w in zip(self._graph[start[col] : start[col + 1]], v) if g is not None and g.requires_grad]
        inputs = self._inputs[start[row] : start[row + 1]]
        if pairs:
            outs, weights = zip(*pairs)
            with torch.backends.cudnn.flags(enabled=False):
                found = torch.autograd.grad(outs, inputs, weights, retain_graph=True, allow_unused=True, is_grads_batched=batched)
        else:
            found = [None] * len(inputs)
        lead = (len(v[0]),) if batched else ()
        return self.args[row].like(leaf.new_zeros(lead + leaf.shape) if g is None else g for g, leaf in zip(found, inputs))

    def _tick(self, row: int, col: int, n: int) -> None:
        if row == col:
            self._count.hvps += n
        else:
            self._count.jvps += n


# -- a vector-valued function -----------------------------------------------------------------------------------------------
class Constraint:
    """A deterministic vector-valued function of Vecs: `value` (1-D float64) and `vjp(w)` = (J_x' w, J_y' w)."""

    def __init__(self, name: str, call: Callable[..., Any], calls: Calls):
        self.name = name
        self.own = call if isinstance(call, Function) else Function(call)
        self.calls = calls

    def evaluate(self, args: Sequence[Tree]) -> Tensor:
        out = self.own.value(*args)
        if not isinstance(out, Tensor) or out.ndim > 1 or not out.is_floating_point():
            got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"{type(out).__name__} {out!r:.60}"
            raise ProblemError(f"{self.name}: expected a scalar or 1-D floating-point tensor, got {got}")
        return out.reshape(-1)

    def value(self, args: Sequence[Vec]) -> Tensor:
        self.calls.of(self.name).values += 1
        with torch.no_grad():
            return self.evaluate([vec.detach().tree() for vec in args]).double()

    def vjp(self, args: Sequence[Vec], weights: Tensor) -> list[Vec]:
        self.calls.of(self.name).vjps += 1
        trees = [vec.detach().tree() for vec in args]
        if self.own.vjp is not None:
            with torch.no_grad():
                given = self.own.vjp(*trees, weights)
            return [shaped(part, vec, f"{self.name}.vjp") for part, vec in zip(given if len(args) > 1 else (given,), args)]
        if self.own.jacobian is not None:
            with torch.no_grad():
                given = self.own.jacobian(*trees)
            parts = given if len(args) > 1 else (given,)
            rows_of = [Vec.of(part, f"{self.name}.jacobian") for part in parts]
            return [vec.like(torch.tensordot(weights.to(J.dtype), J, 1) for J in part.leaves) for part, vec in zip(rows_of, args)]
        with torch.enable_grad():
            trees, inputs = _differentiable(args, range(len(args)))
            out = self.evaluate(trees)
            found = torch.autograd.grad(out, inputs, weights.to(out.dtype), allow_unused=True) if out.requires_grad else [None] * len(inputs)
        return _split(found, inputs, args, range(len(args)))


# -- helpers ----------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def randomness(key: tuple[int, int, int] | None, args: Sequence[Any]) -> Iterator[None]:
    """Module randomness (dropout) seeded by the draw: two evaluations on one batch see one mask, the global state is kept."""
    if key is None:
        yield
        return
    devices = sorted({leaf.device.index or 0 for arg in args for leaf in Vec.of(arg).leaves if leaf.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield


def shaped(tree: Tree, like: Vec, name: str) -> Vec:
    """A tree that must have the structure and shapes of a variable."""
    vec = Vec.of(tree, name)
    got, wanted = [tuple(leaf.shape) for leaf in vec.leaves], [tuple(leaf.shape) for leaf in like.leaves]
    if got != wanted:
        raise ProblemError(f"{name}: expected shapes {wanted}, got {got}")
    return like.like(leaf.to(ref.dtype) for leaf, ref in zip(vec.leaves, like.leaves))


def _differentiable(args: Sequence[Vec], wrt: Sequence[int]) -> tuple[list[Tree], list[Tensor]]:
    trees, inputs = [], []
    for i, vec in enumerate(args):
        leaves = [leaf.detach().requires_grad_(i in wrt) for leaf in vec.leaves]
        if i in wrt:
            inputs += leaves
        trees.append(vec.like(leaves).tree())
    return trees, inputs


def _split(found: Sequence[Tensor | None], inputs: Sequence[Tensor], args: Sequence[Vec], wrt: Sequence[int]) -> list[Vec]:
    """Gradients by argument; a leaf the function ignores has gradient zero."""
    full = iter([torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, inputs)])
    return [args[i].like(next(full) for _ in args[i].leaves) for i in wrt]
