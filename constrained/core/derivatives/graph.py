"""An evaluation with its graph of autograd, kept, and backwards of such."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..vec import Vec


@dataclass(frozen=True)
class Graph:
    """An evaluation with the graph of autograd. inputs: of each argument its leaves, or all of its entries in one tensor."""

    out: Tensor
    inputs: Sequence[Sequence[Tensor]]
    args: Sequence[Vec]

    def pull(self, wrt: Sequence[int], weights: Tensor | None = None) -> list[Vec]:
        """(d out / d argument)' weights for the arguments `wrt`."""
        inputs = [leaf for i in wrt for leaf in self.inputs[i]]
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if self.out.requires_grad and self.out.numel():
            found = torch.autograd.grad(self.out, inputs, weights, retain_graph=True, allow_unused=True)
        each = iter(torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(inputs, found))
        return [self._shaped(self.args[i], [next(each) for _ in self.inputs[i]]) for i in wrt]

    @staticmethod
    def _shaped(at: Vec, found: list[Tensor]) -> Vec:
        same = len(found) == len(at.leaves) and found[0].shape == at.leaves[0].shape
        return at.like(found) if same else at.unravel(found[0])


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


def reaches(out: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Whether the graph of a scalar has any of these leaves."""
    return out.requires_grad and any(one is not None for one in torch.autograd.grad(out, leaves, allow_unused=True))
