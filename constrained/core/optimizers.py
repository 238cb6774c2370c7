"""First-order optimizers whose state is plain tensors, so that any of them can be checkpointed and resumed.

An optimizer state is {parameter path: {name: tensor}}. A gradient that is None freezes its block: the parameters stay and
the block's state is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .options import Momentum, NonNegative, Options, Positive, Schedule
from .states import solver_state
from .vec import Vec, copy

OptState = dict[str, dict[str, Tensor]]
COUNT = torch.zeros((), dtype=torch.float64, device="cpu")  # of steps, at the start


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
    return new, optimizer.update_(new, grads, copy(state), lr)


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
        new = {}
        for path, x, d in zip(params.paths(), params.leaves, grads):
            if d is None:
                continue
            if self.momentum:
                d = state[path]["first"].mul_(self.momentum).add_(d) if path in state else d.clone()
                new[path] = {"first": d}
            x.mul_(1 - lr * self.decay).add_(d, alpha=-lr)
        return new


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
        b1, b2 = self.betas
        new = {}
        for path, x, d in zip(params.paths(), params.leaves, grads):
            if d is None:
                continue
            old = state.get(path) or {"first": torch.zeros_like(x), "second": torch.zeros_like(x), "count": COUNT.clone()}
            first, second, count = (
                old["first"].lerp_(d, 1 - b1),
                old["second"].mul_(b2).addcmul_(d, d, value=1 - b2),
                old["count"] + 1,
            )
            done = float(count)  # on the CPU: nothing is synchronised
            scale = second.sqrt().div_(math.sqrt(1 - b2**done)).add_(self.eps)
            x.mul_(1 - lr * self.decay).addcdiv_(first, scale, value=-lr / (1 - b1**done))
            new[path] = {"first": first, "second": second, "count": count}
        return new


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
