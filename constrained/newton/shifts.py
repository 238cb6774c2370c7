"""Rule (1) of SketchedNewton: the shifts of the KKT matrix that make B = H + shift I positive definite on the null space of J.

    K = [[H + shift I, J'], [J, -gamma I]]

Up to DENSE unknowns the lowest eigenvalue of the reduced Hessian Z'HZ decides, Z the null space of J. For a large problem it is
not known: no shift first, then growing ones, each until the linear solver shows K to have the wrong inertia (`indefinite`).

A shift of |H|_F turns Newton's method into a slow one. Where Z'HZ is singular but not indefinite, a tiny shift keeps it fast more
often than not; the step that it gives is `tentative`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.derivatives.tape import Lagrangian
from ..linear import LinearSolution, LinearStatus
from .iterate import Iterate

SINGULAR = 1e-6  # of |H|_F: eigenvalues of the reduced Hessian within count as zero
DEPENDENT = 1e-6  # of the largest singular value of J: one below makes rows dependent, and K needs gamma
GIVEN_UP = 1e-2  # sigma_min(J)^2 below which the published code ends as "singular"


@dataclass(frozen=True, kw_only=True)
class Modification:
    """One attempt at K. `tentative`: its step is taken only where no penalty has to grow for it and few halvings do."""

    shift: float = 0.0
    gamma: float = 0.0
    tentative: bool = False


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What rule (1) looks at: |H|_F, the lowest eigenvalue of Z'HZ (inf: J has no null space), the singular values of J."""

    size: float
    lowest: float
    singular: Tensor
    m: int

    @classmethod
    def of(cls, at: Lagrangian, here: Iterate) -> Spectrum:
        J, H = here.rows[:, None] * at.tape.jacobian, at.hessian
        _, singular, V = torch.linalg.svd(J, full_matrices=True)
        largest = float(singular.max()) if len(J) else 0.0
        Z = V[int((singular > 1e-12 * largest).sum()) :].T
        lowest = float(torch.linalg.eigvalsh(Z.T @ H @ Z)[0]) if Z.shape[1] else math.inf
        return cls(size=float(H.norm()), lowest=lowest, singular=singular, m=len(J))

    @property
    def dependent(self) -> bool:
        """J has no full rank."""
        return self.m > 0 and int((self.singular > DEPENDENT * float(self.singular.max())).sum()) < self.m


def modifications(at: Lagrangian, here: Iterate, *, xi: float, robust: bool) -> Iterator[Modification]:
    """The attempts of one step, in turn. None is left where all have failed."""
    if not robust:
        return _published(Spectrum.of(at, here), here, xi)
    return _by_spectrum(Spectrum.of(at, here), here, xi) if here.dense else _by_growth()


def _by_spectrum(spectrum: Spectrum, here: Iterate, xi: float) -> Iterator[Modification]:
    """The smallest shift that is known to do, and gamma only where rows of J depend on one another."""
    b, size = float(here.b.norm()), spectrum.size
    gamma = 1e-3 * min(1.0, b) if spectrum.dependent else 0.0
    large = Modification(shift=xi + size, gamma=gamma)
    if spectrum.lowest < -SINGULAR * size:
        yield large
    elif spectrum.lowest <= SINGULAR * size:
        tiny = min(1e-2, b) * 1e-2 * size + 1e-8 * max(size, 1e-8)
        yield Modification(shift=tiny, gamma=gamma, tentative=True)
        yield large
    else:
        yield Modification(gamma=gamma)


def _by_growth() -> Iterator[Modification]:
    """Without a spectrum: no shift, then from 1e-4 tenfold each time."""
    yield Modification()
    yield from (Modification(shift=1e-4 * 10.0**power, gamma=1e-8) for power in range(12))


def _published(spectrum: Spectrum, here: Iterate, xi: float) -> Iterator[Modification]:
    """The paper's shift, at once."""
    largest = float(spectrum.singular.max()) if spectrum.m else 0.0
    if largest > 0 and float(spectrum.singular.min()) < math.sqrt(GIVEN_UP):
        return
    indefinite = spectrum.lowest < 1e-6 and spectrum.m < len(here.g)
    yield Modification(shift=xi + spectrum.size if indefinite else 0.0)


def indefinite(found: LinearSolution, m: int) -> bool:
    """The linear solver met negative curvature on the null space of J: K then has more than m negative eigenvalues."""
    return found.reason is LinearStatus.NEGATIVE_CURVATURE or (found.inertia is not None and found.inertia[1] > m)
