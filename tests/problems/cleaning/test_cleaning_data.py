"""The hyper-cleaning data: splits, standardisation, the nested clean set, the noise."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from constrained.core.errors import MissingExtra
from problems.cleaning.data import digits

PIXELS, LABELS = load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def data():
    return digits(3, clean=300)


def test_shapes_and_dtypes(data):
    assert data.inputs.shape == (1000, 64)
    assert data.images.shape == (1000, 8, 8)
    assert data.clean_inputs.shape == (300, 64)
    assert data.test_inputs.shape == (497, 64)
    for name, n in (("given", 1000), ("truth", 1000), ("clean_labels", 300), ("test_labels", 497)):
        labels = getattr(data, name)
        assert labels.shape == (n,)
        assert labels.dtype == torch.int64
    assert data.inputs.dtype == data.clean_inputs.dtype == data.test_inputs.dtype == torch.float64
    assert digits(3, dtype=torch.float32).inputs.dtype == torch.float32


def test_every_digit_is_used_once(data):
    """Raw training pixels and the undone standardisation of the rest are the 1797 digits, row for row."""
    train = data.images.reshape(-1, 64).numpy()
    mean, std = train.mean(0), np.where(train.std(0) < 1e-8, 1.0, train.std(0))
    rest = torch.cat([data.clean_inputs, data.test_inputs]).numpy()
    inside = np.abs(rest) < 6  # clipping cannot be undone
    rest = np.where(inside, rest * std + mean, np.nan)
    remaining = np.array(sorted({tuple(row) for row in PIXELS} - {tuple(row) for row in train}))
    found = set()
    for row in rest:
        fits = np.flatnonzero(np.nanmax(np.abs(remaining - row), axis=1) < 1e-9)
        assert len(fits) == 1
        found.add(int(fits[0]))
    assert len(found) == len(remaining) == 797


@pytest.mark.parametrize(("name", "size"), [("truth", 1000), ("clean_labels", 300), ("test_labels", 497)])
def test_splits_are_stratified(data, name, size):
    counts = torch.bincount(getattr(data, name), minlength=10).numpy()
    share = np.bincount(LABELS) * size / len(LABELS)
    assert np.abs(counts - share).max() < 2  # two nested splits, each within one


def test_the_split_is_sklearns(data):
    train, _, truth, _ = train_test_split(PIXELS, LABELS, train_size=1000, random_state=3, stratify=LABELS)
    assert np.array_equal(data.images.reshape(1000, 64).numpy(), train)
    assert np.array_equal(data.truth.numpy(), truth)


def test_standardised_with_the_training_set_only(data):
    raw = data.images.reshape(1000, 64)
    varying = raw.std(0, correction=0) > 1e-8
    expected = (raw - raw.mean(0)) / torch.where(varying, raw.std(0, correction=0), 1.0)
    assert torch.allclose(data.inputs, expected.clamp(-6, 6), atol=1e-12)
    assert data.inputs.abs().max() <= 6
    assert data.test_inputs.abs().max() <= 6
    unclipped = (data.inputs.abs() < 6).all(0) & varying
    assert data.inputs[:, unclipped].mean(0).abs().max() < 1e-12
    assert data.test_inputs[:, unclipped].mean(0).abs().max() > 1e-3  # its own mean was not removed


@pytest.mark.parametrize("seed", [0, 1, 102])
def test_clean_subsets_are_nested_and_stratified(seed):
    pool = digits(seed, clean=300)
    share = torch.bincount(pool.clean_labels, minlength=10) / 300
    for k in (10, 37, 60, 100, 299):
        part = digits(seed, clean=k)
        assert torch.equal(part.clean_inputs, pool.clean_inputs[:k])
        assert torch.equal(part.clean_labels, pool.clean_labels[:k])
        assert (torch.bincount(part.clean_labels, minlength=10) - k * share).abs().max() < 1.5
        assert torch.equal(part.given, pool.given)
        assert torch.equal(part.test_inputs, pool.test_inputs)
    assert sorted(pool.clean_labels[:10].tolist()) == list(range(10))  # ten clean images show every digit


@pytest.mark.parametrize("noise", ["symmetric", "pair"])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7])
def test_noise_is_always_wrong_and_of_the_right_rate(noise, rate):
    wrong, shifts = [], []
    for seed in range(8):
        data = digits(seed, rate=rate, noise=noise)
        wrong.append(data.wrong)
        shifts.append((data.given - data.truth).remainder(10)[data.wrong])
        assert data.given.min() >= 0
        assert data.given.max() <= 9
    share, shifts = torch.cat(wrong).double().mean().item(), torch.cat(shifts)
    assert abs(share - rate) <= 4 * np.sqrt(rate * (1 - rate) / 8000)
    if noise == "pair":
        assert (shifts == 1).all()
    elif rate > 0:
        counts = torch.bincount(shifts, minlength=10)
        expected = len(shifts) / 9
        assert counts[0] == 0
        assert (counts[1:] - expected).abs().max() < 5 * np.sqrt(expected)  # all nine wrong labels, alike


def test_wrong_labels_are_nested_in_the_rate():
    low, high = digits(5, rate=0.3), digits(5, rate=0.6)
    assert bool((low.wrong <= high.wrong).all())


def test_a_seed_is_one_draw():
    first, again, other = digits(7), digits(7), digits(8)
    assert torch.equal(first.given, again.given)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.truth, other.truth)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clean": 9}, ["clean", "10..300", "9"]),
        ({"clean": 301}, ["clean", "10..300", "301"]),
        ({"clean": 100.0}, ["clean", "integer", "100.0"]),
        ({"clean": True}, ["clean", "integer", "True"]),
        ({"rate": 1.0}, ["rate", "[0, 1)", "1.0"]),
        ({"rate": -0.1}, ["rate", "[0, 1)", "-0.1"]),
        ({"rate": float("nan")}, ["rate", "[0, 1)", "nan"]),
        ({"rate": "half"}, ["rate", "[0, 1)", "'half'"]),
        ({"noise": "uniform"}, ["noise", "'symmetric', 'pair'", "'uniform'"]),
        ({"dtype": torch.int64}, ["dtype", "floating-point", "torch.int64"]),
        ({"seed": -1}, ["seed", "-1"]),
    ],
)
def test_bad_values_are_named(options, words):
    with pytest.raises(ValueError) as caught:
        digits(**{"seed": 0, **options})
    for word in words:
        assert word in str(caught.value)


def test_missing_sklearn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'bilevel\[zoo\]'"):
        digits(0)
