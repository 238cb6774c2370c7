"""A run of lanes from its starts to its verdicts, and the results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import kkt
from ..core.deadline import OutOfTime, within
from ..core.derivatives.counts import Calls, Count
from ..core.derivatives.finite_differences import direction
from ..core.problem import Multipliers, Point
from ..core.result import Result
from ..core.run import solve
from ..core.status import Status
from ..core.vec import Vec
from ..core.verdict import TIMES, judged
from ..oracle import ConstrainedOracle
from ..solvers.interior_point import InteriorPoint
from .finish import goes_on
from .iterate import State
from .lanes import taken
from .method import AFRESH, LEFT, Method
from .program import Program
from .results import Results, not_begun
from .start import cold, warm
from .starts import Batch, Given
from .verdict import Asked, truth

MORE = 4  # times the steps of an accepted answer, that a lane takes when it goes on from there


class WrongDerivatives(Exception):
    """The first derivatives at an answer are not those of the values."""


@dataclass(frozen=True)
class Answer:
    """x flat and the multipliers of all rows and bounds as they are reported, and the figures of the verdict in words."""

    x: Tensor
    lam: Tensor
    bounds: tuple[Tensor, Tensor] | None
    f: float | None
    words: str


@dataclass(frozen=True)
class Steps:
    """Of a lane: steps taken, points where f and C were evaluated by line searches, Hessians."""

    taken: int
    evaluations: int
    hessians: int


@dataclass
class SideBySide:
    """All lanes of a call. Of each its answer once there is one that was accepted, and its result in the end."""

    lanes: Given
    batch: Batch
    oracle: ConstrainedOracle  # of one lane's problem
    solver: InteriorPoint
    max_steps: int
    max_seconds: float | None
    began: float
    accepted: dict[int, Answer] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)  # that a tolerance was lowered
    stop: Status | None = None  # why everyone ends
    looked: bool = False  # at first derivatives near an answer

    @property
    def tol(self) -> float:
        return self.solver.tolerance

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def left(self) -> float | None:
        return None if self.max_seconds is None else max(0.0, self.max_seconds - self.seconds)

    def run(self) -> Results:
        b = self.batch
        finite = torch.cat([b.tape.value[:, None], b.tape.c, b.tape.gradient], 1).isfinite().all(1)
        finite &= b.tape.jacobian.isfinite().all(2).all(1)
        for i in (~finite).nonzero()[:, 0].tolist():
            self.not_begun(i, Status.NONFINITE, "A function or its derivative is NaN or infinite at the start.")
        for group in _groups(b.low, b.high, finite):
            if self.stop is None:
                self.grouped(group)
            else:
                self.ended_before(group)
        ordered = [self.results[i] for i in range(len(b.x0))]
        return Results(ordered, self.seconds)

    def grouped(self, lanes: Tensor) -> None:
        """Lanes whose bounds are finite and fix entries alike."""
        b, solver = self.batch, self.solver
        parameters = tuple(p[lanes] for p in b.parameters)
        program = Program.of(b.whole, b.x0[lanes], b.low[lanes], b.high[lanes], b.sizes, parameters)
        method, asked = None, self.asked(lanes, parameters)
        try:
            with within(self.left):
                x = program.inside(program.columns(b.x0[lanes].double()))
                tape = program.tape(x)
                program = program.scaled(tape)
                start = cold(program, x, program.rows * tape.c, solver.mu, self.tol, self.max_steps)
                if b.multipliers is not None:
                    x = program.columns(b.x0[lanes].double())
                    lam = program.sigma[:, None] * b.multipliers[lanes] / program.rows
                    start = warm(program, start, x, lam, solver.mu)
                method = Method(program, start)
                while method.state is not None:
                    method.run()
                    if (claims := method.claims) is not None:
                        method.judged(self.judge(method, asked, lanes, claims))
        except OutOfTime:
            self.stop = Status.MAX_SECONDS
        except KeyboardInterrupt:
            self.stop = Status.STOPPED
        if method is None:
            self.ended_before(lanes)
            return
        if self.stop is not None:
            method.leave(self.stop)
        for state, status in method.ended:
            counts = torch.stack([state.steps, state.evaluations, state.hessians], 1).tolist()
            for k, i in enumerate(lanes[state.index].tolist()):
                self.end(i, method.every, state, k, Steps(*counts[k]), status)

    def ended_before(self, lanes: Tensor) -> None:
        """Lanes that had no time to begin."""
        status = self.stop or Status.STOPPED
        for i in lanes.tolist():
            self.not_begun(i, status, status.value)

    def asked(self, lanes: Tensor, parameters: tuple[Tensor, ...]) -> Asked:
        b, like = self.batch, self.oracle.variables["x"]
        aside = direction(like, torch.Generator().manual_seed(3)).ravel().double()
        f0, c0 = b.tape.value[lanes], b.tape.c[lanes]
        ends = (b.low[lanes], b.high[lanes])
        return Asked(b.whole, parameters, *ends, b.sizes[0], b.x0[lanes].double(), f0, c0, aside.expand(len(lanes), -1))

    # -- verdicts -----------------------------------------------------------------------------------------------------------
    def judge(self, method: Method, asked: Asked, lanes: Tensor, state: State) -> dict[Status | None, State]:
        """Claims of convergence: how they end. None: who is to go on, with a lower tolerance."""
        some = taken(asked, state.index)
        x, lam = answers(taken(method.every, state.index), state, some.low, some.high)
        says = truth(some, x, lam)
        found, shares = (_by_lane(one) for one in (says.residuals, says.shares))
        self.look(lanes, state, x)
        ends: dict[Status | None, list[int]] = {}
        tols = state.tol.tolist()
        for k, i in enumerate(lanes[state.index].tolist()):
            if not all(value <= self.tol for value in found[k].values()):  # at round-off, perhaps: for InteriorPoint to say
                ends.setdefault(LEFT, []).append(k)
                continue
            nobody: Any = Known(shares[k])
            verdict = judged(nobody, nobody, nobody, Status.CONVERGED, found[k], self.tol)
            if verdict.status.ok:
                self.accepted[i] = Answer(x[k], lam[k], (says.low[k], says.high[k]), float(says.f[k]), verdict.words)
            self.times[i] = self.times.get(i, 0) + 1
            if verdict.lower is None or self.times[i] > TIMES:
                ends.setdefault(Status.CONVERGED if verdict.status.ok else LEFT, []).append(k)
                continue
            ends.setdefault(None, []).append(k)
            state.tol[k] = min(verdict.lower, 0.3 * tols[k])
            state.waited[k] = 0
            if verdict.status.ok:
                state.most[k] = min(int(state.most[k]), (1 + MORE) * int(state.steps[k]))
        return {status: state.taken(torch.tensor(each, device=lanes.device)) for status, each in ends.items()}

    def look(self, lanes: Tensor, state: State, x: Tensor) -> None:
        """At first derivatives near the first answer; raises WrongDerivatives."""
        if self.looked:
            return
        self.looked, problem = True, self.lanes.problems[int(lanes[state.index[0]])]
        oracle = problem.oracle().remember()
        if kkt.wrong(oracle, oracle.variables["x"].unravel(x[0])):
            raise WrongDerivatives

    def end(self, i: int, program: Program, state: State, k: int, steps: Steps, status: Status) -> None:
        """The result of lane i, the k-th of a state; program: of its group."""
        if i in self.accepted:
            self.results[i] = self.result(i, self.accepted[i], steps, Status.CONVERGED)
            return
        lane = state.taken(torch.tensor([k], device=state.index.device))
        program = taken(program, lane.index)
        if self.stop is None and status in (LEFT, AFRESH):
            self.results[i] = self.by_interior_point(i, program, lane, status)
            if self.results[i].status is Status.STOPPED:
                self.stop = Status.STOPPED
        else:
            x, lam = answers(program, lane, self.batch.low[i], self.batch.high[i])
            self.results[i] = self.result(i, Answer(x[0], lam[0], None, None, ""), steps, self.stop or status)

    def by_interior_point(self, i: int, program: Program, lane: State, status: Status) -> Result:
        problem, start = self.lanes.problems[i], self.vec(self.batch.x0[i])
        if status is not AFRESH:
            found = goes_on(problem, self.solver, program, lane, start, self.max_steps, self.max_seconds, self.seconds)
            if found.success or found.status.budget or max(problem.residuals(Point(start.tree())).values()) > self.tol:
                return found  # else the start was a solution already
        return solve(problem, self.solver, start=self.lanes.point(i), max_steps=self.max_steps, max_seconds=self.left)

    # -- results ------------------------------------------------------------------------------------------------------------
    def vec(self, x: Tensor) -> Vec:
        return self.oracle.variables["x"].unravel(x.clone())

    def result(self, i: int, answer: Answer, steps: Steps, status: Status) -> Result:
        e, problem = self.batch.sizes[0], self.lanes.problems[i]
        has = (problem.equality is not None, problem.inequality is not None)
        parts = (answer.lam[:e].clone(), answer.lam[e:].clone())
        multipliers = Multipliers(*(part if there else None for part, there in zip(parts, has)))
        if answer.bounds is not None and not problem.X.whole:
            low, high = (self.vec(part.to(answer.x)).tree() for part in answer.bounds)
            multipliers = dataclasses.replace(multipliers, low=low, high=high)
        values = steps.evaluations + steps.taken + 1
        first = Count(values=values, gradients=steps.taken + 1, hessians=steps.hessians)
        rows = Count(values=values, jacobians=steps.taken + 1)
        names = [name for name, there in zip(("equality", "inequality"), has) if there]
        calls = Calls({"solve": {"objective": first, **{name: dataclasses.replace(rows) for name in names}}})
        message = f"{status.value[:-1]}: {answer.words}." if answer.words else status.value
        at = problem.finish(Point(self.vec(answer.x), None, multipliers))
        rest = (steps.taken, self.seconds, calls, (), None, self.solver, 0, problem)
        found = Result(at.x, None, at.multipliers, status, message, *rest)
        if answer.f is not None:
            found.__dict__["fun"] = answer.f  # known already
        return found

    def not_begun(self, i: int, status: Status, message: str) -> None:
        problem, start = self.lanes.problems[i], self.vec(self.batch.x0[i])
        self.results[i] = not_begun(problem, self.solver, start, status, message, self.seconds)


class Known:
    """In place of a problem, for `judged`: what is known of the answer."""

    def __init__(self, shares: Mapping[str, float]):
        self.shares = shares

    def progress(self, *_: Any, **__: Any) -> Mapping[str, float]:
        return self.shares


def answers(program: Program, state: State, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """x in X and the multipliers of the rows themselves, as they are reported: in the problem's dtype."""
    e, dtype = program.layout.equalities, program.layout.dtype
    lam = program.rows * state.lam / program.sigma[:, None]
    lam = torch.cat([lam[:, :e], lam[:, e:].clamp(min=0)], 1)
    return torch.clamp(program.full(state.x), low.to(dtype), high.to(dtype)), lam.to(dtype)


def _by_lane(named: Mapping[str, Tensor]) -> list[dict[str, float]]:
    return [dict(zip(named, row)) for row in zip(*(column.tolist() for column in named.values()))]


def _groups(low: Tensor, high: Tensor, which: Tensor) -> list[Tensor]:
    """Lanes of `which`, together where the same bounds are finite and fix entries."""
    kinds = torch.cat([low.isfinite(), high.isfinite(), low < high], 1)
    index = which.nonzero()[:, 0]
    if not len(index):
        return []
    if bool((kinds == kinds[0]).all()):
        return [index]
    _, kind = torch.unique(kinds[index], dim=0, return_inverse=True)
    return [index[kind == k] for k in range(int(kind.max()) + 1)]
