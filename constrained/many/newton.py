"""interior/inertia.py and interior/newton.py lane by lane: K factored with the inertia (n, m, 0), and Newton's step.

On the CPU L D L' with the pivots of Bunch and Kaufman, whose blocks tell the inertia. On a GPU, where that is made one matrix
after another, the eigenvalues of K with its rows and columns scaled: Sylvester's law keeps the inertia.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..interior.inertia import AGAIN, EXACT, FIRST, FIRST_GROWTH, GROWTH, LEAST, MOST, PIVOT, REGULAR
from ..interior.verdict import BENT, HELD, MET
from .iterate import Iterate
from .lanes import times, transposed

SHIFTS = 6  # tried in one factorisation, where their matrices
ROOM = 10_000_000  # have no more entries
SINGULAR = 1e-12  # of the largest singular value: the smallest that counts


def on_cpu(A: Tensor) -> bool:
    return A.device.type == "cpu"


@dataclass(frozen=True)
class Factors:
    """Of K: either (LD, pivots) or (scales, eigenvalues, eigenvectors)."""

    parts: tuple[Tensor, ...]

    @classmethod
    def of(cls, K: Tensor) -> Factors:
        return cls.pivoted(K) if on_cpu(K) else cls.spectral(K)

    @classmethod
    def pivoted(cls, K: Tensor) -> Factors:
        return cls(tuple(torch.linalg.ldl_factor_ex(K)[:2]))

    @classmethod
    def spectral(cls, K: Tensor) -> Factors:
        scale = K.abs().amax(2).clamp(min=1e-300).rsqrt()
        scale = scale * (scale[:, :, None] * K.abs() * scale[:, None]).amax(2).clamp(min=1e-300).rsqrt()
        balanced = scale[:, :, None] * K * scale[:, None]
        return cls((scale, *torch.linalg.eigh(torch.where(balanced.isfinite(), balanced, 0.0))))

    def inertia(self, floor: Tensor) -> tuple[Tensor, Tensor]:
        """How many eigenvalues are positive, and how many are zero by a pivot that is no more than the floor."""
        if len(self.parts) == 2:
            LD, pivots = self.parts
            ones, single = LD.diagonal(dim1=1, dim2=2), pivots > 0  # a block of two has one eigenvalue of each sign
            positive = (single & (ones > floor[:, None])).sum(1) + (~single).sum(1) // 2
            return positive, (single & (ones.abs() <= floor[:, None])).sum(1)
        w = self.parts[1]
        zero = PIVOT * w.abs().amax(1) * (floor > 0)
        return (w > zero[:, None]).sum(1), (w.abs() <= zero[:, None]).sum(1)

    def solve(self, b: Tensor) -> Tensor:
        if len(self.parts) == 2:
            return torch.linalg.ldl_solve(*self.parts, b.unsqueeze(2)).squeeze(2)
        scale, w, V = self.parts
        return scale * times(V, transposed(V, scale * b) / w)


@dataclass(frozen=True)
class System:
    """K with its shift, and its factors; E is the corner's diagonal. found: the lanes that have the inertia."""

    K: Tensor
    factors: Factors
    dw: Tensor
    dc: Tensor
    found: Tensor

    def solve(self, b: Tensor) -> Tensor:
        """With one step of refinement, where it helps."""
        y = self.factors.solve(b)
        r = b - times(self.K, y)
        better = y + self.factors.solve(r)
        size, left = (torch.linalg.vector_norm(v, dim=1) for v in (r, b - times(self.K, better)))
        helps = (left < size) & (size > EXACT * torch.linalg.vector_norm(b, dim=1))
        return torch.where(helps[:, None], better, y)


