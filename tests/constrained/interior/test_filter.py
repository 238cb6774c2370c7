"""The filter and the lengths of steps."""

import numpy as np
import pytest
from test_newton import MU, iterate

from constrained.interior.filter import GAMMA_PHI, GAMMA_THETA, Limits, Search, dominated, joined, longest, longest_dual
from constrained.interior.newton import Newton, Step


def test_what_a_pair_forbids():
    pairs = joined(np.zeros((0, 2)), 1.0, 5.0)
    assert dominated(pairs, 1.0, 5.0)
    assert dominated(pairs, 2.0, 6.0)
    assert not dominated(pairs, 0.9, 6.0)
    assert not dominated(pairs, 2.0, 4.9)
    assert not dominated(pairs, 1.0 - 2 * GAMMA_THETA, 5.0)
    assert not dominated(pairs, 1.0, 5.0 - 2 * GAMMA_PHI)


def test_pairs_that_a_new_one_makes_idle_leave():
    pairs = joined(joined(np.zeros((0, 2)), 1.0, 5.0), 3.0, 1.0)
    assert len(pairs) == 2
    assert len(joined(pairs, 0.5, 0.5)) == 1
    rng = np.random.default_rng(0)
    seen, pairs = [], np.zeros((0, 2))
    for theta, phi in rng.uniform(0, 1, (50, 2)):
        seen.append(((1 - GAMMA_THETA) * theta, phi - GAMMA_PHI * theta))
        pairs = joined(pairs, theta, phi)
    for theta, phi in rng.uniform(0, 1, (200, 2)):
        assert dominated(pairs, theta, phi) == any(theta >= t and phi - 1e-13 >= p for t, p in seen)


def test_lengths_keep_a_share_of_every_distance():
    it = iterate()  # x = (0.5, 0.2, 0.7) in [0, inf) x R x [-1, 2], s = (0.4, 0.9)
    none = np.zeros(3)
    assert longest(it, Step(np.array([-1.0, -50.0, 0.0]), np.zeros(2), none), 0.99) == pytest.approx(0.99 * 0.5)
    assert longest(it, Step(np.array([0.0, 0.0, 2.6]), np.zeros(2), none), 0.99) == pytest.approx(0.99 * 1.3 / 2.6)
    assert longest(it, Step(none, np.array([0.0, -9.0]), none), 0.9) == pytest.approx(0.09)
    assert longest(it, Step(np.array([1.0, -50.0, 0.1]), np.zeros(2), none), 0.99) == 1.0
    z = longest_dual(it, (np.array([-0.4, 0.0, 0.0]), none, np.array([-3.0, 0.0])), 0.9)
    assert z == pytest.approx(min(0.9 * 0.2 / 0.4, 0.9 * 1.5 / 3.0))


def test_a_trial_is_progress_of_one_kind():
    it = iterate()
    newton = Newton.at(it, MU, 0.0)
    step = newton.step()
    search = Search(newton, step, np.zeros((0, 2)), Limits(it.at.theta))
    found = search.run(longest(it, step, 0.99), 0.99)
    theta, phi = it.at.theta, it.phi(MU)
    assert found.at.theta <= (1 - GAMMA_THETA) * theta or search.phi(found.at) <= phi - GAMMA_PHI * theta
    blocked = Search(newton, step, np.array([[0.0, -np.inf]]), Limits(it.at.theta))
    assert blocked.run(1.0, 0.99) is None
