"""Digits with wrong labels: the data of the hyper-cleaning problem.

A large training set whose labels are partly wrong, a small clean set whose labels are right, and a test set. Everything is a
function of the seed, so that two methods, or two runs, can be compared sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from constrained.core.arguments import expect
from constrained.core.errors import OptionError, extra
from constrained.core.options import Range

from ..arguments import whole

TRAIN, POOL, CLASSES, CLIP = 1000, 300, 10, 6.0
NOISES = ("symmetric", "pair")


@dataclass(frozen=True, eq=False)
class CleaningData:
    """One draw of the data: n = 1000 training samples with given labels, k clean ones, 497 for testing.

    Inputs are 64 pixels standardised with the training mean and standard deviation and clipped to [-6, 6]; labels are int64
    in 0..9. `truth` and `wrong` are for judging only: no method may read them.
    """

    inputs: Tensor  # (n, 64)
    given: Tensor  # (n,) the labels a method sees
    truth: Tensor  # (n,) the right labels
    images: Tensor  # (n, 8, 8) the raw pixels of the training set, 0..16, for pictures
    clean_inputs: Tensor  # (k, 64)
    clean_labels: Tensor  # (k,)
    test_inputs: Tensor  # (497, 64)
    test_labels: Tensor  # (497,)
    seed: int
    rate: float
    noise: str

    @property
    def wrong(self) -> Tensor:
        """(n,) bool: the given label is not the right one."""
        return self.given != self.truth


def digits(
    seed: int,
    *,
    clean: int = 100,
    rate: float = 0.5,
    noise: str = "symmetric",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> CleaningData:
    """scikit-learn's 1797 digits, split 1000 / 300 / 497 by class, with a share of the training labels made wrong.

    seed: 0 <= seed < 2^32, decides the splits and the noise.
    clean: 10..300 clean samples, the first of one permutation of the 300 in which every prefix holds the classes in
        proportion; a smaller set is part of a larger one, and the training and test sets do not depend on it.
    rate: 0 <= rate < 1, the probability that a label is made wrong, drawn for each sample.
    noise: "symmetric", (y + U{1..9}) mod 10, or "pair", (y + 1) mod 10: wrong always.

    Raises OptionError for a value out of range, MissingExtra without scikit-learn.
    """
    seed, clean = whole("digits(seed=...)", seed, 0, 2**32 - 1), whole("digits(clean=...)", clean, CLASSES, POOL)
    expect("digits(rate=...)", rate, Range(0, 1, "a number in [0, 1)", open_high=True))
    if noise not in NOISES:
        raise OptionError(f"digits(noise=...): expected one of {', '.join(map(repr, NOISES))}, got {noise!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"digits(dtype=...): expected a floating-point torch.dtype, got {dtype!r}")

    pixels, labels = extra("sklearn.datasets", "zoo").load_digits(return_X_y=True)
    split = extra("sklearn.model_selection", "zoo").train_test_split
    train, rest, truth, rest_labels = split(pixels, labels, train_size=TRAIN, random_state=seed, stratify=labels)
    pool, test, pool_labels, test_labels = split(rest, rest_labels, train_size=POOL, random_state=seed, stratify=rest_labels)
    chosen = _stratified_order(pool_labels, seed)[:clean]

    mean, std = train.mean(0), train.std(0)
    std[std < 1e-8] = 1.0  # pixels that are constant over the training set

    def inputs(rows: np.ndarray) -> Tensor:
        return torch.as_tensor(np.clip((rows - mean) / std, -CLIP, CLIP), dtype=dtype, device=device)

    def targets(rows: np.ndarray) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.int64, device=device)

    return CleaningData(
        inputs=inputs(train),
        given=targets(_corrupt(truth, seed, rate, noise)),
        truth=targets(truth),
        images=torch.as_tensor(train.reshape(-1, 8, 8), dtype=dtype, device=device),
        clean_inputs=inputs(pool[chosen]),
        clean_labels=targets(pool_labels[chosen]),
        test_inputs=inputs(test),
        test_labels=targets(test_labels),
        seed=seed,
        rate=float(rate),
        noise=noise,
    )


def _corrupt(truth: np.ndarray, seed: int, rate: float, noise: str) -> np.ndarray:
    """Labels with Bernoulli(rate) of them made wrong; the wrong ones at a lower rate are wrong at a higher one too.

    RandomState, because NumPy guarantees its stream for good and does not guarantee default_rng's.
    """
    generator = np.random.RandomState(seed)
    wrong = generator.random_sample(len(truth)) < rate
    shift = generator.randint(1, CLASSES, int(wrong.sum())) if noise == "symmetric" else 1
    given = truth.copy()
    given[wrong] = (truth[wrong] + shift) % CLASSES
    return given


def _stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A permutation in which every prefix holds each class within one sample of its share.

    The j-th sample of a class of m, in random order, stands at (j + 1/2) / m of the way: each class is spread evenly.
    """
    generator = np.random.RandomState(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")
