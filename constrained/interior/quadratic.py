"""d that makes g'd + d'A d / 2 least with low <= d <= high, A = H + rho J'J + w I, w >= 0 so that A is positive definite.

    faces     Newton's steps on d = P(d - t (g + A d)), t = 1 / diag A: entries that P moves are held there, the others solve
              g + A d = 0. They end at the solution, but may free only the outermost entries of a wrong face in a step.
    barrier   sum log(d - low) + log(high - d), weights falling by ten: a few dozen systems at most, whatever the face. Then faces
              from there.

rho J'J fills in and has the condition of rho, so that it is eliminated from [[H + w I + D, J'], [J, -I / rho]], whose inertia
tells whether w is enough (inertia.py).

References: Hintermueller, Ito and Kunisch, SIAM J. Optim. 13, 2002 (faces); Mehrotra, SIAM J. Optim. 2, 1992 (barrier; here
without a predictor).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .filter import reach
from .inertia import Matrices, factored
from .program import Array, inside

FACES = 8  # steps on them before the barrier, and after it
SYSTEMS = 60  # of the barrier, at most
CENTRED, TAU = 0.1, 0.99  # the fall of its weight, and the share of a distance that a step takes
GAP, LEFT = 1e-10, 1e-8  # of what the model falls, and of slopes at the start, at which the barrier ends


@dataclass
class Quadratic:
    """The data; w grows where A is found not to be positive definite. Matrices dense or scipy.sparse by rows."""

    H: Any
    J: Any
    rho: float
    g: Array
    low: Array
    high: Array
    sparse: bool
    w: float = 0.0

    def slope(self, d: Array) -> Array:
        """g + A d."""
        return self.g + self.H @ d + self.rho * (self.J.T @ (self.J @ d)) + self.w * d

    def solved(self, b: Array, D: Array, free: Array) -> Array | None:
        """(A + D)^-1 b on the free entries, D a vector; w is raised until there is one."""
        none = np.zeros(self.J.shape[0])
        while free.any():
            shifted = (D + self.w)[free]
            found = factored(Matrices(self.H[free][:, free], shifted, self.J[:, free], none + self.rho, self.sparse), self.w, 1.0)
            if found is None or found.dw == 0:
                return None if found is None else found.solve(np.concatenate([b[free], none]))[: len(shifted)]
            self.w += found.dw
        return np.zeros(0)

    def diagonal(self) -> Array:
        """That of A; 1 where it is not positive."""
        squares = self.J.multiply(self.J).sum(axis=0) if self.sparse else (self.J**2).sum(axis=0)
        found = self.H.diagonal() + self.rho * np.asarray(squares).ravel() + self.w
        return np.where(found > 0, found, 1.0)


def minimiser(q: Quadratic) -> Array | None:
    """The d of the model; None where no w helps. Where faces go to and fro at the end, what the barrier found.

    >>> A, g, free = np.diag([2.0, 2.0]), np.array([-2.0, -6.0]), np.full(2, np.inf)
    >>> minimiser(Quadratic(A, np.zeros((0, 2)), 1.0, g, -free, np.array([5.0, 2.0]), sparse=False))
    array([1., 2.])
    """
    d, settled = _faces(q, np.zeros(len(q.g)), q.g)
    if d is None or settled:
        return d
    rough, pull = _barrier(q)
    if rough is None:
        return None
    d, settled = _faces(q, rough, pull)
    return d if settled else rough


def _faces(q: Quadratic, d: Array, pull: Array) -> tuple[Array | None, bool]:
    """From d, where P(d - t pull) tells the first face; whether it is that of the solution."""
    before = None
    for _ in range(FACES + 1):
        there = d - pull / q.diagonal()
        held = np.clip(there, q.low, q.high)
        free = (held == there) & (q.low < q.high)
        if before is not None and np.array_equal(free, before):
            return np.clip(d, q.low, q.high), True
        before, d = free, np.where(free, 0.0, held)
        found = q.solved(-q.slope(d), np.zeros(len(d)), free)
        if found is None:
            return None, False
        d[free] = found
        pull = np.where(free, 0.0, q.slope(d))
    return d, False


def _barrier(q: Quadratic) -> tuple[Array | None, Array]:
    """d, and z of low less z of high, which are about 0 where no bound holds."""
    d, free = inside(np.clip(0.0, q.low, q.high), q.low, q.high), q.low < q.high
    sides = [free & np.isfinite(end) for end in (q.low, q.high)]
    # kept beside d, in which they would be lost to rounding
    dl, du = (np.where(side, gap, np.inf) for side, gap in zip(sides, (d - q.low, q.high - d)))
    near, size = np.minimum(dl, du), max(np.linalg.norm(q.g), np.linalg.norm(q.slope(d)[free]))
    mu, count = float(near[np.isfinite(near)].mean() * size) / math.sqrt(len(d)), sum(int(side.sum()) for side in sides)
    zl, zu = mu / dl, mu / du  # as large as slopes are: from smaller ones the bounds would be met first, and shorten steps
    for _ in range(SYSTEMS):
        slope, kept = q.slope(d), float(zl[sides[0]] @ dl[sides[0]] + zu[sides[1]] @ du[sides[1]])
        if kept <= GAP * abs(0.5 * float((slope + q.g) @ d)) and np.linalg.norm((slope - zl + zu)[free]) <= LEFT * size:
            break
        mu = CENTRED * kept / count
        step, found = np.zeros(len(d)), q.solved(-(slope - mu / dl + mu / du), zl / dl + zu / du, free)
        if found is None:
            return None, zl
        step[free] = found
        dzl, dzu = mu / dl - zl - zl / dl * step, mu / du - zu + zu / du * step
        length, dual = min(reach(dl, step, TAU), reach(du, -step, TAU)), min(reach(zl, dzl, TAU), reach(zu, dzu, TAU))
        d, dl, du, zl, zu = d + length * step, dl + length * step, du - length * step, zl + dual * dzl, zu + dual * dzu
    return np.clip(d, q.low, q.high), zl - zu
