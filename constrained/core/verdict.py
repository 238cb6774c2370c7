"""What the problem says of an answer: whether it is one, whether the solver should go on, and which measure decided.

    CONVERGED   residuals <= tol, and shares <= `limit`;   or
                residuals <= tol or at round-off (AT_ROUNDING times what a change of the last digits of x and y does to them), and
                shares <= tol
    go on       residuals <= tol, shares > `limit`, or > AIM MISSING where tol asks for no less: with a tolerance that would
                make them small enough. An answer within `limit` stands where that comes to nothing

shares: `Problem.progress`, numbers that no unit of the functions or variables changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .problem import Point, Problem
from .status import Status
from .vec import Tree, Vec

MISSING = 1e-3  # of the improvement since the start, or 10 tol
VIOLATED = 1e-6  # of the change of a constraint since the start, or 10 tol
VIOLATION = ("feasibility", "constraints")
AIM = 0.03  # of MISSING: in a flat and curved valley more is missing than half the slope
AT_ROUNDING = 10.0
AS_FAR_AS_ROUNDING = (
    "Converged: the residuals are those of rounding, and the measures relative to the start are within the tolerance."
)
FAR = "Stalled: the residuals are within the tolerance, the measures relative to the start are not."
TIMES = 12  # a tolerance is lowered in one run


@dataclass(frozen=True)
class Judgement:
    """A status, its figures in words, and the tolerance to go on with, where that is the thing to do."""

    status: Status
    words: str
    lower: float | None = None
    sentence: str = ""  # where that of the status would not be true
    measured: bool = False  # relative to the start too


def judged(
    problem: Problem, point: Point, start: Point, claim: Status, found: Mapping[str, float], tol: float, by: Any = None
) -> Judgement:
    """A claim of a solver, in the light of `found`, the problem's certificate of the point. by: as in `Problem.certify`."""
    words = ", ".join(f"{key} {value:.1e}" for key, value in found.items()) + f" (tol {tol:.1e})"
    if any(value != value for value in found.values()):
        return Judgement(Status.NONFINITE, words)
    within = bool(found) and all(value <= tol for value in found.values())
    unlikely = claim is Status.CONVERGED or (within and claim is Status.LOCALLY_INFEASIBLE)  # feasible, as far as tol says
    refused = Status.STALLED if unlikely else claim
    if not within and not _rounded_off(problem, point, found, tol):
        return Judgement(refused, words)
    shares = {key: value for key, value in problem.progress(point, start, found, by=by).items() if value == value}
    limits = {key: limit(key, tol) if within else tol for key in shares}
    if not within and (not shares or ("lower" not in shares and found.get("lower_gap", 0.0) > tol)):
        return Judgement(refused, words)
    over = {key: value for key, value in shares.items() if not value <= limits[key]}
    if not over:
        if within:
            aims = {key: AIM * MISSING for key in shares if limits[key] <= MISSING and key not in VIOLATION}
            far = {key: shares[key] / aim for key, aim in aims.items() if not shares[key] <= aim}
            lower = min((_wanted(found, key, excess, tol) for key, excess in far.items()), default=None)
            return Judgement(Status.CONVERGED, words, lower, measured=bool(shares))
        return Judgement(Status.CONVERGED, f"{words}; {_percent(shares)}", sentence=AS_FAR_AS_ROUNDING)
    if not within:
        return Judgement(refused, words)
    tighter = min(_wanted(found, key, value / limits[key], tol) for key, value in over.items())
    says = FAR if refused is Status.STALLED else ""
    return Judgement(refused, f"{words}; but {_percent(over)}", tighter, says)


def limit(key: str, tol: float) -> float:
    return max(VIOLATED if key in VIOLATION else MISSING, min(10 * tol, 1.0))


def _percent(shares: Mapping[str, float]) -> str:
    missing = [value for key, value in shares.items() if key not in VIOLATION]
    violated = [value for key, value in shares.items() if key in VIOLATION]
    says = []
    if missing:
        most = max(missing)
        amount = "all" if most >= 1 else f"up to {most:.1%}" if most >= MISSING else f"at most {most:.0e}"
        says.append(f"{amount} of the possible improvement may be missing")
    if violated and (max(violated) > 0 or not missing):
        says.append(f"constraints are violated by {max(violated):.0e} of their change since the start")
    return ", ".join(says)


def _wanted(found: Mapping[str, float], key: str, excess: float, tol: float) -> float:
    """A tolerance at which the share of this residual would be within its limit."""
    here = max((value for name, value in found.items() if name.startswith(key)), default=tol)
    here = min(here, tol) if here > 0 else 0.1 * tol
    return here * min(max(0.3 / excess, 1e-4), 0.3)


def _rounded_off(problem: Problem, point: Point, found: Mapping[str, float], tol: float) -> bool:
    """Residuals above tol are no more than a change of the last digits makes of them."""
    above = {key: value for key, value in found.items() if not value <= tol and key != "lower_gap"}
    if not above or not all(math.isfinite(value) for value in above.values()):
        return False
    again = problem.residuals(point)
    if not above.keys() <= again.keys() or any(again[key] != value for key, value in found.items() if key in again):
        return False  # `tie`, a wrong derivative; or functions that are no functions
    noise = dict.fromkeys(above, 0.0)
    for seed in range(2):
        moved = problem.residuals(_nearby(point, seed))
        noise = {key: max(noise[key], abs(moved.get(key, 0.0) - value)) for key, value in above.items()}
    return all(value <= AT_ROUNDING * noise[key] for key, value in above.items())


def _nearby(point: Point, seed: int) -> Point:
    """The point with each entry moved by a rounding error."""
    generator = torch.Generator().manual_seed(seed)

    def moved(tree: Tree) -> Tree:
        vec = Vec.of(tree)
        eps = torch.finfo(vec.dtype).eps
        return vec.map(lambda t: t * (1 + eps * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t))).tree()

    return dataclasses.replace(point, x=moved(point.x), y=None if point.y is None else moved(point.y))
