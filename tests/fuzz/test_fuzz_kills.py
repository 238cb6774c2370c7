"""SIGKILL at a random call of the user's functions: what is resumed ends in the same bits. And runs in several threads."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn_options import SOLVERS
from drawn_problems import Drawn, bilevel, constrained, mixture
from harness import outcome, same
from threaded import in_threads

from bilevel import Checkpoint, Result, solve

OPTIONS: dict[str, Any] = {"max_steps": 6, "seed": 3}
EXACT = [
    *(constrained(n=3, m=1, q=1.0), constrained(n=3, p=1, X="box", q=1.0, structure="module"), constrained(n=2, samples=True)),
    *(bilevel(nx=2, ny=3, kind="logistic"), bilevel(nx=2, ny=2, X="ball", Y="box", y_structure="module")),
    *(bilevel(nx=2, ny=2, rows="lower_inequality"), bilevel(nx=2, ny=3, samples=True, x_structure="dict"), mixture(start=0.3)),
]
PAIRS = [(drawn, name) for drawn in EXACT for name in sorted(SOLVERS) if not SOLVERS[name].lacks(drawn.problem.features)]


def again(drawn: Drawn) -> Drawn:
    """The problem made once more, with calls of its own."""
    return eval(str(drawn), {"bilevel": bilevel, "constrained": constrained, "mixture": mixture, "torch": torch})


def killed(drawn: Drawn, name: str, path: Path, at: int) -> None:
    """A run in a process of its own, which kills itself at that call; checkpoints at each step."""

    def around(_: str, k: int, function: Any, args: tuple[Any, ...]) -> Any:
        if drawn.calls.count >= at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    pid = os.fork()
    if pid == 0:
        try:
            drawn.calls.around = around
            solve(drawn.problem, SOLVERS[name](), callbacks=[Checkpoint(path)], **OPTIONS)
        finally:
            os._exit(1)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def whole(drawn: Drawn, name: str, **more: Any) -> Result:
    return solve(drawn.problem, SOLVERS[name](), **OPTIONS, **more)


def kill_and_resume(pair: tuple[Drawn, str], path: Path, rng: random.Random) -> None:
    drawn, name = again(pair[0]), pair[1]
    calls: list[int] = []  # at each event
    wanted = whole(drawn, name, callbacks=[lambda _: calls.append(drawn.calls.count), Checkpoint(path.with_name("other"))])
    killed(again(drawn), name, path, at := rng.randint(1, calls[-1]))
    resumed = whole(again(drawn), name, callbacks=[Checkpoint(path)], **({"resume": path} if path.exists() else {}))
    assert same(outcome(resumed), outcome(wanted)), f"{name} on {drawn}, killed at call {at} of {calls[-1]}"


@pytest.mark.parametrize("number", range(3))
def test_a_kill_at_a_random_call(tmp_path, number):
    kill_and_resume(PAIRS[number * 17 % len(PAIRS)], tmp_path / "run", random.Random(number))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(200))
def test_two_hundred_kills_at_random_calls(tmp_path, number):
    kill_and_resume(PAIRS[number % len(PAIRS)], tmp_path / "run", random.Random(1000 + number))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(EXACT)))
def test_runs_in_threads_have_the_bits_of_one_alone(number):
    """Twenty times three threads that solve one problem, by one solver after another."""
    names = [name for drawn, name in PAIRS if drawn is EXACT[number]]
    alone = {name: outcome(whole(again(EXACT[number]), name)) for name in names}
    for repeat in range(20):
        name, drawn = names[repeat % len(names)], again(EXACT[number])
        for found in in_threads(lambda name=name, drawn=drawn: outcome(whole(drawn, name))):
            assert same(found, alone[name]), f"{name} on {drawn}, repeat {repeat}"
