"""The violation minimised, bounds and slacks kept: Levenberg and Marquardt's method on |C|^2 / 2.

    [H + S + lam I   J'] [dx]     [-b / dl + b / du]
    [J               -E] [v ] = - [C               ]     v = C + J dw, S = b / distance^2

The same K as Newton's, with E = 1 for equalities and 1 + 1 / (S_s + lam) for eliminated slacks; b -> 0, against the bounds.
H = 0, later the Hessian of C'C / 2 where K keeps its inertia.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .filter import longest
from .inertia import Matrices, factor
from .iterate import Iterate
from .newton import Step
from .program import Array, Values

STEPS, SECOND_ORDER = 300, 20  # the Hessian of C'C comes in after so many
STATIONARY = 1e-8  # of |C|, lost over a way as long as x and the one from the start, at least 1: the violation has no slope
STUCK = 1e-5  # the same where no step is found
FEASIBLE = 1e-9
FALLS, SMALLEST = 0.2, 1e-30  # b by an accepted step, or one that bounds alone ask for; its end


@dataclass(frozen=True)
class Restored:
    """Where it ended; whether the violation is stationary there."""

    at: Values
    stationary: bool


def restore(start: Values, mu: float, enough: Callable[[Values], bool]) -> Restored:
    """From `start` until `enough`, or where the violation cannot be reduced, or the last point after STEPS steps."""
    at, size = start, _size(start)
    lam, growth, b = 1e-2 * size, 2.0, mu
    for k in range(STEPS):
        if size <= FEASIBLE or (k > 0 and enough(at)):
            return Restored(at, False)
        b = min(b, 1e-2 * size + 1e-16)
        it = _without_multipliers(at)
        if _slope(at) <= STATIONARY * size:
            return Restored(at, True)
        found = _step(it, b, lam, k >= SECOND_ORDER)
        if found is None:
            lam, growth = max(lam, 1e-14) * growth, 2 * growth
            continue
        step, predicted = found
        if predicted <= 0 and b > SMALLEST:  # away from bounds, and from less violation
            b = FALLS * b
            continue
        alpha = longest(it, step, 0.99)
        p = at.program
        trial = p.at(p.clipped(at.x + alpha * step.dx), at.s + alpha * step.ds)
        actual = 0.5 * (size * size - _size(trial) * _size(trial)) if trial.finite else -math.inf
        if trial.finite and trial.smooth and actual > 1e-4 * alpha * predicted > 0:
            at, size, b = trial, _size(trial), FALLS * b
            ratio = actual / (alpha * predicted)
            lam, growth = lam * max(1 / 3, 1 - (2 * min(ratio, 1.0) - 1) ** 3), 2.0
        elif step.size(at) <= 1e-15 or lam > 1e30:
            return Restored(at, _slope(at) <= STUCK * size)
        else:
            lam, growth = max(lam, 1e-14) * growth, 2 * growth
    return Restored(at, _slope(at) <= STUCK * size)


def flat(at: Values) -> bool:
    """|C|^2 has no slope in (x, s)."""
    return _slope(at) <= STATIONARY * _size(at)


def _size(at: Values) -> float:
    return float(np.linalg.norm(at.C))


def _without_multipliers(at: Values) -> Iterate:
    none = np.zeros(len(at.x))
    return Iterate(at, np.zeros(len(at.C)), none, none, np.zeros(len(at.s)))


def _slope(at: Values) -> float:
    """|w - P(w - grad |C|^2 / 2)| for w = (x, s), that in x times the way over |C|: then no unit of C, and no large one of x,
    changes what it is of |C|.
    """
    p = at.program
    gx = np.clip(at.J.T @ at.C, at.x - p.high, at.x - p.low)
    gs = np.minimum(at.C[p.equalities :], at.s)
    way = max(1.0, float(np.linalg.norm(at.x) + np.linalg.norm(at.x - p.start)))
    return math.hypot(float(np.linalg.norm(gx)) * way / max(_size(at), FEASIBLE**2), float(np.linalg.norm(gs)))


def _step(it: Iterate, b: float, lam: float, second_order: bool) -> tuple[Step, float] | None:
    """dw, and the reduction of |C|^2 / 2 that the model promises."""
    at, p = it.at, it.at.program
    zero: Any = _zeros(at)
    S, slack = b / it.dl**2 + b / it.du**2, b / at.s**2
    matrices = Matrices(zero, S, at.J, slack, p.sparse)
    tried = [replace(matrices, H=at.hessian(at.C, objective=0.0)), matrices] if second_order else [matrices]
    for one in tried:
        found = factor(one, lam, 1.0, 0.0)
        if found is None or found[1] != len(at.x):
            continue
        return _solved(it, b, lam, one, found[0])
    return None


def _solved(it: Iterate, b: float, lam: float, matrices: Matrices, solve: Callable[[Array], Array]) -> tuple[Step, float]:
    at, e = it.at, it.at.program.equalities
    gx, gs, Ds = -b / it.dl + b / it.du, -b / at.s, matrices.slack + lam
    bottom = np.concatenate([at.C[:e], at.C[e:] - gs / Ds])
    z = solve(-np.concatenate([gx, bottom]))
    dx, v = z[: len(gx)], z[len(gx) :]
    ds = -(gs + v[e:]) / Ds
    change = at.J @ dx
    change[e:] += ds
    bend = float(dx @ (matrices.H @ dx))
    predicted = -float(at.C @ change) - 0.5 * float(change @ change) - 0.5 * bend
    return Step(dx, ds, np.zeros(len(v))), predicted


def _zeros(at: Values) -> Any:
    n = len(at.x)
    if at.program.sparse:
        from scipy.sparse import csr_array

        return csr_array((n, n))
    return np.zeros((n, n))
