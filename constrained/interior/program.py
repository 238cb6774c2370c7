"""The problem as the interior point sees it: slacks for inequalities, bounds, everything scaled, on numpy arrays.

    min sigma f(x)  subject to  r c(x) = 0,  r h(x) + s = 0,  s >= 0,  low <= x <= high
    phi = f - mu (sum log(x - low) + sum log(high - x) + sum log s) + DAMPED mu times distances to bounds on one side alone

x: the entries that bounds do not fix. sigma and r scale gradients at the start to 100 at most; C is the vector (r c, r h + s).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.derivatives.tape import Tape
from ..core.problem import Multipliers
from ..core.vec import Vec
from ..oracle import ConstrainedOracle

LARGEST = 100.0  # gradient at the start that is not scaled down
SCALED = 1e-8  # the smallest scale
PUSH = 1e-2  # of max(1, |bound|) and of the range: how far from bounds a start is moved
DAMPED = 1e-5  # without it -log falls for ever, and what neither f nor C needs runs off (Waechter and Biegler 2006, section 3.7)
EPS = float(np.finfo(np.float64).eps)
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

    @functools.cached_property
    def n(self) -> int:
        return len(self.free)

    @property
    def m(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def sides(self) -> tuple[Array, Array]:
        """Where there is a bound from below, and from above."""
        return np.isfinite(self.low), np.isfinite(self.high)

    @functools.cached_property
    def boxed(self) -> bool:
        """There is a bound."""
        return bool(self.sides[0].any() or self.sides[1].any())

    @functools.cached_property
    def bounded(self) -> bool:
        """There is a bound or an inequality."""
        return self.inequalities > 0 or self.boxed

    def clipped(self, x: Array) -> Array:
        """x within the bounds."""
        return np.minimum(np.maximum(x, self.low), self.high) if self.boxed else x

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
        if not self.boxed:
            return x
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
        self.finite = math.isfinite(self.f) and math.isfinite(self.theta)

    @functools.cached_property
    def g(self) -> Array:
        return self.program.sigma * self._free(self.tape.gradient)

    def _free(self, found: Tensor) -> Array:
        """The free entries of a vector, and of each row of a matrix."""
        array = found.double().cpu().numpy()
        return array if self.program.n == array.shape[-1] else array[..., self.program.free]

    @functools.cached_property
    def J(self) -> Any:
        """m x n, dense or scipy.sparse by rows."""
        p = self.program
        if p.sparse:
            J = self.tape.J.scipy()[:, p.free]
            return J.multiply(p.rows[:, None]).tocsr()
        return p.rows[:, None] * self._free(self.tape.jacobian)

    @functools.cached_property
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
        if not (p.sparse and at.explicit):
            H = self._free(at.hessian)
            H = H if len(H) == p.n else H[p.free]
            if not p.sparse:
                return H
            from scipy.sparse import csr_array

            return csr_array(H)
        whole: Any = sum(one.scipy() for one in at.summands.values())
        return whole.tocsr()[p.free][:, p.free]

    # -- distances to bounds ------------------------------------------------------------------------------------------------
    @functools.cached_property
    def dl(self) -> Array:
        """x - low; infinite without a bound."""
        return np.maximum(self.x - self.program.low, EPS * np.maximum(1.0, np.abs(self.program.low)))

    @functools.cached_property
    def du(self) -> Array:
        return np.maximum(self.program.high - self.x, EPS * np.maximum(1.0, np.abs(self.program.high)))

    @functools.cached_property
    def damping(self) -> tuple[Array, Array]:
        """The slopes in x and s of DAMPED times distances, where an entry has a bound on one side alone."""
        low, high = self.program.sides
        return DAMPED * (1.0 * (low & ~high) - (high & ~low)), np.full(len(self.s), DAMPED)

    @functools.cached_property
    def barrier(self) -> float:
        """(phi - f) / mu."""
        dx, ds = self.damping
        distances, damped = self.s, float(ds @ self.s)
        if self.program.boxed:
            low, high = self.program.sides
            distances = np.concatenate([self.dl[low], self.du[high], self.s])
            damped += float(np.abs(dx) @ np.where(dx > 0, self.dl, np.where(dx < 0, self.du, 0.0)))
        with np.errstate(divide="ignore"):  # a slack may round to 0, and phi is infinite
            return damped - float(np.log(distances).sum())

    def phi(self, mu: float) -> float:
        return self.f + mu * self.barrier if self.program.bounded else self.f

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
