"""How accurately inner problems are solved: in proportion to the residual R of the outer problem."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from constrained.core.vec import Vec

STEP = 0.01  # of the inner tolerance: the most that it falls between two evaluations at one point
CLOSE = 10.0  # times the tolerance that R asks for: accurate enough


def floor(x: Vec) -> float:
    """The least inner residual that rounding lets one ask for."""
    return 30 * torch.finfo(x.dtype).eps


def answer_tolerance(tol: float, y: Vec) -> float:
    """The residual to which the lower level of an answer is solved: the certificate asks for tol."""
    return max(1e-2 * tol, 500 * torch.finfo(y.dtype).eps)


def tightened(
    evaluate: Callable[[float], float],
    wanted: Callable[[float], float],
    least: float,
    unmeasured: Callable[[], bool] = lambda: False,
) -> float:
    """Evaluate at a point, to inner tolerances that fall until they fit the R found there; that R.

    evaluate: inner tolerance -> R, not finite where the evaluation failed. wanted: R -> the inner tolerance that it asks for.
    least: below it no tolerance falls. unmeasured: True asks for one more evaluation in any case.

    R at the point may be far below what the tolerance was chosen for (the first call knows no R at all), and is itself only as
    good as the inner solutions: so tolerances fall by steps.
    """
    tol = wanted(math.inf)
    while True:
        r = evaluate(tol)
        enough = wanted(r)
        if not math.isfinite(r) or tol <= least or (tol <= CLOSE * enough and not unmeasured()):
            return r
        tol = max(min(enough, 0.1 * tol), STEP * tol, least)
