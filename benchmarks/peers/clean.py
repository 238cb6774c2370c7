"""Table 3: hyper-cleaning, linear, by one outer rule: 30 steps of ScalarAdam(lr=1) from x = 0."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bilevel import Penalty, ScalarAdam, solve
from constrained.core.vec import Vec
from problems.cleaning.baselines import evaluate
from problems.cleaning.data import CleaningData, digits
from problems.cleaning.problem import hyper_cleaning

from .side import Call, Peer, asked
from .task import Exact, Task, cleaning
from .with_torch import valued

STEPS, ERROR = 30, 1e-3
LONG = 10.0  # seconds of a run that is not repeated
Way = Callable[[Task, CleaningData], tuple[str, Callable[[], np.ndarray]] | None]  # setting, what is timed


def penalty(task: Task, data: CleaningData) -> tuple[str, Callable[[], np.ndarray]]:
    instance = hyper_cleaning(seed=data.seed)
    chosen = instance.recommended[Penalty].solver
    return "Penalty(sigma=10), as `bilevel run`", lambda: solve(instance.problem.full_batch(), chosen).x.numpy()


def steps(call: Call, task: Task) -> np.ndarray:
    x, y, rule, state = Vec.of(torch.from_numpy(task.x)), task.y, ScalarAdam(lr=1.0), {}
    for _ in range(STEPS):
        answer = call(x.tree().numpy(), y)
        y = answer.y
        x, state = rule.update(x, [torch.from_numpy(answer.gradient)], state, 1.0)
    return x.tree().numpy()


def way(peer: Peer) -> Way:
    def chosen(task: Task, data: CleaningData) -> tuple[str, Callable[[], np.ndarray]] | None:
        if peer.name == "bilevel":
            side = valued(ERROR)
            return side.setting, lambda: steps(side.make(task), task)
        found = asked(peer, task, task.x, Exact(task).gradient(task.x), ERROR)
        return found and (found.side.setting, lambda: steps(found.call, task))

    return chosen


def clean(peers: list[Peer], seed: int, seeds: int, repeats: int, console: Console) -> list[dict[str, Any]]:
    title = f"hyper-cleaning, linear, 100 clean images, seeds {seed} to {seed + seeds - 1}: means"
    table, found = Table("side", "setting", "F1", "AUC", "accuracy", "with clean", "Phi(x)", "seconds", "ratio", title=title), []
    ways: list[tuple[str, Way]] = [("bilevel", penalty), *((peer.name, way(peer)) for peer in peers if not peer.missing)]
    for name, one in ways:
        scores, setting = [], ""
        for s in range(seed, seed + seeds):
            data = digits(s)
            task = cleaning(data)
            ready = one(task, data)
            if ready is None:
                break
            setting, run = ready
            seconds, x = [], task.x
            for again in range(repeats + 1):  # the first one to warm up, unless it is long
                if again > 0 and seconds[0] > LONG:
                    break
                start = time.process_time()
                x = run()
                seconds.append(time.process_time() - start)
            row = evaluate(data, "linear", torch.from_numpy(x))
            scores.append([row.f1, row.auc, row.accuracy, row.with_clean, Exact(task).value(x), min(seconds)])
        if not scores:
            table.add_row(name, f"no setting of the ladder has an error of {ERROR:.0e}", *[""] * 7)
            continue
        mean = np.mean(np.array(scores, dtype=float), axis=0)
        keys = ("f1", "auc", "accuracy", "with_clean", "phi", "seconds")
        found.append({"side": name, "setting": setting, **dict(zip(keys, map(float, mean)))})
        ratio = mean[-1] / found[0]["seconds"]
        table.add_row(name, setting, *(f"{m:.3f}" for m in mean[:4]), f"{mean[4]:.4f}", f"{mean[5]:.2f}", f"{ratio:.1f}")
    for peer in peers:
        if peer.missing:
            table.add_row(peer.name, f"not here: {peer.missing}", *[""] * 7)
    console.print(table)
    return found
