"""A user's own derivatives, from torch or numpy code: products, and matrices dense or sparse."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ProblemError
from ..vec import Tree, Vec, map_leaves
from .matrix import is_sparse


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
    differences: bool = field(default=False, repr=False)  # first derivatives are made of values: no look can compare the two

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
    @functools.wraps(function)  # whose arguments are looked at
    def call(*trees: Tree) -> Tree:
        first = Vec.of(trees[0])

        def back(leaf: Any) -> Any:
            return leaf if is_sparse(leaf) else torch.as_tensor(np.array(leaf), dtype=first.dtype, device=first.device)

        arrays = [
            map_leaves(lambda leaf: leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf, tree) for tree in trees
        ]
        return map_leaves(back, function(*arrays))

    return call
