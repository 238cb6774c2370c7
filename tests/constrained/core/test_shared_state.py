"""The global generators of torch, numpy and Python: seeded by the draw, put back, one thread's at a time."""

import random

import numpy as np
import pytest
import torch
from threaded import in_threads

import bilevel
from constrained.core.shared_state import Randomness, generators_kept, without_cudnn

F64 = torch.float64
ROWS = torch.linspace(-1, 1, 60, dtype=F64).reshape(20, 3)


def global_state():
    keys, place = np.random.get_state()[1:3]  # noqa: NPY002
    return torch.get_rng_state().tolist(), keys.tolist(), place, random.getstate()


@pytest.fixture(autouse=True)
def kept():
    before = global_state()
    yield
    assert global_state() == before


class LayerDrop(torch.nn.Module):
    """A layer that is left out by Python's generator, one by numpy's, and a dropout."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=F64))

    def forward(self, rows):
        kept = random.random(), np.random.random_sample()  # noqa: NPY002
        return torch.nn.functional.dropout(rows @ self.weight, 0.5, self.training) + sum(kept) * self.weight.sum()


def drawn(data=ROWS):
    return bilevel.BilevelProblem(
        upper=lambda x, y, rows: ((y(rows) - 1) ** 2).mean() + x**2,
        lower=lambda x, y, rows: (y(rows) ** 2).mean() + x.exp() * (y.weight**2).sum(),
        x=torch.zeros((), dtype=F64),
        y=LayerDrop(),
        upper_data=bilevel.MiniBatches(data, 4),
        lower_data=bilevel.MiniBatches(data, 5),
    )


class Noisy(torch.utils.data.Dataset):
    """Rows with noise from each of the three."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, i):
        return ROWS[i] + torch.rand(3, dtype=F64) + np.random.random_sample() + random.random()  # noqa: NPY002


@pytest.mark.parametrize("data", [ROWS, Noisy()], ids=["tensor", "dataset"])
def test_what_functions_and_datasets_draw_is_the_draws_in_threads_too(data):
    alone, again = (bilevel.solve(drawn(data), bilevel.PenaltySGD(), seed=3, max_steps=8) for _ in range(2))
    several = in_threads(lambda: bilevel.solve(drawn(data), bilevel.PenaltySGD(), seed=3, max_steps=8))
    for result in (again, *several):
        assert torch.equal(result.y["weight"], alone.y["weight"])


def test_all_three_are_put_back_after_an_exception():
    with pytest.raises(ZeroDivisionError), generators_kept():
        torch.rand(3), np.random.random_sample(), random.random()  # noqa: NPY002
        raise ZeroDivisionError


def test_numpys_and_pythons_are_left_alone_where_nothing_draws_from_them():
    seeded = Randomness(trained=True)
    with seeded((0, 0, 0), []):
        random.random()
    assert seeded.others
    with seeded((0, 0, 0), []):
        torch.rand(2)
    assert not seeded.others


def test_threads_that_build_optimizers_by_trial_leave_torchs_generator():
    in_threads(lambda: bilevel.TorchOptimizer(torch.optim.Adam, lr=0.1))


def test_cudnn_is_left_alone_on_other_devices():
    with without_cudnn(torch.device("cpu")):
        assert torch.backends.cudnn.enabled


def test_cudnn_is_off_until_the_last_that_needs_it_off_has_ended():
    """The switch is the process's: whoever ends first must not turn it on again for the other, nor the last leave it off."""
    device = torch.device("cuda")
    first, second = without_cudnn(device), without_cudnn(device)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.enabled
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.enabled
