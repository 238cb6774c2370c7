"""The data of a run are part of what a checkpoint must match: digests of what samplers hold, and what is said of others."""

import copy
import json

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from bilevel import BilevelProblem, Checkpoint, FullBatch, MiniBatches, NoData, PenaltySGD, SourceBatches, Stream, solve
from constrained.core import checkpoint, digest, running
from constrained.core.errors import CheckpointError

F64 = torch.float64


def rows(n=40, width=3):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(3), dtype=F64)


class Own(Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i]


MAKERS = {
    "tensor": lambda t: MiniBatches(t, 5),
    "tuple": lambda t: MiniBatches((torch.zeros(len(t)), t), 5),
    "array": lambda t: MiniBatches(t.numpy(), 5),
    "tensor dataset": lambda t: MiniBatches(TensorDataset(t, t[:, 0]), 5),
    "subset": lambda t: MiniBatches(Subset(TensorDataset(t), range(len(t))), 5),
    "concatenated": lambda t: MiniBatches(ConcatDataset([TensorDataset(t[:7]), TensorDataset(t[7:])]), 5),
    "stacked": lambda t: MiniBatches(StackDataset(a=TensorDataset(t), b=t), 5),
    "list of pairs": lambda t: MiniBatches([(row, "name") for row in t], 5),
    "labels": lambda t: MiniBatches(torch.zeros(len(t)), 5, stratify=(t[:, -1] > 0).long()),
    "sources": lambda t: SourceBatches({"a": t, "b": torch.zeros(9)}, 2),
    "all": lambda t: FullBatch({"inputs": t, "labels": [t[:, 0], 1.0]}),
    "float32": lambda t: FullBatch(t.float()),
    "bfloat16": lambda t: FullBatch(t.bfloat16()),
    "complex": lambda t: FullBatch(t.to(torch.complex128)),
    "bool": lambda t: FullBatch(t > 0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_number_anywhere_changes_the_digest(name):
    make, whole = MAKERS[name], rows()
    found, reached = digest.digest(make(whole))
    assert reached
    assert digest.digest(make(whole.clone())) == (found, True)
    for i in (0, 20, 39):
        other = whole.clone()
        other[i] *= -100
        assert digest.digest(make(other))[0] != found


def test_it_is_of_the_numbers_and_not_of_their_places():
    whole = rows()
    transposed = whole.T.contiguous().T
    assert digest.digest(FullBatch(whole)) == digest.digest(FullBatch(transposed))
    for other in (whole.T, whole.float(), whole.reshape(-1), whole.flip(0), whole[:39]):
        assert digest.digest(FullBatch(whole)) != digest.digest(FullBatch(other))
    assert digest.digest(NoData())[1]


@pytest.mark.parametrize("sampler", [Stream([rows()]), MiniBatches(Own(rows()), 5), FullBatch(rows().to_sparse()), object()])
def test_what_it_does_not_reach_is_said(sampler):
    assert digest.digest(sampler)[1] is False
    assert digest.digest(sampler) == digest.digest(copy.copy(sampler))


@pytest.mark.parametrize("turn", [lambda t: t, lambda t: t.T, lambda t: t.numpy(), lambda t: t.numpy().T])
def test_of_much_data_evenly_spaced_runs_are_hashed(monkeypatch, turn):
    monkeypatch.setattr(digest, "WHOLE", 1000)
    monkeypatch.setattr(digest, "SAMPLED", 4000)
    monkeypatch.setattr(digest, "RUN", 80)
    whole = rows(5000, 2)
    found = digest.digest(FullBatch(turn(whole)))
    assert found[1]
    looked = 0
    for i in [0, 4999, *range(7, 5000, 101)]:
        other = whole.clone()
        other[i] += 1
        looked += digest.digest(FullBatch(turn(other))) != found
        assert looked or i
    assert 2 <= looked < 15
    other = rows(5000, 2) + 1
    assert digest.digest(FullBatch(turn(other))) != found
    places = np.concatenate([*digest._runs(10_000, 8, 0.05)])
    assert (places[0], places[-1], len(places)) == (0, 9999, 500)


# -- in runs ------------------------------------------------------------------------------------------------------------------
def fit(lower, upper=None):
    def lower_loss(x, y, batch):
        return ((torch.as_tensor(batch).reshape(-1, 3) @ y) ** 2).mean() + (x.exp() * y**2).sum()

    return BilevelProblem(
        upper=lambda x, y, batch: ((torch.as_tensor(batch) @ y - 1) ** 2).mean(),
        lower=lower_loss,
        x=torch.zeros(3, dtype=F64),
        y=torch.zeros(3, dtype=F64),
        upper_data=MiniBatches(rows(30) + 1, 5) if upper is None else upper,
        lower_data=lower,
    )


SOLVER = PenaltySGD(warmup=0)


def beyond_the_first_batches():
    """Data that differ only in rows that the first batches of the start do not hold."""
    whole = rows()
    first = {int(i) for n in range(2) for stream in range(3) for i in MiniBatches(whole, 5).indices(0, stream, n)}
    other = whole.clone()
    other[[i for i in range(40) if i not in first]] *= -100
    return whole, other


def test_other_data_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    whole, other = beyond_the_first_batches()
    solve(fit(MiniBatches(whole, 5)), SOLVER, max_steps=2, callbacks=[Checkpoint(path)])
    with pytest.raises(CheckpointError, match=r"run\.pt: it is of another problem: lower_data holds other data"):
        solve(fit(MiniBatches(other, 5)), SOLVER, max_steps=3, resume=path)
    resumed = solve(fit(MiniBatches(whole.clone(), 5)), SOLVER, max_steps=3, resume=path)
    assert resumed.steps == 3
    assert not any("Resumed" in note for note in resumed.notes)


def test_what_cannot_be_compared_is_noted(tmp_path):
    path = tmp_path / "run.pt"
    for lower, upper, name in (
        (Stream([rows()]), None, "lower_data"),
        (MiniBatches(rows(), 5), MiniBatches(Own(rows()), 5), "upper_data"),
    ):
        solve(fit(lower, upper), SOLVER, max_steps=2, callbacks=[Checkpoint(path)])
        assert not any("Resumed" in note for note in solve(fit(lower, upper), SOLVER, max_steps=2).notes)
        notes = solve(fit(lower, upper), SOLVER, max_steps=3, resume=path).notes
        assert [note for note in notes if note.startswith(f"Resumed without comparing the data of {name}: ")]


def test_a_file_of_before_there_were_digests(tmp_path):
    path = tmp_path / "run.pt"
    solve(fit(MiniBatches(rows(), 5)), SOLVER, max_steps=2, callbacks=[Checkpoint(path)])
    content = torch.load(path, weights_only=True)
    header = json.loads(content["header"])
    del header["data"]
    text = json.dumps(header)
    torch.save({**content, "header": text, "digest": checkpoint._digest(text, content["tensors"])}, path)
    resumed = solve(fit(MiniBatches(rows(), 5)), SOLVER, max_steps=3, resume=path)
    assert [note for note in resumed.notes if "upper_data, lower_data: a checkpoint of before" in note]


def test_once_a_run_and_only_where_it_is_saved_or_resumed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(running, "digest", lambda sampler: asked.append(sampler) or digest.digest(sampler))
    problem = fit(MiniBatches(rows(), 5))
    solve(problem, SOLVER, max_steps=3)
    assert not asked
    solve(problem, SOLVER, max_steps=3, callbacks=[Checkpoint(tmp_path / "run.pt")])
    assert len(asked) == 2
    solve(problem, SOLVER, max_steps=6, resume=tmp_path / "run.pt", callbacks=[Checkpoint(tmp_path / "run.pt")])
    assert len(asked) == 4
