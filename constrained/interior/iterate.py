"""A point of the primal-dual iteration: x, s, the multipliers lam of C and z of the bounds, and its errors.

L = f + lam'C - zl'(x - low) - zu'(high - x) - zs's
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from .program import Array, Values

FAR = 1e10  # times mu / distance: where z is kept
KAPPA = 10.0  # times mu: the error at which mu falls
SLOW, POWER, LEAST = 0.2, 1.5, 1e-17  # to mu / 5 or mu^1.5, down to LEAST


@dataclass(frozen=True)
class Iterate:
    """Values at (x, s), and the multipliers; zl, zu are 0 where there is no bound."""

    at: Values
    lam: Array
    zl: Array
    zu: Array
    zs: Array

    @property
    def dl(self) -> Array:
        return self.at.dl

    @property
    def du(self) -> Array:
        return self.at.du

    def slopes(self, mu: float) -> tuple[Array, Array]:
        """The barrier's gradient in x and s."""
        if not self.at.program.bounded:
            return np.zeros(self.at.program.n), np.zeros(0)
        dx, ds = self.at.damping
        return mu * (dx - 1.0 / self.dl + 1.0 / self.du), mu * (ds - 1.0 / self.at.s)

    def phi(self, mu: float) -> float:
        return self.at.phi(mu)

    # -- errors -------------------------------------------------------------------------------------------------------------
    @functools.cached_property
    def dual(self) -> Array:
        """grad_x L."""
        return self.at.g + self.at.J.T @ self.lam - self.zl + self.zu

    @functools.cached_property
    def dual_slack(self) -> Array:
        """grad_s L."""
        return self.lam[self.at.program.equalities :] - self.zs

    @property
    def dual_norm(self) -> float:
        """|grad L| in (x, s)."""
        return math.hypot(float(np.linalg.norm(self.dual)), float(np.linalg.norm(self.dual_slack)))

    def error(self, mu: float) -> float:
        """The largest entry of the barrier problem's conditions, multipliers beyond 100 on average scaled down."""
        zs = (self.zl, self.zu, self.zs)
        count = len(self.lam) + sum(map(len, zs))
        size = np.abs(self.lam).sum() + sum(float(z.sum()) for z in zs)
        scale = max(100.0, size / max(count, 1)) / 100.0
        low, high = self.at.program.sides
        parts = (
            np.abs(self.dual) / scale,
            np.abs(self.dual_slack) / scale,
            np.abs(self.at.C),
            np.abs(self.zl[low] * self.dl[low] - mu) / scale,
            np.abs(self.zu[high] * self.du[high] - mu) / scale,
            np.abs(self.zs * self.at.s - mu) / scale,
        )
        return max(float(part.max(initial=0.0)) for part in parts)

    def lowered(self, mu: float) -> float:
        """mu where its barrier problem is not solved yet, to within KAPPA mu; smaller ones where it is."""
        while mu > LEAST and self.error(mu) <= KAPPA * mu:
            mu = fallen(mu)
        return mu

    @functools.cached_property
    def residual(self) -> float:
        """|(x - P(x - grad f - J'lam), c, max(h, 0), min(lam_h, max(-h, 0)))|, of the problem itself."""
        at, p = self.at, self.at.program
        if not p.bounded:
            return math.hypot(float(np.linalg.norm(self.dual)) / p.sigma, self.violation)
        lam = p.rows * self.lam / p.sigma
        mu = np.maximum(lam[p.equalities :], 0.0)
        scaled = np.concatenate([self.lam[: p.equalities], mu * p.sigma / p.rows[p.equalities :]])
        slope = (at.g + at.J.T @ scaled) / p.sigma
        stationarity = np.clip(slope, at.x - p.high, at.x - p.low)  # which large x do not round off
        h = at.raw[p.equalities :]
        complementarity = np.minimum(mu, np.maximum(-h, 0.0))
        return math.sqrt(
            float(stationarity @ stationarity) + self.violation * self.violation + float(complementarity @ complementarity)
        )

    @functools.cached_property
    def violation(self) -> float:
        """|(c, max(h, 0))|, of the problem itself."""
        raw, e = self.at.raw, self.at.program.equalities
        return math.hypot(float(np.linalg.norm(raw[:e])), float(np.linalg.norm(np.maximum(raw[e:], 0.0))))

    # -- multipliers --------------------------------------------------------------------------------------------------------
    def near(self, mu: float) -> Iterate:
        """z within FAR of mu / distance."""
        if not self.at.program.bounded:
            return self

        def kept(z: Array, d: Array) -> Array:
            return np.minimum(np.maximum(z, mu / (FAR * d)), FAR * mu / d)  # 0 where there is no bound

        return replace(self, zl=kept(self.zl, self.dl), zu=kept(self.zu, self.du), zs=kept(self.zs, self.at.s))


def fallen(mu: float) -> float:
    """The barrier's next parameter."""
    return max(LEAST, min(SLOW * mu, min(mu, 1e100) ** POWER))
