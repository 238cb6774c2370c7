"""What problems of both kinds share."""

import pytest
import torch

from bilevel import BilevelProblem, Status, solve
from constrained import ConstrainedProblem


@pytest.mark.parametrize("kind", [BilevelProblem, ConstrainedProblem])
def test_a_default_solve_makes_two_oracles(kind, monkeypatch):
    made, oracle = [], kind.oracle
    monkeypatch.setattr(kind, "oracle", lambda self, *seed: made.append(1) or oracle(self, *seed))
    x = torch.ones(2, dtype=torch.float64)
    if kind is BilevelProblem:
        problem = kind(upper=lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=x, y=x)
    else:
        problem = kind(objective=lambda x: ((x - 2) ** 2).sum(), x=x)
    assert solve(problem).status is Status.CONVERGED
    assert len(made) == 2  # the run's, and the certificate's on all of the data
