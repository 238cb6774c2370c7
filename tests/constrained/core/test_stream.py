"""Stream against plain iteration over the loader: positions, epochs, going back, states, refusals; resumed runs."""

import copy
import json

import pytest
import torch
from harness import same
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bilevel import BilevelProblem, Checkpoint, MiniBatches, PenaltySGD, Stream, iterate, solve
from constrained.core import checkpoint
from constrained.core.data import Sampler
from constrained.core.errors import CheckpointError, ProblemError

F64 = torch.float64
ROWS = torch.arange(10.0, dtype=F64)


def kind(value):
    """A name that is the same in every process."""
    return type(value).__name__


class Counter(IterableDataset):
    """0, 1, ..., 9 without indices."""

    def __iter__(self):
        yield from ROWS


class Stateful:
    """Batches in an order of its own, one seed an epoch, which its state tells."""

    def __init__(self):
        self.epoch, self.at = 0, 0

    def order(self):
        return torch.randperm(10, generator=torch.Generator().manual_seed(self.epoch)).split(3)

    def __iter__(self):
        while self.at < 4:
            self.at += 1
            yield ROWS[self.order()[self.at - 1]]
        self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self):
        return {"epoch": self.epoch, "at": self.at, "more": [None, {"name": "a word", "share": 0.1}]}

    def load_state_dict(self, state):
        assert state["more"] == [None, {"name": "a word", "share": 0.1}]
        self.epoch, self.at = state["epoch"], state["at"]


class Opaque(Stateful):
    """Its state is no JSON data, so that it must not be asked to load one."""

    extra: object = torch.zeros(1)

    def state_dict(self):
        return {**super().state_dict(), "extra": self.extra}

    def load_state_dict(self, state):
        raise AssertionError


def loader():
    return DataLoader(Counter(), batch_size=3)


def batches(make, count: int) -> list:
    """The truth: epochs of plain iteration, one after another."""
    found, one = [], make()
    while len(found) < count:
        found += list(one)
    return found[:count]


MAKERS = [loader, Stateful, Opaque, lambda: list(ROWS.split(4))]
NAMES = ["DataLoader", "stateful", "opaque", "list"]


# -- drawing ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_draws_are_the_batches_in_order(make):
    stream, wanted = Stream(make()), batches(make, 11)
    for n in range(11):
        assert torch.equal(stream.draw(7, n % 2, n), wanted[n])
    assert stream.state_dict()["position"] == 11


def test_the_first_and_the_last_are_kept():
    stream = Stream(Stateful())
    first = stream.draw(0, 0, 0)
    for n in range(1, 6):
        last = stream.draw(0, 0, n)
        assert stream.draw(0, 0, n) is last
        assert stream.draw(0, 0, 0) is first
    assert stream.state_dict()["position"] == 6


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_skipping_forward(make):
    stream, wanted = Stream(make()), batches(make, 20)
    for n in (2, 3, 9, 19):
        assert torch.equal(stream.draw(0, 0, n), wanted[n])


@pytest.mark.parametrize("make", [loader, Stateful, MAKERS[3]], ids=["DataLoader", "stateful", "list"])
def test_going_back_begins_again(make):
    """A loader that tells its state begins again in it, orders of epochs and all."""
    stream, wanted = Stream(make()), batches(make, 10)
    first = stream.draw(0, 0, 0)
    for n in (9, 3, 4, 1, 9):
        assert torch.equal(stream.draw(0, 0, n), wanted[n])
        assert stream.state_dict()["position"] == n + 1
    assert stream.draw(0, 0, 0) is first


def test_an_iterator_ends():
    stream = Stream(iter(ROWS.split(5)))
    assert torch.equal(stream.draw(0, 0, 1), ROWS[5:])
    assert torch.equal(stream.draw(0, 0, 0), ROWS[:5])
    with pytest.raises(ProblemError, match=r"Stream: loader: expected .* can begin again, got .*iterator that ended after 2 b"):
        stream.draw(0, 0, 2)
    generator = Stream(batch for batch in ROWS.split(2))
    generator.draw(0, 0, 3)
    with pytest.raises(ProblemError, match=r"Stream: loader: expected .* can begin again, got a generator after 4 batches"):
        generator.draw(0, 0, 1)


