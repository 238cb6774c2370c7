"""Curvature pairs and the inverse-Hessian estimate they make: the memory of the L-BFGS methods."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..core.states import solver_state
from ..core.vec import Vec

TINY = 1e-200  # s'y of a pair: below, quotients of pairs overflow
FLAT = 1e-10  # of |s| |y|: an s'y below says nothing of the curvature along s
ROUNDING = 10.0  # units of eps |s|'|g|: so much of s'y may be rounding of the gradients
LONGER = 10.0  # times the last step: the next one where the last met no curvature
LONGEST = 1e6  # times 1 + |x|: no step along the gradient is tried that is longer


def straight(s: Vec, y: Vec, g: Vec) -> bool:
    """No positive curvature along s to rounding: y is the change of the gradient over s, g the gradient at one end."""
    sy, length, noise = float(s @ y), float(s.norm()), ROUNDING * torch.finfo(s.dtype).eps
    if not sy > max(FLAT * length * float(y.norm()), TINY):
        return True
    # Large entries of g where s has none have no part in the rounding of s'y.
    return not (sy > noise * length * float(g.norm()) or sy > noise * float(s.map(torch.abs) @ g.map(torch.abs)))


def longest(x: Vec, g: Vec, residual: float) -> float:
    """The lam that could move x by LONGEST (1 + |x|): |P(x - lam g) - x| <= lam residual for lam >= 1."""
    return LONGEST * (1.0 + float(x.norm())) / max(min(residual, float(g.norm())), 1e-300)  # |g|: residuals are rounded too


@solver_state("Pairs")
class Pairs:
    """L-BFGS memory: the last `count` pairs s, y (rows of S, Y, a ring starting at `head`) and their inner products."""

    S: Tensor
    Y: Tensor
    SY: Tensor  # s_i'y_j, float64, on the host
    YY: Tensor
    count: int
    head: int
    scale: float  # gamma of H0 = gamma I

    @classmethod
    def empty(cls, memory: int, x: Vec, scale: float) -> Pairs:
        ring = torch.zeros(memory, x.size, dtype=x.dtype, device=x.device)
        gram = torch.zeros(memory, memory, dtype=torch.float64)
        return cls(S=ring, Y=ring.clone(), SY=gram, YY=gram.clone(), count=0, head=0, scale=scale)

    def add(self, s: Vec, y: Vec, g: Vec, t: float = 1.0, most: float = math.inf, free: Vec | None = None) -> Pairs:
        """With one more pair, of the step s to where the gradient is g. Writes into the ring.

        t: what the search left of the step. most: the scale is no larger. free: entries that may move.

        Where the function is straight or bends down along s, the pair is left out, and the step was too short: the scale grows
        to ten times what the search left of it. Where that happens again, and the search left little or a larger scale makes
        the next step hardly longer, the pairs contradict the function: they are forgotten, and the next step is ten times as
        long as this one.
        """
        if straight(s, y, g):
            if not self.count:
                return replace(self, scale=min(LONGER * t * self.scale, most))
            longer, i = replace(self, scale=min(max(LONGER * t, 2.0) * self.scale, most)), self._newest
            again = self.scale * float(self.YY[i, i]) > 1.5 * float(self.SY[i, i])
            works = t > 0.3 and longer._length(g, free) >= 0.3 * LONGER * t * self._length(g, free)
            if works or not again:
                return longer
            step = float(s @ s) / max(abs(float(s @ g)), TINY)
            return Pairs.empty(len(self.S), s, min(LONGER * step, most))
        sy, yy = float(s @ y), float(y @ y)
        memory = len(self.S)
        i = (self.head + self.count) % memory
        self.S[i], self.Y[i] = s.ravel(), y.ravel()
        with_y = torch.stack([self.S @ self.Y[i], self.Y @ self.Y[i], self.Y @ self.S[i]]).double().cpu()
        self.SY[:, i], self.SY[i, :] = with_y[0], with_y[2]
        self.YY[:, i] = self.YY[i, :] = with_y[1]
        self.SY[i, i], self.YY[i, i] = sy, yy
        full = self.count == memory
        return replace(
            self, count=min(self.count + 1, memory), head=(self.head + 1) % memory if full else self.head, scale=sy / yy
        )

    @property
    def _newest(self) -> int:
        """The row of the last pair."""
        return (self.head + self.count - 1) % len(self.S)

    def _length(self, g: Vec, free: Vec | None) -> float:
        """|H g|, of the entries that may move."""
        if free is None:
            return float(self.solve(g).norm())
        return float(self.restricted(free).solve(g.like(t * f for t, f in zip(g.leaves, free.leaves))).norm())

    @property
    def spectral(self) -> float:
        """s's / s'y of the last pair, the longer of the two spectral steps; grown as `scale` is."""
        if not self.count:
            return self.scale
        i = self._newest
        ss = float(self.S[i].double() @ self.S[i].double())
        return self.scale * float(self.YY[i, i]) * ss / float(self.SY[i, i]) ** 2

    def restricted(self, free: Vec) -> Pairs:
        """The same memory on the entries where `free` is one: pairs that bend the wrong way there are left out."""
        memory, mask = len(self.S), free.ravel()
        order = [(self.head + j) % memory for j in range(self.count)]
        S, Y = self.S[order] * mask, self.Y[order] * mask
        sy, ss, yy = ((a.double() * b.double()).sum(1) for a, b in ((S, Y), (S, S), (Y, Y)))
        keep = sy > FLAT * (ss * yy).sqrt()
        S, Y, scale = S[keep], Y[keep], (sy / yy)[keep]
        SY, YY = ((a @ Y.T).double().cpu() for a in (S, Y))
        grown = self.scale * float(self.YY[order[-1], order[-1]] / self.SY[order[-1], order[-1]]) if order else 1.0
        last = grown * float(scale[-1]) if len(S) else self.scale
        return Pairs(S=S, Y=Y, SY=SY, YY=YY, count=len(S), head=0, scale=last)

    def solve(self, g: Vec) -> Vec:
        """H g, the inverse-Hessian estimate times g: the two-loop recursion done on inner products."""
        if not self.count:
            return g * self.scale
        memory = len(self.S)
        order = [(self.head + j) % memory for j in range(self.count)]
        flat = g.ravel()
        both = torch.stack([self.S @ flat, self.Y @ flat]).double().cpu().numpy()[:, order]
        R = np.triu(self.SY.numpy()[np.ix_(order, order)])
        alpha = np.linalg.solve(R, both[0])
        w = both[1] - self.YY.numpy()[np.ix_(order, order)] @ alpha
        beta = np.linalg.solve(R.T, np.diag(R) * alpha - self.scale * w)
        place = np.zeros((2, memory))
        place[0, order], place[1, order] = beta, -self.scale * alpha
        a, b = torch.as_tensor(place, dtype=flat.dtype, device=flat.device)
        return g.unravel(self.scale * flat + a @ self.S + b @ self.Y)
