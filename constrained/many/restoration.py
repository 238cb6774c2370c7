"""interior/restoration.py lane by lane: |C|^2 / 2 minimised by Levenberg and Marquardt's method, a step at a time.

    [H + S + lam I   J'] [dx]     [-b / dl + b / du]
    [J               -E] [v ] = - [C               ]     v = C + J dw, S = b / distance^2, E = 1 + 1 / (S_s + lam)

After SECOND_ORDER steps H, the Hessian of C'C / 2 beside J'J, comes in where K keeps its inertia. Lanes whose violation has no
slope, or falls no further, are left to InteriorPoint, which knows what to say of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..interior.restoration import FALLS, FEASIBLE, SECOND_ORDER, SMALLEST, STATIONARY, STEPS
from .iterate import Iterate, State, barrier
from .lanes import dot, times, transposed
from .newton import Factors, System, assembled, shifted
from .program import Program
from .search import dominated, longest

MORE = 1e-14  # the least that lam grows from


@dataclass(frozen=True)
class Restoring:
    """Lanes on their way to less violation: where they stand (state), the target, and the method's own numbers."""

    state: State
    target: Tensor  # of theta
    lam: Tensor
    growth: Tensor
    b: Tensor
    k: Tensor

    @classmethod
    def start(cls, state: State, it: Iterate, share: float) -> Restoring:
        size = torch.linalg.vector_norm(it.C, dim=1)
        one = torch.ones_like(size)
        return cls(state, share * it.theta, 1e-2 * size, 2 * one, state.mu, torch.zeros_like(state.steps))

    def taken(self, index: Tensor) -> Restoring:
        rest = {name: getattr(self, name)[index] for name in OWN}
        return Restoring(self.state.taken(index), **rest)

    def joined(self, other: Restoring) -> Restoring:
        rest = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in OWN}
        return Restoring(self.state.joined(other.state), **rest)


OWN = ("target", "lam", "growth", "b", "k")


def slope(program: Program, x: Tensor, s: Tensor, J: Tensor, C: Tensor) -> Tensor:
    """|w - P(w - grad |C|^2 / 2)| for w = (x, s), that in x times the way over |C|, as `InteriorPoint` measures it."""
    norm = torch.linalg.vector_norm
    gx = torch.clamp(transposed(J, C), x - program.high, x - program.low)
    gs = torch.minimum(C[:, program.layout.equalities :], s)
    way = (norm(x, dim=1) + norm(x - program.columns(program.whole_x), dim=1)).clamp(min=1.0)
    return torch.hypot(norm(gx, dim=1) * way / norm(C, dim=1).clamp(min=FEASIBLE**2), norm(gs, dim=1))


def flat(program: Program, x: Tensor, s: Tensor, J: Tensor, C: Tensor) -> Tensor:
    """|C|^2 has no slope in (x, s)."""
    return slope(program, x, s, J, C) <= STATIONARY * torch.linalg.vector_norm(C, dim=1)


def advanced(program: Program, now: Restoring) -> tuple[Restoring, Tensor, Tensor]:
    """One step: where the lanes stand then, which have reached their targets, and which are to be given up."""
    state, layout = now.state, program.layout
    x, s, e = state.x, state.s, layout.equalities
    tape = program.tape(x)
    C, J = program.rows_of(tape, s), program.rows[:, :, None] * program.columns(tape.jacobian)
    size, theta = torch.linalg.vector_norm(C, dim=1), C.abs().sum(1)
    d = program.distances(x, s)
    phi = program.sigma * tape.value + barrier(d, state.mu)
    enough = (theta <= now.target) & ~dominated(state.pairs, theta[:, None], phi[:, None])[:, 0]
    reached = (size <= FEASIBLE) | ((now.k > 0) & enough)
    lost = ~reached & ((slope(program, x, s, J, C) <= STATIONARY * size) | (now.k >= STEPS) | ~J.isfinite().all(2).all(1))

    b = torch.minimum(now.b, 1e-2 * size + 1e-16)
    force, bend = b[:, None] / d, b[:, None] / d**2
    D, slack = bend[:, : layout.of_x] @ layout.absolute, bend[:, layout.of_x :]
    H = x.new_zeros(len(x), layout.n, layout.n)
    late = now.k >= SECOND_ORDER
    if bool(late.any()):
        second = program.columns(program.columns(tape.hessian(program.rows * C, torch.zeros_like(b))).mT)
        H = torch.where((late & second.isfinite().all(2).all(1))[:, None, None], second, 0.0)
    system, H = _factored(H, torch.where(lost[:, None, None], 0.0, J), D, slack, now.lam, bool(late.any()))
    gx, gs, Ds = -force[:, : layout.of_x] @ layout.Pt, -force[:, layout.of_x :], slack + now.lam[:, None]
    y = system.solve(-torch.cat([gx, C[:, :e], C[:, e:] - gs / Ds], 1))
    dx = y[:, : layout.n]
    ds = -(gs + y[:, layout.n + e :]) / Ds
    change = times(J, dx)
    change = torch.cat([change[:, :e], change[:, e:] + ds], 1)
    predicted = -dot(C, change) - 0.5 * dot(change, change) - 0.5 * dot(dx, times(H, dx))

    alpha = longest(d, program.approach(dx, ds), torch.full_like(b, 0.99))
    there, slid = torch.clamp(x + alpha[:, None] * dx, program.low, program.high), s + alpha[:, None] * ds
    f, rows = program.values(there, slid)
    actual = 0.5 * (size**2 - dot(rows, rows))
    away = (predicted <= 0) & (b > SMALLEST)  # from bounds, and from less violation
    good = ~away & f.isfinite() & (actual > 1e-4 * alpha * predicted) & (predicted > 0) & ~reached & ~lost
    moved = torch.cat([dx.abs() / (1 + x.abs()), ds.abs() / (1 + s)], 1).amax(1)
    lost |= ~reached & ~good & ~away & ((moved <= 1e-15) | (now.lam > 1e30))
    ratio = actual / (alpha * predicted)
    less = now.lam * (1 - (2 * ratio - 1) ** 3).clamp(min=1 / 3)
    more = now.lam.clamp(min=MORE) * now.growth
    state = replace(
        state,
        x=torch.where(good[:, None], there, x),
        s=torch.where(good[:, None], slid, s),
        evaluations=state.evaluations + 1,
    )
    return (
        replace(
            now,
            state=state,
            lam=torch.where(good, less, torch.where(away, now.lam, more)),
            growth=torch.where(good, 2.0, torch.where(away, now.growth, 2 * now.growth)),
            b=torch.where(good | away, FALLS * b, b),
            k=now.k + 1,
        ),
        reached,
        lost,
    )


def _factored(H: Tensor, J: Tensor, D: Tensor, slack: Tensor, lam: Tensor, curved: bool) -> tuple[System, Tensor]:
    """K, without H where it takes the inertia away; and H as it is in K."""
    n, one = D.shape[1], torch.ones_like(lam)
    K, diagonal = assembled(H, J, D)
    K = shifted(K, diagonal, slack, lam, one, n)
    factors = Factors.of(K)
    if curved:
        bad = factors.inertia(torch.zeros_like(lam))[0] != n
        if bool(bad.any()):
            return _factored(torch.where(bad[:, None, None], 0.0, H), J, D, slack, lam, False)
    return System(K, factors, lam, one, one > 0), H
