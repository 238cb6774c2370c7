"""A checkpoint resumes the problem that it was made of, and refuses one that differs where the start does not show it."""

import numpy as np
import pytest
import torch

import bilevel
import constrained
from bilevel import BilevelProblem, Box, Checkpoint, CheckpointError
from constrained import Ball, ConstrainedProblem, Halfspace, Polyhedron

D = torch.float64


def rosenbrock(**changed):
    x = torch.tensor([-1.2, 1.0], dtype=D)
    return ConstrainedProblem(objective=lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, x=x, **changed)


def levels(**changed):
    f, g = lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum(), lambda x, y: ((y - x) ** 2).sum() + 0.1 * ((y - x) ** 4).sum()
    return BilevelProblem(upper=f, lower=g, x=torch.full((1,), 3.0, dtype=D), y=torch.zeros(1, dtype=D), **changed)


def rows(x):
    return torch.stack([x.sum() - 1, x[0] - 5])


CHANGES = {
    "box": (rosenbrock, {"X": Box(-2.0, 2.0)}, {"X": Box(-2.0, 3.0)}),
    "far box": (rosenbrock, {"X": Box(-200.0, 200.0)}, {"X": Box(-200.0, 201.0)}),
    "ball": (rosenbrock, {"X": Ball(3.0)}, {"X": Ball(4.0)}),
    "half-space": (
        rosenbrock,
        {"X": Halfspace(torch.ones(2, dtype=D), 3.0)},
        {"X": Halfspace(torch.ones(2, dtype=D), 4.0)},
    ),
    "polyhedron": (rosenbrock, {"X": Polyhedron(np.eye(2), [3.0, 3.0])}, {"X": Polyhedron(np.eye(2), [3.0, 4.0])}),
    "order of rows": (rosenbrock, {"inequality": rows}, {"inequality": lambda x: rows(x).flip(0)}),
    "sign of rows": (rosenbrock, {"inequality": rows}, {"inequality": lambda x: -rows(x)}),
    "order of equalities": (rosenbrock, {"equality": rows}, {"equality": lambda x: rows(x).flip(0)}),
    "upper box": (levels, {"X": Box(-5.0, 5.0)}, {"X": Box(-5.0, 5.5)}),
    "lower box": (levels, {"Y": Box(-5.0, 5.0)}, {"Y": Box(-5.0, 50.5)}),
    "lower inequality": (levels, {"lower_inequality": lambda x, y: y - 5}, {"lower_inequality": lambda x, y: y - 6}),
    "lower equality": (levels, {"lower_equality": lambda x, y: y - 0.5 * x}, {"lower_equality": lambda x, y: y - 0.51 * x}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_problem_is_refused_and_the_same_one_goes_on(name, tmp_path):
    make, before, after = CHANGES[name]
    path, solve = tmp_path / "run.pt", bilevel.solve if make is levels else constrained.solve
    solve(make(**before), max_steps=2, callbacks=[Checkpoint(path)])
    with pytest.raises(CheckpointError, match="values at the start"):
        solve(make(**after), max_steps=4, resume=path)
    assert torch.equal(solve(make(**before), max_steps=4, resume=path).x, solve(make(**before), max_steps=4).x)
