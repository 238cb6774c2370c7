"""A membrane over a ball: the obstacle problem on the square [-2, 2]^2 by five-point differences, h = 4/(N + 1).

    min   1/2 sum over neighbours (w_i - w_j)^2     the grid's N x N inner points, and the boundary, where w = exact
    s.t.  w >= sqrt(1 - r^2) where r < 1
    start w = 1

The solution without the grid: the ball up to r = s, where the tangent meets the harmonic function outside,

    exact(r) = sqrt(1 - r^2) for r <= s,  -s^2 log(r/2) / sqrt(1 - s^2) beyond,  s = 0.6979651482:  s^2 (1 - log(s/2)) = 1

J. Majava and X.-C. Tai, A level set method for solving free boundary problems associated with obstacles, International Journal
of Numerical Analysis and Modeling 1, 2004.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained.core.derivatives.function import Function
from constrained.core.problem import Point
from constrained.problem import ConstrainedProblem
from constrained.sets import Box

from .arguments import placed, whole
from .instance import ConstrainedInstance

CONTACT = 0.6979651482233  # s


def exact(r: Tensor) -> Tensor:
    """The membrane without the grid."""
    outside = -(CONTACT**2) * torch.log(r.clamp(min=CONTACT) / 2) / math.sqrt(1 - CONTACT**2)
    return torch.where(r <= CONTACT, torch.sqrt((1 - r**2).clamp(min=0)), outside)


def radii(N: int) -> Tensor:
    """r at the (N + 2) x (N + 2) points of the grid and its boundary."""
    axis = torch.linspace(-2, 2, N + 2, dtype=torch.float64)
    return torch.hypot(axis[:, None], axis)


def obstacle(
    *, N: int = 20, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> ConstrainedInstance:
    """A membrane over a ball: a convex quadratic program with bounds and a sparse Hessian.

    N: inner grid points a side; x is N x N. optimum: not known; `exact(radii(N))` is the limit of w for large N. seed: nothing is
    drawn.

    >>> obstacle(N=3).features.words()
    'a set X'
    """
    from scipy import sparse

    whole("obstacle(N=...)", N, 1)
    whole("obstacle(seed=...)", seed, 0)
    device = placed("obstacle", dtype, device)
    r = radii(N)
    frame = exact(r)
    frame[1:-1, 1:-1] = 0
    frame = frame.to(device, dtype)
    inner = r[1:-1, 1:-1]
    low = torch.where(inner < 1, torch.sqrt((1 - inner**2).clamp(min=0)), -math.inf)

    def objective(w: Tensor) -> Tensor:
        whole_grid = torch.nn.functional.pad(w, (1, 1, 1, 1)) + frame
        return 0.5 * ((whole_grid.diff(dim=0)[:, 1:-1] ** 2).sum() + (whole_grid.diff(dim=1)[1:-1] ** 2).sum())

    D = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(N, N))  # pyright: ignore[reportArgumentType]
    eye = sparse.eye_array(N)
    H = (sparse.kron(D, eye) + sparse.kron(eye, D)).tocsr()
    x = torch.ones(N, N, dtype=dtype, device=device)
    return ConstrainedInstance(
        name="obstacle",
        problem=ConstrainedProblem(objective=Function(objective, hessian=lambda w: H), x=x, X=Box(low=low)),
        source="Majava and Tai (2004)",
        start=Point(x),
    )
