"""Solutions of a lower level with constraints of its own, by the proximal method of multipliers."""

import pytest
import torch

from bilevel import BilevelProblem
from bilevel.lower.coupled_set import coupled
from bilevel.lower.regularised_value import solve_constrained_lower
from constrained.core.vec import Vec
from constrained.descent import LBFGS

F64 = torch.float64


def test_a_lower_level_beyond_rounding_is_given_up():
    """At x = 1e18 the tolerance is below the rounding of |g_y|: the same saddle, 100 times over."""
    calls = 0

    def lower(x, y):
        nonlocal calls
        calls += 1
        return 0.25 * (y**4).sum() - (x * y).sum() - 0.15 * (y**2).sum()

    one = torch.tensor([0.3], dtype=F64)
    oracle = BilevelProblem(upper=lower, lower=lower, lower_inequality=lambda x, y: y - x, x=one, y=one).oracle()
    rows = coupled(oracle, 1e3).rows
    far = Vec.of(1e18 * one)
    found = solve_constrained_lower(oracle, rows, far, Vec.of(1e5 * one), torch.zeros(1, dtype=F64), 1e-8, method=LBFGS())
    assert float(found.y.tree()) == pytest.approx(0.3 ** (1 / 3) * 1e6, rel=1e-6)
    assert calls < 3000


def test_multipliers_of_a_steep_lower_level_are_reached():
    """g = 5e3 (y - 3)^2 under y <= 1: la = 2e4, which steps of gamma2 = 10 on the violation approach by a thousandth a saddle."""
    calls = 0

    def lower(x, y):
        nonlocal calls
        calls += 1
        return 5e3 * ((y - 3) ** 2).sum()

    one = torch.tensor([0.3], dtype=F64)
    oracle = BilevelProblem(upper=lower, lower=lower, lower_inequality=lambda x, y: y - 1 + 0 * x, x=one, y=one).oracle()
    rows = coupled(oracle, 1e6).rows
    found = solve_constrained_lower(oracle, rows, Vec.of(one), Vec.of(one), torch.zeros(1, dtype=F64), 1e-8, method=LBFGS())
    assert float(found.y.tree()) == pytest.approx(1, abs=1e-8)
    assert float(rows.report(found.multipliers).lower["inequality"]) == pytest.approx(2e4, rel=1e-8)
    assert calls < 200
