"""Run: one solve from its start to its verdict, with the only clock."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint
from .accepted import Accepted, accepted
from .deadline import OutOfTime, within
from .derivatives.counts import Calls
from .digest import digest
from .errors import CheckpointError
from .event import Callback
from .live import LiveVec, reloaded
from .problem import Point, Problem
from .processes import Ranks
from .solver import Solver
from .status import Status
from .vec import copy, finite
from .verdict import TIMES, judged
from .version import VERSION

SHARE = 0.5  # of max_seconds, that answers and certificates may take beside it
MORE = 4  # times what an accepted answer took, that a run spends when it goes on from there
CLAIMS = (  # ends that the problem decides
    Status.CONVERGED,
    Status.PRECISION,
    Status.LINE_SEARCH,
    Status.STALLED,
    Status.LOCALLY_INFEASIBLE,
)


class Run:
    """The state of a run, shared by its events."""

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        seed: int,
        max_steps: int | None,
        max_seconds: float | None,
        callbacks: Sequence[Callback],
    ):
        self.problem, self.solver, self.seed = problem, solver, seed
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self.callbacks = callbacks
        self.oracle = problem.oracle(seed)
        self.live = any(isinstance(vec, LiveVec) for vec in self.oracle.variables.values())
        if not (self.live or solver.stochastic):  # whose steps write into their points, and ask each once
            self.oracle.remember()
        self.ranks = Ranks.here(next(iter(self.oracle.variables.values())).device) if self.live else None
        self.asked = solver.tolerance  # the solver's own falls where that is not enough
        self.lowered = 0  # times it fell
        self.accepted: Accepted | None = None  # what stands where going on comes to nothing
        self.judged: tuple[Any, Point] | None = None  # a state and its answer, which the problem was asked about
        self.enough = 0  # what was spent until then
        self.broken = False  # a live variable's gradient was not finite
        self.k = 0
        self.seconds = 0.0
        self.judging = 0.0  # seconds of answers and certificates
        self.late = False  # the time ended within a step
        self.state: Any = None  # until `open`, and after it where the time ended first
        self.last: Any = None  # a finite state with memory of its own
        self.finite: tuple[Any, bool] = None, False  # a state, and whether it is
        self.details, self.found = "", {}  # what the problem's residuals say, in words and numbers
        self.measured = False  # relative to the start too
        self.sentence = ""  # in place of that of the status
        self.start: Any = None
        self.fingerprint: list[float] = []  # tells this problem from others of its signature
        self.notes: tuple[str, ...] = ()  # on what it was resumed from

    def begin(self, start: Point | None) -> None:
        """Look at the problem's functions at the start."""
        with self.oracle.calls.counting("check"):
            self.start = self.problem.begin(self.oracle, start)

    def open(self, resume: Path | None) -> None:
        """The solver's first state, or the one of a checkpoint."""
        if resume is None:
            if self.solver.curved:
                with self.oracle.calls.counting("check"):
                    self.problem.try_second_order(self.oracle, self.start, type(self.solver).__name__)
            self.timed(lambda: self.solver.init(self.oracle, self.start if self.live else _own(self.start)))
            return
        header, tensors = checkpoint.load(resume, self.oracle.variables)
        checkpoint.compare(resume, header["run"], self.identity())
        self.compare_data(resume, header.get("data", {}))
        if header.get("version") != VERSION:
            other = f"Resumed from a checkpoint of version {header.get('version')!s:.20}, this is {VERSION}"
            self.notes += (f"{other}: the steps from here need not be those of an uninterrupted run.",)
        self.state = checkpoint.restore(resume, header, tensors, self.oracle.variables)
        with checkpoint.reading(resume):
            with self.oracle.calls.counting("check"):
                if self.live:  # the solver makes its copies of the module, and these take what was saved
                    self.state = reloaded(self.state, self.solver.init(self.oracle, self.start))
                if self.live or finite(self.state):  # a forged state shows here, and not as an error of the first step
                    self.solver.terminate(self.oracle, self.state)
                _ = [float(value) for value in self.solver.monitor(self.state).values()]
            self.k, self.seconds = header["k"], header["seconds"]
            asked, tol, times, enough = header.get("lowered", (None, 0.0, 0, 0))  # absent in files of before it could be
            if asked == self.asked and times:
                self.enough = enough
                self.solver, self.lowered = dataclasses.replace(self.solver, tol=tol), times  # pyright: ignore[reportArgumentType]
                one = self.accepted = checkpoint.restore(resume, header, tensors, self.oracle.variables, part="accepted")
                if one is not None and not (isinstance(one, Accepted) and type(one.state) is type(self.state)):
                    raise TypeError(f"accepted: expected what the run fell back on, got {type(one).__name__}")
            self.oracle.calls.by.clear()
            self.oracle.calls.by.update(Calls.from_dict(header["calls"]).by)
            for callback, saved in zip(self.stateful(), header["callbacks"], strict=True):
                callback.load_state_dict(saved)
        samplers = self.samplers()
        for name, saved in header.get("samplers", {}).items():
            if name not in samplers:
                raise CheckpointError(f"checkpoint {resume}: expected states of {[*samplers]}, got one of {name!r:.60}")
            samplers[name].load_state_dict(saved)

    @functools.cached_property
    def data(self) -> dict[str, tuple[str, bool]]:
        """The digest of each sampler's data, and whether it reaches all of it."""
        return {name: digest(sampler) for name, sampler in self.problem.samplers().items()}

    def compare_data(self, path: Path, saved: Mapping[str, Any]) -> None:
        """Raise CheckpointError where a sampler holds other data than the one of the checkpoint; a note where none can tell."""
        unknown = [name for name, (_, reached) in self.data.items() if not reached or name not in saved]
        for name, (found, _) in self.data.items():
            if saved.get(name, found) != found:
                raise CheckpointError(
                    f"checkpoint {path}: it is of another problem: {name} holds other data (its digest differs)"
                )
        if unknown:
            why = "a checkpoint of before holds no digest, a stream or a dataset of your own has none"
            self.notes += (f"Resumed without comparing the data of {', '.join(unknown)}: {why}.",)

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to continue here. The tolerance may change."""
        fields = {f.name: repr(getattr(self.solver, f.name)) for f in dataclasses.fields(self.solver) if f.name != "tol"}  # pyright: ignore[reportArgumentType]
        kinds = [type(callback).__name__ for callback in self.stateful()]
        with self.oracle.calls.counting("check"):
            self.fingerprint = self.fingerprint or self.problem.fingerprint(self.oracle)
        return {
            "problem": self.problem.signature(),
            "problem (its values at the start)": self.fingerprint,
            "solver": {type(self.solver).__name__: fields},
            "seed": self.seed,
            "callbacks": kinds,
        }

    def agreed(self, value: float) -> float:
        """The first process's number, where there are several: clocks differ, and all must decide alike."""
        return value if self.ranks is None else self.ranks.first(value)

    def stateful(self) -> list[Any]:
        return [callback for callback in self.callbacks if hasattr(callback, "state_dict")]

    def samplers(self) -> dict[str, Any]:
        return {name: sampler for name, sampler in self.problem.samplers().items() if hasattr(sampler, "state_dict")}

    def save(self, path: Path) -> None:
        if self.state is None:  # nothing happened yet that could be lost
            return
        header = {
            "version": VERSION,
            "run": self.identity(),
            "k": self.k,
            "seconds": self.seconds,
            "calls": self.oracle.calls.as_dict(),
            "data": {name: found for name, (found, _) in self.data.items()},
        }
        header["lowered"] = self.asked, self.solver.tolerance, self.lowered, self.enough
        header["callbacks"] = [callback.state_dict() for callback in self.stateful()]
        header["samplers"] = {name: sampler.state_dict() for name, sampler in self.samplers().items()}
        checkpoint.save(path, header, self.state, self.oracle.variables, self.ranks, accepted=self.accepted)

    def stepped(self) -> Any:
        """The solver's next step. Of what was asked before, it knows what a resumed run asks once more."""
        if self.oracle.memory is not None:
            with self.oracle.calls.counting("check"):
                stands = self.solver.revisit(self.oracle, self.state)
            self.oracle.memory.step_begins(with_graphs=stands)
        return self.solver.step(self.oracle, self.state)

    def timed(self, work: Callable[[], Any]) -> None:
        """The solver's next state, and the time it takes. Where the time ends before, the last state stands, `late`."""
        start = time.perf_counter()
        self.judged, self.finite = None, (None, False)  # a step may write into the memory of the state
        left = None if self.max_seconds is None or self.live else self.max_seconds - self.seconds  # live steps move in place
        try:
            with within(left):
                self.state = work()
        except OutOfTime:
            self.late, self.state = True, self.last
            self.k = getattr(self.last, "k", self.k)
        finally:
            self.seconds += time.perf_counter() - start

    @contextlib.contextmanager
    def share(self, seconds: float | None = None) -> Iterator[None]:
        """The time that is left for answers and certificates; `seconds` where the run has no limit."""
        start = time.perf_counter()
        if self.max_seconds is not None:
            seconds = max(SHARE * self.max_seconds - self.judging, 0.0)
        try:
            with within(None if self.live else seconds):
                yield
        finally:
            self.judging += time.perf_counter() - start

    def answer(self, seconds: float | None = None) -> Point:
        """The solver's answer, with memory of its own; the start where no finite one exists."""
        if self.state is None or (not self.live and not self.stands()):
            return self.start
        if self.judged is not None and self.judged[0] is self.state:  # what the verdict is on is what is reported
            return self.judged[1] if self.live else _own(self.judged[1])
        try:
            with self.oracle.calls.counting("answer"), self.share(seconds):
                point = self.solver.answer(self.oracle, self.state)
        except OutOfTime:  # then where it stands, of an `Auto` its candidate
            at = getattr(self.state, "inner", self.state)
            point = Point(getattr(at, "x", self.start.x), getattr(at, "y", self.start.y))
        if self.live:
            return point
        return _own(point) if finite((point.x, point.y)) else self.start

    def completed(self, answer: Point) -> Point:
        """The answer as the problem completes it, where there is time."""
        with contextlib.suppress(OutOfTime), self.oracle.calls.counting("answer"), self.share():
            return self.problem.completed(answer, self.oracle)
        return answer

    def stands(self) -> bool:
        """The state is finite; looked at once."""
        if self.finite[0] is not self.state:
            self.finite = self.state, finite(self.state)
        return self.finite[1]

    def verdict(self) -> Status:
        """Where the run stands. A solver's CONVERGED is believed only if the problem's residuals agree."""
        self.details, self.found, self.sentence = "", {}, ""
        if self.late:
            return Status.MAX_SECONDS
        if self.broken:
            return Status.NONFINITE
        if self.live or self.stands():  # live gradients are looked at before a step is made with them
            self.last = None  # let go before the next copy is made
            self.last = None if self.live else copy(self.state) if self.solver.current(self.state).reuses else self.state
            status = self.solver.terminate(self.oracle, self.state)
            if status in CLAIMS and self.solver.exact:
                status = self.confirm(status)
                if status is Status.MAX_SECONDS:
                    return status
        else:
            self.state, status = self.state if self.last is None else self.last, Status.NONFINITE
        if status.done and not status.ok and self.accepted is None:
            before = self.state
            self.timed(lambda: self.solver.retry(self.oracle, self.state, status, self.found))
            if self.state is not before:
                self.last = None
                return self.verdict()
        if not status.done and self.max_steps is not None and self.k >= self.max_steps:
            status = Status.MAX_STEPS
        if not status.done and self.max_seconds is not None and self.agreed(self.seconds) >= self.max_seconds:
            status = Status.MAX_SECONDS
        if not status.done and self.enough and self.spent() > MORE * self.enough:
            status = self.confirm(Status.STALLED)
        return self.settled(status)

    def spent(self) -> int:
        """Evaluations and products so far."""
        total = self.oracle.calls.total()
        return total.values + total.gradients + total.hvps + total.jvps + total.vjps

    def settled(self, status: Status) -> Status:
        """CONVERGED where an answer was accepted and going on came to nothing, but for want of time; else the status itself."""
        if not status.done or status.ok or status is Status.MAX_SECONDS or self.accepted is None:
            return status
        one, self.sentence = self.accepted, ""
        self.state, self.found, self.details, self.measured = one.state, one.found, one.details, one.measured
        self.solver = dataclasses.replace(self.solver, tol=one.tol)  # pyright: ignore[reportArgumentType]
        self.judged = self.state, one.point
        return Status.CONVERGED

    def confirm(self, claim: Status) -> Status:
        """What the problem says of a solver's claim (`verdict.py`), whatever the solver thinks of its own progress. RUNNING: the
        solver goes on with a lower tolerance.
        """
        try:
            answer = self.answer()
            self.judged, point = (self.state, answer), self.problem.finish(answer)
            with self.oracle.calls.counting("certificate"), self.share():
                self.found = self.problem.certify(point, by=self.oracle)
                start = self.problem.finish(self.start)
                says = judged(self.problem, point, start, claim, self.found, self.asked, by=self.oracle)
        except OutOfTime:
            self.details = f"the solver ended as {claim.name}, and no time was left for the certificate"
            return Status.MAX_SECONDS
        self.details, self.sentence, self.measured = says.words, says.sentence, says.measured
        if says.status is Status.LOCALLY_INFEASIBLE:  # true of the problem, as far as its residuals tell
            self.details, self.found = "", {}
        if says.lower is None or claim is not Status.CONVERGED or self.lowered >= TIMES:
            return says.status
        if says.status.ok:
            here = copy(self.state), getattr(self.solver, "tol", None), self.found, self.details, self.measured, _own(answer)
            self.accepted = accepted(*here)
            self.enough = self.enough or self.spent()
        self.lowered += 1
        self.solver = dataclasses.replace(self.solver, tol=min(says.lower, 0.3 * self.solver.tolerance))  # pyright: ignore[reportArgumentType]
        self.timed(lambda: self.solver.sharpened(self.oracle, self.state))
        if self.late:
            return Status.MAX_SECONDS
        status, self.sentence = self.solver.terminate(self.oracle, self.state), ""
        return self.confirm(status) if status in CLAIMS else status


def _own(point: Point) -> Point:
    """The point with memory of its own: a solver may write into its state."""
    return dataclasses.replace(point, x=copy(point.x), y=copy(point.y))
