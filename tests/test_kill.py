"""SIGKILL at random moments of a mini-batch run: the last checkpoint loads, and the resumed run ends in the same bits.

Each run is a process of its own, forked by one server that has imported torch, so that the tests wait for runs and not imports.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from constrained.core import checkpoint

STEPS = 300
SCRIPT = """
import os
import sys
import traceback
from pathlib import Path

import torch

torch.set_num_threads(1)

from bilevel import BilevelProblem, Checkpoint, History, MiniBatches, PenaltySGD, solve


def problem():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(90, 6, generator=generator, dtype=torch.float64)
    labels = (inputs @ torch.randn(6, 3, generator=generator, dtype=torch.float64)).argmax(1)
    held, held_labels = inputs[60:], labels[60:]
    inputs, labels = inputs[:60], labels[:60]
    torch.manual_seed(5)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3)
    ).double()

    def upper(x, y, batch):
        return torch.nn.functional.cross_entropy(y(batch[0]), batch[1])

    def lower(x, y, batch):
        rows, data, answers = batch
        losses = torch.nn.functional.cross_entropy(y(data), answers, reduction="none")
        return (torch.sigmoid(x[rows]) * losses).mean() + 1e-2 * sum((p**2).sum() for p in y.parameters())

    return BilevelProblem(
        upper=upper,
        lower=lower,
        x=torch.zeros(60, dtype=torch.float64),
        y=net,
        upper_data=MiniBatches((held, held_labels), 7),
        lower_data=MiniBatches((torch.arange(60), inputs, labels), 16),
    )


def run(folder, steps, resume):
    path = Path(folder) / "run.ckpt"
    history = History()
    result = solve(
        problem(),
        PenaltySGD(),
        seed=11,
        max_steps=steps,
        resume=path if resume else None,
        callbacks=[history, Checkpoint(path)],
    )
    history.write(Path(folder) / "history.csv")
    torch.save({"x": result.x, **result.y}, Path(folder) / "final.pt")
    return result


if __name__ == "__main__":
    for line in sys.stdin:  # "FOLDER STEPS start|resume" forks a run and prints its id; "wait" prints how it ended
        if line.strip() != "wait":
            pid = os.fork()
            if pid == 0:
                folder, steps, how = line.split()
                try:
                    run(folder, int(steps), how == "resume")
                except BaseException:
                    Path(folder, "error").write_text(traceback.format_exc())
                    os._exit(1)
                os._exit(0)
            print(pid, flush=True)
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Runs:
    """Starts, kills and awaits runs, one at a time."""

    def __init__(self, folder: Path):
        script = folder / "script.py"
        script.write_text(SCRIPT)
        root = Path(__file__).resolve().parent.parent
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, str(script)], env=environment, **pipes)
        self.folder = folder / "whole"
        self.start(self.folder)
        checked_start = self.first_checkpoint(self.folder)
        self.finish()
        self.seconds = time.monotonic() - checked_start

    def ask(self, line: str) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, folder: Path, how: str = "start") -> None:
        folder.mkdir(exist_ok=True)
        self.current = folder
        self.pid = self.ask(f"{folder} {STEPS} {how}")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # not reaped before "wait", so the id is still its own
        assert self.ask("wait") in (0, -signal.SIGKILL), self.error()

    def finish(self) -> None:
        assert self.ask("wait") == 0, self.error()

    def error(self) -> str:
        file = self.current / "error"
        return file.read_text() if file.exists() else "ended without a word"

    def first_checkpoint(self, folder: Path, after: int = -1) -> float:
        """Wait until the run writes a checkpoint later than `after`; the moment it does."""
        path, limit = folder / "run.ckpt", time.monotonic() + 60
        while not (path.exists() and path.stat().st_mtime_ns > after):
            assert time.monotonic() < limit, self.error()
            time.sleep(0.001)
        return time.monotonic()

    def close(self) -> None:
        self.server.communicate()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = Runs(tmp_path_factory.mktemp("runs"))
    yield found
    found.close()


def rows(folder: Path) -> list[dict[str, str]]:
    """history.csv as text, but for the clock."""
    with open(folder / "history.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "final.pt", weights_only=True)


def same_end(runs: Runs, folder: Path, note: str) -> None:
    wanted, got = final(runs.folder), final(folder)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted), note
    assert rows(folder) == rows(runs.folder), note


def kill_and_resume(runs: Runs, folder: Path, rng: random.Random) -> None:
    for attempt in range(6):  # a machine that became faster may finish first: then kill earlier
        place = folder / str(attempt)
        runs.start(place)
        runs.first_checkpoint(place)
        time.sleep(rng.random() * runs.seconds * 0.9 / 2**attempt)
        runs.kill()
        k = checkpoint.load(place / "run.ckpt")[0]["k"]
        if k < STEPS:
            break
    assert k < STEPS, "no kill came before the end of the run"
    if (place / "run.ckpt.previous").exists():
        assert checkpoint.load(place / "run.ckpt.previous")[0]["k"] <= k
    runs.start(place, "resume")
    runs.finish()
    same_end(runs, place, f"killed at step {k}")


def test_uninterrupted_run_moves(runs):
    """The run that all others are compared with does work: the variables move and every step has its row."""
    found = final(runs.folder)
    assert [int(row["k"]) for row in rows(runs.folder)] == list(range(STEPS + 1))
    assert float(found["x"].abs().max()) > 1e-3
    assert all(bool(value.isfinite().all()) for value in found.values())


@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))])
def test_sigkill_then_resume_ends_in_the_same_bits(runs, tmp_path, number):
    kill_and_resume(runs, tmp_path, random.Random(1000 + number))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(200))
def test_sigkill_then_resume_two_hundred_times(runs, tmp_path, number):
    kill_and_resume(runs, tmp_path, random.Random(2000 + number))


def test_several_kills_of_one_run(runs, tmp_path):
    """Killed, resumed, killed, resumed: still the same bits."""
    rng, folder = random.Random(77), tmp_path / "run"
    path, after = folder / "run.ckpt", -1
    for how in ("start", "resume"):
        runs.start(folder, how)
        runs.first_checkpoint(folder, after)
        time.sleep(rng.random() * runs.seconds * 0.3)
        runs.kill()
        after = path.stat().st_mtime_ns
    runs.start(folder, "resume")
    runs.finish()
    same_end(runs, folder, "killed twice")
