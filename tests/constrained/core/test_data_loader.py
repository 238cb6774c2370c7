"""Map-style datasets in MiniBatches: randomness inside items is seeded; a DataLoader re-indexed gives what the loader gives."""

import random

import numpy as np
import pytest
import torch
from harness import random_state_kept
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from constrained.core.data import MiniBatches
from constrained.core.errors import ProblemError

N = 23
INPUTS = torch.arange(2.0 * N).reshape(N, 2)
LABELS = torch.arange(N)
PAIRS = TensorDataset(INPUTS, LABELS)


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


class Augmented(Dataset):
    """Every item draws from each of the three global generators."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple:
        return i, torch.rand(2), np.random.rand(), random.random()  # noqa: NPY002


class Endless(IterableDataset):
    """No indices."""

    def __iter__(self):
        yield from range(10)

    def __len__(self) -> int:
        return 10


def equal(a, b) -> bool:
    """The same structure and the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and len(a) == len(b) and all(equal(p, q) for p, q in zip(a, b))


# -- randomness inside a dataset --------------------------------------------------------------------------------------------
def test_augmented_batches_depend_on_their_three_numbers_alone():
    asked = [(s, t, n) for s in (0, 3) for t in (0, 1) for n in range(6)]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    first = {key: MiniBatches(Augmented(), 5).draw(*key) for key in asked}
    torch.manual_seed(1)
    other = MiniBatches(Augmented(), 5)
    for i in np.random.default_rng(0).permutation(len(asked)):
        assert equal(other.draw(*asked[i]), first[asked[i]])
    for part in (1, 2, 3):  # every item of every batch has a value of its own
        values = torch.cat([batch[part].reshape(len(batch[0]), -1)[:, 0] for batch in first.values()])
        assert len(values.unique()) == len(values)


def test_augmentation_is_uniform():
    batch = MiniBatches(Augmented(), N).draw(0, 0, 0)
    many = [MiniBatches(Augmented(), N).draw(0, 0, n) for n in range(200)]
    for part in (1, 2, 3):
        values = torch.cat([b[part].reshape(-1).double() for b in many])
        assert abs(values.mean() - 0.5) < 5 * (12 * len(values)) ** -0.5
        assert abs(values.var() - 1 / 12) < 0.01
    assert not torch.equal(batch[2], batch[3])


