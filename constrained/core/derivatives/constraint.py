"""A vector-valued function of Vecs, ready to differentiate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ProblemError
from ..live import LiveVec
from ..vec import Tree, Vec
from .counts import Calls
from .function import Function
from .graph import Graph, backwards
from .leaves import differentiable, leaves_of, shaped, split
from .matrix import Matrix, is_sparse, matrix
from .memory import Key, Memory
from .objective import gradients


class Constraint:
    """A deterministic vector-valued function of Vecs: `value` (1-D float64), `vjp(w)` = (J_x' w, J_y' w), `rows(W)` = (W J_x,
    W J_y).
    """

    def __init__(self, name: str, call: Callable[..., Any], calls: Calls):
        self.name = name
        self.own = call if isinstance(call, Function) else Function(call)
        self.calls = calls
        self.m: int | None = None  # its rows, once they are known
        self.memory: Memory | None = None  # of the oracle of a run or a certificate

    def evaluate(self, args: Sequence[Tree]) -> Tensor:
        if self.memory is not None:
            self.memory.evaluating(self.name)
        out = self.own.value(*args)
        if not isinstance(out, Tensor) or out.ndim > 1 or not out.is_floating_point() or out.device.type == "meta":
            got = (
                f"shape {tuple(out.shape)} on {out.device.type}"
                if isinstance(out, Tensor)
                else f"{type(out).__name__} {out!r:.60}"
            )
            raise ProblemError(f"{self.name}: expected a scalar or 1-D floating-point tensor, got {got}")
        self.m = out.numel() if self.m is None else self.m
        if out.numel() != self.m:
            raise ProblemError(f"{self.name}: expected {self.m} rows, as at other calls or as multipliers, got {out.numel()}")
        return out.reshape(-1)

    def value(self, args: Sequence[Vec], *, remember: bool = True) -> Tensor:
        """remember: as of an `Objective`."""
        key = self._key(args) if remember else None
        if self.memory is not None and (known := self.memory.known(key)) is not None:
            return known.value
        autodiff = self.own.vjp is None and self.own.jacobian is None
        if key is not None and autodiff:
            return self._graph(key, args).out.detach().double()
        self.calls.of(self.name).values += 1
        with torch.enable_grad():
            value = self.evaluate(leaves_of(args, autodiff)).detach().double()
        if self.memory is not None and key is not None:
            self.memory.learn(key, value)
        return value

    def _key(self, args: Sequence[Vec]) -> Key | None:
        """Of a point that is remembered."""
        return None if self.memory is None else self.memory.key(self.name, args)

    def _graph(self, key: Key | None, args: Sequence[Vec]) -> Graph:
        """An evaluation with its graph: the last one, where it was here."""
        graph = None if self.memory is None else self.memory.graph(key)
        if graph is None:
            self.calls.of(self.name).values += 1
            with torch.enable_grad():
                trees, leaves = differentiable(args, range(len(args)))
                each = iter(leaves)
                graph = Graph(self.evaluate(trees), [[next(each) for _ in vec.leaves] for vec in args], args)
            if self.memory is not None and key is not None:
                self.memory.learn(key, graph.out.detach().double(), graph)
        return graph

    def vjp(self, args: Sequence[Vec], weights: Tensor) -> list[Vec]:
        self.calls.of(self.name).vjps += 1
        if self.own.vjp is not None:
            trees = [vec.detach().tree() for vec in args]
            with torch.enable_grad():
                given = self.own.vjp(*trees, weights)
            return [shaped(part, vec, f"{self.name}.vjp") for part, vec in zip(given if len(args) > 1 else (given,), args)]
        if self.own.jacobian is not None:
            matrices = self.matrices(args, len(weights))
            return [vec.unravel(J.T @ weights.to(J.entries.dtype)) for vec, J in zip(args, matrices)]
        key = self._key(args)
        if key is not None and self.memory is not None:
            known, w = self.memory.known(key), weights.numpy(force=True).tobytes()
            if known is not None and known.product is not None and known.product[0] == w:
                return known.product[1]
            graph = self._graph(key, args)
            found = graph.pull(range(len(args)), weights.to(graph.out.dtype))
            self.memory.learn(key, graph.out.detach().double()).product = w, found
            return found
        self.calls.of(self.name).values += 1
        found = gradients([lambda trees: (out := self.evaluate(trees)) @ weights.to(out.dtype)], args, range(len(args)))
        return split(found, args, range(len(args)))

    def rows(self, args: Sequence[Vec], W: Tensor) -> list[Tensor]:
        """W J_x, W J_y, dense, for a stack W of weights; by one batched backward, counted as `len(W)` products."""
        if self.own.vjp is not None or self.own.jacobian is not None or any(isinstance(vec, LiveVec) for vec in args):
            each = [self.vjp(args, w) for w in W]
            stacks = [[found[i].ravel() for found in each] for i in range(len(args))]
            return [torch.stack(rows) if rows else vec.ravel().new_zeros(0, vec.size) for rows, vec in zip(stacks, args)]
        self.calls.of(self.name).vjps += len(W)
        graph = self._graph(self._key(args), args)
        out, leaves = graph.out, [leaf for one in graph.inputs for leaf in one]
        with torch.enable_grad():
            if out.requires_grad and len(W):
                found = iter(backwards([out], [W.to(out.dtype)], leaves))
            else:
                found = iter([leaf.new_zeros(len(W), *leaf.shape) for leaf in leaves])
        # Not reshape(len(W), -1), which does not know the width of what has no entries.
        return [torch.cat([next(found).detach().reshape(len(W), leaf.numel()) for leaf in one], 1) for one in graph.inputs]

    def matrices(self, args: Sequence[Vec], m: int) -> list[Matrix]:
        """The user's Jacobians J_x, J_y with m rows, dense or sparse as they come, columns in the order of `Vec.ravel`.

        Raises ProblemError where one has another shape.
        """
        assert self.own.jacobian is not None
        with torch.enable_grad():
            given = self.own.jacobian(*[vec.detach().tree() for vec in args])
        return [self._matrix(part, vec, m) for part, vec in zip(given if len(args) > 1 else (given,), args)]

    def _matrix(self, given: Tree, at: Vec, m: int) -> Matrix:
        name = f"{self.name}.jacobian"
        if is_sparse(given):
            return matrix(given, (m, at.size), at.ravel(), name)
        stacks = shaped(given, at.map(lambda leaf: leaf.expand(m, *leaf.shape)), name)
        return Matrix(torch.cat([rows.reshape(m, leaf.numel()) for rows, leaf in zip(stacks.leaves, at.leaves)], 1))
