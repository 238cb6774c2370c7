"""solvers/interior_point.py lane by lane: all step together, each with a barrier, a filter and a shift of its own.

One step of the lanes
    (1) f, C, their derivatives at every point: one call of each function
    (2) who has ended leaves, and the lanes that are left close up
    (3) mu falls where its barrier problem is solved; K factored, steps, line search, as InteriorPoint does
    (4) lanes without an accepted point go to the restoration, which takes a step of its own beside each step of the others

What is rare is not done here. A lane that meets it (a violation that does not fall, round-off, no progress) is LEFT to
InteriorPoint, which goes on from where it stands. One that meets derivatives that are not finite, or ends where there may be no
minimum, no multipliers or no bound below, is begun AFRESH by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..core.deadline import look
from ..core.status import Status
from ..interior.iterate import LEAST
from ..interior.program import EPS
from ..interior.start import LARGEST
from ..interior.verdict import FAR, LARGE, LOW
from ..solvers.interior_point import (
    PATIENCE,
    POLISH,
    POLISHED,
    RESTORATIONS,
    SHORT,
    SHORT_STEPS,
    STUCK,
)
from .iterate import INFINITE, Iterate, State, fallen, slope
from .lanes import largest, taken
from .newton import Newton, bends_down, first_multipliers, least_squares, polished
from .program import Program
from .restoration import Restoring, advanced, flat
from .search import Rule, Search, joined, longest, trimmed

StandsT = TypeVar("StandsT", State, Restoring)
LARGE_MULTIPLIER = 1e6  # beyond which those of least squares are tried
LEFT, AFRESH = Status.RUNNING, Status.NONFINITE  # lanes that InteriorPoint takes on where they are, and from their starts


@dataclass
class Method:
    """The lanes of a program (`every`, in the order of their index) on their way."""

    every: Program
    state: State | None
    restoring: Restoring | None = None
    ended: list[tuple[State, Status]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.program = self.every

    def run(self) -> None:
        while self.state is not None or self.restoring is not None:
            look()
            self.step()

    def step(self) -> None:
        """Everyone's next step; where it is broken off, all stand where they stood."""
        done: list[tuple[State, Status]] = []
        waiting, state, left, back = self.restoring, self.state, None, None
        if state is not None:
            state, left = self._newton(state, done)
        if waiting is not None:
            waiting, back = self._restore(waiting, done)
        if back is not None:
            state = back if state is None else state.joined(back)
            self.program = taken(self.every, state.index)
        self.ended, self.restoring, self.state = [*self.ended, *done], _both(waiting, left), state

    def leave(self, status: Status) -> None:
        """Everyone who is still on the way ends."""
        for state in (self.state, None if self.restoring is None else self.restoring.state):
            if state is not None:
                self.ended.append((state, status))
        self.state = self.restoring = None

    @property
    def claims(self) -> State | None:
        """The lanes that say they have CONVERGED."""
        claims = None
        for state, status in self.ended:
            claims = _both(claims, state) if status is Status.CONVERGED else claims
        return claims

    def judged(self, ends: dict[Status | None, State]) -> None:
        """How those end that made claims; None: they go on."""
        others = [(state, status) for state, status in self.ended if status is not Status.CONVERGED]
        self.ended = others + [(state, status) for status, state in ends.items() if status is not None]
        if None in ends:
            self.state, self.program = ends[None], taken(self.every, ends[None].index)

    # -- one step -----------------------------------------------------------------------------------------------------------
    def _newton(self, state: State, done: list[tuple[State, Status]]) -> tuple[State | None, Restoring | None]:
        p = self.program
        tape = p.tape(state.x)  # (1)
        it = _with_multipliers(Iterate.at(p, tape, state.x, state.s, state.lam, state.z).near(state.mu), state)
        H = p.columns(p.columns(tape.hessian(it.lam * p.rows, p.sigma)).mT)
        state, verdicts, restore = self._verdict(replace(state, lam=it.lam, z=it.z), it, H)
        gone: list[tuple[State, Iterate, float]] = []
        stops = torch.stack([restore, *(which for _, which in verdicts)])
        if bool(stops.any()):  # (2)
            for (status, which), some in zip(verdicts, stops[1:].any(1).tolist()):
                if some:
                    done.append((state.taken(which.nonzero()[:, 0]), status))
            index = restore.nonzero()[:, 0]
            if len(index):
                none = torch.zeros_like(index)
                gone.append((replace(state.taken(index), short=none, stuck=none), it.taken(index), 0.1))
            index = (~stops.any(0)).nonzero()[:, 0]
            state, it, H = state.taken(index), it.taken(index), H[index]
            self.program = it.program
        moved = None
        if len(state.x):
            state, it = _lowered(state, it)  # (3)
            state = replace(state, steps=state.steps + 1, hessians=state.hessians + 1, pairs=trimmed(state.pairs))
            moved, took = _moved(state, it, H)
            if not bool(took.all()):  # (4)
                index = (~took).nonzero()[:, 0]
                gone.append((state.taken(index), it.taken(index), 0.9))
                index = took.nonzero()[:, 0]
                moved = moved.taken(index) if len(index) else None
                self.program = taken(self.program, index)
        left = None
        for one, at, share in gone:
            left = _both(left, self._to_restoration(one, at, share, done))
        return moved, left

    def _verdict(self, s: State, it: Iterate, H: Tensor) -> tuple[State, list[tuple[Status, Tensor]], Tensor]:
        """The state with its counts; who has ended and how; who is to be restored."""
        residual, violation = it.residual, it.violation
        smooth = (it.f + it.theta + residual).isfinite() & it.g.isfinite().all(1) & it.J.isfinite().all(2).all(1)
        better, closer = residual <= 0.9 * s.best, violation <= 0.9 * s.least
        infeasible = (s.steps > 0) & (it.theta > s.tol)
        if bool(infeasible.any()):
            infeasible &= flat(it.program, it.x, it.s, it.J, it.C)
        s = replace(
            s,
            residual=residual,
            violation=violation,
            best=torch.where(better, residual, s.best),
            least=torch.where(closer, violation, s.least),
            waited=torch.where(better | closer, 0, s.waited + 1),
            stuck=torch.where(infeasible, s.stuck + 1, 0),
        )
        converged = smooth & (residual <= s.tol)
        far = largest(it.x.abs()) > FAR
        told = smooth & (violation <= 1e-6) & (far | (it.f < LOW * it.program.sigma))
        over = smooth & ~converged & ~told
        late = over & (s.steps >= s.most)
        left = over & ~late & ((s.waited > PATIENCE) | (residual >= s.before))
        restore = over & ~late & ~left & ((s.short >= SHORT_STEPS) | (s.stuck >= STUCK))
        told |= converged & (largest(s.lam.abs()) >= LARGE)  # no bound, no multipliers or no minimum, perhaps
        if bool(converged.any()):
            told |= converged & bends_down(it, H)
        verdicts = [
            (Status.CONVERGED, converged & ~told),
            (Status.MAX_STEPS, late),
            (LEFT, left),
            (AFRESH, ~smooth | told),
        ]
        return s, verdicts, restore

    # -- restoration --------------------------------------------------------------------------------------------------------
    def _to_restoration(self, s: State, it: Iterate, share: float, done: list[tuple[State, Status]]) -> Restoring | None:
        left = (it.violation <= s.tol) & (it.theta <= 10 * s.tol)
        left |= (s.restored >= RESTORATIONS) | (it.program.layout.m == 0)
        if bool(left.any()):
            done.append((s.taken(left.nonzero()[:, 0]), LEFT))
        s = replace(s, pairs=joined(s.pairs, it.theta, it.phi(s.mu), torch.ones_like(left)))
        index = (~left).nonzero()[:, 0]
        return Restoring.start(s.taken(index), it.taken(index), share) if len(index) else None

    def _restore(self, now: Restoring, done: list[tuple[State, Status]]) -> tuple[Restoring | None, State | None]:
        """Who is still to be restored, and who goes on from less violation."""
        now, reached, lost = advanced(taken(self.every, now.state.index), now)
        if bool(lost.any()):
            done.append((now.state.taken(lost.nonzero()[:, 0]), LEFT))
        back, stay = reached.nonzero()[:, 0], (~reached & ~lost).nonzero()[:, 0]
        state = now.state.taken(back)
        of_x = self.every.layout.of_x
        z = torch.cat([state.z[:, :of_x].clamp(max=LARGEST), state.z[:, of_x:]], 1)
        none = torch.zeros_like(state.shifted)
        state = replace(state, z=z, restored=state.restored + 1, short=state.short * 0, fresh=~none, shifted=none)
        return now.taken(stay) if len(stay) else None, state if len(back) else None


