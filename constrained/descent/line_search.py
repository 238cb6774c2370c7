"""The line search of the methods: weak Wolfe, by bracketing and interpolation; slopes decide where values are equal."""

from __future__ import annotations

import math

import torch

from ..core.vec import Vec
from ..sets import ConvexSet
from .method import Descent, DescentStatus, ValueAndGradient

ARMIJO, CURVATURE = 1e-4, 0.9
NOISE = 1e3  # units of eps |f| within which two values count as equal and slopes decide


def search(
    objective: ValueAndGradient,
    s: Descent,
    d: Vec,
    slope: float,
    reference: float,
    *,
    curvature: bool,
    X: ConvexSet | None = None,
) -> tuple[Vec, float, Vec, float] | DescentStatus:
    """A step t along d from s.x: Armijo against `reference`, and the weak curvature test if asked.

    The point, its value and gradient, and t; or why there is none.

    With X: along the projected path P(s.x + t d). Where the slope changes by hardly less over a shorter step, the objective
    has a kink in it, and the next t is where the tangents at its ends cross.
    """
    eps = torch.finfo(s.x.dtype).eps
    low, high, t = 0.0, math.inf, 1.0
    kept: tuple[Vec, float, Vec, float] | None = None  # a point that passed Armijo but not curvature
    size, length = float(s.x.norm()), max(float(d.norm()), 1e-300)
    ratio, noise, broken, rise = size / length, 0.0, False, 0.0
    at_start = 0  # times in turn that the tangents crossed at s.x or before
    for _ in range(60):
        x = s.x.add(d, t)
        fall, across = t * slope, d * t  # what the slope at s.x promises for this step
        if X is not None:
            x = X.project(x)
            across = x - s.x
            fall, length = min(float(across @ s.gradient), 0.0), float(across.norm()) / t
            if length == 0:  # every entry is held
                break
        value, g = objective(x)
        tilt = fall + float((g - s.gradient) @ across)  # g'across has no digits where a binding gradient is large
        steps = min(size / max(t * length, 1e-300), 1e150)  # |x| in units of this step, whose square is a number
        # |tilt - fall| / step^2 is the curvature along d: rounding x alone moves a value by eps times that and |x|^2.
        noise = NOISE * eps * max(abs(s.value), abs(value)) + 100 * eps * abs(tilt - fall) * steps * steps
        if not (math.isfinite(value) and math.isfinite(tilt)):
            broken = True  # what bounds the step is a value that is not finite
            high, t = t, low + 0.1 * (t - low)
        elif value <= reference + ARMIJO * fall or (value <= s.value + noise and abs(tilt) <= 0.8 * -fall):
            if not curvature or tilt >= CURVATURE * fall:
                return x, value, g, t
            if value < -1e100:
                return DescentStatus.UNBOUNDED
            low, kept = t, (x, value, g, t)
            t = 2 * t if high == math.inf else 0.5 * (low + high)
        else:
            broken = False
            # The minimiser of the parabola through f(0), f'(0), f(t), kept inside the bracket.
            above = value - s.value - fall
            guess = -0.5 * fall * t / above if above > 0 else 0.5 * t
            width, most = t - low, 0.5
            if abs(value - s.value) <= noise and tilt > fall:  # values say nothing here: the zero of the slopes' line
                guess, most = t * fall / (fall - tilt), 0.9
            guess = min(max(guess, low + 0.1 * width), low + most * width)
            before, rise = rise, (tilt - fall) / t
            kink = low == 0 and before > 0 and rise > before * math.sqrt(t / high)  # where f is smooth, rise falls like t
            if kink and abs(value - s.value) > noise:
                cross = t * (value - s.value - tilt) / (fall - tilt)
                guess, at_start = (min(cross, 0.99 * t), 0) if cross > 0 else (guess, at_start + 1)
            high, t = t, guess
        if at_start == 3 or high - low <= 4 * eps * ratio or (high < math.inf and high - low <= 1e-14 * high):
            break
    if curvature and kept is not None and high == math.inf:  # 2^60 times the step, and the slope is as steep as ever
        return DescentStatus.UNBOUNDED
    if kept is not None and kept[1] < s.value:
        return kept
    if broken or not math.isfinite(s.value) or not math.isfinite(slope):
        return DescentStatus.NONFINITE
    # Nothing lower, and what the slope promised is below what values can show: round-off.
    small = abs(slope) <= 10 * noise or s.residual <= 1e4 * eps * max(1.0, float(s.x.norm()))
    return DescentStatus.PRECISION if small else DescentStatus.LINE_SEARCH
