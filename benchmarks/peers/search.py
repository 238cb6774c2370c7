"""Table 1: hypergradients and CPU seconds to 90, 99 and 99.9 % of the gap of `logistic-penalties`.

Every x is judged by the exact Phi(x), off the clock: an f at an unsolved y may lie below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from bilevel import Implicit, iterate
from problems.tuning.logistic import BEST, logistic_penalties

from .side import Call, Peer, Side, asked, measured, progress
from .task import Exact, Task
from .with_torch import valued

SHARES = (0.1, 0.01, 0.001, 1e-6)  # of the first gap, what may be left; the last only for `deep`
RATES = (1.0, 0.1, 0.01)
LONG = 10.0  # seconds of a run that is not repeated
ADAM, QUASI = "Adam", "L-BFGS-B"
FOR = {ADAM: 1e-3, QUASI: 1e-5}  # accuracy of the hypergradients at x = -4, from a cold start


class Enough(Exception):
    """Reached, or the time is up."""


@dataclass
class Trace:
    """gap, share of the first, and CPU seconds after each hypergradient; the clock stands still while a point is judged."""

    task: Task
    cap: float
    shares: tuple[float, ...]
    gaps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.exact, self.spent = Exact(self.task), 0.0
        self.whole = self.exact.value(self.task.x) - BEST
        self.since = time.process_time()

    def __call__(self, x: np.ndarray, count: int = 1) -> None:
        self.spent += time.process_time() - self.since
        self.gaps += [(self.exact.value(x) - BEST) / self.whole] * count
        self.seconds += [self.spent] * count
        if self.gaps[-1] <= self.shares[-1] or self.spent > self.cap:
            raise Enough
        self.since = time.process_time()

    def reached(self) -> list[int]:
        """The hypergradients to each share, as far as it came."""
        first = [next((i + 1 for i, gap in enumerate(self.gaps) if gap <= share), 0) for share in self.shares]
        return [one for one in first if one]

    @property
    def rank(self) -> tuple[int, float]:
        done = self.reached()
        return -len(done), self.seconds[done[-1] - 1] if len(done) == len(self.shares) else min(self.gaps)


Run = Callable[[Task, Trace], None]


def solver(own: bool) -> Run:
    problem = logistic_penalties(own=own).problem

    def run(task: Task, trace: Trace) -> None:
        done = 0
        for event in iterate(problem, Implicit()):
            count, done = event.state.evaluations - done, event.state.evaluations
            trace(event.state.x.tree().numpy(), count)

    return run


Fresh = Callable[[], Call]  # ours keeps y and v itself, so that each run needs a new one


def adam(fresh: Fresh, lr: float) -> Run:
    """Projected on the box after each step."""

    def run(task: Task, trace: Trace) -> None:
        x, y, call = torch.from_numpy(task.x.copy()).requires_grad_(), task.y, fresh()
        outer = torch.optim.Adam([x], lr=lr)
        while True:
            at = x.detach().numpy().copy()
            answer = call(at, y)
            trace(at)
            y, x.grad = answer.y, torch.from_numpy(answer.gradient)
            outer.step()
            with torch.no_grad():
                x.clamp_(task.low, task.high)

    return run


def quasi_newton(fresh: Fresh) -> Run:
    def run(task: Task, trace: Trace) -> None:
        y, call = task.y, fresh()

        def value(x: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal y
            answer = call(x, y)
            y = answer.y
            trace(x)
            return answer.value, answer.gradient

        options = {"maxiter": 1000, "maxfun": 10_000, "ftol": 1e-14, "gtol": 1e-8}
        bounds = [(task.low, task.high)] * len(task.x)
        minimize(value, task.x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    return run


def traced(run: Run, task: Task, cap: float, shares: tuple[float, ...]) -> Trace:
    trace = Trace(task, cap, shares)
    with suppress(Enough):
        run(task, trace)
    return trace


def search(peers: list[Peer], task: Task, repeats: int, cap: float, deep: bool, console: Console) -> list[dict[str, Any]]:
    shares = SHARES if deep else SHARES[:-1]
    percent = ", ".join(f"{100 * (1 - share):g}" for share in shares)
    columns = ("side", "setting", "outer", "hypergradients", "seconds", "ratio", "tried, s", "set-up, s", "gap")
    table = Table(*columns, title=f"{task.name}: to {percent} %")
    found: list[dict[str, Any]] = []

    def row(name: str, setting: str, outer: str, runs: dict[str, Run], setup: float = 0.0) -> None:
        first, limit = {}, cap
        for option, run in runs.items():  # what is not there when the best so far was is not the best
            first[option] = traced(run, task, limit, shares)
            if len(first[option].reached()) == len(shares):
                limit = min(limit, first[option].seconds[-1])
        option = min(first, key=lambda one: first[one].rank)
        traces = [first[option]]
        if len(traces[0].reached()) == len(shares) and traces[0].seconds[-1] < LONG:
            traces += [traced(runs[option], task, cap, shares) for _ in range(repeats - 1)]
        counts = traces[0].reached()
        seconds = [min(trace.seconds[count - 1] for trace in traces if len(trace.seconds) >= count) for count in counts]
        found.append({"side": name, "setting": setting, "outer": outer + option, "hypergradients": counts, "seconds": seconds})
        found[-1]["setup"] = setup
        found[-1] |= {"gap": min(traces[0].gaps), "all": len(traces[0].gaps), "seconds_all": traces[0].seconds[-1]}
        found[-1] |= {"tried": {one: {"gap": min(t.gaps), "seconds": t.seconds[-1]} for one, t in first.items()}}
        progress(f"{name}, {setting}, {outer}{option}: {counts}, gap {min(traces[0].gaps):.1e}, {traces[0].seconds[-1]:.1f} s")
        missed = ["-"] * (len(shares) - len(counts))
        full = found[0]["seconds"][-1]
        end = "" if not missed else f" of {len(traces[0].gaps)}, {traces[0].seconds[-1]:.0f} s"
        table.add_row(
            name,
            setting,
            outer + option,
            ", ".join([*map(str, counts), *missed]) + end,
            ", ".join([*(f"{one:.2f}" for one in seconds), *missed]),
            "not reached" if missed else f"{seconds[-1] / full:.1f}",
            f"{sum(trace.seconds[-1] for trace in first.values()):.1f}",
            f"{setup:.1f}" if setup else "",
            f"{min(traces[0].gaps):.1e}",
        )

    traced(solver(own=False), task, cap, shares)  # torch's first calls
    x = torch.ones(1, requires_grad=True)
    x.sum().backward()
    torch.optim.Adam([x]).step()  # its first step imports for a second
    row("bilevel", "Implicit(), derivatives written out", "its own", {"": solver(own=True)})
    row("bilevel", "Implicit(), autodiff", "its own", {"": solver(own=False)})
    x = np.full_like(task.x, -4.0)
    gradient = Exact(task).gradient(x)
    for peer in peers:
        if peer.missing:
            table.add_row(peer.name, f"not here: {peer.missing}", *[""] * 7)
            continue
        if peer.usual is not None:
            usual = measured(peer.usual, task, x, gradient, 0)
            assert usual is not None
            runs = {f", lr {lr:g}": adam(lambda u=usual: u.call, lr) for lr in RATES}
            row(peer.name, peer.usual.setting, ADAM, runs, usual.first)
        for outer, error in FOR.items():
            side, fresh, setup = _chosen(peer, task, x, gradient, error)
            if side is None or fresh is None:
                table.add_row(peer.name, f"no setting of the ladder has an error of {error:.0e}", outer, *[""] * 6)
            elif outer == ADAM:
                row(peer.name, side.setting, outer, {f", lr {lr:g}": adam(fresh, lr) for lr in RATES}, setup)
            else:
                row(peer.name, side.setting, outer, {"": quasi_newton(fresh)}, setup)
    console.print(table)
    return found


def _chosen(peer: Peer, task: Task, x: np.ndarray, gradient: np.ndarray, error: float) -> tuple[Side | None, Fresh | None, float]:
    """The side, its call, and the seconds of making it and its first call."""
    if peer.name == "bilevel":  # its call for loops
        side = valued(None if error == FOR[QUASI] else 1e-4)
        return side, lambda: side.make(task), 0.0
    found = asked(peer, task, x, gradient, error)
    return (found.side, lambda: found.call, found.first) if found else (None, None, 0.0)