def _both(one: StandsT | None, other: StandsT | None) -> StandsT | None:
    return other if one is None else one if other is None else one.joined(other)


def _with_multipliers(it: Iterate, s: State) -> Iterate:
    """lam of least squares where a run begins, or where a shift left lam behind and they make grad L smaller."""
    if not it.lam.shape[1]:
        return it
    lam = it.lam
    suspect = ~s.fresh & (s.shifted | (largest(lam.abs()) > LARGE_MULTIPLIER))
    if bool(s.fresh.any()):
        index = s.fresh.nonzero()[:, 0]
        lam = lam.index_copy(0, index, first_multipliers(it.taken(index), LARGEST))
    if bool(suspect.any()):
        index = suspect.nonzero()[:, 0]
        some = it.taken(index)
        other = replace(some, lam=least_squares(some))
        less = other.dual_norm < torch.where(s.regular[index], 1.0, 0.1) * some.dual_norm
        lam = lam.index_copy(0, index, torch.where(less[:, None], other.lam, some.lam))
    return replace(it, lam=lam)


def _lowered(s: State, it: Iterate) -> tuple[State, Iterate]:
    """(3); without bounds there is no barrier."""
    if not it.program.layout.bounded:
        return s, it
    mu = it.lowered(s.mu)
    fell = mu < s.mu
    return replace(s, mu=mu, pairs=torch.where(fell[:, None, None], INFINITE, s.pairs)), it.near(mu)


