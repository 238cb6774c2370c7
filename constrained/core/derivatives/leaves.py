"""Variables as trees whose leaves require gradients, and gradients by variable again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import live
from ..errors import ProblemError
from ..vec import Tree, Vec


def shaped(tree: Tree, like: Vec, name: str) -> Vec:
    """A tree that must have the structure and shapes of a variable."""
    vec = Vec.of(tree, name)
    leaves = vec.leaves
    if vec.spec != like.spec:  # a dict may come back in another order (JAX sorts the keys)
        by_path = dict(zip(vec.paths(), vec.leaves))
        if set(by_path) != set(like.paths()):
            raise ProblemError(f"{name}: expected the entries {like.paths()}, got {vec.paths()}")
        leaves = [by_path[path] for path in like.paths()]
    got, wanted = [tuple(leaf.shape) for leaf in leaves], [tuple(leaf.shape) for leaf in like.leaves]
    if got != wanted:
        raise ProblemError(f"{name}: expected shapes {wanted}, got {got}")
    return like.like(leaf.detach().to(ref.dtype) for leaf, ref in zip(leaves, like.leaves))


def differentiable(args: Sequence[Vec], wrt: Sequence[int]) -> tuple[list[Tree], list[Tensor]]:
    """The arguments as trees whose leaves require gradients, and the leaves of the arguments `wrt`.

    All leaves do, in every call, so that a function that asks a leaf, or differentiates inside, means the same each time.
    """
    no_inference_mode()
    leaves = [[leaf.detach().requires_grad_() for leaf in vec.leaves] for vec in args]
    return [vec.like(own).tree() for vec, own in zip(args, leaves)], [leaf for i in wrt for leaf in leaves[i]]


def leaves_of(args: Sequence[Vec], differentiated: bool) -> list[Tree]:
    """Trees to evaluate a function at; plain tensors where it brings derivatives of its own, live modules themselves."""
    if differentiated and not any(isinstance(vec, live.LiveVec) for vec in args):
        return differentiable(args, ())[0]
    return [vec.detach().tree() for vec in args]


def no_inference_mode() -> None:
    """Raise ProblemError where torch.inference_mode() is on, under which every derivative reads as zero."""
    if torch.is_inference_mode_enabled():
        raise ProblemError("torch.inference_mode() is on: nothing can be differentiated; torch.no_grad() is fine")


def split(found: Sequence[Tensor | None], args: Sequence[Vec], wrt: Sequence[int]) -> list[Vec]:
    """Gradients by argument; a leaf the function ignores has gradient zero."""
    full = iter(found)
    return [args[i].like(torch.zeros_like(at) if (g := next(full)) is None else g for at in args[i].leaves) for i in wrt]
