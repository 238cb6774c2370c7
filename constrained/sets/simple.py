"""Everywhere, Box, Ball, Simplex, Affine, Halfspace: sets whose projection has a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from ..core.errors import ProblemError
from ..core.vec import Tree, Vec
from .base import Constant, ConvexSet, check_entries, check_nonempty, float64_tensor, leads_to, normal, one_number


@final
class Everywhere(ConvexSet):
    """The whole space: P(v) = v, any variable.

    >>> Everywhere().project(Vec.of(torch.tensor([1.0, -2.0]))).tree()
    tensor([ 1., -2.])
    """

    whole = entrywise = True

    def project(self, v: Vec) -> Vec:
        return v

    def __repr__(self) -> str:
        return "Everywhere()"


@final
class Box(ConvexSet):
    """{v: low <= v <= high}, entry by entry: P(v) = min(max(v, low), high).

    `low`, `high`: a number for all entries, a tensor or array that broadcasts to the variable's shape, or a tree of these
    like the variable; a value above several leaves holds for all of them. +-inf leaves a side free. Raises ProblemError for
    NaN and for low > high; `check` for bounds that do not broadcast to their leaf, and for leaves without bounds.

    >>> Box(0, 1).project(Vec.of(torch.tensor([-1.0, 0.5, 3.0]))).tree()
    tensor([0.0000, 0.5000, 1.0000])
    >>> Box(low={"w": 0, "b": [-1.0, -2.0]}).project(Vec.of({"w": torch.tensor([-3.0]), "b": torch.tensor([-3.0, -3.0])})).tree()
    {'w': tensor([0.]), 'b': tensor([-1., -2.])}
    """

    entrywise = True

    def __init__(self, low: Tree = -math.inf, high: Tree = math.inf):
        super().__init__()
        self._low, self._high = Constant(low, "Box: low"), Constant(high, "Box: high")
        for p, lo in self._low.leaves.items():
            for q, hi in self._high.leaves.items():
                if (p == q and lo.shape == hi.shape) or (leads_to(p, q) and lo.ndim == 0) or (leads_to(q, p) and hi.ndim == 0):
                    check_nonempty(lo, hi, "Box")

    def project(self, v: Vec) -> Vec:
        return v.like(leaf if lo is hi is None else leaf.clamp(lo, hi) for leaf, (lo, hi) in zip(v.leaves, self._on(v)))

    def _fit(self, v: Vec, name: str) -> list[tuple[Any, Any]]:
        pairs = []
        for path, leaf, lo, hi in zip(v.paths(), v.leaves, self._low.on(v, name), self._high.on(v, name)):
            lo, hi = lo.to(leaf), hi.to(leaf)
            check_nonempty(lo, hi, f"{name}{path}: Box in {leaf.dtype}")
            number = lo.ndim == hi.ndim == 0  # numbers clamp faster than tensors
            free = [bool((side.abs() == math.inf).all()) for side in (lo, hi)]
            pairs.append(tuple(None if f else side.item() if number else side for f, side in zip(free, (lo, hi))))
        return pairs

    def __repr__(self) -> str:
        sides = [("low", self._low, -math.inf), ("high", self._high, math.inf)]
        return f"Box({', '.join(f'{side}={bound!r}' for side, bound, free in sides if bound.number != free)})"


@final
class Ball(ConvexSet):
    """{v: |v - center| <= radius}, the 2-norm over all leaves: P(v) = center + min(1, radius / |v - center|) (v - center).

    `center`: zero by default; else a number, array or tree like the variable, as in Box. Raises ProblemError where `radius`
    is not a finite number >= 0 or `center` is not finite.

    >>> Ball(1.0).project(Vec.of({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)})).tree()
    {'a': tensor([0.6000]), 'b': tensor(0.8000)}
    """

    def __init__(self, radius: float, center: Tree = None):
        super().__init__()
        self.radius = one_number(radius, "Ball: radius")
        if self.radius < 0:
            raise ProblemError(f"Ball: radius: expected a number >= 0, got {self.radius!r}: the set is empty")
        self._center = None if center is None else Constant(center, "Ball: center", finite=True)

    def project(self, v: Vec) -> Vec:
        center = self._on(v)
        apart = v if not center else v - v.like(center)
        size = apart.norm()
        outside = size > self.radius  # False for NaN: v comes back as it is
        shrink = torch.where(outside, self.radius / size, 1.0)
        near = [(d.double() * shrink).to(d.dtype) for d in apart.leaves]
        moved = [c + d for c, d in zip(center, near)] if center else near
        return v.like(torch.where(outside, new, leaf) for new, leaf in zip(moved, v.leaves))

    def _fit(self, v: Vec, name: str) -> list[Tensor]:
        check_entries(v, name, self, v.size)
        center = self._center.on(v, name) if self._center is not None else []
        return [c.to(leaf).expand(leaf.shape) for c, leaf in zip(center, v.leaves)]

    def __repr__(self) -> str:
        return f"Ball({self.radius!r})" if self._center is None else f"Ball({self.radius!r}, center={self._center!r})"


@final
class Simplex(ConvexSet):
    """{w >= 0, sum(w) = total} along the last axis of a variable with one leaf; leading axes are a batch of simplices.

    P(w) = max(w - theta, 0) with theta such that the entries sum to `total`, found by sorting (Held, Wolfe and Crowder 1974).
    Raises ProblemError where `total` is not a finite number > 0; `check` for a 0-dim leaf and for several leaves, where
    `Product({"w": Simplex(), ...})` says which one is meant.

    >>> Simplex().project(Vec.of(torch.tensor([[2.0, 0.0, 0.0], [0.5, 0.5, -1.0]]))).tree()
    tensor([[1.0000, 0.0000, 0.0000],
            [0.5000, 0.5000, 0.0000]])
    """

    def __init__(self, total: float = 1.0):
        super().__init__()
        self.total = one_number(total, "Simplex: total")
        if self.total <= 0:
            raise ProblemError(f"Simplex: total: expected a number > 0, got {self.total!r}")

    def project(self, v: Vec) -> Vec:
        self._on(v)
        # A shift along (1, ..., 1) changes nothing, and what lies `total` below the largest entry is never kept: rounding is
        # relative to `total`, however large w is.
        w = v.leaves[0].double()
        w = (w - w.amax(-1, keepdim=True)).clamp(min=-self.total)
        falling = w.sort(-1, descending=True).values
        theta = (falling.cumsum(-1) - self.total) / torch.arange(1, w.shape[-1] + 1, device=w.device)
        kept = (falling > theta).sum(-1, keepdim=True).clamp(min=1)  # 0 only where an entry is NaN
        theta = theta.gather(-1, kept - 1)
        # One Newton step on sum(max(w - theta, 0)) = total takes out the rounding of the running sum.
        w = w - (theta + ((w - theta).clamp(min=0).sum(-1, keepdim=True) - self.total) / kept)
        return v.like([w.clamp(min=0).to(v.dtype)])

    def _fit(self, v: Vec, name: str) -> tuple[()]:
        if len(v.leaves) != 1:
            hint = 'say which one with Product({"w": Simplex(), ...})'
            raise ProblemError(f"{name}: {self!r} expects one tensor, got {len(v.leaves)} ({', '.join(v.paths())}): {hint}")
        if v.leaves[0].ndim == 0 or v.leaves[0].shape[-1] == 0:
            raise ProblemError(f"{name}: {self!r} expects a last axis with entries, got shape {tuple(v.leaves[0].shape)}")
        return ()

    def __repr__(self) -> str:
        return f"Simplex({self.total!r})"


@final
class Affine(ConvexSet):
    """{v: A ravel(v) = b}, over all leaves: P(v) = v - A^+ (A v - b).

    `A`: a matrix with one column an entry of the variable, in the order of `Vec.ravel`; `b`: one number a row. Redundant rows
    are allowed. Factored once, when the set is made: A = U S Q' gives the orthonormal rows Q' and P(v) = v - Q (Q'v - c).
    Raises ProblemError where A is not a finite matrix, b does not fit, or no v solves A v = b; `check` where the variable
    has another number of entries.

    >>> Affine([[1.0, 1.0]], [2.0]).project(Vec.of(torch.tensor([2.0, 1.0]))).tree()
    tensor([1.5000, 0.5000])
    """

    def __init__(self, A: Any, b: Any):
        super().__init__()
        matrix, right = float64_tensor(A, "Affine: A"), float64_tensor(b, "Affine: b")
        if matrix.ndim != 2 or right.ndim > 1 or right.numel() != len(matrix):
            shapes = f"shapes {tuple(matrix.shape)} and {tuple(right.shape)}"
            raise ProblemError(
                f"Affine: A, b: expected a matrix (rows, entries of the variable) and one number a row, got {shapes}"
            )
        m, n = self.rows, self.size = matrix.shape
        if not n:
            raise ProblemError("Affine: A: expected a column for each entry of the variable, got none")
        single = any(str(getattr(x, "dtype", "")).endswith("float32") for x in (A, b))  # then known to float32 only
        eps = max(m, n) * torch.finfo(torch.float32 if single else torch.float64).eps
        size = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)  # rows of one length: the rank ignores their scaling
        size = torch.where(size > 0, size, 1.0)
        matrix, right = matrix / size, right.to(matrix.device).reshape(m) / size[:, 0]
        U, S, Qt = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((S / math.sqrt(max(m, 1)) > eps).sum())
        U, S, Qt = U[:, :rank], S[:rank], Qt[:rank]
        c = (U.T @ right) / S
        gap = torch.linalg.vector_norm(matrix @ (Qt.T @ c) - right)
        if gap > 100 * eps * (torch.linalg.vector_norm(right) + torch.linalg.vector_norm(c)):
            raise ProblemError(f"Affine: no v solves A v = b ({m} rows of rank {rank} miss b by {gap:.3g}): the set is empty")
        self._factor = (Qt.contiguous(), c)

    def project(self, v: Vec) -> Vec:
        Qt, c = self._on(v)
        flat = v.ravel().double()
        for _ in range(2):  # the second pass takes out rounding relative to |v|, which may be far larger than |P(v)|
            flat = flat - Qt.T @ (Qt @ flat - c)
        return v.unravel(flat)

    def _fit(self, v: Vec, name: str) -> tuple[Tensor, ...]:
        check_entries(v, name, self, self.size)
        return tuple(part.to(v.device) for part in self._factor)

    def __repr__(self) -> str:
        return f"Affine(A=<{self.rows} x {self.size}>, b=<{self.rows}>)"


@final
class Halfspace(ConvexSet):
    """{v: a'ravel(v) <= b}, over all leaves: P(v) = v - max(a'v - b, 0) a / |a|^2.

    `a`: one number an entry of the variable, in the order of `Vec.ravel`, or a dict like the variable; `b`: a number. a = 0
    with b >= 0 is the whole space. Raises ProblemError where a or b is not finite, and for a = 0 with b < 0; `check` where a
    does not fit the variable.

    >>> Halfspace([1.0, 1.0], 1.0).project(Vec.of(torch.tensor([2.0, 1.0]))).tree()
    tensor([1., 0.])
    """

    def __init__(self, a: Tree, b: float):
        super().__init__()
        self._a, self._by_key = normal(a, "Halfspace: a"), isinstance(a, Mapping)
        self.b = one_number(b, "Halfspace: b")
        if self.b < 0 and not any(bool(part.any()) for part in self._a.leaves.values()):
            raise ProblemError(f"Halfspace: a = 0 and b = {self.b!r} < 0: the set is empty")

    def project(self, v: Vec) -> Vec:
        a, b, square = self._on(v)
        flat = v.ravel().double()
        for _ in range(2):  # as in Affine
            flat = flat - ((a @ flat - b).clamp(min=0) / square) * a
        return v.unravel(flat)

    def _fit(self, v: Vec, name: str) -> tuple[Tensor, Tensor, Tensor]:
        parts = self._a.on(v, name) if self._by_key else list(self._a.leaves.values())
        a = torch.cat([part.expand(leaf.shape).reshape(-1) for part, leaf in zip(parts, v.leaves if self._by_key else parts)])
        check_entries(v, name, self, len(a))
        size = torch.where(a.any(), a.abs().max(), 1.0)  # so that |a|^2 neither overflows nor vanishes
        return (a / size).to(v.device), (self.b / size).to(v.device), (a / size).square().sum().clamp(min=1).to(v.device)

    def __repr__(self) -> str:
        return f"Halfspace(a={self._a!r}, b={self.b!r})"
