"""Distributed control of Poisson's equation on a square of side 2, zero on its boundary, by five-point differences.

    min   f(w, z) = 1/2 |w - d|^2 + weight/2 |z|^2      state w and source z on the N x N inner points, weight = 0.1
    s.t.  Lap w + z = 0                                 (Lap w)_ij = (sum of the four neighbours - 4 w_ij) / h^2, h = 2/(N + 1)
    start w = z = 1, lam = 1, float64

    target d_ij = sin(4 + e_i) + cos(3 + e_j), e_i = 0.1/sqrt(15) (i - (N + 1)/2)

I. Hong, S. Na, M. W. Mahoney and M. Kolar, arXiv 2305.18379, with N = 3: n = 2 N^2 = 18 variables and m = N^2 = 9 constraints.

A quadratic program, which the sine transform solves: it turns Lap into products with the eigenvalues
t_kl = (2 cos(k pi/(N + 1)) + 2 cos(l pi/(N + 1)) - 4) / h^2, so that w^ = d^ / (1 + weight t^2), z^ = -t w^ and lam = -weight z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constrained.core.problem import Multipliers, Point
from constrained.problem import ConstrainedProblem

from .arguments import placed, whole
from .instance import ConstrainedInstance

WEIGHT = 0.1


def laplacian(w: Tensor) -> Tensor:
    """The five-point Laplacian of an N x N grid, zero around it."""
    around = torch.nn.functional.pad(w, (1, 1, 1, 1))
    neighbours = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    return (neighbours - 4 * w) * ((len(w) + 1) / 2) ** 2


def sine_transform(grid: Tensor) -> Tensor:
    """sum_ij grid_ij sin(i k pi/(N + 1)) sin(j l pi/(N + 1)) times 2/(N + 1): its own inverse. By fast Fourier transforms."""
    for axis in (0, 1):
        zero = grid.new_zeros(grid.narrow(axis, 0, 1).shape)
        odd = torch.cat([zero, grid, zero, -grid.flip(axis)], axis)
        grid = -torch.fft.rfft(odd, dim=axis).imag.narrow(axis, 1, grid.shape[axis])
    return grid / (2 * (len(grid) + 1))


def eigenvalues(N: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Those of the Laplacian, N x N, in the order of the sine transform."""
    k = torch.arange(1, N + 1, dtype=dtype, device=device)
    one = (2 * torch.cos(math.pi * k / (N + 1)) - 2) * ((N + 1) / 2) ** 2
    return one[:, None] + one


def poisson_control(
    *, N: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> ConstrainedInstance:
    """Control of Poisson's equation: an equality-constrained quadratic program of any size with a closed solution.

    N: grid points a side; {"state": w, "source": z} are N x N each. seed: nothing is drawn. solution: with multipliers, by the
    sine transform. preconditioner: v -> M^-1 v on Vecs of one flat leaf (w, z, lam) for M = diag(B, G B^-1 G') with B = hess f
    and G the constraint Jacobian, by sine transforms in O(N^2 log N): M^-1 K has three eigenvalues, 1 and (1 +- sqrt 5)/2.
    """
    whole("poisson_control(N=...)", N, 1)
    whole("poisson_control(seed=...)", seed, 0)
    device = placed("poisson_control", dtype, device)
    e = 0.1 / math.sqrt(15) * (torch.arange(1, N + 1, dtype=torch.float64) - (N + 1) / 2)
    d = (torch.sin(4 + e)[:, None] + torch.cos(3 + e)).to(device, dtype)
    t = eigenvalues(N, dtype, device)

    def objective(x: dict[str, Tensor]) -> Tensor:
        return 0.5 * ((x["state"] - d) ** 2).sum() + 0.5 * WEIGHT * (x["source"] ** 2).sum()

    def equality(x: dict[str, Tensor]) -> Tensor:
        return (laplacian(x["state"]) + x["source"]).reshape(-1)

    def inverse(v: Tensor) -> Tensor:
        w, z, lam = v.reshape(3, N, N)
        lam = sine_transform(sine_transform(lam) / (t**2 + 1 / WEIGHT))  # G B^-1 G' = Lap Lap + I / weight
        return torch.stack([w, z / WEIGHT, lam]).reshape(-1)

    spectrum = sine_transform(d) / (1 + WEIGHT * t**2)
    w, z = sine_transform(spectrum), sine_transform(-t * spectrum)
    solution = Point({"state": w, "source": z}, multipliers=Multipliers(equality=-WEIGHT * z.reshape(-1)))
    x = {name: torch.ones(N, N, dtype=dtype, device=device) for name in ("state", "source")}
    return ConstrainedInstance(
        name="poisson-control",
        problem=ConstrainedProblem(objective=objective, equality=equality, x=x),
        source="Hong et al. (2023), arXiv 2305.18379; solution by the sine transform",
        solution=(solution,),
        optimum=float(objective({"state": w, "source": z})) if device.type != "meta" else math.nan,
        start=Point(x, multipliers=Multipliers(equality=torch.ones(N * N, dtype=dtype, device=device))),
        preconditioner=lambda v: v.map(inverse),
    )