def assembled(H: Tensor, J: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """K = [[H + D, J'], [J, 0]], and its diagonal."""
    (lanes, m, n) = J.shape
    K = H.new_empty(lanes, n + m, n + m)
    K[:, :n, :n], K[:, n:, :n], K[:, :n, n:], K[:, n:, n:] = H, J, J.mT, 0.0
    diagonal = K.diagonal(dim1=1, dim2=2).clone()
    diagonal[:, :n] += D
    return K, diagonal


def shifted(K: Tensor, diagonal: Tensor, slack: Tensor, dw: Tensor, dc: Tensor, n: int) -> Tensor:
    """K + diag(dw, -E), E = dc and, of rows with a slack, 1 / (Sigma_s + dw) beside."""
    diagonal = diagonal.clone()
    diagonal[:, :n] += dw[:, None]
    e = diagonal.shape[1] - slack.shape[1]
    if e > n:
        diagonal[:, n:e] -= dc[:, None]
    if slack.shape[1]:
        diagonal[:, e:] -= dc[:, None] + 1.0 / (slack + dw[:, None])
    K = K.clone()
    K.diagonal(dim1=1, dim2=2).copy_(diagonal)
    return K


def factored(H: Tensor, J: Tensor, D: Tensor, slack: Tensor, last: Tensor, mu: Tensor) -> System:
    """With the smallest shift tried that gives the inertia (n, m, 0), lane by lane. last: the shifts of before.

    Lanes whose K has another inertia try the next SHIFTS shifts in one factorisation.
    """
    m, n = J.shape[1:]
    equalities, none = m > slack.shape[1], last == 0
    K0, diagonal = assembled(H, J, D)
    size = torch.maximum(H.abs().amax((1, 2)), J.abs().amax((1, 2)) if m else H.new_zeros(len(H))).clamp(min=1.0)
    found = size.isfinite() & D.isfinite().all(1)
    dw, dc = torch.zeros_like(last), torch.zeros_like(last)
    K = shifted(K0, diagonal, slack, dw, dc, n)
    factors = Factors.of(K)
    parts = factors.parts
    positive, zero = factors.inertia(PIVOT * size)
    right = (positive == n) & (zero == 0)
    if bool((right | ~found).all()):
        return System(K, factors, dw, dc, found)

    def regularised(lanes: Tensor, dependent: Tensor) -> Tensor:
        """Rows that depend on one another take dc before another shift; whether they do."""
        first = dependent & (dc[lanes] == 0) if equalities else torch.zeros_like(dependent)
        dc[lanes] = torch.where(first, REGULAR * mu[lanes].clamp(min=1e-16) ** 0.25, dc[lanes])
        return first

    start = torch.where(none, FIRST, (last * AGAIN).clamp(min=LEAST))
    growth = torch.where(none, FIRST_GROWTH, GROWTH)
    shifts = max(1, min(SHIFTS, ROOM // K.numel()))
    powers = torch.arange(shifts, dtype=dw.dtype, device=dw.device)
    lanes = (found & ~right).nonzero()[:, 0]
    same = regularised(lanes, zero[lanes] > 0)  # these try the shift at hand once more
    while len(lanes):
        here, grows = dw[lanes], growth[lanes, None]
        first = torch.where(same, here, torch.where(here == 0, start[lanes], here * growth[lanes]))
        ladder = torch.where(
            (first == 0)[:, None] & (powers > 0), start[lanes, None] * grows ** (powers - 1), first[:, None] * grows**powers
        )
        every = lanes.repeat_interleave(shifts)
        tried = shifted(K0[every], diagonal[every], slack[every], ladder.reshape(-1), dc[every], n)
        factors = Factors.of(tried)
        positive, zero = factors.inertia(torch.where(dc[every] == 0, PIVOT * size[every], 0.0))
        right, dependent = (positive == n) & (zero == 0), zero > 0
        stops = right | (dependent & (dc[every] == 0)) if equalities else right
        stops = stops.view(-1, shifts)
        at = torch.where(stops.any(1), stops.to(torch.int8).argmax(1), shifts - 1)
        took = torch.arange(len(lanes), device=at.device) * shifts + at
        dw[lanes] = ladder.gather(1, at[:, None])[:, 0]
        good = right[took]
        put, chosen = lanes[good], took[good]
        K = K.index_copy(0, put, tried[chosen])
        parts = tuple(part.index_copy(0, put, new[chosen]) for part, new in zip(parts, factors.parts))
        lost = ~good & (dw[lanes] > MOST)
        found = found.index_fill(0, lanes[lost], False)
        stay = ~good & ~lost
        lanes = lanes[stay]
        same = regularised(lanes, dependent[took][stay])
    return System(K, Factors(parts), dw, dc, found)


@dataclass(frozen=True)
class Newton:
    """The systems at an iterate, factored for its barrier parameters; `step` for any C in place of the iterate's."""

    it: Iterate
    mu: Tensor
    slack: Tensor
    system: System

    @classmethod
    def at(cls, it: Iterate, mu: Tensor, H: Tensor, last: Tensor) -> Newton:
        layout = it.program.layout
        sigma = it.z / it.d
        slack = sigma[:, layout.of_x :]
        D = sigma[:, : layout.of_x] @ layout.absolute
        system = factored(H, it.J, D, slack, last, mu if layout.bounded else torch.ones_like(mu))
        return cls(it, mu, slack, system)

    def step(self, C: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """dx, ds, dlam."""
        it, layout = self.it, self.it.program.layout
        n, e = layout.n, layout.equalities
        C, force = it.C if C is None else C, self.mu[:, None] / it.d
        top = it.g + transposed(it.J, it.lam) - force[:, : layout.of_x] @ layout.Pt
        if not layout.inequalities:
            found = self.system.solve(-torch.cat([top, C], 1))
            return found[:, :n], it.s, found[:, n:]
        r, curvature = it.lam[:, e:] - force[:, layout.of_x :], self.slack + self.system.dw[:, None]
        found = self.system.solve(-torch.cat([top, C[:, :e], C[:, e:] - r / curvature], 1))
        dlam = found[:, n:]
        return found[:, :n], -(r + dlam[:, e:]) / curvature, dlam

    def bounds(self, approach: Tensor) -> Tensor:
        """The step of z."""
        it = self.it
        return (self.mu[:, None] - it.z * (it.d + approach)) / it.d

    def taken(self, index: Tensor) -> Newton:
        """Of some lanes."""
        system = self.system
        parts = tuple(part[index] for part in system.factors.parts)
        some = System(system.K[index], Factors(parts), system.dw[index], system.dc[index], system.found[index])
        return Newton(self.it.taken(index), self.mu[index], self.slack[index], some)


def least_squares(it: Iterate) -> Tensor:
    """lam that makes |(g + J'lam - P z_x, lam_h - z_s)| least, of several the shortest."""
    layout, (lanes, m, _) = it.program.layout, it.J.shape
    of_x, q = layout.of_x, layout.inequalities
    rows = it.J.new_zeros(lanes, q, m)
    rows.diagonal(layout.equalities, 1, 2).fill_(1.0)
    b = torch.cat([it.z[:, :of_x] @ layout.Pt - it.g, it.z[:, of_x:]], 1)
    return shortest(torch.cat([it.J.mT, rows], 1), b, SINGULAR)


def shortest(A: Tensor, b: Tensor, rcond: float) -> Tensor:
    """Of the y that make |A y - b| least the shortest; NaN where A or b is not finite."""
    sound = A.isfinite().all(2).all(1) & b.isfinite().all(1)
    A = torch.where(sound[:, None, None], A, 0.0)
    if on_cpu(A):
        y = torch.linalg.lstsq(A, b.unsqueeze(2), rcond=rcond, driver="gelsd").solution.squeeze(2)
    else:
        U, S, Vh = torch.linalg.svd(A, full_matrices=False)
        keep = rcond * S[:, :1] < S
        y = transposed(Vh, torch.where(keep, transposed(U, b) / torch.where(keep, S, 1.0), 0.0))
    return torch.where(sound[:, None], y, torch.nan)


def first_multipliers(it: Iterate, most: float) -> Tensor:
    """Those of least squares, or 0 where one is larger than `most`: at points where J is nearly singular."""
    if not it.lam.shape[1]:
        return it.lam
    lam = least_squares(it)
    return torch.where((lam.abs().amax(1) <= most)[:, None], lam, 0.0)


def polished(newton: Newton, H: Tensor) -> tuple[Tensor, Tensor]:
    """The shortest step (dx, dlam) of the systems without a shift, for points near a solution where J or H is singular."""
    it, n = newton.it, newton.it.program.layout.n
    K, _ = assembled(H, it.J, torch.zeros_like(it.g))
    y = shortest(K, -torch.cat([it.g + transposed(it.J, it.lam), it.C], 1), 1e-11)
    return y[:, :n], y[:, n:]


def bends_down(it: Iterate, H: Tensor) -> Tensor:
    """interior/verdict.py's, lane by lane: f falls to second order along what the constraints leave."""
    layout, size = it.program.layout, H.abs().amax((1, 2))
    some = size.isfinite() & (size > 0)
    unit, sizes = torch.ones_like(size), torch.linalg.vector_norm(it.J, dim=2, keepdim=True)
    against = it.g + transposed(it.J, it.lam)
    bounds = it.d[:, : layout.of_x] <= (against @ layout.P).clamp(min=MET)
    rows = it.s <= it.lam[:, layout.equalities :].clamp(min=MET)
    J, even = it.J / torch.where(sizes > 0, sizes, 1.0), H / torch.where(some, size, 1.0)[:, None, None]
    K, diagonal = assembled(even, J, HELD * (bounds.to(H) @ layout.P.abs().mT))
    K = shifted(K, diagonal, HELD * rows, BENT * unit, REGULAR * unit, layout.n)
    positive, _ = Factors.of(torch.where(some[:, None, None], K, 0.0)).inertia(0.0 * unit)
    return some & (positive < layout.n)
