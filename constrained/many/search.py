"""interior/filter.py lane by lane: the filter line search.

All lanes try their longest step at once. Those that are refused try a correction of second order and LENGTHS shorter steps in one
call of the functions; what interior/filter.py would have found first is taken: the correction, else the longest accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..interior.filter import ARMIJO, CORRECTIONS, GAMMA_PHI, GAMMA_THETA, LARGE, S_PHI, S_THETA, SHARE, SHORTEST, SMALL
from ..interior.program import EPS
from .iterate import INFINITE, barrier
from .lanes import taken
from .newton import Newton

LENGTHS = 6  # tried in one call


def dominated(pairs: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
    """A pair of the lane's filter has no more of both; theta and phi: (L, T), T points a lane."""
    phi = phi - 10 * EPS * phi.abs()
    return ((theta[:, :, None] >= pairs[:, None, :, 0]) & (phi[:, :, None] >= pairs[:, None, :, 1])).any(2)


def joined(pairs: Tensor, theta: Tensor, phi: Tensor, which: Tensor) -> Tensor:
    """The filter with what the point at hand forbids from now on, of the lanes in `which`."""
    new = torch.stack([(1 - GAMMA_THETA) * theta, phi - GAMMA_PHI * theta], 1)
    return torch.cat([pairs, torch.where(which[:, None], new, INFINITE)[:, None]], 1)


def trimmed(pairs: Tensor) -> Tensor:
    """Without columns that forbid nothing."""
    return pairs[:, pairs[:, :, 0].isfinite().any(0)]


def longest(d: Tensor, change: Tensor, tau: Tensor) -> Tensor:
    """The length up to 1 that keeps 1 - tau of every entry of d."""
    if not d.shape[1]:
        return torch.ones_like(tau)
    lengths = torch.where((change < 0) & (d > 0), -tau[:, None] * d / change, INFINITE)
    return lengths.amin(1).clamp(max=1.0)


@dataclass(frozen=True)
class Points:
    """One point a lane: x, s, theta, the length of its step, the step (corrected or not); whether the iterate's pair joins."""

    x: Tensor
    s: Tensor
    theta: Tensor
    alpha: Tensor
    dx: Tensor
    ds: Tensor
    dlam: Tensor
    joins: Tensor

    def put(self, lanes: Tensor, other: Points, which: Tensor) -> Points:
        """Those of some lanes in place of these, where `which` says so."""
        lanes, index = lanes[which], which.nonzero()[:, 0]
        each = {f.name: getattr(self, f.name).index_copy(0, lanes, getattr(other, f.name)[index]) for f in fields(self)}
        return Points(**each)


