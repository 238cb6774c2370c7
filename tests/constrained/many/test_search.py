"""The filter's rules lane by lane are those of a lane alone."""

import numpy as np
import torch

from constrained.interior import filter as alone
from constrained.many.search import Rule, dominated, joined, longest, trimmed

F64 = torch.float64


def test_what_a_pair_dominates():
    pairs = torch.tensor([[[1.0, 2.0], [torch.inf, torch.inf]], [[3.0, 0.0], [0.5, 5.0]]], dtype=F64)
    theta, phi = torch.tensor([[1.0, 0.9], [4.0, 0.6]], dtype=F64), torch.tensor([[2.1, 2.1], [-1.0, 6.0]], dtype=F64)
    assert dominated(pairs, theta, phi).tolist() == [[True, False], [False, True]]
    for lane in range(2):
        held = pairs[lane][pairs[lane, :, 0].isfinite()].numpy()
        for t, p, found in zip(theta[lane].tolist(), phi[lane].tolist(), dominated(pairs, theta, phi)[lane].tolist()):
            assert alone.dominated(held, t, p) == found


def test_a_pair_joins_the_filters_of_some_lanes():
    theta, phi = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([3.0, 4.0], dtype=F64)
    found = joined(torch.zeros(2, 0, 2, dtype=F64), theta, phi, torch.tensor([True, False]))
    assert np.allclose(found[0].numpy(), alone.joined(np.zeros((0, 2)), 1.0, 3.0))
    assert bool(found[1].isinf().all())
    assert trimmed(found[1:]).shape == (1, 0, 2)


def test_the_longest_step_keeps_distances():
    d, change = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=F64), torch.tensor([[-2.0, -1.0], [0.5, -0.5]], dtype=F64)
    assert longest(d, change, torch.full((2,), 0.99, dtype=F64)).tolist() == [0.495, 1.0]


def test_accepted_by_slope_or_by_less():
    theta, phi, D = (torch.tensor(v, dtype=F64) for v in ([1e-6, 1.0], [1.0, 1.0], [-1.0, -1.0]))
    rule = Rule.of(theta, phi, D, torch.ones(2, dtype=F64), torch.zeros(2, 0, 2, dtype=F64))
    there, at = torch.tensor([[1e-3, 1e-3], [0.5, 1.0]], dtype=F64), torch.tensor([[0.9, 1.1], [2.0, 2.0]], dtype=F64)
    accepted, joins = rule.accepts(there, at, torch.ones(2, 2, dtype=F64))
    assert accepted.tolist() == [[True, False], [True, False]]  # phi falls by the slope; theta falls
    assert joins.tolist() == [[False, False], [True, True]]
