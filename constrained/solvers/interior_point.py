"""InteriorPoint: a primal-dual interior point with a filter line search; of equalities alone Newton's method with a filter.

Problem
    min f(x) subject to c(x) = 0, h(x) <= 0, low <= x <= high.

Reformulation
    Slacks s >= 0 with h + s = 0, and for mu -> 0 the barrier problem
    min phi = f - mu (sum log(x - low) + sum log(high - x) + sum log s)  subject to  C = (c, h + s) = 0.
    f and each row of C are scaled, so that gradients at the start are 100 at most.

Algorithm (one step)
    (1) while the error of the barrier problem <= 10 mu:  mu <- max(least, min(mu / 5, mu^1.5)), and the filter is emptied
    (2) K = [[H + Sigma + dw I, J'], [J, -E]], dw = 0 or large enough for n positive and m negative eigenvalues
    (3) K (dx, dlam) = -(grad phi + J'lam, C - ...), ds and dz from it
    (4) alpha = the longest step that keeps 1 - tau of every distance to a bound, then halves of it, until the filter accepts;
        a correction of second order at the first
    (5) x, s, lam move by alpha, z by a length of its own
    Where (2) or (4) fails, or steps stay short: |C|^2 is minimised until the filter accepts (restoration), or there is no less
    of it. From an end without success: once more from the start, restored first (second attempt).

Safeguards
    lam of least squares after a step with a shift, where that makes grad L ten times smaller. Near a solution where K is
    singular, the shortest step of the unshifted system. Where round-off hides the decrease of phi, the whole step if it halves
    the residual. Every verdict is on the unscaled problem.

Where it stands
    (1) `lowered` in interior/iterate.py, (2) interior/inertia.py, (3) interior/newton.py, (4) interior/filter.py, (5) `_moved`;
    restoration and second attempt: `_restored`, `_again`, and interior/restoration.py; verdicts: interior/verdict.py

Notation
    n, m: entries of x that bounds do not fix, rows of C; mu is the barrier's parameter; lam = (of c, of h); filter.py has D
    and theta.

References
    Waechter and Biegler, Math. Program. 106, 2006 (the line search, inertia, barrier rule). Levenberg and Marquardt's method as
    the restoration, the multipliers' reset, the polishing step and the second attempt are this library's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from .. import kkt
from ..core.errors import Unsuitable
from ..core.options import Positive, Steps
from ..core.problem import Multipliers, Point
from ..core.solver import Solver
from ..core.states import changed
from ..core.status import Feature, Status
from ..core.vec import Vec
from ..interior.filter import Accepted, Limits, Search, advanced, dominated, joined, longest
from ..interior.inertia import largest
from ..interior.iterate import LEAST, Iterate, fallen
from ..interior.newton import Newton, Step, least_squares, polished
from ..interior.program import EPS, PUSH, Array, Program, Values, inside
from ..interior.restoration import flat, restore
from ..interior.start import LARGEST, cold, first_multipliers, warm
from ..interior.state import InteriorPointState, barred, blank, stored
from ..interior.verdict import GROWS, LARGE, STEPS, bends_down, dependent, lacking, matters, told
from ..oracle import ConstrainedOracle

SHORT, SHORT_STEPS = 1e-2, 3  # of the longest length: steps in a row before the restoration
POLISH, POLISHED = 1e-4, 10  # residual from which the unshifted step is tried, times it may fail
PATIENCE = 150  # steps without a tenth less of the residual or the violation
RESTORATIONS = 50
UNTOLD = (Status.PRECISION, Status.LINE_SEARCH, Status.STALLED)  # ends that say nothing of the problem
NEAR = 1e3  # times the tolerance: the residual near a solution
NO_MINIMUM = "The point is no minimum: f bends down along a direction that the constraints leave."
STUCK = 3  # steps in a row at infeasible points where |C|^2 has no slope, before the restoration


@dataclass(frozen=True, kw_only=True)
class InteriorPoint(Solver[ConstrainedOracle, InteriorPointState]):
    """Primal-dual interior point with a filter line search, for smooth problems with equalities, inequalities and bounds.

    Newton's steps on the conditions of min f - mu sum log(distances to bounds), mu -> 0, exact second derivatives, the inertia of
    each system corrected. Dense or sparse as the derivatives are given. Of sets X it takes those that bound each entry.

    mu: the barrier's parameter at the start, at most. max_outer: steps. A start with multipliers is a warm one: what it keeps of
    bounds, and mu, are as small as its residual.

    A step costs one evaluation with gradients, one Hessian of the Lagrangian, and one evaluation a further trial.

    >>> from constrained import Box, ConstrainedProblem, solve
    >>> x = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=torch.float64)
    >>> hs71 = ConstrainedProblem(
    ...     objective=lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
    ...     equality=lambda x: (x**2).sum() - 40,
    ...     inequality=lambda x: 25 - x.prod(),
    ...     x=x,
    ...     X=Box(1, 5),
    ... )
    >>> solve(hs71, InteriorPoint()).x.round(decimals=4)
    tensor([1.0000, 4.7430, 3.8211, 1.3794], dtype=torch.float64)

    Source: Waechter and Biegler 2006; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.EQUALITY | Feature.INEQUALITY | Feature.X_SET
    requires: ClassVar[Feature] = Feature(0)
    reuses: ClassVar[bool] = False

    tol: Positive | None = None
    mu: Positive = 0.1
    max_outer: Steps = 1000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: ConstrainedOracle, start: Point) -> InteriorPointState:
        if not (oracle.X.whole or oracle.X.entrywise):
            raise Unsuitable(f"InteriorPoint: of sets it takes a Box, got {type(oracle.X).__name__}")
        rough = Program.of(oracle, start.x)
        known = self._solution(rough, start.x) if start.multipliers is None else None
        x = rough.inside(rough.flat(start.x))
        moved = start.x if np.array_equal(x, rough.flat(start.x)) else None
        program = rough.scaled(rough.at(x, np.zeros(rough.inequalities), moved))
        at = program.at(x, np.zeros(program.inequalities), moved)
        first = self._first(at, start.x)
        if start.multipliers is not None:
            return self._warm(program, first, rough.flat(start.x), start.multipliers)
        if known is None:
            return first
        lam = stored(program.sigma * known.lam / program.rows)
        return changed(first, x=start.x, lam=lam, residual=known.residual, saddle=bends_down(known), outcome=Status.CONVERGED)

    def step(self, oracle: ConstrainedOracle, state: InteriorPointState) -> InteriorPointState:
        it, s = self._iterate(oracle, state), changed(state, k=state.k + 1)
        if not (it.at.finite and it.at.smooth):
            return changed(s, outcome=Status.NONFINITE)
        s = self._lower(it, s)  # (1)
        it = it.near(s.mu)
        newton = Newton.at(it, s.mu, s.dw)  # (2)
        if newton is None:
            curved = it.at.curved(it.lam) or s.residual <= NEAR * self.tolerance  # at a solution a Hessian may be infinite
            return self._restored(it, s, 0.9) if curved else changed(s, outcome=Status.NONFINITE)
        s = changed(s, dw=newton.factors.dw or s.dw, shifted=newton.factors.dw > 0)
        step = newton.step()  # (3)
        if not step.finite:
            return self._restored(it, s, 0.9)
        if self._polishes(newton, s):
            there = polished(newton)
            if there is not None:
                return self._at(s, there)
            s = changed(s, failed=s.failed + 1)
        tau = max(0.99, 1 - s.mu)
        length = longest(it, step, tau)
        if step.size(it.at) < 10 * EPS:
            return self._at_rounding(newton, step, length, s)
        search = Search(newton, step, s.pairs.numpy(), Limits(s.limit))
        found = search.run(length, tau)  # (4)
        if found is not None:
            return self._moved(newton, found, s, tau, length)  # (5)
        if s.residual <= NEAR * self.tolerance or search.blind:
            there = advanced(newton, step, length, tau, search.moved(step, length))
            if there.at.finite and there.at.smooth and there.residual <= 0.5 * s.residual:
                return self._at(s, there)
        return self._restored(it, s, 0.9)

    def revisit(self, oracle: ConstrainedOracle, state: InteriorPointState) -> bool:
        at = self._iterate(oracle, state).at
        return at.finite and at.smooth

    def terminate(self, oracle: ConstrainedOracle, state: InteriorPointState) -> Status:
        return state.outcome

    def answer(self, oracle: ConstrainedOracle, state: InteriorPointState) -> Point:
        equalities = len(state.rows) - len(state.s)
        lam = state.rows * state.lam / state.sigma
        dtype = state.x.ravel()
        return Point(
            oracle.X.project(state.x),
            None,
            Multipliers(
                equality=None if oracle.c is None else lam[:equalities].to(dtype),
                inequality=None if oracle.h is None else lam[equalities:].clamp(min=0).to(dtype),
            ),
        )

    def sharpened(self, oracle: ConstrainedOracle, state: InteriorPointState) -> InteriorPointState:
        if state.k == 0:  # the start itself may lie on bounds
            program = self._program(oracle, state)
            state = self._first(program.at(program.inside(program.flat(state.start)), state.s.numpy()), state.start)
        return changed(state, outcome=Status.RUNNING, waited=0)

    def monitor(self, state: InteriorPointState) -> dict[str, float]:
        return {"objective": state.value, "residual": state.residual, "feasibility": state.violation, "mu": state.mu}

    def notes(self, state: InteriorPointState) -> tuple[str, ...]:
        equalities = len(state.rows) - len(state.s)
        more = f"There are more equalities ({equalities}) than unknowns ({state.z.shape[1]})."
        told = (state.saddle, NO_MINIMUM), (equalities > state.z.shape[1], more)
        return tuple(note for holds, note in told if holds)

    # -- the state and the iterate ------------------------------------------------------------------------------------------
    def _program(self, oracle: ConstrainedOracle, s: InteriorPointState) -> Program:
        return Program.again(oracle, s.start, len(s.s), s.sparse, s.sigma, s.rows.numpy())

    def _iterate(self, oracle: ConstrainedOracle, s: InteriorPointState) -> Iterate:
        """The iterate that the state is of; that of the last state is at hand."""
        known = None if oracle.memory is None else oracle.memory.behind(s)
        if known is not None:
            return known
        program = self._program(oracle, s)
        at = program.at(program.flat(s.x), s.s.numpy(), s.x)
        return Iterate(at, s.lam.numpy(), s.z[0].numpy(), s.z[1].numpy(), s.zs.numpy())

    def _warm(self, program: Program, first: InteriorPointState, x: Array, given: Multipliers) -> InteriorPointState:
        """From multipliers too, where there is one a row."""
        if sum(len(part) for part in (given.equality, given.inequality) if part is not None) != program.m:
            return first
        it, mu = warm(program, x, program.scaled_multipliers(given), self.mu)
        return self._at(changed(first, mu=mu, limit=it.at.theta), it) if it.at.finite and it.at.smooth else first

    def _solution(self, rough: Program, start: Vec) -> Iterate | None:
        """The start itself where it is one: from inside the bounds nothing as good may be found again."""
        if rough.sparse or not rough.bounded:
            return None
        e, none = rough.equalities, np.zeros(rough.n)
        at = rough.at(rough.flat(start), np.zeros(rough.inequalities), start)
        it = Iterate(at.slid(np.maximum(-at.raw[e:], 0.0)), np.zeros(rough.m), none, none, np.zeros(rough.inequalities))
        if not it.violation <= self.tolerance:
            return None
        it = replace(it, lam=rough.scaled_multipliers(kkt.multipliers(rough.oracle, start)))
        return it if it.residual <= self.tolerance else None

    def _first(self, at: Values, start: Vec) -> InteriorPointState:
        """The first state of an attempt."""
        it = cold(at)
        return self._at(blank(it, self.mu, start), it)

    def _at(self, s: InteriorPointState, it: Iterate) -> InteriorPointState:
        """The state at an iterate, and the verdict there."""
        residual, violation, size = it.residual, it.violation, largest(it.lam)
        outcome, grows = told(it, self.tolerance), size > GROWS * largest(s.lam.numpy())
        s = changed(s, growing=s.growing + 1 if grows else 0, grown=s.grown if grows else size, peak=max(s.peak, size))
        if outcome is Status.CONVERGED:
            endless = s.growing >= STEPS and size >= LARGE * max(1.0, s.grown)
            without = matters(it) and (endless or (s.peak >= LARGE and lacking(it)))
            s = changed(s, saddle=s.shifted and not without and bends_down(it))
            outcome = Status.DEGENERATE if without else outcome
        better, closer = residual <= 0.9 * s.best, violation <= 0.9 * s.least
        new = changed(
            s,
            **(barred(it) if it.at.program.bounded else {}),  # without bounds they stay
            x=it.at.vec,
            lam=stored(it.lam),
            value=it.at.value,
            residual=residual,
            violation=violation,
            best=residual if better else s.best,
            least=violation if closer else s.least,
            waited=0 if better or closer else s.waited + 1,
            outcome=outcome,
        )
        oracle, double = it.at.program.oracle, new.x.dtype == torch.float64  # in float32 the state has a rounded x
        if oracle.memory is not None and double and oracle.remembers(new.x):
            oracle.memory.made = new, it
        return new

    # -- the parts of a step ------------------------------------------------------------------------------------------------
    def _lower(self, it: Iterate, s: InteriorPointState) -> InteriorPointState:
        """(1); without bounds there is no barrier."""
        if not it.at.program.bounded:
            return changed(s, mu=LEAST)
        mu = it.lowered(s.mu)
        return s if mu == s.mu else changed(s, mu=mu, pairs=s.pairs[:0])

    def _at_rounding(self, newton: Newton, step: Step, length: float, s: InteriorPointState) -> InteriorPointState:
        """A step of a few round-offs is taken as it is, and mu falls; where there is no barrier and no less residual, the end."""
        it, p = newton.it, newton.it.at.program
        at = p.at(p.clipped(it.at.x + length * step.dx), it.at.s + length * step.ds)
        there = replace(it, at=at, lam=it.lam + length * step.dlam) if at.finite and at.smooth else it
        if p.bounded and s.mu > LEAST:
            return self._at(changed(s, mu=fallen(s.mu), pairs=s.pairs[:0]), there.near(fallen(s.mu)))
        return self._at(s, there) if there.residual < s.residual else self._restored(it, s, 0.9)

    def _moved(self, newton: Newton, found: Accepted, s: InteriorPointState, tau: float, length: float) -> InteriorPointState:
        """(5), multipliers reset where a shift left them behind."""
        it = newton.it
        there = advanced(newton, found.step, found.alpha, tau, found.at)
        if newton.factors.dw > 0 or newton.factors.dc > 0 or largest(there.lam) > 1e6:
            reset = replace(there, lam=least_squares(there))
            there = reset if reset.dual_norm < (0.1 if newton.factors.dc == 0 else 1.0) * there.dual_norm else there
        pairs = s.pairs
        if found.joins:
            pairs = torch.from_numpy(joined(pairs.numpy(), it.at.theta, it.phi(s.mu)))
        short = s.short + 1 if found.alpha < SHORT * length and found.at.theta > 0.5 * it.at.theta else 0
        infeasible = found.at.theta > self.tolerance and flat(found.at)
        s = self._at(changed(s, pairs=pairs, short=short, stuck=s.stuck + 1 if infeasible else 0), there)
        if s.outcome is not Status.RUNNING:
            return s
        if s.waited > PATIENCE:
            return self._again(there, s, Status.STALLED)
        if short >= SHORT_STEPS or s.stuck >= STUCK:
            return self._restored(there, changed(s, short=0, stuck=0), 0.1)
        return s

    def _polishes(self, newton: Newton, s: InteriorPointState) -> bool:
        """K needed a shift near a solution, where the unshifted step is tried."""
        p, shifted = newton.it.at.program, newton.factors.dw > 0 or newton.factors.dc > 0
        return shifted and not (p.bounded or p.sparse) and s.residual <= POLISH and s.failed < POLISHED

    # -- safeguards ---------------------------------------------------------------------------------------------------------
    def _restored(self, it: Iterate, s: InteriorPointState, share: float) -> InteriorPointState:
        """From where |C|^2 was minimised down to a share of theta that the filter accepts; or the verdict where it cannot be."""
        theta, phi = it.at.theta, it.phi(s.mu)
        if it.violation <= self.tolerance and theta <= 10 * self.tolerance:
            near = s.residual <= NEAR * self.tolerance
            return self._again(it, s, Status.PRECISION if near else Status.LINE_SEARCH)
        if s.restored >= RESTORATIONS:
            return self._again(it, s, Status.STALLED)
        pairs = joined(s.pairs.numpy(), theta, phi)

        def enough(at: Values) -> bool:
            there = replace(it, at=at)
            return at.theta <= share * theta and not dominated(pairs, at.theta, there.phi(s.mu))

        found = restore(it.at, s.mu, enough)
        if found.stationary:
            return self._infeasible(it, changed(s, restored=s.restored + 1), found.at)
        if found.at.theta > 0.9 * theta:
            return self._again(it, s, Status.STALLED)
        there = replace(it, at=found.at, zl=np.minimum(it.zl, LARGEST), zu=np.minimum(it.zu, LARGEST))
        there = first_multipliers(there.near(s.mu))
        return self._at(changed(s, pairs=torch.from_numpy(pairs), restored=s.restored + 1, short=0), there)

    def _infeasible(self, it: Iterate, s: InteriorPointState, at: Values) -> InteriorPointState:
        """A stationary point of the scaled violation: once more unscaled before the verdict."""
        program = replace(at.program, rows=np.ones(len(at.program.rows)))
        raw = at.raw[program.equalities :]
        here = program.at(at.x, np.maximum(at.s / at.program.rows[program.equalities :], -raw), at.vec)
        found = restore(here, s.mu, lambda there: float(np.abs(there.C).sum()) <= 0.1 * here.theta)
        if found.stationary:
            there = replace(it, at=found.at)
            if there.violation > self.tolerance:
                return self._again(there, s, Status.LOCALLY_INFEASIBLE)
            return self._again(it, s, Status.STALLED)
        back = at.program.at(found.at.x, found.at.s * at.program.rows[program.equalities :], found.at.vec)
        return self._at(changed(s, pairs=s.pairs[:0], short=0), first_multipliers(replace(it, at=back).near(s.mu)))

    def _again(self, it: Iterate, s: InteriorPointState, verdict: Status) -> InteriorPointState:
        """The second attempt: from the start with the violation reduced first; after it the verdict."""
        if verdict in UNTOLD and s.peak >= LARGE and dependent(it):
            verdict = Status.DEGENERATE
        ended = changed(self._at(s, it), outcome=verdict)
        if s.first is not None:
            return changed(s.first, k=s.k) if _better(s.first, ended) else ended
        program = it.at.program
        x = inside(program.flat(s.start), program.low, program.high)
        first = program.at(x, np.zeros(program.inequalities))
        first = first.slid(np.maximum(-first.C[program.equalities :], PUSH))
        if not (program.m and first.finite and first.smooth):
            return ended
        found = restore(first, self.mu, lambda at: at.theta <= 1e-3 * first.theta)
        if not found.at.theta <= 0.9 * first.theta:
            return ended
        fresh = self._first(found.at, s.start)
        fresh = changed(fresh, limit=max(first.theta, found.at.theta))
        return changed(fresh, k=s.k, first=ended, restored=0)


def _better(one: InteriorPointState, other: InteriorPointState) -> bool:
    """Of two ends without success: what says more of the problem, then less residual."""
    told = [s.outcome is Status.LOCALLY_INFEASIBLE for s in (one, other)]
    return told[0] if told[0] != told[1] else one.residual <= other.residual
