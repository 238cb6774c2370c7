"""Problems of MAID's paper: least squares on two levels, and denoising with a learned smoothed total variation.

Source: Salehi, Mukherjee, Roberts and Ehrhardt, arXiv 2308.10098.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel.problem import BilevelProblem
from constrained.core.problem import Point
from constrained.core.result import Result

from .arguments import number, placed, whole
from .instance import Instance, Study
from .report.pictures import figure, headline


def least_squares(
    *,
    n: int = 1000,
    m: int = 10,
    cond: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """Least squares on two levels, with a closed form (arXiv 2308.10098, section 4).

    g(x, y) = 1/(2n) |A2 y + A3 x - b2|^2,  f(y) = 1/(2n) |A1 y - b1|^2,  A_i uniform in [0, 1], n rows and m columns;
    b1 = A1 u + 0.01 N, b2 = A2 v + A3 w + 0.01 N with u, v, w uniform. y(x) = A2^+ (b2 - A3 x), so x is one more least-squares
    solution. cond >= 1: A1 and A2 are given singular values from sqrt(n) down to sqrt(n) / cond in random bases, and A3 equal
    ones in the column space of A2; None: as drawn, cond(A2) is then about sqrt(3 m), and that of Phi's Hessian 1e5.
    Start x = 0, y = 0. The paper has sums in place of means.
    """
    whole("least_squares(n=...)", n, 1)
    whole("least_squares(m=...)", m, 1, n)
    whole("least_squares(seed=...)", seed, 0, 2**63 - 1)
    if cond is not None:
        number("least_squares(cond=...)", cond, 1)
    device = placed("least_squares", dtype, device)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A1, A2, A3 = uniform(n, m), uniform(n, m), uniform(n, m)
    if cond is not None:
        spread = torch.logspace(0, -math.log10(cond), m, dtype=torch.float64).diag() * math.sqrt(n)
        A1, A2 = (torch.linalg.qr(A)[0] @ spread @ torch.linalg.qr(normal(m, m))[0] for A in (A1, A2))
        A3 = math.sqrt(n) * torch.linalg.qr(A2)[0] @ torch.linalg.qr(normal(m, m))[0]
    b1 = A1 @ uniform(m) + 0.01 * normal(n)
    b2 = A2 @ uniform(m) + A3 @ uniform(m) + 0.01 * normal(n)

    both = torch.linalg.lstsq(A2, torch.column_stack([b2, A3])).solution
    c, M = both[:, 0], both[:, 1:]  # y = c - M x
    x = torch.linalg.lstsq(A1 @ M, (A1 @ c - b1)[:, None]).solution[:, 0]
    solution = Point(x.to(device, dtype), (c - M @ x).to(device, dtype))
    A1, A2, A3, b1, b2, c, M = (t.to(device, dtype) for t in (A1, A2, A3, b1, b2, c, M))

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((A1 @ y - b1) ** 2).mean()

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((A2 @ y + A3 @ x - b2) ** 2).mean()

    problem = BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(m, dtype=dtype, device=device),
        y=torch.zeros(m, dtype=dtype, device=device),
        lower_solution=lambda x: c - M @ x,
    )
    source = "Salehi et al., arXiv 2308.10098; the solution is that of two linear least-squares problems"
    return Instance(name="maid-least-squares", problem=problem, source=source, solution=(solution,))


# -- denoising --------------------------------------------------------------------------------------------------------------
def denoising(
    *,
    size: int = 32,
    dims: int = 2,
    noise: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Instance:
    """Denoising of a drawn signal or image, weight and smoothing of a total variation learned (arXiv 2308.10098, section 4).

    g(x, y) = 1/2 |y - b|^2 + exp(x_0) sum_i sqrt(|D y|_i^2 + exp(2 x_1)),  f(y) = |y - c|^2 / (2 n noise^2)

    c: the clean picture, n = size^dims pixels in [0, 1], steps and ramps; b = c + noise N; D: forward differences, zero beyond
    the end. size: pixels of a side. dims: 1, a signal, or 2, an image. f is 1/2 at y = b. g(x, .) is strongly convex with
    modulus 1. Start x = (log noise, log noise), y = b.
    """
    whole("denoising(size=...)", size, 4)
    whole("denoising(dims=...)", dims, 1, 2)
    whole("denoising(seed=...)", seed, 0, 2**63 - 1)
    number("denoising(noise=...)", noise, 1e-6)
    device = placed("denoising", dtype, device)
    rng = np.random.default_rng(seed)
    clean = _signal(rng, size) if dims == 1 else _image(rng, size)
    noisy = clean + noise * rng.standard_normal(clean.shape)
    c, b = (torch.from_numpy(t).to(device, dtype) for t in (clean, noisy))

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return ((y - c) ** 2).mean() / (2 * noise**2)

    def lower(x: Tensor, y: Tensor) -> Tensor:
        squares = (2 * x[1]).exp()
        for axis in range(dims):
            step = y.diff(dim=axis) ** 2
            squares = squares + torch.nn.functional.pad(step, (0, 0) * (dims - 1 - axis) + (0, 1))
        return 0.5 * ((y - b) ** 2).sum() + x[0].exp() * squares.sqrt().sum()

    start = torch.full((2,), math.log(noise), dtype=dtype, device=device)
    problem = BilevelProblem(upper=upper, lower=lower, x=start, y=b.clone())
    source = "Salehi et al., arXiv 2308.10098, on pictures drawn here; no solution known"
    return Instance(name="denoising", problem=problem, source=source, study=DenoisingStudy(clean, noisy))


def _signal(rng: np.random.Generator, size: int) -> np.ndarray:
    """Ramps with steps at five random places, in [0, 1]."""
    at = np.linspace(0, 1, size, endpoint=False)
    found = np.zeros(size)
    for left, right in zip([0.0, *(ends := np.sort(rng.uniform(size=5)))], [*ends, 1.0]):
        inside = (at >= left) & (at < right)
        low, high = rng.uniform(size=2)
        found[inside] = low + (high - low) * (at[inside] - left) / max(right - left, 1 / size)
    return found


def _image(rng: np.random.Generator, size: int) -> np.ndarray:
    """Three rectangles and three shaded discs on a grey ramp, in [0, 1]."""
    row, column = np.meshgrid(*[np.linspace(0, 1, size)] * 2, indexing="ij")
    found = 0.2 + 0.2 * row
    for _ in range(3):
        (top, left), (height, width), value = rng.uniform(0, 0.7, 2), rng.uniform(0.15, 0.4, 2), rng.uniform()
        found[(row >= top) & (row < top + height) & (column >= left) & (column < left + width)] = value
        centre, radius, value = rng.uniform(0.1, 0.9, 2), rng.uniform(0.1, 0.25), rng.uniform(0.3, 1.0)
        distance = np.hypot(row - centre[0], column - centre[1])
        found[distance < radius] = (value * (1 - 0.3 * (column - centre[1]) / radius))[distance < radius].clip(0, 1)
    return found


def _picture(result: Result) -> np.ndarray:
    assert isinstance(result.y, Tensor)
    return result.y.cpu().double().numpy()


@dataclass(frozen=True)
class Quality:
    """Peak signal-to-noise ratio of a picture in [0, 1], in decibels, and its root mean square error."""

    name: str
    psnr: float
    rmse: float


class DenoisingStudy(Study):
    """Compares the denoised picture with the noisy one, and draws the three."""

    claims = (
        "PSNR is on the very picture that the weight was learned from: it shows what the model can do, not how it generalises.",
    )

    def __init__(self, clean: np.ndarray, noisy: np.ndarray):
        self.clean, self.noisy = clean, noisy

    def rows(self, result: Result) -> list[Quality]:
        return [self.quality("denoised", _picture(result)), self.quality("noisy", self.noisy)]

    def quality(self, name: str, picture: np.ndarray) -> Quality:
        rmse = float(np.sqrt(np.mean((picture - self.clean) ** 2)))
        return Quality(name, -20 * math.log10(rmse), rmse)

    def tables(self, runs: list[list[Quality]]) -> list[Any]:
        from rich.table import Table

        table = Table("picture", "PSNR (dB)", "root mean square error", title=f"denoising, {len(runs)} seed(s)")
        for name, one in self.summary(runs).items():
            table.add_row(name, f"{one['psnr']:.2f}", f"{one['rmse']:.4f}")
        return [table]

    def summary(self, runs: list[list[Quality]]) -> dict[str, Any]:
        """Means over the seeds."""
        columns = {rows[0].name: rows for rows in zip(*runs)}
        return {
            name: {key: float(np.mean([getattr(q, key) for q in rows])) for key in ("psnr", "rmse")}
            for name, rows in columns.items()
        }

    def draw(self, result: Result, folder: Path) -> None:
        """denoising.png: clean, noisy and denoised."""
        pictures = {"clean": self.clean, "noisy": self.noisy, "denoised": _picture(result)}
        made = figure(9.0, 3.4)
        for place, (name, picture) in enumerate(pictures.items()):
            axes = made.add_subplot(1, 3, place + 1)
            if picture.ndim == 1:
                axes.plot(picture, linewidth=1.2)
                axes.set_ylim(-0.3, 1.3)
            else:
                axes.imshow(picture, cmap="gray", vmin=0.0, vmax=1.0)
                axes.set_axis_off()
            axes.set_title(f"{name}, {self.quality(name, picture).psnr:.1f} dB" if name != "clean" else name, fontsize=10)
        headline(made, f"Total variation, weight {float(result.x[0].exp()):.3g}, smoothing {float(result.x[1].exp()):.3g}")
        made.savefig(folder / "denoising.png", dpi=150)