@dataclass(frozen=True)
class Found:
    """The points, and of each lane whether its point was accepted; evaluations of f and C."""

    points: Points
    accepted: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Rule:
    """What a lane's iterate, filter and slope along the step allow: all (L, 1), so that several points a lane are compared."""

    theta: Tensor
    phi: Tensor
    D: Tensor
    small: Tensor
    large: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, theta: Tensor, phi: Tensor, D: Tensor, limit: Tensor, pairs: Tensor) -> Rule:
        most = limit.clamp(min=1.0)
        return cls(theta[:, None], phi[:, None], D[:, None], SMALL * most[:, None], LARGE * most[:, None], pairs)

    def taken(self, index: Tensor) -> Rule:
        return taken(self, index)

    def accepts(self, theta: Tensor, phi: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Of points (L, T): accepted; by less of theta or phi, not by the slope, so that the pair of the iterate joins."""
        slack = 10 * EPS * self.phi.abs()
        possible = phi.isfinite() & (theta <= self.large)
        if self.pairs.shape[1]:
            possible &= ~dominated(self.pairs, theta, phi)
        falls = (self.D < 0) & (self.theta <= self.small)
        by_slope = falls & (alpha * (-self.D).clamp(min=0) ** S_PHI > self.theta**S_THETA)
        descends = phi <= self.phi + ARMIJO * alpha * self.D + slack
        less = (theta <= (1 - GAMMA_THETA) * self.theta) | (phi <= self.phi - GAMMA_PHI * self.theta + slack)
        return possible & torch.where(by_slope, descends, less), ~by_slope

    def shortest(self) -> Tensor:
        """The length below which none is tried."""
        falls = self.D < 0
        down = torch.where(falls, -self.D, 1.0)
        least = torch.where(falls, (GAMMA_PHI * self.theta / down).clamp(max=GAMMA_THETA), GAMMA_THETA)
        sharp = torch.minimum(least, self.theta**S_THETA / down**S_PHI)
        return (SHARE * torch.where(falls & (self.theta <= self.small), sharp, least)).clamp(min=SHORTEST)


@dataclass(frozen=True)
class Search:
    """Along a step from an iterate, lane by lane. tiny: steps of a few round-offs, which are taken as they are."""

    newton: Newton
    rule: Rule
    tau: Tensor
    tiny: Tensor

    def run(self, dx: Tensor, ds: Tensor, dlam: Tensor, length: Tensor) -> Found:
        x, s, C, theta, phi = self.moved(dx, ds, length)
        accepted, joins = _one(self.rule, theta, phi, length)
        accepted |= self.tiny & (theta + phi).isfinite()
        points, ones = Points(x, s, theta, length, dx, ds, dlam, joins), torch.ones_like(accepted, dtype=torch.long)
        if bool(accepted.all()):
            return Found(points, accepted, ones)
        worse = (theta + phi).isfinite() & (theta >= self.rule.theta[:, 0]) & (self.rule.theta[:, 0] > 0)
        return self.refused(points, accepted, ones, length[:, None] * self.newton.it.C + C, worse)

    def moved(self, dx: Tensor, ds: Tensor, alpha: Tensor, lanes: Tensor | None = None) -> tuple[Tensor, ...]:
        """x, s, C, theta and phi there. lanes: of which lane each step is."""
        it, p, mu = self.newton.it, self.newton.it.program, self.newton.mu
        x, s, low, high = it.x, it.s, p.low, p.high
        if lanes is not None:
            x, s, low, high, mu = x[lanes], s[lanes], low[lanes], high[lanes], mu[lanes]
        x = torch.clamp(x + alpha[:, None] * dx, low, high)
        s = s + alpha[:, None] * ds
        f, C = p.values(x, s, lanes)
        return x, s, C, C.abs().sum(1), f + barrier(p.distances(x, s, lanes), mu)

    def refused(self, points: Points, accepted: Tensor, count: Tensor, C: Tensor, worse: Tensor) -> Found:
        """Lanes whose longest step was refused: corrected steps where theta grew (`worse`), and shorter ones, in one call.

        C: what the correction is to take away.
        """
        lanes = (~accepted).nonzero()[:, 0]
        k, rule, least, first = len(lanes), self.rule.taken(lanes), self.rule.shortest()[lanes, 0], points.alpha[lanes]
        dx, ds, dlam, length, usable = self.correction(points, C)
        usable &= worse
        alphas = first[:, None] * 0.5 ** torch.arange(1, LENGTHS + 1, dtype=first.dtype, device=first.device)
        each = lanes.repeat_interleave(LENGTHS)
        steps = torch.cat([dx[lanes], points.dx[each]]), torch.cat([ds[lanes], points.ds[each]])
        x, s, there, theta, phi = self.moved(*steps, torch.cat([length[lanes], alphas.reshape(-1)]), torch.cat([lanes, each]))

        good, joins = _one(rule, theta[:k], phi[:k], first)
        good &= usable[lanes]
        again = ~good & usable[lanes] & (theta + phi)[:k].isfinite() & (theta[:k] <= 0.99 * points.theta[lanes])
        shorter, found = _longest(rule, points, lanes, alphas, least, x[k:], s[k:], theta[k:], phi[k:])
        if bool(good.any()):
            one = Points(x[:k], s[:k], theta[:k], length[lanes], dx[lanes], ds[lanes], dlam[lanes], joins)
            points, accepted = points.put(lanes, one, good), accepted.index_fill(0, lanes[good], True)
        if bool(again.any()):
            which = again.nonzero()[:, 0]
            C = (length[:, None] * C).index_add(0, lanes, there[:k])
            points, accepted = self.corrected(points, accepted, lanes[which], C, first[which], theta[which])
        left = ~accepted[lanes]
        if bool((left & found).any()):
            points, accepted = points.put(lanes, shorter, left & found), accepted.index_fill(0, lanes[left & found], True)
        left &= ~found & (0.5 * alphas[:, -1] >= least)
        result = Found(points, accepted, count.index_add(0, lanes, LENGTHS + usable[lanes].long()))
        return self.shortened(result, lanes[left], alphas[left, -1]) if bool(left.any()) else result

    def correction(self, points: Points, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The step that takes C away, of every lane; its longest length; whether it is near the first step; or 0."""
        dx, ds, dlam = self.newton.step(C)
        usable = torch.linalg.vector_norm(dx - points.dx, dim=1) <= torch.linalg.vector_norm(points.dx, dim=1)
        usable &= ds.isfinite().all(1) & dlam.isfinite().all(1)
        dx, ds = (torch.where(usable[:, None], v, 0.0) for v in (dx, ds))
        it = self.newton.it
        return dx, ds, dlam, longest(it.d, it.program.approach(dx, ds), self.tau), usable

    def corrected(
        self, points: Points, accepted: Tensor, lanes: Tensor, C: Tensor, first: Tensor, theta: Tensor
    ) -> tuple[Points, Tensor]:
        """Further corrections, of the lanes where the one before reduced theta."""
        tried = points  # the step that corrections are measured by
        for _ in range(CORRECTIONS - 1):
            dx, ds, dlam, length, usable = self.correction(tried, C)
            x, s, there, size, phi = self.moved(dx[lanes], ds[lanes], length[lanes], lanes)
            good, joins = _one(self.rule.taken(lanes), size, phi, first)
            good &= usable[lanes]
            if bool(good.any()):
                one = Points(x, s, size, length[lanes], dx[lanes], ds[lanes], dlam[lanes], joins)
                points, accepted = points.put(lanes, one, good), accepted.index_fill(0, lanes[good], True)
            again = (~good & usable[lanes] & (size + phi).isfinite() & (size <= 0.99 * theta)).nonzero()[:, 0]
            if not len(again):
                break
            C = (length[:, None] * C).index_add(0, lanes, there)
            lanes, first, theta = lanes[again], first[again], size[again]
        return points, accepted

    def shortened(self, found: Found, lanes: Tensor, last: Tensor) -> Found:
        """Shorter steps still, than `last`."""
        points, accepted, count = found.points, found.accepted, found.evaluations
        halves = 0.5 ** torch.arange(1, LENGTHS + 1, dtype=last.dtype, device=last.device)
        least = self.rule.shortest()[lanes, 0]
        while len(lanes):
            alphas, each = last[:, None] * halves, lanes.repeat_interleave(LENGTHS)
            x, s, _, theta, phi = self.moved(points.dx[each], points.ds[each], alphas.reshape(-1), each)
            shorter, good = _longest(self.rule.taken(lanes), points, lanes, alphas, least, x, s, theta, phi)
            points, accepted = points.put(lanes, shorter, good), accepted.index_fill(0, lanes[good], True)
            count = count.index_add(0, lanes, torch.full_like(lanes, LENGTHS))
            left = ~good & (0.5 * alphas[:, -1] >= least)
            lanes, last, least = lanes[left], alphas[left, -1], least[left]
        return Found(points, accepted, count)


def _one(rule: Rule, theta: Tensor, phi: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """`accepts`, of one point a lane."""
    accepted, joins = rule.accepts(theta[:, None], phi[:, None], alpha[:, None])
    return accepted[:, 0], joins[:, 0]


def _longest(
    rule: Rule,
    points: Points,
    lanes: Tensor,
    alphas: Tensor,
    least: Tensor,
    x: Tensor,
    s: Tensor,
    theta: Tensor,
    phi: Tensor,
) -> tuple[Points, Tensor]:
    """Of the lengths (L, T) of each lane the longest that is accepted, and whether there is one."""
    shape = alphas.shape
    accepted, joins = rule.accepts(theta.view(shape), phi.view(shape), alphas)
    accepted &= alphas >= least[:, None]
    at = accepted.to(torch.int8).argmax(1) + torch.arange(len(lanes), device=lanes.device) * shape[1]
    step = (points.dx[lanes], points.ds[lanes], points.dlam[lanes])
    return Points(x[at], s[at], theta[at], alphas.reshape(-1)[at], *step, joins.reshape(-1)[at]), accepted.any(1)
