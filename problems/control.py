"""Optimal control of a mass or a pendulum on [0, 1], by the trapezoidal rule on N intervals of length h = 1/N.

    min   h/2 sum'_k u_k^2                                               sum': the first and the last term half
    s.t.  p_k+1 - p_k = h/2 (v_k + v_k+1)
          v_k+1 - v_k = h/2 (a_k + a_k+1),  a_k = u_k - pull sin p_k     k = 0, ..., N - 1
          p_0 = p_N = 0,  v_0 = 1,  v_N = -1,  p_k <= ceiling
    start p = 0, v_k = 1 - 2 k h, u = 0

With pull = 0 the problem of A. E. Bryson, W. F. Denham and S. E. Dreyfus, Optimal programming problems with inequality
constraints, AIAA Journal 1, 1963: for a ceiling <= 1/6 the integral of u^2 / 2 is 4 / (9 ceiling) in the limit of large N.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained.core.derivatives.function import Function
from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem
from constrained.sets import Box

from .arguments import number, placed, whole
from .instance import ConstrainedInstance


def optimal_control(
    *,
    N: int = 100,
    pull: float = 0.0,
    ceiling: float = 1 / 9,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> ConstrainedInstance:
    """Optimal control with a bound on the state and sparse derivatives: a quadratic program for pull = 0, else nonlinear rows.

    N: intervals; x holds p, v, u at N + 1 times each, one after the other; 2 N + 4 equations. pull: of the pendulum. ceiling: of
    p. optimum: not known; 4 / (9 ceiling) for pull = 0 in the limit. seed: nothing is drawn.

    >>> optimal_control(N=10).problem.x.shape
    torch.Size([33])
    """
    from scipy import sparse

    whole("optimal_control(N=...)", N, 2)
    number("optimal_control(pull=...)", pull, 0)
    number("optimal_control(ceiling=...)", ceiling, 0)
    whole("optimal_control(seed=...)", seed, 0)
    device = placed("optimal_control", dtype, device)
    h, M = 1 / N, N + 1
    weights = np.full(M, h)
    weights[[0, N]] = h / 2
    ends = torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=dtype, device=device)

    # Rows: N of p, N of v, then p_0, p_N, v_0, v_N.
    step = sparse.diags_array([-1.0, 1.0], offsets=[0, 1], shape=(N, M))  # pyright: ignore[reportArgumentType]
    mean = sparse.diags_array([h / 2, h / 2], offsets=[0, 1], shape=(N, M))  # pyright: ignore[reportArgumentType]
    first_and_last = sparse.csr_array((np.ones(2), ([0, 1], [0, N])), shape=(2, M))
    linear = sparse.block_array(
        [
            [step, -mean, None],
            [None, step, -mean],
            [first_and_last, None, sparse.csr_array((2, M))],
            [None, first_and_last, None],
        ],
        format="csr",
    )

    def objective(x: Tensor) -> Tensor:
        return 0.5 * x.new_tensor(weights) @ x[2 * M :] ** 2

    def equality(x: Tensor) -> Tensor:
        p, v, u = x.reshape(3, M)
        a = u - pull * torch.sin(p)
        rows = [p[1:] - p[:-1] - h / 2 * (v[1:] + v[:-1]), v[1:] - v[:-1] - h / 2 * (a[1:] + a[:-1])]
        return torch.cat([*rows, torch.stack([p[0], p[-1], v[0], v[-1]]) - ends])

    def jacobian(x: Tensor) -> Any:
        p = array(x)[:M]
        bent = sparse.csr_array(mean * (pull * np.cos(p)))
        return linear + sparse.vstack(
            [sparse.csr_array((N, 3 * M)), wide(bent, 3 * M), sparse.csr_array((4, 3 * M))], format="csr"
        )

    def bend(x: Tensor, w: Tensor) -> Any:
        """sum_i w_i hess c_i: of h/2 pull (sin p_k + sin p_k+1) in the rows of v."""
        p, both = array(x)[:M], mean.T @ array(w)[N : 2 * N]
        return sparse.diags_array(np.append(-pull * both * np.sin(p), np.zeros(2 * M)))

    H = sparse.diags_array(np.append(np.zeros(2 * M), weights))
    x = torch.cat([torch.zeros(M), 1 - 2 * h * torch.arange(M), torch.zeros(M)]).to(device, dtype)
    high = torch.full((3, M), torch.inf, dtype=torch.float64)
    high[0] = ceiling
    return ConstrainedInstance(
        name="optimal-control",
        problem=ConstrainedProblem(
            objective=Function(objective, hessian=lambda x: H),
            equality=Function(equality, jacobian=jacobian, hessian=bend),
            x=x,
            X=Box(high=high.reshape(-1)),
        ),
        source="Bryson, Denham and Dreyfus (1963) for pull = 0; the pendulum is our own",
        start=Point(x, multipliers=Multipliers(equality=torch.zeros(2 * N + 4, dtype=dtype, device=device))),
    )


def array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def wide(matrix: Any, columns: int) -> Any:
    """The matrix with columns of zeros after its own."""
    from scipy import sparse

    return sparse.hstack([matrix, sparse.csr_array((matrix.shape[0], columns - matrix.shape[1]))], format="csr")
