"""Multipliers of two solvers at one answer, and whether they can be expected to agree.

    z = (lam, mu, low, high),  grad L = g + J'lam + J_h'mu - low + high,  mu, low, high >= 0

Of an entry that bounds fix the two are one: high - low, of either sign.

They are unique and depend on x without a jump where two things hold, judged by the functions at x alone:

licq     the smallest singular value of the active gradients, each of length 1, relative to the largest one
strict   the least |gradient| z_i of active inequalities and bounds, relative to |g|; z of least squares

Active: c, and inequalities and bounds that steps of NEAR max(1, |x_j|) in each x_j would reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .judge import DENSE, At, dense

if TYPE_CHECKING:
    from .run import Row

NEAR = 1e-5
SAME = 1e-6  # relative: two x are one point
LICQ, STRICT = 1e-6, 1e-4  # at least, for multipliers to be compared
AGREE = 1e-4


@dataclass(frozen=True)
class Judged:
    """The least-squares z of what is active, and the two measures."""

    z: np.ndarray
    licq: float
    strict: float


def judged(at: At) -> Judged | None:
    """None where something is not finite, or there are too many unknowns."""
    n = len(at.x)
    if n > DENSE:
        return None
    rows = np.vstack([dense(at.J), dense(at.Jh), -np.eye(n), np.eye(n)])
    if not (np.isfinite(rows).all() and np.isfinite(at.g).all()):
        return None
    fixed = at.low == at.high
    slack = np.concatenate([0 * at.c, -at.h, np.where(fixed, np.inf, at.x - at.low), at.high - at.x])
    signed = np.concatenate([np.zeros(len(at.c)), np.ones(len(at.h) + n), ~fixed]) > 0
    active = slack <= NEAR * np.abs(rows) @ np.maximum(1.0, np.abs(at.x))
    length, z = np.linalg.norm(rows, axis=1), np.zeros(len(rows))
    length[length == 0] = 1.0
    unit, signed = rows[active] / length[active, None], signed[active]
    if not len(unit):
        return Judged(z, 1.0, np.inf)
    values = np.linalg.svd(unit, compute_uv=False)
    licq = values[-1] / values[0] if len(unit) <= n and values[0] > 0 else 0.0
    w = np.linalg.lstsq(unit.T, -at.g, rcond=None)[0]
    z[active] = w / length[active]
    strict = w[signed].min() / max(np.linalg.norm(at.g), 1e-300) if signed.any() else np.inf
    return Judged(z, float(licq), float(strict))


def off(z: np.ndarray | None, other: np.ndarray | None) -> float:
    """The largest |z_i - other_i| / max(1, |other_i|)."""
    if z is None or other is None or len(z) != len(other):
        return np.nan
    return float(np.max(np.abs(z - other) / np.maximum(1.0, np.abs(other)), initial=0.0))


def same(x: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(x - other).max() <= SAME * max(1.0, np.abs(other).max()))


@dataclass(frozen=True)
class Pair:
    """Our row and a peer's of one problem, which both solve, at one point."""

    ours: Row
    theirs: Row

    @property
    def licq(self) -> float:
        return min(self.ours.licq, self.theirs.licq)

    @property
    def strict(self) -> float:
        return min(self.ours.strict, self.theirs.strict)

    @property
    def qualifies(self) -> bool:
        return self.licq >= LICQ and self.strict >= STRICT

    @property
    def apart(self) -> float:
        return off(self.ours.z, self.theirs.z)

    @property
    def agrees(self) -> bool:
        return self.apart <= AGREE


def paired(rows: Iterable[Row]) -> dict[tuple[str, str, str], Pair]:
    """By solver, set and problem: where `default` and the solver solve it at 1e-6, end at one point, and have multipliers."""
    by = {(row.solver, row.set, row.problem): row for row in rows if row.z is not None and row.solved(1e-6)}
    found = {key: Pair(by["default", *key[1:]], row) for key, row in by.items() if ("default", *key[1:]) in by}
    return {key: pair for key, pair in found.items() if key[0] != "default" and same(pair.ours.x, pair.theirs.x)}


def report(rows: Iterable[Row]) -> Iterator[str]:
    """Of each peer how many agree, and those that do not."""
    found = paired(rows)
    for peer in dict.fromkeys(solver for solver, *_ in found):
        every = [pair for (solver, *_), pair in found.items() if solver == peer]
        chosen = sorted((pair for pair in every if pair.qualifies), key=lambda pair: -pair.apart)
        if not chosen:
            continue
        bad, worst = [pair for pair in chosen if not pair.agrees], chosen[0]
        zero = sum(not np.any(np.abs(pair.theirs.z) > AGREE) for pair in chosen)
        ours, theirs = (max(row.off for row in side) for side in zip(*((pair.ours, pair.theirs) for pair in chosen)))
        yield f"multipliers beside {peer}'s: {len(every)} problems solved by both at one point"
        yield f"  {len(chosen)} of them with licq >= {LICQ:.0e} and strict >= {STRICT:.0e}; of {zero} all multipliers are 0"
        yield f"  {len(chosen) - len(bad)} agree to {AGREE:.0e}; the worst: {worst.apart:.1e}, {worst.ours.problem}"
        yield f"  from least squares at the same x, at most: ours {ours:.1e}, {peer}'s {theirs:.1e}"
        for pair in bad:
            yield (
                f"  {pair.ours.problem:<14} {pair.apart:.1e} apart; from least squares ours {pair.ours.off:.1e}, {peer}'s "
                f"{pair.theirs.off:.1e}; licq {pair.licq:.1e}, strict {pair.strict:.1e}"
            )