@pytest.mark.parametrize("nothing", [[], DataLoader(TensorDataset(ROWS), batch_size=20, drop_last=True)], ids=["list", "loader"])
def test_a_loader_without_batches(nothing):
    with pytest.raises(ProblemError, match=r"Stream: loader: expected batches, got a .* that gives none"):
        Stream(nothing).draw(0, 0, 0)
    with pytest.raises(ProblemError, match=r"Stream: loader: .* that ended after 0 batches"):
        Stream(iter([])).draw(0, 0, 0)


@pytest.mark.parametrize("value", [3, None, "a word", b"", {"a": ROWS}, ROWS, DataLoader, TensorDataset(ROWS)], ids=kind)
def test_no_iterable_of_batches(value):
    with pytest.raises(ProblemError, match="Stream: loader: expected an iterable of batches"):
        Stream(value)


def test_what_it_says_of_itself():
    stream = Stream(loader())
    assert isinstance(stream, Sampler)
    assert (stream.stochastic, stream.exact, stream.full()) == (True, False, None)
    assert repr(stream) == "Stream(DataLoader, batch_size=3)"
    assert repr(Stream([ROWS])) == "Stream(list)"


# -- state ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("position", range(1, 11))
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_a_state_goes_on_where_it_was_taken(make, position):
    """Also at the end of an epoch, and in a stream that has given its first batch."""
    one, other, wanted = Stream(make()), Stream(make()), batches(make, 16)
    one.draw(0, 0, position - 1)
    saved = json.loads(json.dumps(one.state_dict()))
    first = other.draw(0, 0, 0)
    other.load_state_dict(copy.deepcopy(saved))
    assert other.state_dict() == saved
    for n in range(position, 16):
        assert torch.equal(other.draw(0, 0, n), wanted[n])
        assert other.draw(0, 0, 0) is first


def test_a_state_goes_back():
    for make in MAKERS[:2]:
        stream, wanted = Stream(make()), batches(make, 9)
        stream.draw(0, 0, 2)
        saved = stream.state_dict()
        stream.draw(0, 0, 8)
        stream.load_state_dict(saved)
        assert torch.equal(stream.draw(0, 0, 3), wanted[3])


def test_a_state_for_an_iterator():
    one, other = (Stream(iter(ROWS.split(1))) for _ in range(2))
    one.draw(0, 0, 4)
    other.draw(0, 0, 0)
    other.load_state_dict(one.state_dict())
    assert other.draw(0, 0, 5) == 5.0
    with pytest.raises(ProblemError, match="begin again"):
        other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("extra", [torch.zeros(1), {1}, (1, 2), {1: 2}, float("nan"), object(), b"x"], ids=kind)
def test_only_plain_states_are_kept(extra):
    one = Opaque()
    one.extra = extra
    stream = Stream(one)
    stream.draw(0, 0, 4)
    assert stream.state_dict() == {"position": 5, "loader": None}


def test_states_of_torchdata():
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    for make in (lambda: stateful(Counter(), batch_size=3), lambda: stateful(TensorDataset(ROWS), batch_size=3, num_workers=2)):
        one, wanted = Stream(make()), batches(make, 11)
        for position in range(1, 10):
            assert all(torch.equal(*pair) for pair in zip(one.draw(0, 0, position - 1), wanted[position - 1]))
            other, saved = Stream(make()), json.loads(json.dumps(one.state_dict()))
            assert saved["loader"] is not None
            other.draw(0, 0, 0)
            other.load_state_dict(saved)
            for n in (position, position + 1):
                assert all(torch.equal(*pair) for pair in zip(other.draw(0, 0, n), wanted[n]))


# -- runs -------------------------------------------------------------------------------------------------------------------
SOLVER = PenaltySGD(sigma=1.0, gamma=0.1, warmup=3)


