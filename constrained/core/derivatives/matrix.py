"""Matrix: a derivative that the user gives as a dense or sparse matrix."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ProblemError


# -- derivatives given as matrices ------------------------------------------------------------------------------------------
class Matrix:
    """A dense or sparse CSR tensor A as an operator: `A @ v` = A v, for a stack of vectors row by row; `A.T`.

    >>> A = Matrix(torch.tensor([[1.0, 2.0]]))
    >>> A @ torch.eye(2), A.T @ torch.ones(1)
    (tensor([[1.],
            [2.]]), tensor([1., 2.]))
    """

    def __init__(self, entries: Tensor):
        self.entries = entries

    @property
    def sparse(self) -> bool:
        return self.entries.layout is not torch.strided

    @property
    def stored(self) -> int:
        """Entries in memory."""
        return self.entries.values().numel() if self.sparse else self.entries.numel()

    @functools.cached_property
    def T(self) -> Matrix:
        """Sparse: by rows again, since torch has no products with one stored by columns on the CPU, and is slow to convert it
        (50,000 entries: 5 ms, by scipy 0.3).
        """
        n, m = self.entries.shape
        return matrix(self.scipy().T, (m, n), self.entries, "A.T") if self.sparse else Matrix(self.entries.mT)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.entries @ v if v.ndim == 1 else (self.entries @ v.mT).mT

    def row_norms(self) -> Tensor:
        """|a_i| of each row, float64."""
        if not self.sparse:
            return self.entries.double().norm(dim=1)
        A = self.scipy()
        return torch.from_numpy(np.sqrt(np.asarray(A.multiply(A).sum(1)).ravel())).to(self.entries.device)

    def dense(self) -> Tensor:
        return self.entries.to_dense()

    def scipy(self) -> Any:
        """On the CPU, as scipy.sparse; float64."""
        from scipy.sparse import csr_array

        A = self.entries.cpu().double()
        if not self.sparse:
            return csr_array(A.numpy())
        parts = A.values(), A.col_indices(), A.crow_indices()
        return csr_array(tuple(part.numpy() for part in parts), shape=tuple(A.shape))


def is_sparse(given: Any) -> bool:
    """A scipy.sparse matrix or a sparse torch tensor."""
    return given.layout is not torch.strided if isinstance(given, Tensor) else hasattr(given, "tocsr")


def matrix(given: Any, shape: tuple[int, int], like: Tensor, name: str) -> Matrix:
    """What a user gave for a matrix, dense or sparse, in the dtype and on the device of `like`.

    Raises ProblemError where it is none or has another shape.
    """
    known = isinstance(given, (Tensor, np.ndarray)) or is_sparse(given)
    got = tuple(given.shape) if known else type(given).__name__
    if got != shape:
        raise ProblemError(f"{name}: expected a matrix of shape {shape}, dense or sparse, got {got}")
    if is_sparse(given):
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch says once that CSR tensors are in beta
            given = given.to_sparse_csr() if isinstance(given, Tensor) else _csr(given)
    return Matrix(torch.as_tensor(given).detach().to(dtype=like.dtype, device=like.device))


def stacked(blocks: Sequence[Matrix], like: Tensor) -> Matrix:
    """The rows of several matrices one below the other; sparse where one is. Without any: no row as long as `like`."""
    if not blocks:
        return Matrix(like.new_zeros(0, len(like)))
    if len(blocks) == 1:
        return blocks[0]
    if any(block.sparse for block in blocks):
        from scipy.sparse import vstack

        rows = sum(block.entries.shape[0] for block in blocks)
        return matrix(vstack([block.scipy() for block in blocks], format="csr"), (rows, len(like)), like, "J")
    return Matrix(torch.cat([block.entries for block in blocks]))


def _csr(given: Any) -> Tensor:
    rows = given.tocsr(copy=True)  # the user may write other numbers into the same matrix at the next x
    rows.sum_duplicates()
    parts = (torch.from_numpy(part) for part in (rows.indptr, rows.indices, rows.data))
    return torch.sparse_csr_tensor(*parts, size=rows.shape, check_invariants=False)
