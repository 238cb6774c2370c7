"""interior/start.py lane by lane: the first state, cold, or warm from points near solutions and their multipliers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..interior.iterate import LEAST
from ..interior.program import PUSH
from ..interior.start import NEAR
from .iterate import INFINITE, Iterate, State
from .program import Program


def cold(program: Program, x: Tensor, C: Tensor, mu: float, tol: float, most: int) -> State:
    """The first state: slacks as the rows are, PUSH at least; z = 1."""
    lanes, layout = len(x), program.layout
    none, zero = x.new_zeros(lanes), torch.zeros(lanes, dtype=torch.long, device=x.device)
    no, far = torch.zeros_like(zero, dtype=torch.bool), torch.full_like(none, INFINITE)
    s = (-C[:, layout.equalities :]).clamp(min=PUSH)
    theta = torch.cat([C[:, : layout.equalities], C[:, layout.equalities :] + s], 1).abs().sum(1)
    return State(
        index=torch.arange(lanes, device=x.device),
        x=x,
        s=s,
        lam=torch.zeros_like(C),
        z=x.new_ones(lanes, layout.of_x + layout.inequalities),
        mu=torch.full_like(none, mu if layout.bounded else LEAST),
        pairs=x.new_zeros(lanes, 0, 2),
        limit=theta,
        tol=torch.full_like(none, tol),
        most=zero + most,
        residual=far,
        violation=far,
        dw=none,
        fresh=~no,
        shifted=no,
        regular=no,
        before=far,
        best=far,
        least=far,
        waited=zero,
        short=zero,
        stuck=zero,
        failed=zero,
        restored=zero,
        steps=zero,
        evaluations=zero + 1,
        hessians=zero,
    )


def warm(program: Program, first: State, x: Tensor, lam: Tensor, mu: float) -> State:
    """The cold state, `first`, from x and the multipliers of the scaled rows: as near to bounds as the residual there is small.

    mu: the largest.
    """
    e = program.layout.equalities
    x = torch.clamp(x, program.low, program.high)
    push = (NEAR * _at(program, x, first.s * 0, lam, first.z * 0).residual + 1e-10).clamp(max=PUSH)
    x = program.inside(x, push[:, None])
    it = _at(program, x, first.s * 0, lam, first.z * 0)
    s = torch.maximum(-it.C[:, e:], push[:, None])
    it = _at(program, x, s, lam, first.z * 0)
    less = (NEAR * push).clamp(max=mu) if program.layout.bounded else first.mu
    z = torch.maximum(torch.cat([it.dual @ program.layout.P, lam[:, e:]], 1), less[:, None] / it.d)
    usable = (it.f + it.theta).isfinite() & z.isfinite().all(1) & lam.isfinite().all(1)
    fresh = ~usable
    new = {"x": x, "s": s, "lam": lam, "z": z}
    new = {name: torch.where(usable[:, None], value, getattr(first, name)) for name, value in new.items()}
    return replace(
        first,
        **new,
        mu=torch.where(usable, less, first.mu),
        limit=torch.where(usable, it.theta, first.limit),
        fresh=fresh,
        evaluations=first.evaluations + 2,
    )


def _at(program: Program, x: Tensor, s: Tensor, lam: Tensor, z: Tensor) -> Iterate:
    return Iterate.at(program, program.tape(x), x, s, lam, z)
