"""Samplers: batches are a pure function of (seed, stream, n), equal to what numpy's generator gives."""

import doctest

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from constrained.core import data
from constrained.core.data import FullBatch, MiniBatches, NoData, Sampler, rows
from constrained.core.errors import ProblemError

N = 23
INPUTS = torch.arange(2.0 * N).reshape(N, 2)
LABELS = torch.arange(N)


class Squares(Dataset):
    """A map-style dataset without tensors."""

    def __init__(self, length: int = N):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < self.length:
            raise IndexError(i)
        return {"i": i, "square": float(i * i)}


class Endless(IterableDataset):
    """No indices."""

    def __iter__(self):
        yield from range(10)

    def __len__(self) -> int:
        return 10


def expected(seed: int, stream: int, epoch: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence([seed, stream, epoch])).permutation(n)


# -- no data, all data ------------------------------------------------------------------------------------------------------
def test_no_data():
    none = NoData()
    assert none.draw(0, 0, 0) is None
    assert none.full() is none
    assert not none.stochastic
    assert eval(repr(none), {"NoData": NoData}) is not None


def test_full_batch_hands_over_what_it_got():
    assert FullBatch(INPUTS).draw(0, 1, 2) is INPUTS
    assert FullBatch(INPUTS, LABELS).draw(0, 1, 2) == (INPUTS, LABELS)
    tree = {"a": INPUTS, "b": "a word"}
    assert FullBatch(tree).draw(0, 1, 2) is tree
    assert len(FullBatch(INPUTS, LABELS)) == len(FullBatch(tree)) == N
    assert not FullBatch(INPUTS).stochastic
    assert FullBatch(INPUTS).exact
    assert "23" in repr(FullBatch(INPUTS))


def test_full_batch_of_nothing_is_refused():
    with pytest.raises(ProblemError, match="FullBatch"):
        FullBatch()


@pytest.mark.parametrize("sampler", [NoData(), FullBatch(INPUTS), MiniBatches(INPUTS, 4), MiniBatches(Squares(), 4)], ids=repr)
def test_they_are_samplers(sampler):
    assert isinstance(sampler, Sampler)


# -- mini-batches -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_batches_are_numpys_permutation_cut_up(size):
    batches = MiniBatches(INPUTS, size)
    steps = batches.steps_per_epoch
    assert steps == int(np.ceil(N / size))
    for epoch in range(3):
        order = np.concatenate([batches.indices(7, 2, epoch * steps + i) for i in range(steps)])
        np.testing.assert_array_equal(order, expected(7, 2, epoch))  # every row exactly once


def test_a_batch_depends_on_its_three_numbers_alone():
    one, other = MiniBatches(INPUTS, 5), MiniBatches(INPUTS, 5)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    asked = [(s, t, n) for s in (0, 3) for t in (0, 1) for n in range(12)]
    first = {key: one.indices(*key).copy() for key in asked}
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    for i in np.random.default_rng(0).permutation(len(asked)):
        np.testing.assert_array_equal(other.indices(*asked[i]), first[asked[i]])


