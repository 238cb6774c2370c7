"""What the problem says of answers, lane by lane: kkt.py's residuals and progress.py's shares, from a few calls for all lanes.

Numbers and formulas are those of the two modules, which say what they mean; the judgement itself is core/verdict.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.derivatives.lanes import LaneTape, Whole, values
from ..progress import FLAT, FURTHEST, ROUNDING, SEEN, SMALL, TRIAL
from .iterate import INFINITE
from .lanes import dot, largest, transposed


@dataclass(frozen=True)
class Asked:
    """The problem itself: its function, bounds of all entries, rows of c; where each lane began, and f and the rows there."""

    whole: Whole
    parameters: tuple[Tensor, ...]
    low: Tensor
    high: Tensor
    equalities: int
    x0: Tensor
    f0: Tensor
    c0: Tensor
    aside: Tensor  # a direction

    def projected(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)


@dataclass(frozen=True)
class Truth:
    """Of each lane f, the residuals by name, the shares by name, the multipliers of bounds."""

    f: Tensor
    residuals: dict[str, Tensor]
    shares: dict[str, Tensor]
    low: Tensor
    high: Tensor


def truth(asked: Asked, x: Tensor, lam: Tensor) -> Truth:
    """At answers x with multipliers lam of the rows themselves, those of h >= 0; x and lam as they are reported."""
    e, x64, lam = asked.equalities, x.double(), lam.double()
    tape = LaneTape(asked.whole, x, asked.parameters, lam.shape[1])
    c, h, gradient = tape.c[:, :e], tape.c[:, e:], tape.gradient + transposed(tape.jacobian, lam)
    found = {
        "stationarity": _norm(x64 - asked.projected(x64 - gradient)),
        "feasibility": _norm(torch.cat([c, h.clamp(min=0), x64 - asked.projected(x64)], 1)),
    }
    if h.shape[1]:
        found["complementarity"] = _norm(torch.minimum(lam[:, e:], (-h).clamp(min=0)))
    low = torch.where(x64 - gradient <= asked.low, gradient.clamp(min=0), 0.0)
    high = torch.where(x64 - gradient >= asked.high, (-gradient).clamp(min=0), 0.0)
    return Truth(tape.value, found, _shares(asked, tape, x64, lam, gradient), low, high)


def _shares(asked: Asked, tape: LaneTape, x: Tensor, lam: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    e, f, dtype = asked.equalities, tape.value, tape.X.dtype
    way, size = _norm(x - asked.x0), _norm(x)
    multiplied = dot(lam.abs(), tape.c.abs())
    before = torch.cat([asked.c0[:, :e].abs(), asked.c0[:, e:].clamp(min=0)], 1)
    gained = (asked.f0 - f).abs() + dot(lam.abs(), before)
    rounding = ROUNDING * torch.finfo(dtype).eps * (f.abs() + _norm(tape.gradient) * (size + way))

    violated = torch.cat([tape.c[:, :e].abs(), tape.c[:, e:].clamp(min=0)], 1)
    scale = (tape.c - asked.c0).abs()
    scale = torch.maximum(scale, torch.linalg.vector_norm(tape.jacobian, dim=2) * torch.maximum(size, way)[:, None])
    missing = _decrease(asked, x, lam, gradient, way, rounding, dtype) + multiplied
    if bool((missing > SMALL * gained).any()):
        there = asked.projected(x + way[:, None] * asked.aside)
        other = values(asked.whole, there.to(dtype), asked.parameters)[0]
        gained = torch.where(missing > SMALL * gained, gained + FLAT * (other - f).abs(), gained)
    return {"stationarity": _share((missing - rounding).clamp(min=0), gained), "feasibility": largest(_share(violated, scale))}


def _decrease(
    asked: Asked, x: Tensor, lam: Tensor, gradient: Tensor, distance: Tensor, rounding: Tensor, dtype: torch.dtype
) -> Tensor:
    step = _reachable(asked, x, gradient, distance)
    slope, norm = -dot(gradient, step), _norm(gradient)
    seen = slope > rounding
    further, visible = _further(asked, x, gradient, rounding, norm)
    at = x + torch.where(seen[:, None], TRIAL * step, further)
    tape = LaneTape(asked.whole, at.to(dtype), asked.parameters, lam.shape[1])
    there = tape.gradient + transposed(tape.jacobian, lam)
    bend = dot(there - gradient, step) / TRIAL
    times = torch.where(bend > 0, (slope / bend).clamp(1.0, FURTHEST), 1.0)
    by_bend = 0.5 * slope * torch.where(there.isfinite().all(1), times, 1.0)
    blocked = visible < 0.1 * SEEN * rounding  # what is left of the gradient is blocked by X
    by_sight = torch.where(~blocked & (-dot(there, further) > 0.5 * visible), 0.5 * visible, slope)
    free = _norm(_reachable(asked, x, gradient, torch.ones_like(norm))) > 0
    at_zero = torch.where(free, INFINITE, 0.0)  # f = 0 at the origin: any step would be seen
    unseen = torch.where(norm == 0, slope, torch.where(rounding == 0, at_zero, by_sight))
    return torch.where(seen, by_bend, unseen)


def _further(asked: Asked, x: Tensor, gradient: Tensor, rounding: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """A step so long that what it gains would be seen, and what it gains."""
    far = torch.where(norm > 0, SEEN * rounding / norm, 0.0)
    step, visible = torch.zeros_like(x), torch.zeros_like(norm)
    for _ in range(4):
        step = _reachable(asked, x, gradient, far)
        visible = -dot(gradient, step)
        short = visible < 0.1 * SEEN * rounding
        if not bool(short.any()):
            break
        more = torch.where(visible > 0, (SEEN * rounding / visible).clamp(max=1e6), 1e6)
        far = torch.where(short, far * more, far)
    return step, visible


def _reachable(asked: Asked, x: Tensor, gradient: Tensor, distance: Tensor) -> Tensor:
    """P(x - t gradient) - x with t such that it is `distance` long, or as long as X has it."""
    norm = _norm(gradient)
    t = torch.where((norm > 0) & (distance > 0) & norm.isfinite(), distance / norm, 0.0)
    gradient = torch.where(t[:, None] > 0, gradient, 0.0)
    step = asked.projected(x - t[:, None] * gradient) - x
    on = t > 0
    for _ in range(8):  # entries at a bound take up t and do not move
        far = _norm(step)
        on = on & (far < 0.5 * distance)
        if not bool(on.any()):
            break
        t = torch.where(on, t * torch.where(far > 0, (distance / far).clamp(2.0, 1e3), 1e3), t)
        longer = asked.projected(x - t[:, None] * gradient) - x
        on = on & ~((_norm(longer) <= 1.01 * far) & (far > 0))
        step = torch.where(on[:, None], longer, step)
    return step


def _share(left: Tensor, whole: Tensor) -> Tensor:
    return torch.where(left == 0, 0.0, torch.where(whole > 0, left / whole, INFINITE))


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=1)
