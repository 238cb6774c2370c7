"""Means and spreads over seeds, and differences of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from constrained.core.errors import OptionError


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one seed) over the `seeds` that have a value, of `of` in all."""

    mean: float
    std: float | None
    seeds: int
    of: int

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {digits(self.std)}"
        return f"{digits(self.mean)}{spread}" + (f" ({self.seeds} of {self.of})" if self.seeds < self.of else "")


@dataclass(frozen=True)
class Paired:
    """Differences ours - baseline, seed by seed: mean, sample standard deviation, wins (> 0) of seeds, and the smallest."""

    mean: float
    std: float | None
    wins: int
    seeds: int
    least: float

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {digits(self.std)}"
        return f"{digits(self.mean, '+')}{spread}, {self.wins}/{self.seeds} seeds, least {digits(self.least, '+')}"


def paired(ours: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two methods on the same seeds, given in the same order; a tie is no win."""
    if len(ours) != len(baseline) or len(ours) == 0:
        raise OptionError(
            f"paired(ours, baseline): expected equally many figures, at least one, got {len(ours)} and {len(baseline)}"
        )
    gaps = np.asarray(ours, dtype=float) - np.asarray(baseline, dtype=float)
    if not np.isfinite(gaps).all():
        raise OptionError(f"paired(ours, baseline): expected finite figures, got {list(ours)} and {list(baseline)}")
    return Paired(float(gaps.mean()), _std(gaps), int((gaps > 0).sum()), len(gaps), float(gaps.min()))


def _std(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def spread(values: Sequence[float | None]) -> Spread | None:
    """Of those that are figures; None where there is none."""
    known = np.array([value for value in values if value is not None], dtype=float)
    return Spread(float(known.mean()), _std(known), len(known), len(values)) if len(known) else None


def digits(value: float, sign: str = "") -> str:
    """As tables show it."""
    return f"{value:{sign}.3f}"
