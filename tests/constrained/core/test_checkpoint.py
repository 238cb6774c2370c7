"""Checkpoints: resume is exact, writing is atomic, what does not belong is refused, nothing in a file is executed."""

import json
import os
import pickle
import random

import pytest
import torch

import constrained
from bilevel import (
    SPG,
    BilevelProblem,
    Box,
    Checkpoint,
    FullBatch,
    History,
    MiniBatches,
    Penalty,
    PenaltyDescent,
    PenaltySGD,
    ScalarAdam,
    Status,
    StopWhen,
    iterate,
    solve,
)
from constrained import AugmentedLagrangian, ConstrainedProblem, Simplex
from constrained.core import checkpoint
from constrained.core.errors import BilevelError, CheckpointError, OutputError
from constrained.core.vec import leaves_by_path
from problems.quadratic import quadratic
from problems.toy import pl_toy

F64 = torch.float64


def bowl(n=2, rows=None, **changed):
    """y = x; x = y = 1/2. With `rows` the lower level runs on mini-batches."""
    options = {
        "upper": lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(),
        "lower": lambda x, y, *batch: ((y - x) ** 2).sum() * (1 + sum(b.mean() for b in batch)),
        "x": torch.zeros(n, dtype=F64),
        "y": torch.zeros(n, dtype=F64),
    }
    if rows is not None:
        options["lower_data"] = MiniBatches(torch.linspace(0, 1, rows, dtype=F64), 3)
    return BilevelProblem(**{**options, **changed})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


@pytest.fixture
def saved(path):
    """A checkpoint of bowl() after 3 of its steps."""
    solve(bowl(), Penalty(), max_steps=3, callbacks=[Checkpoint(path)])
    return path


RUNS = {
    "penalty": (lambda: quadratic(seed=3).problem, Penalty(), 15),
    "penalty on a set": (lambda: pl_toy(seed=3).problem, Penalty(), None),
    "penalty by SPG": (lambda: quadratic(seed=3).problem, Penalty(outer=SPG(), inner=SPG()), 12),
    "penalty by ScalarAdam": (lambda: quadratic(seed=3).problem, PenaltyDescent(sigma=1.0, outer=ScalarAdam(lr=0.1)), 12),
    "penalty-sgd": (lambda: bowl(rows=10), PenaltySGD(warmup=3), 30),
    "penalty-sgd with noise": (lambda: quadratic(seed=3, noise=0.1).problem, PenaltySGD(warmup=3), 30),
    "float32": (lambda: bowl(x=torch.zeros(2), y=torch.zeros(2)), Penalty(), None),
    "dict": (
        lambda: bowl(
            upper=lambda x, y: ((y["a"] - 1) ** 2).sum() + (x["b"] ** 2).sum(),
            lower=lambda x, y: ((y["a"] - x["b"]) ** 2).sum(),
            x={"b": torch.zeros(2, dtype=F64)},
            y={"a": torch.zeros(2, dtype=F64)},
        ),
        Penalty(),
        None,
    ),
}


def bits(state):
    return {name: leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for name, leaf in leaves_by_path(state).items()}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("stop", [1, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (0, 4))])
def test_resumed_equals_uninterrupted(name, stop, path):
    """Every bit of the state, the counters, the rows of History."""
    make, solver, max_steps = RUNS[name]
    history = History()
    whole = solve(make(), solver, seed=5, max_steps=max_steps, callbacks=[history])
    before = History()
    solve(make(), solver, seed=5, max_steps=stop, callbacks=[before, Checkpoint(path)])
    after = History()
    resumed = solve(make(), solver, seed=5, max_steps=max_steps, callbacks=[after, Checkpoint(path)], resume=path)
    assert bits(resumed.state) == bits(whole.state)
    assert (resumed.status, resumed.steps) == (whole.status, whole.steps)
    assert resumed.calls.as_dict()["solve"] == whole.calls.as_dict()["solve"]
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in h.rows] for h in (history, after)]
    assert strip[0] == strip[1]
    assert after.rows[: len(before.rows)] == before.rows
    assert resumed.seconds >= before.rows[-1]["seconds"]


def test_resume_of_a_finished_run_is_finished(path):
    whole = solve(quadratic(seed=3).problem, callbacks=[Checkpoint(path)])
    again = solve(quadratic(seed=3).problem, resume=path)
    assert again.status is whole.status is Status.CONVERGED
    assert again.steps == whole.steps
    assert torch.equal(again.x, whole.x)


def test_tolerance_may_change_on_resume(path):
    rough = solve(quadratic(seed=3).problem, tol=1e-2, callbacks=[Checkpoint(path)])
    assert rough.success
    fine = solve(quadratic(seed=3).problem, tol=1e-6, max_steps=1, resume=path)
    assert fine.solver.tol == 1e-6
    assert fine.steps >= rough.steps


