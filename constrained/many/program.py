"""interior/program.py lane by lane: slacks for inequalities, bounds, everything scaled.

    min sigma f(x)  subject to  r c(x) = 0,  r h(x) + s = 0,  s >= 0,  low <= x <= high

All distances to bounds stand in one vector d = (P'x + b, s), where a column of P is e_i for a low, -e_i for a high. So the lanes
of a program have the same entries fixed by bounds, and the same bounds that are finite; the numbers may differ.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.derivatives.lanes import LaneTape, Whole, values
from ..interior.program import EPS, LARGEST, PUSH, SCALED
from .lanes import largest


@dataclass(frozen=True)
class Layout:
    """What all lanes share: the function of a lane, the dtype it takes, sizes, which entries are free, P."""

    whole: Whole
    dtype: torch.dtype
    free: Tensor | None  # indices of the entries that bounds do not fix; None: all of them
    P: Tensor
    n: int
    equalities: int
    inequalities: int

    @property
    def m(self) -> int:
        return self.equalities + self.inequalities

    @property
    def of_x(self) -> int:
        """Distances that are of x, the first ones."""
        return self.P.shape[1]

    @property
    def bounded(self) -> bool:
        return self.of_x + self.inequalities > 0

    @functools.cached_property
    def Pt(self) -> Tensor:
        return self.P.T.contiguous()

    @functools.cached_property
    def absolute(self) -> Tensor:
        """|P'|."""
        return self.P.T.abs().contiguous()


@dataclass(frozen=True)
class Program:
    """The layout, and of each lane its bounds, scales and parameters. whole_x: where fixed entries are taken from."""

    layout: Layout
    low: Tensor
    high: Tensor
    b: Tensor
    floor: Tensor  # the least distance that rounding lets x have from a bound
    whole_x: Tensor
    sigma: Tensor
    rows: Tensor
    parameters: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        whole: Whole,
        x: Tensor,
        low: Tensor,
        high: Tensor,
        sizes: tuple[int, int],
        parameters: tuple[Tensor, ...],
    ) -> Program:
        """Without scales. x: (L, n), the problem's dtype. low, high: float64, of each lane the same entries finite and fixed."""
        free = (low[0] < high[0]).nonzero()[:, 0]
        whole_x, (low, high) = x.double(), (low[:, free], high[:, free])
        lower, upper = low[0].isfinite(), high[0].isfinite()
        eye = torch.eye(len(free), dtype=torch.float64, device=x.device)
        P = torch.cat([eye[:, lower], -eye[:, upper]], 1)
        ends = torch.cat([low[:, lower], high[:, upper]], 1)
        b = torch.cat([-low[:, lower], high[:, upper]], 1)
        every = len(free) == x.shape[1]
        layout = Layout(whole, x.dtype, None if every else free, P, len(free), *sizes)
        ones, rows = x.new_ones(len(x), dtype=torch.float64), x.new_ones(len(x), layout.m, dtype=torch.float64)
        return cls(layout, low, high, b, EPS * ends.abs().clamp(min=1), whole_x, ones, rows, parameters)

    def scaled(self, tape: LaneTape) -> Program:
        """Scales from the gradients at a point."""
        steepest = self.columns(tape.jacobian).abs()
        steepest = steepest.amax(2) if steepest.shape[2] else steepest.new_zeros(steepest.shape[:2])
        return replace(
            self,
            sigma=(LARGEST / largest(self.columns(tape.gradient).abs()).clamp(min=LARGEST)).clamp(min=SCALED),
            rows=(LARGEST / steepest.clamp(min=LARGEST)).clamp(min=SCALED),
        )

    # -- x and functions ----------------------------------------------------------------------------------------------------
    def columns(self, A: Tensor) -> Tensor:
        """The free entries of the last axis."""
        return A if self.layout.free is None else A[..., self.layout.free]

    def full(self, x: Tensor, lanes: Tensor | None = None) -> Tensor:
        """x with the fixed entries, as the functions take it."""
        if self.layout.free is None:
            return x.to(self.layout.dtype)
        whole = (self.whole_x if lanes is None else self.whole_x[lanes]).clone()
        whole[:, self.layout.free] = x
        return whole.to(self.layout.dtype)

    def tape(self, x: Tensor) -> LaneTape:
        return LaneTape(self.layout.whole, self.full(x), self.parameters, self.layout.m)

    def values(self, x: Tensor, s: Tensor, lanes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """sigma f and C. lanes: of which lane each point is; None: one of each."""
        every = (self.parameters, self.sigma, self.rows)
        parameters, sigma, rows = (
            every if lanes is None else (tuple(p[lanes] for p in self.parameters), *(t[lanes] for t in every[1:]))
        )
        f, c = values(self.layout.whole, self.full(x, lanes), parameters)
        return sigma * f, self._with_slacks(rows * c, s)

    def rows_of(self, tape: LaneTape, s: Tensor) -> Tensor:
        """C, of a tape."""
        return self._with_slacks(self.rows * tape.c, s)

    def _with_slacks(self, C: Tensor, s: Tensor) -> Tensor:
        e = self.layout.equalities
        return torch.cat([C[:, :e], C[:, e:] + s], 1) if s.shape[1] else C

    # -- distances to bounds --------------------------------------------------------------------------------------------------
    def distances(self, x: Tensor, s: Tensor, lanes: Tensor | None = None) -> Tensor:
        b, floor = (self.b, self.floor) if lanes is None else (self.b[lanes], self.floor[lanes])
        return torch.cat([torch.maximum(x @ self.layout.P + b, floor), s], 1)

    def approach(self, dx: Tensor, ds: Tensor) -> Tensor:
        """What a step changes of d."""
        return torch.cat([dx @ self.layout.P, ds], 1)

    def inside(self, x: Tensor, push: Tensor | float = PUSH) -> Tensor:
        """x moved to push max(1, |bound|) from each bound, at most to push of the range."""
        width = push * (self.high - self.low)
        from_low = torch.minimum(push * self.low.abs().clamp(min=1), width)
        from_high = torch.minimum(push * self.high.abs().clamp(min=1), width)
        least = torch.where(self.low.isfinite(), self.low + from_low, self.low)
        most = torch.where(self.high.isfinite(), self.high - from_high, self.high)
        return torch.clamp(x, least, most)