def problem(make, seen: list, **changed) -> BilevelProblem:
    """Records the batches that the lower level sees."""

    def lower(x, y, batch):
        seen.append(batch.tolist())
        return ((y - x - batch.mean()) ** 2).sum()

    options = {
        "upper": lambda x, y, batch: ((y - batch.mean()) ** 2).sum() + (x**2).sum(),
        "lower": lower,
        "x": torch.zeros(2, dtype=F64),
        "y": torch.zeros(2, dtype=F64),
        "upper_data": MiniBatches(ROWS, 2),
        "lower_data": Stream(make()),
    }
    return BilevelProblem(**{**options, **changed})


def in_order(seen: list) -> list:
    """Without repetitions of the batch at hand."""
    return [batch for batch, before in zip(seen, [None, *seen]) if batch != before]


@pytest.mark.parametrize("saved_at", [0, 1, 4, 7])
@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_a_resumed_run_sees_the_batches_that_come_next(make, saved_at, tmp_path):
    """Also with these loaders, whose order is fixed, the resumed run has the bits of the uninterrupted one."""
    wanted = [batch.tolist() for batch in batches(make, 13)]
    seen: list = []
    for event in iterate(problem(make, seen), SOLVER, max_steps=13):
        if event.k == saved_at:
            event.save(tmp_path / "run.pt")
    assert in_order(seen) == wanted
    header, _ = checkpoint.load(tmp_path / "run.pt")
    assert [*header["samplers"]] == ["lower_data"]
    assert header["samplers"]["lower_data"]["position"] == max(saved_at, 1)  # the check at the start took the first
    assert header["run"]["problem (its values at the start)"] == []
    whole = solve(problem(make, []), SOLVER, max_steps=13)
    seen.clear()
    resumed = solve(problem(make, seen), SOLVER, max_steps=13, resume=tmp_path / "run.pt")
    assert in_order(seen) == in_order([wanted[0], *wanted[max(saved_at, 1) :]])  # the first: the check at the start
    assert same([resumed.x, resumed.y], [whole.x, whole.y])
    assert resumed.steps == 13


def test_saving_again_before_the_first_step(tmp_path):
    """A checkpoint overwritten by the first event of the resumed run keeps the position."""
    for make in MAKERS:
        path = tmp_path / "run.pt"
        solve(problem(make, []), SOLVER, max_steps=6, callbacks=[Checkpoint(path)])
        before = checkpoint.load(path)[0]["samplers"]
        for event in iterate(problem(make, []), SOLVER, max_steps=9, resume=path):
            event.residuals()
            event.save(path)
            assert event.k > 6 or checkpoint.load(path)[0]["samplers"] == before
        wanted = solve(problem(make, []), SOLVER, max_steps=12)
        assert torch.equal(solve(problem(make, []), SOLVER, max_steps=12, resume=path).x, wanted.x)


def test_the_result_says_that_resuming_is_not_exact():
    result = solve(problem(loader, []), SOLVER, max_steps=2)
    assert result.exact is False
    assert repr(result).count("bit for bit") == 1
    exact = solve(problem(loader, [], lower_data=MiniBatches(ROWS, 2)), SOLVER, max_steps=2)
    assert exact.exact is True
    assert "bit for bit" not in repr(exact)


def test_another_kind_of_data_is_not_resumed(tmp_path):
    solve(problem(loader, []), SOLVER, max_steps=2, callbacks=[Checkpoint(tmp_path / "run.pt")])
    for other in (Stream(DataLoader(Counter(), batch_size=2)), MiniBatches(ROWS, 2)):
        with pytest.raises(CheckpointError, match="lower_data"):
            solve(problem(loader, [], lower_data=other), SOLVER, max_steps=3, resume=tmp_path / "run.pt")


def test_old_checkpoints_without_samplers_resume(tmp_path, monkeypatch):
    plain = {"lower_data": MiniBatches(ROWS, 3)}
    path, written = tmp_path / "run.pt", checkpoint.save

    def old(path, header, *rest, **more):
        written(path, {key: value for key, value in header.items() if key != "samplers"}, *rest, **more)

    monkeypatch.setattr(checkpoint, "save", old)
    whole = solve(problem(loader, [], **plain), SOLVER, max_steps=4, callbacks=[Checkpoint(path)])
    assert "samplers" not in checkpoint.load(path)[0]
    assert torch.equal(solve(problem(loader, [], **plain), SOLVER, max_steps=4, resume=path).x, whole.x)
