"""f and the rows (c, h) of many points at once, and their derivatives: a leading axis of lanes, one call of each function.

A function is written for one point; `torch.func.vmap` makes the call for all of them. No lane's value depends on another lane's
point, so that one backward of a sum serves every lane: of f, grad f lane by lane.

Rows of J and H come from one plain backward too: every point stands there several times, and the i-th copy is asked for the
i-th row. At 64 lanes of 5 unknowns that is half the time of a batched backward, whose overhead is more than the arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..deadline import look
from .graph import BATCHED

Whole = Callable[..., Tensor]  # of one lane: x flat and its parameters -> the rows, then f
ROOM = 10_000_000  # entries of copied points, up to which there are copies


def values(whole: Whole, X: Tensor, parameters: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """f (L) and the rows (L, m) at X, one row a lane; float64."""
    look()
    found = torch.func.vmap(whole)(X.detach(), *parameters).detach().double()
    return found[:, -1], found[:, :-1]


class LaneTape:
    """At X: `value` (L), `c` (L, m), `gradient` (L, n), `jacobian` (L, m, n), and `hessian`; float64.

    whole: the function of one lane, with m rows; parameters: of each lane, tensors with the leading axis.
    """

    def __init__(self, whole: Whole, X: Tensor, parameters: Sequence[Tensor], m: int):
        look()
        (self.lanes, self.n), self.m = X.shape, m
        copies = max(m + 1, self.n)
        self.copies = copies if max(m, self.n) <= BATCHED and copies * X.numel() <= ROOM else 1
        with torch.enable_grad():
            self.X = X.detach().repeat(self.copies, 1).requires_grad_()
            each = (p if self.copies == 1 else p.repeat(self.copies, *[1] * (p.ndim - 1)) for p in parameters)
            self._outs = torch.func.vmap(whole)(self.X, *each).view(self.copies, self.lanes, m + 1)
        found = self._outs[0].detach().double()
        self.value, self.c = found[:, m], found[:, :m]

    @functools.cached_property
    def gradient(self) -> Tensor:
        return self._first[:, self.m]

    @functools.cached_property
    def jacobian(self) -> Tensor:
        return self._first[:, : self.m]

    @functools.cached_property
    def _first(self) -> Tensor:
        """The rows of J, then grad f: (L, m + 1, n)."""
        with torch.enable_grad():
            return self._rows(self._outs)

    def hessian(self, lam: Tensor, sigma: Tensor) -> Tensor:
        """sigma hess f + sum lam_i hess c_i, (L, n, n), symmetric."""
        with torch.enable_grad():
            total = (torch.cat([lam, sigma[:, None]], 1).to(self._outs.dtype) * self._outs).sum()
            slope = None
            if total.requires_grad:
                slope = torch.autograd.grad(total, self.X, create_graph=True, allow_unused=True)[0]
            H = self._rows((torch.zeros_like(self.X) if slope is None else slope).view(self.copies, self.lanes, self.n))
        return 0.5 * (H + H.mT)

    def _rows(self, outs: Tensor) -> Tensor:
        """d outs / d x of the k outputs of each lane, (L, k, n)."""
        k = outs.shape[2]
        if not outs.requires_grad or not k:
            return self.X.new_zeros(self.lanes, k, self.n, dtype=torch.float64)
        if self.copies == 1:
            weights = torch.eye(k, dtype=outs.dtype, device=outs.device)[:, None, None].expand(k, 1, self.lanes, k)
            rows = torch.func.vmap(lambda w: self._backward(outs, w))(weights)
        else:
            rows = self._backward(outs[:k].diagonal(dim1=0, dim2=2).sum()).view(self.copies, self.lanes, self.n)[:k]
        return rows.movedim(0, 1).double()

    def _backward(self, out: Tensor, weights: Tensor | None = None) -> Tensor:
        found = torch.autograd.grad(out, self.X, weights, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(self.X) if found is None else found
