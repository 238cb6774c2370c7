"""Derivatives against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import ProblemError
from ..vec import Vec

V = TypeVar("V", float, Tensor)


@dataclass(frozen=True)
class Finding:
    """One derivative compared: its name, the relative error, and whether it agrees to `tolerance`."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What `problem.check()` found. `ok`; `bad`, the names that are off; printing it gives a line a derivative."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    @property
    def bad(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings if not finding.ok)

    def raise_for_errors(self) -> Report:
        """This report, or ProblemError naming every derivative that is off."""
        if not self.ok:
            raise ProblemError(
                f"check: expected derivatives that agree with finite differences, got other ones for {', '.join(self.bad)}"
            )
        return self

    def __str__(self) -> str:
        return "\n".join(f"{'ok ' if f.ok else 'OFF'}  {f.name:<24} relative error {f.error:.1e}" for f in self.findings)


def worst(findings: Sequence[Finding]) -> Report:
    """Of the findings of one name, at several points, the one farthest beyond its tolerance."""
    names = dict.fromkeys(finding.name for finding in findings)
    return Report(tuple(max((f for f in findings if f.name == name), key=lambda f: f.error / f.tolerance) for name in names))


def direction(like: Vec, generator: torch.Generator) -> Vec:
    """A random vector of length one in the space of `like`."""
    v = like.map(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t))
    return v / float(v.norm())


def compare(name: str, claimed: V, along: Callable[[float], V], size: float, h: float, eps: float) -> Finding:
    """The claimed derivative of `along` at 0. Where it is not that of the difference, its curvature is told from an error by a
    second step size, twice the first.
    """
    once = _difference(along, h)
    scale, least = _length(once) + 1e-3 * max(1.0, size), 100 * eps ** (2 / 3)
    error = _length(claimed - once) / scale
    if error <= least:
        return Finding(name, error, least)
    truncation, rounding = _length(_difference(along, 2 * h) - once), 10 * eps * size / h
    return Finding(name, error, max(least, (truncation + rounding) / scale))


def _difference(along: Callable[[float], Any], t: float) -> Any:
    change = along(t) - along(-t)
    return (change.double() if isinstance(change, Tensor) else change) / (2 * t)


def _length(v: float | Tensor) -> float:
    return float(v.double().norm()) if isinstance(v, Tensor) else abs(v)
