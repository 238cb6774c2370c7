"""History, Checkpoint, StopWhen, Progress: what each does with events."""

import csv
import io
import math
import os
import re
import struct

import pytest
import torch

from bilevel import BilevelProblem, Checkpoint, History, Penalty, Progress, Status, StopWhen, iterate, solve
from constrained.core.callbacks import write_text
from constrained.core.errors import OptionError, OutputError
from problems.quadratic import quadratic

F64 = torch.float64


def bowl():
    return BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        x=torch.zeros(2, dtype=F64),
        y=torch.zeros(2, dtype=F64),
    )


def run(*callbacks, **options):
    return solve(quadratic(seed=4).problem, Penalty(), callbacks=list(callbacks), **{"max_steps": 10, **options})


# -- any function -----------------------------------------------------------------------------------------------------------
def test_a_callback_sees_every_event_and_stops_by_true():
    seen = []

    def watch(event):
        seen.append((event.k, event.status))
        return event.k == 4

    result = run(watch)
    assert seen == [(k, Status.RUNNING) for k in range(5)]
    assert (result.status, result.steps) == (Status.STOPPED, 4)


def test_every_callback_sees_the_event_at_which_one_stops():
    seen = []
    result = run(lambda event: event.k == 2, lambda event: seen.append(event.k))
    assert seen == [0, 1, 2]
    assert result.status is Status.STOPPED


def test_a_callback_does_not_overrule_the_end():
    assert run(lambda event: event.status.done, max_steps=3).status is Status.MAX_STEPS


@pytest.mark.parametrize("returned", [None, False, 0, ""])
def test_only_a_true_value_stops(returned):
    assert run(lambda event: returned, max_steps=3).status is Status.MAX_STEPS


def test_callbacks_from_a_generator():
    seen = []
    solve(bowl(), max_steps=1, callbacks=(watch for watch in [lambda event: seen.append(event.k)]))
    assert seen == [0, 1]


def test_callbacks_change_nothing():
    """What a callback asks for (answer, residuals) costs, but the run goes on as without it."""
    plain, watched = run(), run(lambda event: event.residuals() and None, History(residuals=True))
    assert torch.equal(plain.x, watched.x)
    assert plain.calls.gradients == watched.calls.gradients


def test_error_in_a_callback_comes_through_and_closes_the_others():
    class Closing:
        closed = False

        def __call__(self, event):
            return None

        def close(self):
            self.closed = True

    closing = Closing()

    def fail(event):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run(closing, fail)
    assert closing.closed


# -- History ----------------------------------------------------------------------------------------------------------------
def test_history_rows():
    history = History()
    result = run(history)
    assert [row["k"] for row in history.rows] == list(range(11))
    assert list(history.rows[0])[:4] == ["k", "seconds", "gradients", "rows"]
    assert {"upper", "lower", "residual", "sigma"} <= set(history.rows[-1])
    assert history.rows[-1]["gradients"] == result.calls.gradients
    assert all(isinstance(value, (int, float)) for row in history.rows for value in row.values())


@pytest.mark.parametrize("every", [2, 3, 7])
def test_history_every(every):
    history = History(every=every)
    run(history)
    assert [row["k"] for row in history.rows] == [*range(0, 10, every), 10]


def test_history_residuals():
    """The residuals stand beside what the solver monitors, neither in place of the other."""
    plain, history = History(), History(residuals=True)
    run(plain)
    result = run(history)
    for row, more in zip(plain.rows, history.rows):
        assert {name: more[name] for name in row if name != "seconds"} == {k: v for k, v in row.items() if k != "seconds"}
    added = [value for name, value in history.rows[-1].items() if name not in plain.rows[-1]]
    assert sorted(added) == sorted(result.residuals().values())


