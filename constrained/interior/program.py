"""The problem as the interior point sees it: slacks for inequalities, bounds, everything scaled, on numpy arrays.

    min sigma f(x)  subject to  r c(x) = 0,  r h(x) + s = 0,  s >= 0,  low <= x <= high

x: the entries that bounds do not fix. sigma and r scale gradients at the start to 100 at most; C is the vector (r c, r h + s).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..core.derivatives.tape import Tape
from ..core.problem import Multipliers
from ..core.vec import Vec
from ..oracle import ConstrainedOracle

LARGEST = 100.0  # gradient at the start that is not scaled down
SCALED = 1e-8  # the smallest scale
PUSH = 1e-2  # of max(1, |bound|) and of the range: how far from bounds a start is moved
Array = np.ndarray


@dataclass(frozen=True)
class Program:
    """The oracle, its sizes and bounds, and the scales."""

    oracle: ConstrainedOracle
    like: Vec  # where fixed entries are taken from
    free: Array  # indices of the others
    low: Array
    high: Array
    equalities: int
    inequalities: int
    sparse: bool
    sigma: float
    rows: Array

    @classmethod
    def of(cls, oracle: ConstrainedOracle, start: Vec) -> Program:
        """Without scales; `scaled` finds them."""
        low, high = oracle.bounds
        tape = oracle.stacked(start)
        m = len(tape.c)
        inequalities = 0 if oracle.h is None else len(tape.split(tape.c)[-1])
        free = np.flatnonzero(low < high)
        few = tape.J.sparse or sparse(tape)
        return cls(oracle, start, free, low[free], high[free], m - inequalities, inequalities, few, 1.0, np.ones(m))

    def scaled(self, at: Values) -> Program:
        """Scales from the gradients at a point."""
        size = float(np.abs(at.g).max(initial=0.0))
        steepest = abs(at.J).max(axis=1).toarray().ravel() if self.sparse else np.abs(at.J).max(axis=1, initial=0.0)
        return replace(
            self,
            sigma=max(min(1.0, LARGEST / size) if size > 0 else 1.0, SCALED),
            rows=np.maximum(LARGEST / np.maximum(steepest, LARGEST), SCALED),
        )

    @classmethod
    def again(cls, oracle: ConstrainedOracle, like: Vec, slacks: int, sparse: bool, sigma: float, rows: Array) -> Program:
        """What `of` and `scaled` found at the start, without asking again."""
        low, high = oracle.bounds
        free = np.flatnonzero(low < high)
        return cls(oracle, like, free, low[free], high[free], len(rows) - slacks, slacks, sparse, sigma, rows)

    @functools.cached_property
    def start(self) -> Array:
        """The free entries of the start."""
        return self.flat(self.like)

    @property
    def n(self) -> int:
        return len(self.free)

    @property
    def m(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def bounded(self) -> bool:
        """There is a bound or an inequality."""
        return self.inequalities > 0 or bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())

    def whole(self, x: Array) -> Array:
        """x with the fixed entries."""
        if len(x) == self.like.size:
            return x
        full = self.like.ravel().double().cpu().numpy().copy()
        full[self.free] = x
        return full

    def vec(self, x: Array) -> Vec:
        flat = self.like.ravel()
        return self.like.unravel(torch.from_numpy(np.array(self.whole(x))).to(flat))

    def flat(self, x: Vec) -> Array:
        """The free entries."""
        return x.ravel().double().cpu().numpy()[self.free]

    def inside(self, x: Array) -> Array:
        """x moved from its bounds; by less where functions are not finite there."""
        for push in (PUSH, 1e-2 * PUSH, 1e-4 * PUSH):
            moved = inside(x, self.low, self.high, push)
            if np.array_equal(moved, x) or self.at(moved, np.zeros(self.inequalities)).finite:
                return moved
        return inside(x, self.low, self.high)

    def scaled_multipliers(self, given: Multipliers) -> Array:
        """Those of the scaled rows, (c, h)."""
        parts = [part.double().cpu().numpy() for part in (given.equality, given.inequality) if part is not None]
        return self.sigma * np.concatenate([np.zeros(0), *parts]) / self.rows

    def at(self, x: Array, s: Array, vec: Vec | None = None) -> Values:
        """f and C; one call of each function. vec: x as the oracle has seen it."""
        vec = self.vec(x) if vec is None else vec
        return Values(self, x, s, vec, self.oracle.stacked(vec))


class Values:
    """f, C and what is computed from them when asked for: g = grad f, J, the Hessian of the Lagrangian; scaled."""

    def __init__(self, program: Program, x: Array, s: Array, vec: Vec, tape: Tape):
        self.program, self.x, self.s, self.vec, self.tape = program, x, s, vec, tape
        self.value = float(tape.value)  # of f itself
        self.raw = tape.c.double().cpu().numpy()  # of c and h themselves
        self.f = program.sigma * self.value
        self.C = program.rows * self.raw
        self.C[program.equalities :] += s
        self.theta = float(np.abs(self.C).sum())

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.f) and np.isfinite(self.theta))

    @functools.cached_property
    def g(self) -> Array:
        return self.program.sigma * self.tape.gradient.double().cpu().numpy()[self.program.free]

    @functools.cached_property
    def J(self) -> Any:
        """m x n, dense or scipy.sparse by rows."""
        p = self.program
        if p.sparse:
            J = self.tape.J.scipy()[:, p.free]
            return J.multiply(p.rows[:, None]).tocsr()
        return p.rows[:, None] * self.tape.jacobian.double().cpu().numpy()[:, p.free]

    @property
    def smooth(self) -> bool:
        """The first derivatives are finite."""
        return bool(np.isfinite(self.g).all() and np.isfinite(self.J.data if self.program.sparse else self.J).all())

    def curved(self, lam: Array) -> bool:
        """The Hessian of the Lagrangian is finite."""
        H = self.hessian(lam)
        return bool(np.isfinite(H.data if self.program.sparse else H).all())

    def hessian(self, lam: Array, objective: float = 1.0) -> Any:
        """objective hess f + sum lam_i hess C_i, n x n."""
        p = self.program
        weights = torch.from_numpy(p.rows * lam).to(self.tape.c)
        at = self.tape.lagrangian(weights, objective * p.sigma)
        if not p.sparse:
            return at.hessian.double().cpu().numpy()[np.ix_(p.free, p.free)]
        if not at.explicit:
            from scipy.sparse import csr_array

            return csr_array(at.hessian.double().cpu().numpy()[np.ix_(p.free, p.free)])
        whole: Any = sum(one.scipy() for one in at.summands.values())
        return whole.tocsr()[p.free][:, p.free]

    def slid(self, s: Array) -> Values:
        """The same x with other slacks."""
        return Values(self.program, self.x, s, self.vec, self.tape)


def sparse(tape: Tape) -> bool:
    """The user gives Hessians of f and all constraints, and a sparse one."""
    if any(part.own.hessian is None for part in tape.parts):
        return False
    return any(one.sparse for one in tape.lagrangian(torch.zeros_like(tape.c)).summands.values())


def inside(x: Array, low: Array, high: Array, push: float = PUSH) -> Array:
    """x moved to push max(1, |bound|) from each bound, at most to push of the range."""
    width = high - low
    from_low = np.minimum(push * np.maximum(1.0, np.abs(low)), push * width)
    from_high = np.minimum(push * np.maximum(1.0, np.abs(high)), push * width)
    least = np.where(np.isfinite(low), low + np.nan_to_num(from_low), -np.inf)
    return np.clip(x, least, np.where(np.isfinite(high), high - np.nan_to_num(from_high), np.inf))