def test_seed_stream_and_epoch_each_change_the_order():
    batches = MiniBatches(INPUTS, N)
    orders = [tuple(batches.indices(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len(set(orders)) == 4


def test_global_random_state_is_untouched():
    before, torch_before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    for shuffle in ("epochs", "replacement", "none"):
        MiniBatches(INPUTS, 5, shuffle=shuffle).draw(0, 0, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), torch_before)


@pytest.mark.parametrize("where", [INPUTS, (INPUTS, LABELS), [INPUTS, LABELS]], ids=["tensor", "tuple", "list"])
def test_draw_takes_the_rows_of_tensors(where):
    batches = MiniBatches(where, 4)
    index = batches.indices(1, 0, 2)
    batch = batches.draw(1, 0, 2)
    if isinstance(where, torch.Tensor):
        assert torch.equal(batch, INPUTS[index])
    else:
        assert torch.equal(batch[0], INPUTS[index])
        assert torch.equal(batch[1], LABELS[index])


def test_draw_collates_the_items_of_a_dataset():
    batches = MiniBatches(Squares(), 4)
    batch = batches.draw(1, 0, 2)
    assert batch["i"].tolist() == batches.indices(1, 0, 2).tolist()
    assert torch.equal(batch["square"], (batch["i"] ** 2).double())
    pairs = MiniBatches(TensorDataset(INPUTS, LABELS), 4).draw(1, 0, 2)
    assert torch.equal(pairs[0], INPUTS[batches.indices(1, 0, 2)])


def test_own_collate_gets_the_list_of_items():
    batches = MiniBatches(Squares(), 4, collate=lambda items: [item["i"] for item in items])
    assert batches.draw(1, 0, 2) == batches.indices(1, 0, 2).tolist()
    assert batches.full().draw(0, 0, 0) == list(range(N))


def test_a_list_of_items_is_a_dataset():
    assert sorted(MiniBatches([float(i) for i in range(5)], 5).draw(0, 0, 0).tolist()) == [0, 1, 2, 3, 4]


def test_replacement_draws_from_all_rows():
    batches = MiniBatches(INPUTS, 10, shuffle="replacement")
    for n in range(3):
        wanted = np.random.default_rng(np.random.SeedSequence([4, 1, n])).integers(0, N, 10)
        np.testing.assert_array_equal(batches.indices(4, 1, n), wanted)
    drawn = np.concatenate([batches.indices(0, 0, n) for n in range(2000)])
    counts = np.bincount(drawn, minlength=N)
    assert np.all(np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean()))


def test_none_keeps_the_order():
    batches = MiniBatches(INPUTS, 10, shuffle="none")
    assert [batches.indices(9, 9, n).tolist() for n in range(4)] == [
        list(range(10)),
        list(range(10, 20)),
        [20, 21, 22],
        list(range(10)),
    ]


@pytest.mark.parametrize("labels", [2, 3, 10])
@pytest.mark.parametrize("even", [True, False])
def test_stratified_batches_hold_the_proportions_to_within_one_row(labels, even):
    rng = np.random.default_rng(labels)
    share = np.full(labels, 1 / labels) if even else rng.dirichlet(np.ones(labels))
    y = rng.choice(labels, 500, p=share)
    share = np.bincount(y, minlength=labels) / 500
    batches = MiniBatches(torch.arange(500), 32, stratify=torch.tensor(y))
    for seed in range(10):
        steps = [batches.indices(seed, 0, n) for n in range(batches.steps_per_epoch)]
        np.testing.assert_array_equal(np.sort(np.concatenate(steps)), np.arange(500))
        for index in steps:
            assert np.all(np.abs(np.bincount(y[index], minlength=labels) - len(index) * share) <= 1)


def test_stratified_orders_differ_between_epochs_and_within_labels():
    y = np.repeat([0, 1], 10)
    batches = MiniBatches(torch.arange(20), 20, stratify=y)
    orders = [batches.indices(0, 0, n) for n in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    assert len({order[order < 10][0] for order in orders}) > 3


def test_labels_may_be_words():
    batches = MiniBatches(torch.arange(6), 2, stratify=["a", "b"] * 3)
    assert all(sorted(batches.indices(0, 0, n) % 2) == [0, 1] for n in range(9))


@pytest.mark.parametrize("size", [1, 5, 23])
@pytest.mark.parametrize("shuffle", ["epochs", "none"])
def test_drop_last_leaves_out_the_smaller_batch(size, shuffle):
    batches, all_of = MiniBatches(INPUTS, size, drop_last=True, shuffle=shuffle), MiniBatches(INPUTS, size, shuffle=shuffle)
    assert batches.steps_per_epoch == N // size
    for epoch in range(3):
        for i in range(batches.steps_per_epoch):
            index = batches.indices(7, 2, epoch * batches.steps_per_epoch + i)
            np.testing.assert_array_equal(index, all_of.indices(7, 2, epoch * all_of.steps_per_epoch + i))
            assert len(index) == size
    assert "drop_last" in repr(batches)
    assert "drop_last" not in repr(all_of)


def test_drop_last_with_strata():
    y = np.repeat([0, 1], [10, 13])
    batches = MiniBatches(INPUTS, 5, stratify=y, drop_last=True)
    for n in range(20):
        index = batches.indices(0, 0, n)
        assert abs((y[index] == 0).sum() - 5 * 10 / 23) <= 1
        assert len(set(index)) == 5


def test_full_is_all_of_the_data_in_order():
    assert torch.equal(MiniBatches(INPUTS, 4).full().draw(0, 0, 0), INPUTS)
    whole = MiniBatches((INPUTS, LABELS), 4).full().draw(0, 0, 0)
    assert torch.equal(whole[1], LABELS)
    assert MiniBatches(Squares(), 4).full().draw(0, 0, 0)["i"].tolist() == list(range(N))


def test_dtypes_are_kept():
    batch = MiniBatches((INPUTS.to(torch.bfloat16), LABELS.to(torch.uint8)), 4).draw(0, 0, 0)
    assert [part.dtype for part in batch] == [torch.bfloat16, torch.uint8]


def test_lengths_and_repr():
    batches = MiniBatches(INPUTS, 4)
    assert (len(batches), batches.steps_per_epoch, batches.stochastic) == (23, 6, True)
    assert "23" in repr(batches)
    assert "size=4" in repr(batches)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MiniBatches((INPUTS, LABELS[:5]), 4), ["5", "23", "length"]),
        (lambda: MiniBatches(torch.zeros(0, 3), 4), ["none"]),
        (lambda: MiniBatches([], 4), ["none"]),
        (lambda: MiniBatches(INPUTS, 0), ["size", "0"]),
        (lambda: MiniBatches(INPUTS, 2.5), ["size", "2.5"]),
        (lambda: MiniBatches(INPUTS, True), ["size", "True"]),
        (lambda: MiniBatches(INPUTS, 4, shuffle="epoch"), ["shuffle", "'epoch'"]),
        (lambda: MiniBatches(INPUTS, 4, stratify=[0, 1]), ["stratify", "23", "(2,)"]),
        (lambda: MiniBatches(INPUTS, 4, stratify=LABELS, shuffle="none"), ["stratify", "'none'"]),
        (lambda: MiniBatches(iter([1, 2]), 4), ["map-style", "iterator"]),
        (lambda: MiniBatches(3, 4), ["map-style", "int"]),
        (lambda: MiniBatches(Endless(), 4), ["map-style", "Endless"]),
        (lambda: MiniBatches(DataLoader([1, 2]), 4), ["map-style", "DataLoader", "MiniBatches.of(loader)"]),
        (lambda: MiniBatches(INPUTS, 4, drop_last=1), ["drop_last", "True or False", "1"]),
        (lambda: MiniBatches(INPUTS, 24, drop_last=True), ["drop_last", "at most 23", "24"]),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ProblemError) as caught:
        make()
    for word in ["MiniBatches", *words]:
        assert word in str(caught.value)


def test_rows():
    assert rows(INPUTS) == rows((INPUTS, LABELS)) == rows({"a": {"b": INPUTS}}) == 23
    assert rows(None) == rows(torch.tensor(1.0)) == rows("a word") == 0


def test_docstring_examples():
    assert doctest.testmod(data).failed == 0