def test_history_is_exact_in_csv(tmp_path):
    """Every float comes back with the same bits, also awkward ones; a column that only some rows have stays empty elsewhere."""
    history = History()
    run(history)
    history.rows[1]["rare"] = 0.1 + 0.2
    history.rows[2] |= {"upper": math.inf, "lower": 5e-324}
    path = tmp_path / "deep" / "history.csv"
    history.write(path)
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(history.rows)
    for got, row in zip(read, history.rows):
        for name, value in row.items():
            kept = type(value)(got[name])
            assert struct.pack("d", kept) == struct.pack("d", value), name
    assert read[0]["rare"] == ""
    assert b"\r" not in path.read_bytes()


def test_history_without_rows(tmp_path):
    History().write(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().strip() == ""


def test_history_state_is_its_own():
    history, other = History(), History()
    run(history)
    other.load_state_dict(history.state_dict())
    other.rows[0]["k"] = 77
    assert history.rows[0]["k"] == 0


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2", None])
def test_intervals_are_checked(bad, tmp_path):
    for make, name in (
        (lambda: History(every=bad), "History: every"),
        (lambda: Checkpoint(tmp_path / "c", every=bad), "Checkpoint: every"),
        (lambda: StopWhen(lambda event: True, times=bad), "StopWhen: times"),
    ):
        with pytest.raises(OptionError, match=f"{name}.*>= 1.*{re.escape(repr(bad))}"):
            make()


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    write_text(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"history\.csv.*No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"


# -- StopWhen ---------------------------------------------------------------------------------------------------------------
def test_stop_when():
    stop = StopWhen(lambda event: event.calls.gradients > 300)
    result = run(stop, max_steps=100)
    assert result.status is Status.STOPPED
    assert result.calls.gradients > 300
    before = [event.calls.gradients for event in iterate(quadratic(seed=4).problem, Penalty(), max_steps=result.steps)][-2]
    assert before <= 300


def test_stop_when_held_several_times_in_a_row():
    values = iter([True, True, False, True, True, True, True])
    assert run(StopWhen(lambda event: next(values), times=3)).steps == 5


def test_stop_when_counts_on_after_a_resume(tmp_path):
    path = tmp_path / "run.ckpt"
    run(StopWhen(lambda event: True, times=6), Checkpoint(path), max_steps=3)
    result = run(StopWhen(lambda event: True, times=6), resume=path)
    assert result.status is Status.STOPPED
    assert result.steps <= 5


def test_stop_when_needs_a_test():
    with pytest.raises(OptionError, match="StopWhen: test must be a function"):
        StopWhen(3)


# -- Checkpoint and Progress ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("options", "saves"), [({}, 11), ({"every": 4}, 4), ({"seconds": 1e9}, 2)])
def test_checkpoint_writes_when_due(tmp_path, monkeypatch, options, saves):
    """Every step, every so many, at most once in so many seconds; always at the end."""
    ks = []
    monkeypatch.setattr("constrained.core.checkpoint.save", lambda path, header, *rest, **more: ks.append(header["k"]))
    run(Checkpoint(tmp_path / "run.ckpt", **options))
    assert len(ks) == saves
    assert ks[-1] == 10


def test_checkpoint_makes_its_folder(tmp_path):
    Checkpoint(tmp_path / "a" / "b" / "run.ckpt")
    assert (tmp_path / "a" / "b").is_dir()


def test_progress_does_not_crash(capfd):
    result = run(progress=True)
    plain = run()
    assert torch.equal(result.x, plain.x)
    run(Progress(), Progress())
    assert "\x1b" not in capfd.readouterr().out


def test_progress_on_a_terminal(monkeypatch):
    """Drawn on something that says it is a terminal; closed after an error."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    run(Progress())
    assert "gradients" in screen.getvalue()

    def fail(event):
        if event.k == 2:
            raise ZeroDivisionError

    for _ in range(2):  # a display left open would refuse the second
        with pytest.raises(ZeroDivisionError):
            run(Progress(), fail)


def test_progress_after_the_limit_is_unknown():
    """No limit of steps: nothing to divide by."""
    assert solve(bowl(), callbacks=[Progress()]).success


def test_odd_paths_are_refused(tmp_path):
    for path in (tmp_path / "a\0b", tmp_path / ("x" * 5000), "", 3):
        with pytest.raises(OutputError, match="cannot be written"):
            History().write(path)
