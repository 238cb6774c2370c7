"""The path of a point past discs: K points q_k of the plane between two ends, each kept out of a disc or in one of its own.

    min   (K + 1)/2 sum_k |q_k+1 - q_k|^2                          q_0 = (-2, 0), q_K+1 = (2, 0)
    s.t.  1 - |q_k|^2 <= 0                            avoid:       out of the unit disc
          |q_k - z_k|^2 - 0.04 <= 0                   not avoid:   in discs around z_k = (t, sin pi t), t = -2 + 4 k/(K + 1)
    start on a half circle of radius 2, or z

(K + 1)/2 times the squared lengths is least for equal ones and then half the square of the length. Out of the unit disc, the
shortest path is two tangents and an arc, of length 2 sqrt 3 + pi/3: f is near half its square, 10.1759, for large K. It is above
the disc or below, and the straight line is stationary for neither.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained.core.arguments import expect
from constrained.core.derivatives.function import Function
from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem

from .arguments import placed, whole
from .instance import ConstrainedInstance

SHORTEST = 2 * math.sqrt(3) + math.pi / 3  # past the unit disc


def discs(
    *,
    K: int = 1000,
    avoid: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> ConstrainedInstance:
    """The shortest path past a disc, or through discs: 2 K unknowns and K inequalities with sparse derivatives.

    K: points; x is K x 2. avoid: out of the unit disc, not convex; False: in discs along a sine, convex. optimum: not known; for
    avoid `SHORTEST`^2 / 2 in the limit of large K. seed: nothing is drawn.

    >>> discs(K=10).problem.x.shape
    torch.Size([10, 2])
    """
    from scipy import sparse

    whole("discs(K=...)", K, 2)
    expect("discs(avoid=...)", avoid, bool)
    whole("discs(seed=...)", seed, 0)
    device = placed("discs", dtype, device)
    t = torch.arange(1, K + 1, dtype=torch.float64) / (K + 1)
    if avoid:
        centres, radius, side = torch.zeros(K, 2, dtype=torch.float64), 1.0, -1.0
        first = 2 * torch.stack([-torch.cos(math.pi * t), torch.sin(math.pi * t)], 1)
    else:
        along = 4 * t - 2
        centres, radius, side = torch.stack([along, torch.sin(math.pi * along)], 1), 0.2, 1.0
        first = centres.clone()
    z, ends = centres.to(device, dtype), torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=dtype, device=device)

    def objective(q: Tensor) -> Tensor:
        return (K + 1) / 2 * (torch.cat([ends[:1], q, ends[1:]]).diff(dim=0) ** 2).sum()

    def inequality(q: Tensor) -> Tensor:
        return side * (((q - z) ** 2).sum(1) - radius**2)

    def jacobian(q: Tensor) -> Any:
        rows = 2 * side * (q.detach() - z).cpu().double().numpy()
        return sparse.csr_array((rows.reshape(-1), np.arange(2 * K), np.arange(0, 2 * K + 1, 2)), shape=(K, 2 * K))

    def bend(q: Tensor, w: Tensor) -> Any:
        return sparse.diags_array(2 * side * np.repeat(w.detach().cpu().double().numpy(), 2))

    # Entries of q alternate: neighbours of a coordinate are two apart.
    off, on = np.full(2 * K - 2, -(K + 1.0)), np.full(2 * K, 2 * (K + 1.0))
    H = sparse.diags_array([off, on, off], offsets=[-2, 0, 2])  # pyright: ignore[reportArgumentType]
    x = first.to(device, dtype)
    return ConstrainedInstance(
        name="discs",
        problem=ConstrainedProblem(
            objective=Function(objective, hessian=lambda q: H),
            inequality=Function(inequality, jacobian=jacobian, hessian=bend),
            x=x,
        ),
        source="closed form of the shortest path for avoid, in problems.discs",
        start=Point(x, multipliers=Multipliers(inequality=torch.zeros(K, dtype=dtype, device=device))),
    )
