"""The KKT matrix K = [[H + shift I, J'], [J, -gamma I]], H = hess_xx L, as an operator and, where asked, a matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.derivatives.tape import Lagrangian
from ..core.vec import Vec
from ..linear import System

DENSE = 300  # unknowns n + m up to which H and J are formed, with the eigenvalues of the reduced Hessian and the rank of J
FULL = 0.1  # of K stored: from there on L D L' is faster than L U (4 times at 1,000 and 2,000 unknowns), and knows the inertia


def kkt_system(at: Lagrangian, rows: Tensor, *, shift: float = 0.0, gamma: float = 0.0, dense: bool = False) -> System:
    """K = [[H + shift I, J'], [J, -gamma I]] as an operator on flat vectors (x part first), J with its rows scaled by `rows`.

    `dense`: as a matrix too. Where the user gives H and J as matrices, K comes as one in any case: sparse where a part of it
    is, dense where more than a tenth of it is stored.
    """
    n, m = len(at.gradient), at.tape.m

    def product(v: Vec) -> Vec:
        (w,) = v.leaves
        top, bottom = at.product(w[:n], rows * w[n:])
        return v.like([torch.cat([top + shift * w[:n], rows * bottom - gamma * w[n:]])])

    def products(vs: Vec) -> Vec:
        (W,) = vs.leaves
        top, bottom = at.products(W[:, :n], rows * W[:, n:])
        return vs.like([torch.cat([top + shift * W[:, :n], rows * bottom - gamma * W[:, n:]], 1)])

    def matrix() -> Tensor:
        H, J = at.hessian, rows[:, None] * at.tape.jacobian
        K = H.new_zeros(n + m, n + m)
        K[:n, :n] = H + shift * torch.eye(n, dtype=H.dtype, device=H.device)
        K[:n, n:], K[n:, :n] = J.T, J
        K[n:, n:] = -gamma * torch.eye(m, dtype=H.dtype, device=H.device)
        return K

    def sparse() -> Any:
        from scipy.sparse import block_array, identity

        H = sum((A.scipy() for A in at.summands.values()), shift * identity(n))
        J = at.tape.J.scipy().multiply(rows.double().cpu().numpy()[:, None])
        return block_array([[H, J.T], [J, -gamma * identity(m)]], format="csc")

    def below() -> Tensor:
        J = rows[:, None] * at.tape.jacobian
        return torch.cat([J, -gamma * torch.eye(m, dtype=J.dtype, device=J.device)], 1)

    _, *equalities = at.tape.parts
    explicit = at.explicit and all(c.own.jacobian is not None for c in equalities)
    given = [*at.summands.values(), at.tape.J] if explicit else []
    thin = any(A.sparse for A in given)
    full = bool(given) and sum(A.stored for A in at.summands.values()) + 2 * at.tape.J.stored > FULL * (n + m) ** 2
    like = Vec.of(torch.cat([at.gradient, at.tape.c]))
    return System(
        product,
        n + m,
        products=products,
        matrix=matrix if dense or full else None,
        sparse=sparse if thin else None,
        split=(n, m),
        below=below,
        like=like,
        convex=True,
    )
