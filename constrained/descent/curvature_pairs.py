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

    def add(self, s: Vec, y: Vec) -> Pairs:
        """With one more pair; one that bends the wrong way to rounding is left out. Writes into the ring.

        Where the curvature along s is negative, every step was too short: the scale grows tenfold.
        """
        sy, ss, yy = float(s @ y), float(s @ s), float(y @ y)
        if not sy > max(1e-10 * math.sqrt(ss * yy), TINY):
            bent = sy < -1e-10 * math.sqrt(ss * yy)
            return replace(self, scale=min(10 * self.scale, 1e10)) if bent else self
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
    def spectral(self) -> float:
        """s's / s'y of the last pair, the longer of the two spectral steps; grown as `scale` is."""
        if not self.count:
            return self.scale
        i = (self.head + self.count - 1) % len(self.S)
        ss = float(self.S[i].double() @ self.S[i].double())
        return min(self.scale * float(self.YY[i, i]) * ss / float(self.SY[i, i]) ** 2, 1e10)

    def restricted(self, free: Vec) -> Pairs:
        """The same memory on the entries where `free` is one: pairs that bend the wrong way there are left out."""
        memory, mask = len(self.S), free.ravel()
        order = [(self.head + j) % memory for j in range(self.count)]
        S, Y = self.S[order] * mask, self.Y[order] * mask
        sy, ss, yy = ((a.double() * b.double()).sum(1) for a, b in ((S, Y), (S, S), (Y, Y)))
        keep = sy > 1e-10 * (ss * yy).sqrt()
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