def test_augmentation_is_not_the_noise_of_dropout():
    """When a module runs, autodiff seeds torch by SeedSequence((seed, stream, n)): no item may see the same numbers."""
    word = int(np.random.SeedSequence((0, 0, 0)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    drawn = MiniBatches(Augmented(), 5).draw(0, 0, 0)[1]
    assert not any(torch.equal(row, torch.rand(2, generator=torch.Generator().manual_seed(word))) for row in drawn)


def test_another_generator_behind_numpys_functions_is_seeded_and_put_back():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        kept = np.random.get_state(legacy=False)  # noqa: NPY002
        assert equal(MiniBatches(Augmented(), 5).draw(0, 0, 0), MiniBatches(Augmented(), 5).draw(0, 0, 0))
        assert np.random.get_state(legacy=False) == kept  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)


def test_collate_is_seeded_too():
    batches = MiniBatches(Squares(), 4, collate=lambda items: torch.rand(len(items)))
    assert torch.equal(batches.draw(0, 0, 1), batches.draw(0, 0, 1))
    assert not torch.equal(batches.draw(0, 0, 1), batches.draw(0, 0, 2))


def test_random_state_is_put_back():
    random.gauss(0, 1)  # leaves a second number in store
    np.random.normal()  # noqa: NPY002
    kept = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002
    batches = MiniBatches(Augmented(), 5)
    with random_state_kept():
        batches.draw(0, 0, 0)
        batches.full()
        with pytest.raises(ZeroDivisionError):
            MiniBatches(Augmented(), 5, collate=lambda items: 1 / 0).draw(0, 0, 0)
    assert random.getstate() == kept[0]
    assert np.random.get_state(legacy=False)["gauss"] == kept[1]["gauss"]  # noqa: NPY002


def test_full_of_an_augmented_dataset_is_always_the_same():
    batches = MiniBatches(Augmented(), 5)
    assert equal(batches.full().draw(0, 0, 0), batches.full().draw(1, 2, 3))


# -- from a DataLoader ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("data", [PAIRS, TensorDataset(INPUTS), Squares()], ids=["pairs", "single", "squares"])
def test_of_an_unshuffled_loader_gives_the_loaders_batches(data, drop_last):
    loader = DataLoader(data, batch_size=5, drop_last=drop_last)
    batches = MiniBatches.of(loader)
    assert (batches.shuffle, batches.size, batches.drop_last) == ("none", 5, drop_last)
    assert batches.steps_per_epoch == len(loader)
    for epoch in range(2):
        for i, wanted in enumerate(loader):
            got = batches.draw(0, 0, epoch * len(loader) + i)
            assert equal(list(got.values()), list(wanted.values())) if isinstance(wanted, dict) else equal(got, wanted)


def test_the_fast_path_has_the_bits_and_structure_of_collate():
    for source in (PAIRS, TensorDataset(INPUTS.bfloat16(), LABELS.to(torch.uint8), INPUTS > 5)):
        fast, slow = MiniBatches(source, 4), MiniBatches(source, 4, collate=lambda items: default_collate(items))
        assert fast.arrays is not None
        assert slow.arrays is None
        for n in range(8):
            assert equal(fast.draw(1, 0, n), slow.draw(1, 0, n))
            assert type(fast.draw(1, 0, n)) is list
        assert equal(fast.full().draw(0, 0, 0), slow.full().draw(0, 0, 0))
    assert type(MiniBatches((INPUTS, LABELS), 4).draw(0, 0, 0)) is tuple


def test_orders_of_a_loader():
    assert MiniBatches.of(DataLoader(PAIRS, 5, shuffle=True)).shuffle == "epochs"
    assert MiniBatches.of(DataLoader(PAIRS, 5, sampler=SequentialSampler(PAIRS))).shuffle == "none"
    assert MiniBatches.of(DataLoader(PAIRS, 5, sampler=RandomSampler(PAIRS, replacement=True))).shuffle == "replacement"
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    batches = MiniBatches.of(DataLoader(PAIRS, 5, shuffle=True, generator=generator, num_workers=2, pin_memory=False))
    order = np.random.default_rng(np.random.SeedSequence([3, 1, 0])).permutation(N)
    np.testing.assert_array_equal(batches.draw(3, 1, 0)[1].numpy(), order[:5])
    assert torch.equal(generator.get_state(), before)


def test_collate_of_a_loader_is_kept():
    batches = MiniBatches.of(DataLoader(Squares(), 4, collate_fn=lambda items: [item["i"] for item in items]))
    assert batches.draw(0, 0, 0) == [0, 1, 2, 3]


def test_an_augmented_loader_is_a_pure_function():
    one, other = (MiniBatches.of(DataLoader(Augmented(), 4, shuffle=True)) for _ in range(2))
    first = [one.draw(5, 0, n) for n in range(9)]
    with random_state_kept():
        assert all(equal(other.draw(5, 0, n), first[n]) for n in reversed(range(9)))
    assert not equal(first[0][1], first[6][1])  # the next epoch


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Endless(), 4), ["IterableDataset", "Endless"]),
        (lambda: DataLoader(PAIRS, batch_size=None), ["batch_size=None"]),
        (lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 4, False)), ["batch_sampler"]),
        (lambda: DataLoader(PAIRS, 4, sampler=SubsetRandomSampler([1, 2])), ["SubsetRandomSampler"]),
        (lambda: DataLoader(PAIRS, 4, sampler=WeightedRandomSampler([1.0] * N, 5)), ["WeightedRandomSampler"]),
        (lambda: DataLoader(PAIRS, 4, sampler=SequentialSampler(range(5))), ["SequentialSampler"]),
        (lambda: DataLoader(PAIRS, 4, sampler=[1, 2, 3]), ["list"]),
        (lambda: DataLoader(PAIRS, 4, sampler=RandomSampler(PAIRS, num_samples=7)), ["num_samples=7"]),
        (lambda: DataLoader(PAIRS, 4, worker_init_fn=print), ["worker_init_fn"]),
    ],
)
def test_of_refuses_what_it_cannot_index(loader, words):
    with pytest.raises(ProblemError) as caught:
        MiniBatches.of(loader())
    for word in ["MiniBatches.of: loader: expected", "got", "use Stream(loader)", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [PAIRS, [INPUTS], 3, DataLoader])
def test_of_something_else(value):
    with pytest.raises(ProblemError, match=r"MiniBatches\.of: loader: expected a torch DataLoader, got"):
        MiniBatches.of(value)
