"""Restoration: less constraint violation, by Levenberg and Marquardt's method on |c|^2 / 2.

    [[mu I, J'], [J, -I]] (d, w) = (-0, -c)   <=>   (J'J + mu I) d = -J'c,      mu by Nielsen's update

`restore` minimises; `restart` makes an iterate of what it found, with least-squares multipliers, or the verdict that no point
near has less violation.

Source: Madsen, Nielsen and Tingleff, Methods for non-linear least squares problems, 2004; the second-order term from step 20 on
(hess of c'c kept where it does not spoil the curvature) and the tests are this library's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kkt
from ..core.derivatives.tape import Tape
from ..core.status import Status
from ..core.vec import Vec
from ..oracle import ConstrainedOracle
from .iterate import Iterate

STATIONARY = 1e-6  # |J'c| / |c| at which a violation that does not fall any more counts as locally least
STEPS = 300
SECOND_ORDER = 20  # steps after which the curvature of c enters
LARGEST = 1e3  # multipliers beyond which those of the least squares are not used


@dataclass(frozen=True)
class Violation:
    """Where the restoration ended: x, |c| there, and |J'c| / |c|."""

    x: Vec
    violation: float
    slope: float


@dataclass(frozen=True)
class Restart:
    """`outcome` RUNNING: Newton's method goes on from `iterate`; else the verdict, and where x is then (None: where it was)."""

    outcome: Status
    iterate: Iterate | None = None


def stationary(tape: Tape, here: Iterate) -> bool:
    """x is stationary for |c|^2, its rows scaled."""
    return float(tape.vjp(here.rows * here.c).norm()) <= STATIONARY * float(here.c.norm())


def restart(oracle: ConstrainedOracle, here: Iterate, start: Vec, *, violation: float, share: float, tol: float) -> Restart:
    """An iterate with less than 0.9 of the `violation` |c|, by restoration from `start` down to `share` of it."""
    found = restore(oracle, start, target=share * violation, tol=tol)
    if found.violation > tol and found.slope <= STATIONARY:
        return Restart(Status.LOCALLY_INFEASIBLE, Iterate.at(oracle, found.x, here.lam, here.rows))
    if found.violation > 0.9 * violation:
        return Restart(Status.STALLED)
    tape = oracle.tape(found.x)
    if not bool(tape.gradient.isfinite().all()):
        return Restart(Status.NONFINITE)
    return Restart(Status.RUNNING, Iterate.at(oracle, found.x, _multipliers(tape, here.rows), here.rows))


def _multipliers(tape: Tape, rows: Tensor) -> Tensor:
    """Those of least squares, of the scaled rows; zero where they are large, at points where J is nearly singular."""
    J = tape.jacobian
    lam, _ = kkt.least_squares(rows[:, None] * J, J.new_zeros(0, len(tape.x)), tape.gradient, None)
    return lam if bool(lam.abs().max() <= LARGEST) else torch.zeros_like(lam)


def restore(oracle: ConstrainedOracle, x: Vec, *, target: float, tol: float) -> Violation:
    """x with |c| <= max(target, tol), or where |c| cannot be reduced locally, or the best after STEPS steps."""
    tape = oracle.tape(x)
    c, J = tape.c, tape.jacobian
    mu, growth = 1e-2 * float(c.norm()), 2.0
    eye = torch.eye(len(tape.x), dtype=c.dtype, device=c.device)
    for step in range(STEPS):
        size, Jc = float(c.norm()), J.T @ c
        slope = float(Jc.norm()) / size if size > 0 else 0.0
        if size <= max(target, tol):
            break
        A = J.T @ J
        if slope <= 1e-4 * STATIONARY:
            away = _escape(oracle, x, size)
            if away is None:
                break
            x, tape = away
            c, J = tape.c, tape.jacobian
            continue
        if step >= SECOND_ORDER:
            at = tape.lagrangian(c)
            full = A + at.hessian - _objective_hessian(oracle, x)
            A = full if bool(torch.linalg.eigvalsh(full)[0] > -0.5 * mu) else A
        d = -torch.linalg.lstsq(A + mu * eye, Jc[:, None]).solution[:, 0]
        if float(d.norm()) <= 1e-15 * (1.0 + float(x.norm())):
            break
        moved = x.add(x.unravel(d), 1.0)
        trial = oracle.tape(moved)
        predicted = -float(Jc @ d) - 0.5 * float(d @ (A @ d))
        left = float(trial.c.norm())
        actual = 0.5 * (size * size - left * left)
        falls = predicted > 0 and actual > 1e-4 * predicted
        if abs(actual) <= 1e-13 * size * size:  # within rounding the slope decides
            falls = float((trial.jacobian.T @ trial.c).norm()) < 0.5 * float(Jc.norm())
        if bool(trial.c.isfinite().all()) and falls:
            x, tape, c, J = moved, trial, trial.c, trial.jacobian
            mu, growth = mu * max(1 / 3, 1 - (2 * min(actual / max(predicted, 1e-300), 1.0) - 1) ** 3), 2.0
        else:
            mu, growth = max(mu, 1e-14) * growth, 2 * growth
            if mu > 1e30:
                break
    size = float(c.norm())
    return Violation(x, size, float((J.T @ c).norm()) / size if size > 0 else 0.0)


def _escape(oracle: ConstrainedOracle, x: Vec, size: float) -> tuple[Vec, Tape] | None:
    """From a stationary point of |c|^2 that is not a minimum: a point with less, along the most negative curvature."""
    tape = oracle.tape(x)
    full = tape.jacobian.T @ tape.jacobian + tape.lagrangian(tape.c).hessian - _objective_hessian(oracle, x)
    values, V = torch.linalg.eigh(full)
    if not bool(values[0] < -1e-8 * (1.0 + values.abs().max())):
        return None
    for length in 0.1 ** torch.arange(0.0, 8.0):
        for sign in (1.0, -1.0):
            moved = x.add(x.unravel(V[:, 0]), sign * float(length) * (1.0 + float(x.norm())))
            trial = oracle.tape(moved)
            if float(trial.c.norm()) < size:
                return moved, trial
    return None


def _objective_hessian(oracle: ConstrainedOracle, x: Vec) -> torch.Tensor:
    tape = oracle.tape(x)
    return tape.lagrangian(torch.zeros_like(tape.c)).hessian
