"""The power method: its estimates are lower bounds, and its ends."""

import math

import numpy as np
import pytest
import torch

from constrained.core.vec import Vec
from constrained.linear.spectrum import POWER, curvature, growth, largest, power
from constrained.sets import Box, Everywhere

F64 = torch.float64


def vec(*entries):
    return Vec.of(torch.tensor(entries, dtype=F64))


def times(A):
    return lambda v: v.map(lambda t: torch.as_tensor(A, dtype=F64) @ t)


def test_power_ends_at_zero_at_what_is_not_finite_and_where_it_has_settled():
    assert power(times(np.eye(2)), vec(0.0, 0.0), 5)[::3] == (0.0, 0)
    assert power(lambda v: v * 0.0, vec(1.0, 1.0), 5)[::3] == (0.0, 1)
    found = power(lambda v: v * math.nan, vec(1.0, 1.0), 5)
    assert math.isnan(found.last)
    assert (found.largest, found.products) == (0.0, 1)
    assert power(times(np.eye(2)), vec(1.0, 1.0), 5, settled=0.01).products == 2
    assert power(times(np.eye(2)), vec(1.0, 1.0), 5).products == 5


@pytest.mark.parametrize("seed", range(5))
def test_estimates_of_the_norm_from_below(seed):
    A = np.random.default_rng(seed).standard_normal((30, 30))
    A = A + A.T
    true = np.linalg.norm(A, 2)
    found, products = largest(times(A), vec(*np.zeros(30)))
    assert 0.5 * true <= found <= (1 + 1e-12) * true
    assert products <= POWER
    assert true / 3 <= growth(lambda v: torch.from_numpy(A) @ v, 30, torch.device("cpu")) <= (1 + 1e-12) * true


def test_largest_and_growth_of_nan():
    assert math.isnan(largest(lambda v: v * math.nan, vec(1.0, 2.0))[0])
    assert growth(lambda v: v * math.nan, 2, torch.device("cpu")) == math.inf


@pytest.mark.parametrize("X", [Everywhere(), Box(0.0, math.inf)], ids=["whole", "at the edge"])
@pytest.mark.parametrize("length", [None, 1e-3])
def test_curvature_of_a_quadratic(X, length):
    H = np.diag([1.0, 4.0])
    assert curvature(times(H), X, vec(0.0, 1.0), 30, length) == pytest.approx(4.0, rel=1e-3)
