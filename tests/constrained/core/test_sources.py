"""SourceBatches: stratified, reproducible, shared evenly by processes."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from bilevel import MiniBatches, SourceBatches
from constrained.core.errors import ProblemError
from constrained.core.processes import Ranks


def sources(lengths=(10, 7, 12)):
    return {name: 100.0 * i + torch.arange(n) for i, (name, n) in enumerate(zip("cab", lengths))}


def test_a_batch_has_each_source_in_the_order_of_names():
    batches = SourceBatches(sources(), 3)
    rows, source = batches.draw(0, 1, 0)
    assert batches.names == ("a", "b", "c")
    assert source.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert ((rows // 100).long() == torch.tensor([1, 2, 0])[source]).all()
    assert batches.lengths == (7, 12, 10)
    assert len(batches) == 29
    assert repr(batches) == "SourceBatches({a: 7, b: 12, c: 10}, size=3)"


def test_batches_are_a_function_of_seed_stream_and_n():
    batches = SourceBatches(sources(), 3)
    for n in (0, 5, 2):
        assert torch.equal(batches.draw(1, 0, n)[0], SourceBatches(sources(), 3).draw(1, 0, n)[0])
    drawn = [tuple(batches.draw(*key)[0].tolist()) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len(set(drawn)) == 4


def test_epochs_of_each_source_are_its_own():
    batches = SourceBatches(sources(), {"a": 2, "b": 3, "c": 5})
    assert batches.sizes == (2, 3, 5)
    seen = np.concatenate([batches.draw(0, 0, n)[0][:2].numpy() for n in range(3)])
    assert len(set(seen)) == 6  # three batches of two of seven rows; the seventh is left out
    whole = np.concatenate([batches.draw(0, 0, n)[0][5:].numpy() for n in range(2)])
    assert sorted(whole) == list(range(10))


def test_tuples_and_datasets_keep_their_structure():
    pairs = {name: (part, part + 1) for name, part in sources().items()}
    (rows, more), source = SourceBatches(pairs, 2).draw(0, 0, 0)
    assert torch.equal(rows + 1, more)
    assert len(source) == 6
    (rows, more), _ = SourceBatches({n: TensorDataset(*p) for n, p in pairs.items()}, 2).draw(0, 0, 0)
    assert torch.equal(rows + 1, more)
    full, source = SourceBatches(sources(), 2).full().draw(0, 0, 0)
    assert len(full) == len(source) == 29
    assert torch.bincount(source).tolist() == [7, 12, 10]


def test_processes_share_each_source_evenly():
    ranks = [object.__new__(Ranks) for _ in range(2)]
    for i, one in enumerate(ranks):
        one.rank, one.world = i, 2
    batches = SourceBatches(sources(), {"a": 2, "b": 4, "c": 6})
    batch = batches.draw(0, 0, 0)
    parts = [one.share(batches, batch) for one in ranks]
    for _, source in parts:
        assert torch.bincount(source).tolist() == [1, 2, 3]
    assert sorted(torch.cat([rows for rows, _ in parts]).tolist()) == sorted(batch[0].tolist())
    with pytest.raises(ProblemError, match="2 processes cannot share"):
        ranks[0].share(SourceBatches(sources(), 3), SourceBatches(sources(), 3).draw(0, 0, 0))
    plain = MiniBatches(torch.arange(8.0), 4)
    assert len(ranks[1].share(plain, plain.draw(0, 0, 0))) == 2
    with pytest.raises(ProblemError, match="3 rows cannot be shared evenly by 2 processes"):
        ranks[0].share(plain, torch.zeros(3))
    assert ranks[0].share(plain, None) is None


@pytest.mark.parametrize(
    ("given", "size", "message"),
    [
        ({}, 2, "expected a dict of names and data"),
        ([torch.zeros(3)], 2, "expected a dict of names and data"),
        ({"": torch.zeros(3)}, 2, "expected a dict of names and data"),
        ({"a": torch.zeros(3)}, 0, "source 'a': MiniBatches: size: expected an integer"),
        ({"a": torch.zeros(3)}, 4, "source 'a': MiniBatches: drop_last leaves no batch: size must be at most 3"),
        ({"a": torch.zeros(3)}, {"b": 1}, "size: expected one for each of"),
        ({"a": 3}, 1, "source 'a': MiniBatches: expected tensors or a map-style Dataset"),
    ],
)
def test_what_is_refused(given, size, message):
    with pytest.raises(ProblemError, match=message.replace("(", "\\(")):
        SourceBatches(given, size)
