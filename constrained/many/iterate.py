"""interior/iterate.py lane by lane: where each run stands, and every measure of it.

L = f + lam'C - z'd,   phi = f - mu sum log d,   d = (P'x + b, s)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core.derivatives.lanes import LaneTape
from ..interior.iterate import FAR, KAPPA, LEAST, POWER, SLOW
from .lanes import dot, joined, largest, taken, transposed
from .program import Program

INFINITE = math.inf


@dataclass(frozen=True)
class State:
    """Where the lanes stand between two steps. The filter's pairs are padded with infinite ones, which forbid nothing."""

    index: Tensor  # which lane of the call
    x: Tensor
    s: Tensor
    lam: Tensor  # of the scaled rows
    z: Tensor
    mu: Tensor
    pairs: Tensor
    limit: Tensor  # theta at the start
    tol: Tensor
    most: Tensor  # steps
    residual: Tensor  # of the unscaled problem, where the last step began
    violation: Tensor
    dw: Tensor  # the last shift
    fresh: Tensor  # multipliers are to be those of least squares: at the start, and after a restoration
    shifted: Tensor  # the last step was one with a shift
    regular: Tensor  # and with a diagonal in the corner
    before: Tensor  # the residual that the last step has to reduce, infinite for most
    best: Tensor  # residual
    least: Tensor  # violation
    waited: Tensor
    short: Tensor  # steps in a row that were short
    stuck: Tensor  # steps in a row at infeasible points stationary for |C|^2
    failed: Tensor  # polishing steps
    restored: Tensor
    steps: Tensor
    evaluations: Tensor
    hessians: Tensor

    def taken(self, index: Tensor) -> State:
        return taken(self, index)

    def joined(self, other: State) -> State:
        """These lanes, then the others."""
        most = max(self.pairs.shape[1], other.pairs.shape[1])
        return joined(*(replace(one, pairs=_padded(one.pairs, most)) for one in (self, other)))


def _padded(pairs: Tensor, size: int) -> Tensor:
    return torch.cat([pairs, pairs.new_full((len(pairs), size - pairs.shape[1], 2), INFINITE)], 1)


@dataclass(frozen=True)
class Iterate:
    """f, C, d, g, J at the state's points, and the multipliers; scaled."""

    program: Program
    x: Tensor
    s: Tensor
    lam: Tensor
    z: Tensor
    f: Tensor
    C: Tensor
    d: Tensor
    g: Tensor
    J: Tensor

    @classmethod
    def at(cls, program: Program, tape: LaneTape, x: Tensor, s: Tensor, lam: Tensor, z: Tensor) -> Iterate:
        """From the tape at x."""
        g = program.sigma[:, None] * program.columns(tape.gradient)
        J = program.rows[:, :, None] * program.columns(tape.jacobian)
        return cls(program, x, s, lam, z, program.sigma * tape.value, program.rows_of(tape, s), program.distances(x, s), g, J)

    @functools.cached_property
    def theta(self) -> Tensor:
        return self.C.abs().sum(1)

    def phi(self, mu: Tensor) -> Tensor:
        return self.f + barrier(self.d, mu)

    # -- errors -------------------------------------------------------------------------------------------------------------
    @functools.cached_property
    def dual(self) -> Tensor:
        """grad L in x."""
        return self.g + transposed(self.J, self.lam) - self.z[:, : self.program.layout.of_x] @ self.program.layout.Pt

    @functools.cached_property
    def dual_slack(self) -> Tensor:
        return self.lam[:, self.program.layout.equalities :] - self.z[:, self.program.layout.of_x :]

    def taken(self, index: Tensor) -> Iterate:
        """Some lanes, their program too."""
        parts = {name: getattr(self, name)[index] for name in ("x", "s", "lam", "z", "f", "C", "d", "g", "J")}
        return Iterate(taken(self.program, index), **parts)

    @property
    def dual_norm(self) -> Tensor:
        """|grad L| in (x, s)."""
        return torch.hypot(torch.linalg.vector_norm(self.dual, dim=1), torch.linalg.vector_norm(self.dual_slack, dim=1))

    def lowered(self, mu: Tensor) -> Tensor:
        """mu where its barrier problem is not solved yet, to within KAPPA mu; smaller ones where it is."""
        layout = self.program.layout
        count = max(layout.m + 2 * layout.n + layout.inequalities, 1)
        scale = ((self.lam.abs().sum(1) + self.z.sum(1)) / count).clamp(min=100.0) / 100.0
        rest = largest(torch.cat([self.dual, self.dual_slack], 1).abs()) / scale
        rest, product = torch.maximum(rest, largest(self.C.abs())), self.z * self.d
        while True:
            error = torch.maximum(rest, largest((product - mu[:, None]).abs()) / scale)
            solved = (mu > LEAST) & (error <= KAPPA * mu)
            if not bool(solved.any()):
                return mu
            mu = torch.where(solved, fallen(mu), mu)

    @functools.cached_property
    def violation(self) -> Tensor:
        """|(c, max(h, 0))|, of the problem itself."""
        e = self.program.layout.equalities
        raw = self._raw
        return torch.linalg.vector_norm(torch.cat([raw[:, :e], raw[:, e:].clamp(min=0)], 1), dim=1)

    @functools.cached_property
    def _raw(self) -> Tensor:
        """c and h themselves."""
        e = self.program.layout.equalities
        C = torch.cat([self.C[:, :e], self.C[:, e:] - self.s], 1) if self.s.shape[1] else self.C
        return C / self.program.rows

    @functools.cached_property
    def residual(self) -> Tensor:
        """|(x - P(x - grad f - J'lam), c, max(h, 0), min(lam_h, max(-h, 0)))|, of the problem itself."""
        p, e = self.program, self.program.layout.equalities
        lam = torch.cat([self.lam[:, :e], self.lam[:, e:].clamp(min=0)], 1)
        step = self.x - (self.g + transposed(self.J, lam)) / p.sigma[:, None]
        stationarity = self.x - torch.clamp(step, p.low, p.high)
        mu = lam[:, e:] * p.rows[:, e:] / p.sigma[:, None]
        complementarity = torch.minimum(mu, (-self._raw[:, e:]).clamp(min=0))
        parts = torch.cat([stationarity, self.violation[:, None], complementarity], 1)
        return torch.linalg.vector_norm(parts, dim=1)

    # -- multipliers --------------------------------------------------------------------------------------------------------
    def near(self, mu: Tensor) -> Iterate:
        """z within FAR of mu / distance."""
        most = FAR * mu[:, None] / self.d
        return replace(self, z=torch.clamp(self.z, most / FAR**2, most))


def fallen(mu: Tensor) -> Tensor:
    """The barrier's next parameter."""
    return torch.minimum(SLOW * mu, mu**POWER).clamp(min=LEAST)


def barrier(d: Tensor, mu: Tensor) -> Tensor:
    """-mu times the sum of logarithms; of several points a lane too."""
    return -mu * d.log().sum(-1)


def slope(it: Iterate, mu: Tensor, dx: Tensor, approach: Tensor) -> Tensor:
    """The derivative of phi along a step."""
    return dot(it.g, dx) - mu * (approach / it.d).sum(1)
