"""First-order optimizers whose state is plain tensors, so that any of them can be checkpointed and resumed.

An optimizer state is {parameter path: {name: tensor}}. A gradient that is None freezes its block: the parameters stay and
the block's state is dropped.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .live import sharded
from .options import Momentum, NonNegative, Options, Positive, Schedule
from .states import solver_state
from .vec import Vec

OptState = dict[str, dict[str, Tensor]]
COUNT = torch.zeros((), dtype=torch.float64, device="cpu")  # of steps, at the start
ONE = torch.ones((), dtype=torch.float64, device="cpu")  # as a tensor: of a number each count would make one
FUSED = ("cpu", "cuda") if hasattr(torch, "_fused_adamw_") and hasattr(torch, "_fused_sgd_") else ()  # not public: may go
UNSCALED: Any = {"maximize": False, "grad_scale": None, "found_inf": None}  # what fused kernels must be told


@runtime_checkable
class Optimizer(Protocol):
    """One step of a first-order method; `lr` is its learning rate, a number or a schedule of the solver's step k."""

    @property
    def lr(self) -> float | Schedule: ...

    def init(self, params: Vec) -> OptState: ...

    def update(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> tuple[Vec, OptState]:
        """New parameters and state; the arguments are not written to."""
        ...


@runtime_checkable
class InPlace(Optimizer, Protocol):
    """An optimizer that can also step without memory for a second copy of the variable and of its state."""

    def update_(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> OptState:
        """The same step, written into `params` and into `state`'s tensors; the new state."""
        ...


def step_(optimizer: Optimizer, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> OptState:
    """A step of any optimizer, written into `params`; in place where it can."""
    if isinstance(optimizer, InPlace):
        return optimizer.update_(params, grads, state, lr)
    new, state = optimizer.update(params, grads, state, lr)
    for leaf, value in zip(params.leaves, new.leaves):
        if leaf is not value:
            leaf.copy_(value)
    return state


def take_(state: OptState, other: OptState) -> OptState:
    """A state equal to `other`, in the memory of `state` where that has the same entries."""
    new = {}
    for path, entries in other.items():
        old = state.get(path, {})
        new[path] = {name: old[name].copy_(t) if name in old else t.clone() for name, t in entries.items()}
    return new


def on_copies(
    optimizer: InPlace, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float
) -> tuple[Vec, OptState]:
    """`update` by `update_`."""
    new = params.like(x if d is None else x.clone() for x, d in zip(params.leaves, grads))
    return new, optimizer.update_(new, grads, take_({}, state), lr)


# -- what one call of a kernel takes ------------------------------------------------------------------------------------------
def _moving(params: Vec, grads: Sequence[Tensor | None]) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Paths, values and gradients of the leaves that have a gradient."""
    rows = [(path, x, d) for path, x, d in zip(params.paths(), params.leaves, grads) if d is not None]
    return [path for path, _, _ in rows], [x for _, x, _ in rows], [d for _, _, d in rows]


def _local(columns: list[list[Tensor]]) -> list[list[Tensor]]:
    """Values, gradients and moments as kernels take them: of sharded ones this process's parts, in the same memory; gradients
    contiguous where the values are.
    """
    xs, ds, *moments = columns
    if sharded(xs):
        ds = [d.redistribute(placements=x.placements) if sharded([d]) else d for x, d in zip(xs, ds)]  # pyright: ignore
        xs, ds, *moments = ([t.to_local() if sharded([t]) else t for t in ts] for ts in (xs, ds, *moments))  # pyright: ignore
    return [xs, [d.contiguous() if x.is_contiguous() else d for x, d in zip(xs, ds)], *moments]


def _groups(columns: list[list[Tensor]]) -> Iterator[tuple[bool, list[int]]]:
    """Places in the columns that one call takes, of one device and dtype, and whether a fused kernel does. On the CPU these go
    through the memory of each tensor from its first entry on and check nothing, so that rows must be alike and contiguous.
    """
    kinds = [[(t.device, t.dtype, t.shape, t.is_contiguous()) for t in column] for column in columns]
    groups: dict[tuple[torch.device, torch.dtype, bool], list[int]] = {}
    for i, (kind, *others) in enumerate(zip(*kinds)):
        device, dtype, _, contiguous = kind
        fused = contiguous and device.type in FUSED and others.count(kind) == len(others)
        groups.setdefault((device, dtype, fused), []).append(i)
    for (_, _, fused), places in groups.items():
        yield fused, places


def _start(x: Tensor) -> dict[str, Tensor]:
    return {"first": torch.zeros_like(x), "second": torch.zeros_like(x), "count": COUNT.clone()}


@dataclass(frozen=True, kw_only=True)
class SGD(Options):
    """m <- momentum m + d;  x <- x - lr (m + decay x).

    >>> x, state = Vec.of(torch.tensor([1.0])), {}
    >>> SGD(lr=0.1).update(x, [torch.tensor([2.0])], state, 0.1)[0].tree()
    tensor([0.8000])
    """

    lr: Positive | Schedule = 0.1
    momentum: Momentum = 0.0
    decay: NonNegative = 0.0

    def init(self, params: Vec) -> OptState:
        return {}

    def update(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> tuple[Vec, OptState]:
        return on_copies(self, params, grads, state, lr)

    def update_(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> OptState:
        paths, xs, ds = _moving(params, grads)
        new = {path: state.get(path) or {"first": torch.zeros_like(x)} for path, x in zip(paths, xs)} if self.momentum else {}
        columns = _local([xs, ds, [new[path]["first"] for path in paths]] if new else [xs, ds])
        for fused, places in _groups(columns):
            step = self._fused if fused else self._foreach
            step(lr, *([column[i] for i in places] for column in columns))
        return new

    def _fused(self, lr: float, xs: list[Tensor], ds: list[Tensor], *first: list[Tensor]) -> None:
        options: Any = {"momentum": self.momentum, "dampening": 0.0, "nesterov": False, "is_first_step": False, **UNSCALED}
        if self.decay:  # torch's own would go into the moment
            torch._foreach_mul_(xs, 1 - lr * self.decay)
        torch._fused_sgd_(xs, ds, *(first or [[]]), lr=lr, weight_decay=0.0, **options)

    def _foreach(self, lr: float, xs: list[Tensor], ds: list[Tensor], *first: list[Tensor]) -> None:
        for ms in first:
            torch._foreach_mul_(ms, self.momentum)
            torch._foreach_add_(ms, ds)
            ds = ms
        torch._foreach_mul_(xs, 1 - lr * self.decay)
        torch._foreach_add_(xs, ds, alpha=-lr)


@dataclass(frozen=True, kw_only=True)
class AdamW(Options):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2).

    m <- b1 m + (1 - b1) d;  v <- b2 v + (1 - b2) d^2;  x <- x - lr (m^ / (sqrt(v^) + eps) + decay x), hats bias-corrected.

    >>> AdamW(lr=0.5).update(Vec.of(torch.tensor([1.0])), [torch.tensor([4.0])], {}, 0.5)[0].tree()
    tensor([0.5000])
    """

    lr: Positive | Schedule = 1e-3
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: Positive = 1e-8
    decay: NonNegative = 0.0

    def init(self, params: Vec) -> OptState:
        return {}

    def update(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> tuple[Vec, OptState]:
        return on_copies(self, params, grads, state, lr)

    def update_(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> OptState:
        paths, xs, ds = _moving(params, grads)
        new = {path: state.get(path) or _start(x) for path, x in zip(paths, xs)}
        counts = [new[path]["count"] for path in paths]
        if counts:
            torch._foreach_add_(counts, ONE, alpha=1.0)
        done = [float(count) for count in counts]  # on the CPU: nothing is synchronised
        columns = _local([xs, ds, *([new[path][name] for path in paths] for name in ("first", "second"))])
        for fused, places in _groups(columns):
            step = self._fused if fused else self._foreach
            step(lr, [done[i] for i in places], *([column[i] for i in places] for column in columns))
        return new

    def _fused(
        self, lr: float, done: list[float], xs: list[Tensor], ds: list[Tensor], firsts: list[Tensor], seconds: list[Tensor]
    ) -> None:
        made = {n: torch.full((), n, dtype=torch.float32, device=xs[0].device) for n in set(done)}
        steps = [made[n] for n in done]
        options: Any = {"beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps, "amsgrad": False, **UNSCALED}
        torch._fused_adamw_(xs, ds, firsts, seconds, [], steps, lr=lr, weight_decay=self.decay, **options)

    def _foreach(
        self, lr: float, done: list[float], xs: list[Tensor], ds: list[Tensor], firsts: list[Tensor], seconds: list[Tensor]
    ) -> None:
        b1, b2 = self.betas
        torch._foreach_lerp_(firsts, ds, 1 - b1)
        torch._foreach_mul_(seconds, b2)
        torch._foreach_addcmul_(seconds, ds, ds, 1 - b2)
        scales = torch._foreach_sqrt(seconds)
        torch._foreach_div_(scales, [math.sqrt(1 - b2**n) for n in done])
        torch._foreach_add_(scales, self.eps)
        torch._foreach_mul_(xs, 1 - lr * self.decay)
        torch._foreach_addcdiv_(xs, firsts, scales, [-lr / (1 - b1**n) for n in done])


@dataclass(frozen=True, kw_only=True)
class ScalarAdam(Options):
    """Adam with one second moment for the whole variable, so that entries keep their relative sizes.

    m <- b1 m + (1 - b1) d;  v <- b2 v + (1 - b2) mean(d^2);  x <- x - lr m^ / (sqrt(v^) + eps), hats bias-corrected. The mean is
    over the entries with a gradient (d != 0), and only these move: an entry that a mini-batch does not touch stays, its
    moment too. Per-coordinate Adam moves every entry at one speed, which destroys the ranking of sample weights.

    >>> ScalarAdam(lr=1.0).update(Vec.of(torch.zeros(3)), [torch.tensor([3.0, 1.0, 0.0])], {}, 1.0)[0].tree()
    tensor([-1.3416, -0.4472,  0.0000])
    """

    lr: Positive | Schedule = 1.0
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: Positive = 1e-12

    def init(self, params: Vec) -> OptState:
        return {}

    def update(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> tuple[Vec, OptState]:
        b1, b2 = self.betas
        paths, pairs = params.paths(), [d for d in grads if d is not None]
        if not pairs:
            return params, {}
        zero = pairs[0].new_zeros((), dtype=torch.float64)
        shared = state.get("*") or {"second": zero, "count": zero}
        touched = torch.stack([(d != 0).sum() for d in pairs]).sum()
        square = torch.stack([d.double().square().sum() for d in pairs]).sum() / touched.clamp(min=1)
        moved = touched > 0  # a batch that touches nothing teaches nothing
        count = shared["count"] + moved
        second = torch.where(moved, b2 * shared["second"] + (1 - b2) * square, shared["second"])
        scale = (second / (1 - b2**count).clamp(min=torch.finfo(torch.float64).tiny)).sqrt() + self.eps
        new: OptState = {"*": {"second": second, "count": count}}
        leaves = []
        for path, x, d in zip(paths, params.leaves, grads):
            if d is None:
                leaves.append(x)
                continue
            here = d != 0
            old = state.get(path) or {"first": torch.zeros_like(x), "count": torch.zeros_like(x)}
            seen = old["count"] + here  # bias correction entry by entry: each has its own number of gradients
            first = torch.where(here, b1 * old["first"] + (1 - b1) * d, old["first"])
            step = first / (1 - b1**seen).clamp(min=torch.finfo(x.dtype).tiny) / scale.to(x.dtype)
            leaves.append(torch.where(here, x - lr * step, x))
            new[path] = {"first": first, "count": seen}
        return params.like(leaves), new


@solver_state("TailAverage")
class TailAverage:
    """The mean of the last part of a sequence of unknown length: of the last half when `n` is a power of two, in between of
    at most the last three quarters. Two running means: the younger takes over when it covers half.
    """

    n: int
    old: Vec
    old_start: int
    young: Vec
    young_start: int

    @classmethod
    def of(cls, x: Vec) -> TailAverage:
        return cls(0, x, 0, x, 0)

    def add(self, x: Vec) -> TailAverage:
        n = self.n + 1
        old = self.old.lerp(x, 1.0 / (n - self.old_start))
        young = self.young.lerp(x, 1.0 / (n - self.young_start))
        if n >= 2 * max(self.young_start, 1):
            return TailAverage(n, young, self.young_start, x, n)
        return TailAverage(n, old, self.old_start, young, self.young_start)

    @property
    def mean(self) -> Vec:
        return self.old