def far():
    """Within the tolerance in the third step, with little of the objective gained: the solver goes on, in vain in one step."""
    like = {"x": torch.zeros(2), "X": Simplex()}
    return ConstrainedProblem(objective=lambda x: 1e-3 * ((x - 1) ** 2).sum(), equality=lambda x: x[0] - 0.9, **like)


def test_a_resumed_run_falls_back_on_the_same_answer(path):
    whole = constrained.solve(far(), AugmentedLagrangian(), max_steps=4)
    assert (whole.status, whole.steps, whole.state.k) == (Status.CONVERGED, 4, 3)
    constrained.solve(far(), AugmentedLagrangian(), max_steps=4, callbacks=[lambda at: at.save(path) if at.k == 3 else None])
    resumed = constrained.solve(far(), AugmentedLagrangian(), max_steps=4, resume=path)
    assert bits(resumed.state) == bits(whole.state)
    assert (resumed.message, resumed.residuals(), resumed.solver) == (whole.message, whole.residuals(), whole.solver)


def test_any_event_can_be_saved(path):
    for event in iterate(bowl(), Penalty()):
        if event.k == 2:
            event.save(path)
    header, _ = checkpoint.load(path)
    assert header["k"] == 2
    assert solve(bowl(), Penalty(), resume=path).success


# -- writing ----------------------------------------------------------------------------------------------------------------
def test_previous_checkpoint_is_kept(saved):
    assert checkpoint.load(saved)[0]["k"] == 3
    assert checkpoint.load(saved.with_name("run.ckpt.previous"))[0]["k"] == 2
    assert sorted(file.name for file in saved.parent.iterdir()) == ["run.ckpt", "run.ckpt.previous"]


@pytest.mark.parametrize("broken", ["save", "fsync", "replace", "link"])
def test_failed_write_leaves_the_old_checkpoint(saved, monkeypatch, broken):
    """A full disk at any point: OutputError, the old file as it was, no litter."""
    before = saved.read_bytes()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    owner = torch if broken == "save" else os
    monkeypatch.setattr(owner, broken, full)
    if broken == "link":  # a file system without hard links: copied instead
        solve(bowl(), Penalty(), max_steps=5, callbacks=[Checkpoint(saved)])
        assert checkpoint.load(saved)[0]["k"] == 5
        return
    with pytest.raises(OutputError, match=r"run\.ckpt.*No space left"):
        solve(bowl(), Penalty(), max_steps=1, callbacks=[Checkpoint(saved)])
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert not [file for file in saved.parent.iterdir() if "tmp" in file.name and "previous" not in file.name]
    assert solve(bowl(), Penalty(), resume=saved).success


def test_ctrl_c_while_writing_leaves_the_old_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()

    def pressed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", pressed)
    result = solve(bowl(), Penalty(), max_steps=5, callbacks=[Checkpoint(saved)])
    assert result.status is Status.STOPPED
    assert saved.read_bytes() == before
    assert sorted(file.name for file in saved.parent.iterdir()) == ["run.ckpt", "run.ckpt.previous"]


def test_folder_that_cannot_be_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("no folder")
    for call in (lambda: Checkpoint(file / "run.ckpt"), lambda: History().write(file / "history.csv")):
        with pytest.raises(OutputError, match="file"):
            call()


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(OutputError, match="cannot be written"):
        Checkpoint(tmp_path / "run.ckpt")


def test_folder_that_vanishes(tmp_path):
    """Gone after the start: made again, or said in one sentence."""
    folder = tmp_path / "out"
    callback = Checkpoint(folder / "run.ckpt")
    folder.rmdir()
    folder.write_text("a file now")
    with pytest.raises(OutputError, match=r"run\.ckpt"):
        solve(bowl(), Penalty(), max_steps=1, callbacks=[callback])


def test_path_that_is_a_folder(tmp_path):
    with pytest.raises(OutputError):
        solve(bowl(), Penalty(), max_steps=1, callbacks=[Checkpoint(tmp_path)])


# -- what is refused --------------------------------------------------------------------------------------------------------
def refused(words, path, problem=None, solver=None, **options):
    calls = []
    problem = problem or bowl()
    lower = problem.lower

    def counted(*args):
        calls.append(1)
        return lower(*args)

    counting = BilevelProblem(**{**{f: getattr(problem, f) for f in problem.__dataclass_fields__}, "lower": counted})
    with pytest.raises(BilevelError) as caught:
        solve(counting, solver or Penalty(), resume=path, **options)
    assert type(caught.value) is CheckpointError, caught.value
    assert all(word in str(caught.value) for word in [path.name, *words]), caught.value
    assert len(calls) <= 15, "refused after work was done"  # the looks at the start are these many


