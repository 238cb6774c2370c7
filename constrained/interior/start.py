"""Where the iteration starts: x inside its bounds, slacks, multipliers; cold, or warm from a point near a solution, perhaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .iterate import Iterate
from .newton import least_squares
from .program import PUSH, Array, Program, Values, inside

LARGEST = 1e3  # entry of least-squares multipliers; others are dropped
NEAR = 1e-2  # of the residual of a warm start: its distance to bounds; of that distance: mu


def cold(at: Values) -> Iterate:
    """Slacks as the rows are, PUSH at least; z = 1."""
    p = at.program
    slack = np.maximum(-at.C[p.equalities :], PUSH)
    at = at.slid(slack) if p.inequalities else at
    zl, zu = (np.isfinite(bound) * 1.0 for bound in (p.low, p.high))
    it = Iterate(at, np.zeros(p.m), zl, zu, np.ones(len(slack)))
    return first_multipliers(it) if at.smooth else it


def warm(program: Program, x: Array, lam: Array, most: float) -> tuple[Iterate, float]:
    """From x and the multipliers of the scaled rows: as near to bounds as the residual there is small, and with as small a mu.

    most: of mu.
    """
    none, slack = np.zeros(program.n), np.zeros(program.inequalities)
    at = program.at(np.clip(x, program.low, program.high), slack)
    push = min(PUSH, NEAR * Iterate(at, lam, none, none, slack).residual + 1e-10)
    mu = min(most, NEAR * push)
    at = program.at(inside(at.x, program.low, program.high, push), slack)
    at = at.slid(np.maximum(-at.C[program.equalities :], push))
    it = Iterate(at, lam, none, none, slack)
    zl = np.where(np.isfinite(program.low), np.maximum(it.dual, mu / it.dl), 0.0)
    zu = np.where(np.isfinite(program.high), np.maximum(-it.dual, mu / it.du), 0.0)
    return replace(it, zl=zl, zu=zu, zs=np.maximum(lam[program.equalities :], mu / at.s)), mu


def first_multipliers(it: Iterate) -> Iterate:
    """Those of least squares, or 0 where they are large: at points where J is nearly singular."""
    lam = least_squares(it)
    large = not len(lam) or not np.isfinite(lam).all() or float(np.abs(lam).max()) > LARGEST
    return replace(it, lam=np.zeros_like(it.lam) if large else lam)