def _moved(s: State, it: Iterate, H: Tensor) -> tuple[State, Tensor]:
    """Where the lanes stand after a step, and which of them have taken one."""
    p, layout = it.program, it.program.layout
    newton = Newton.at(it, s.mu, H, s.dw)
    system = newton.system
    dx, ds, dlam = newton.step()
    sound = system.found & dx.isfinite().all(1) & ds.isfinite().all(1) & dlam.isfinite().all(1)
    if not bool(sound.all()):
        dx, ds, dlam = (torch.where(sound[:, None], v, 0.0) for v in (dx, ds, dlam))
    tau = (1 - s.mu).clamp(min=0.99)
    approach = p.approach(dx, ds)
    length = longest(it.d, approach, tau)
    tiny = torch.maximum(largest(dx.abs() / (1 + it.x.abs())), largest(ds.abs() / (1 + it.s))) < 10 * EPS
    theta, phi = it.theta, it.phi(s.mu)
    rule = Rule.of(theta, phi, slope(it, s.mu, dx, approach), s.limit, s.pairs)
    found = Search(newton, rule, tau, tiny).run(dx, ds, dlam, length)
    to = found.points
    took, joins = found.accepted & sound, to.joins & ~tiny
    approach = p.approach(to.dx, to.ds)
    dz = newton.bounds(approach)
    z = it.z + longest(it.z, dz, tau)[:, None] * dz
    mu = torch.where(tiny & (s.mu > LEAST), fallen(s.mu), s.mu) if layout.bounded else s.mu
    fell = mu < s.mu
    pairs = joined(s.pairs, theta, phi, joins) if bool(joins.any()) else s.pairs
    short = (to.alpha < SHORT * length) & (to.theta > 0.5 * theta)
    return _polished(
        newton,
        H,
        s,
        replace(
            s,
            x=to.x,
            s=to.s,
            lam=it.lam + to.alpha[:, None] * to.dlam,
            z=torch.where(tiny[:, None], it.z, z),
            mu=mu,
            pairs=torch.where(fell[:, None, None], INFINITE, pairs),
            dw=torch.where(system.dw > 0, system.dw, s.dw),
            fresh=torch.zeros_like(tiny),
            shifted=((system.dw > 0) | (system.dc > 0)) & ~tiny,
            regular=system.dc > 0,
            before=torch.where(tiny & ~fell, it.residual, INFINITE),
            short=torch.where(short & ~tiny, s.short + 1, 0),
            evaluations=s.evaluations + found.evaluations,
        ),
        took,
    )


def _polished(newton: Newton, H: Tensor, s: State, moved: State, took: Tensor) -> tuple[State, Tensor]:
    """K needed a shift near a solution: the unshifted step, where it halves the residual. Equalities alone."""
    it, system = newton.it, newton.system
    if it.program.layout.bounded:
        return moved, took
    tried = ((system.dw > 0) | (system.dc > 0)) & (it.residual <= POLISH) & (s.failed < POLISHED)
    if not bool(tried.any()):
        return moved, took
    index = tried.nonzero()[:, 0]
    some = newton.taken(index)
    dx, dlam = polished(some, H[index])
    there = replace(s.taken(index), x=some.it.x + dx, lam=some.it.lam + dlam)
    tape = some.it.program.tape(there.x)
    at = Iterate.at(some.it.program, tape, there.x, there.s, there.lam, there.z)
    good = at.residual <= 0.5 * some.it.residual
    put = index[good]
    return (
        replace(
            moved,
            x=moved.x.index_copy(0, put, there.x[good]),
            lam=moved.lam.index_copy(0, put, there.lam[good]),
            shifted=moved.shifted.index_fill(0, put, False),
            before=moved.before.index_fill(0, put, INFINITE),
            failed=moved.failed.index_add(0, index, (~good).long()),
            evaluations=moved.evaluations.index_add(0, index, torch.ones_like(index)),
        ),
        took.index_fill(0, put, True),
    )