def test_missing(tmp_path):
    refused(["no such file"], tmp_path / "nothing.ckpt")
    refused(["no such file"], tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip", bytes(range(256)) * 40])
def test_garbage(path, content):
    path.write_bytes(content)
    refused(["not a checkpoint, or damaged"], path)


def test_truncated(saved):
    """Cut anywhere."""
    content = saved.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        saved.write_bytes(content[: int(part * len(content))])
        refused(["not a checkpoint, or damaged"], saved)


def test_flipped_bits(saved):
    """One bit changed anywhere: refused in the library's words, or the run goes on with the right numbers."""
    right = bits(solve(bowl(), Penalty(), resume=saved, max_steps=4).state)
    content, rng = saved.read_bytes(), random.Random(0)
    for _ in range(100):
        place = rng.randrange(len(content))
        saved.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
        try:
            result = solve(bowl(), Penalty(), resume=saved, max_steps=4)
        except CheckpointError:
            continue
        assert bits(result.state) == right, f"byte {place}"


@pytest.mark.parametrize(
    "content",
    [
        {"format": "bilevel-checkpoint/0", "header": "{}", "tensors": {}},
        {"format": "bilevel-checkpoint/1"},
        {"format": "bilevel-checkpoint/1", "header": "no json", "tensors": {}},
        {"format": "bilevel-checkpoint/1", "header": "{}", "tensors": {}},
        {"weights": torch.zeros(3)},
        torch.zeros(3),
        [1, 2],
    ],
    ids=["other format", "no header", "no json", "empty header", "a model", "a tensor", "a list"],
)
def test_other_formats(path, content):
    torch.save(content, path)
    refused([], path)


def test_missing_tensor_or_unknown_state(saved):
    content = torch.load(saved, weights_only=True)
    first = next(iter(content["tensors"]))
    torch.save({**content, "tensors": {k: v for k, v in content["tensors"].items() if k != first}}, saved)
    refused([], saved)
    torch.save({**content, "header": content["header"].replace("PenaltyState", "OtherState")}, saved)
    refused([], saved)


def test_a_forged_answer_to_fall_back_on(saved):
    content = torch.load(saved, weights_only=True)
    header = json.loads(content["header"])
    asked, tol, _, enough = header["lowered"]
    forged = json.dumps({**header, "lowered": (asked, tol, 1, enough), "accepted": header["structure"]})
    digest = checkpoint._digest(forged, content["tensors"])
    torch.save({**content, "header": forged, "digest": digest}, saved)
    refused(["its state does not fit", "accepted"], saved)


def test_other_problem(saved):
    refused(["problem", "[2]", "[3]"], saved, bowl(3))
    refused(["problem", "float32"], saved, bowl(x=torch.zeros(2), y=torch.zeros(2)))
    refused(["problem", "a set X"], saved, bowl(X=Box(0, 1)))
    refused(["problem", "['a']"], saved, bowl(x={"a": torch.zeros(2, dtype=F64)}, upper=lambda x, y: (y**2).sum(), lower=low))
    refused(["problem", "FullBatch(7 rows)"], saved, bowl(lower_data=FullBatch(torch.zeros(7))))


def low(x, y):
    return ((y - x["a"]) ** 2).sum()


def test_other_length_of_the_data(path):
    solve(bowl(rows=10), max_steps=3, callbacks=[Checkpoint(path)])
    refused(["problem", "10 rows", "11 rows"], path, bowl(rows=11), PenaltySGD(), max_steps=5)
    assert solve(bowl(rows=10), max_steps=5, resume=path).steps == 5


def test_other_solver_option_or_seed(saved):
    refused(["solver", "theta", "0.1", "0.2"], saved, solver=Penalty(theta=0.2))
    refused(["solver", "SPG"], saved, solver=Penalty(inner=SPG()))
    refused(["solver", "Penalty", "PenaltySGD"], saved, solver=PenaltySGD(), max_steps=3)
    refused(["seed", "0", "1"], saved, seed=1)


def test_other_callbacks(path):
    solve(bowl(), Penalty(), max_steps=3, callbacks=[History(), Checkpoint(path)])
    refused(["callbacks", "History", "StopWhen"], path, callbacks=[StopWhen(lambda event: False)])


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("write", ["pickle", "torch", "inside", "legacy"])
def test_nothing_in_a_file_is_executed(path, tmp_path, write):
    target = tmp_path / "executed"
    payload = Payload(target)
    if write == "pickle":
        path.write_bytes(pickle.dumps(payload))
    elif write == "torch":
        torch.save(payload, path)
    elif write == "legacy":
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"format": "bilevel-checkpoint/1", "header": "{}", "tensors": {"a": payload}}, path)
    refused(["not a checkpoint"], path)
    assert not target.exists()
