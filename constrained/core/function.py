"""A user's own derivatives, from torch or numpy code: products, and matrices dense or sparse."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ProblemError
from .vec import Tree, Vec, map_leaves


@dataclass(frozen=True)
class Function:
    """A function with derivatives of its own, wherever a callable stands. What is missing is autodiff of `value`.

    For a scalar function of (x, y): `gradient(x, y)` -> (g_x, g_y); `hvp(x, y, v)` = g_yy v; `jvp(x, y, v)` = d/dx <g_y, v>,
    shaped like x. Of x alone: `gradient(x)` -> g_x, `hvp(x, v)`. For a constraint of (x, y): `jacobian(x, y)` -> (J_x, J_y)
    with one row a component; `vjp(x, y, w)` -> (J_x' w, J_y' w). For a constraint c of x alone `jacobian(x)`, `vjp(x, w)` and
    `hvp(x, w, v)` = sum_i w_i hess c_i v. Each gets the batch last where there is one, and the variables' structures go in and
    come out.

    Matrices, whole and with columns in the order of `Vec.ravel` (the leaves one after another, each row by row): of functions
    of x alone `hessian(x)`, for a constraint `hessian(x, w)` = sum_i w_i hess c_i, is n x n, dense, scipy.sparse or sparse
    torch; products come from it where there is no `hvp`. `jacobian` may be scipy.sparse or sparse torch too, m x n. Sparse ones
    are never made dense for products. Where f and c give both, linear solvers get the KKT matrix itself.

    Raises ProblemError for a derivative of another shape, when it is used.

    >>> half_square = Function(lambda x, y: 0.5 * ((y - x) ** 2).sum(), gradient=lambda x, y: (x - y, y - x))
    >>> square = Function(lambda x: (x**2).sum(), gradient=lambda x: 2 * x, hessian=lambda x: 2 * np.eye(len(x)))
    >>> square.second_order
    True
    """

    value: Callable[..., Any]
    gradient: Callable[..., Any] | None = None
    hvp: Callable[..., Any] | None = None
    jacobian: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    hessian: Callable[..., Any] | None = None
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
        hessian: Callable[..., Any] | None = None,
    ) -> Function:
        """The same from functions that take and return numpy arrays (JAX, CasADi, ...): nothing is autodiffed.

        Raises ProblemError where no first derivative is given.
        """
        if gradient is None and jacobian is None and vjp is None:
            raise ProblemError(
                "Function.numpy: expected gradient= (or jacobian= or vjp= for a constraint): numpy code is not autodiffed"
            )
        given = [None if f is None else _through_numpy(f) for f in (value, gradient, hvp, jacobian, vjp, jvp, hessian)]
        return Function(*given, torch=False)  # pyright: ignore[reportArgumentType]

    @property
    def second_order(self) -> bool:
        """Second derivatives in one variable exist: given, or by autodiff."""
        return self.torch or self.hvp is not None or self.hessian is not None

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


def _through_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*trees: Tree) -> Tree:
        first = Vec.of(trees[0])

        def back(leaf: Any) -> Any:
            return leaf if is_sparse(leaf) else torch.as_tensor(np.array(leaf), dtype=first.dtype, device=first.device)

        arrays = [
            map_leaves(lambda leaf: leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf, tree) for tree in trees
        ]
        return map_leaves(back, function(*arrays))

    return call


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


def _csr(given: Any) -> Tensor:
    rows = given.tocsr(copy=True)  # the user may write other numbers into the same matrix at the next x
    rows.sum_duplicates()
    parts = (torch.from_numpy(part) for part in (rows.indptr, rows.indices, rows.data))
    return torch.sparse_csr_tensor(*parts, size=rows.shape, check_invariants=False)
