"""Derivatives that are right near an answer and lost at it, and functions of other tensors than their argument."""

import pytest
import torch

import bilevel
import constrained
from bilevel import BilevelProblem, Point, ProblemError, Status
from constrained import ConstrainedProblem
from constrained.core.derivatives import looks
from constrained.core.vec import Vec

D = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=D)


def kept_above(v, at):
    """v, with its derivative where v > at."""
    return v if float(v) > at else v.detach()


def levels(upper):
    return BilevelProblem(upper=upper, lower=lambda x, y: ((y - x) ** 2).sum(), x=tensor(3.0), y=tensor(0.0))


@pytest.mark.parametrize("solver", [bilevel.Penalty(), bilevel.Implicit(), bilevel.MAID()])
def test_a_derivative_lost_from_the_answer_on(solver):
    """Phi = (x - 2)^2 + x^2 is least at 1; without the derivative of x^2 below 2 it seems to be so at 2."""
    problem = levels(lambda x, y: ((y - 2) ** 2).sum() + (kept_above(x, 2.0) ** 2).sum())
    result = bilevel.solve(problem, solver, max_seconds=20)
    assert not result.status.ok
    off = problem.certify(Point(tensor(2.0), tensor(2.0)))
    assert off["upper: d/dx"] > 0.9
    assert problem.certify(Point(tensor(2.1), tensor(2.1))).keys().isdisjoint({"upper: d/dx", "upper: d/dy"})


def test_constrained_at_the_point_alone():
    problem = ConstrainedProblem(
        objective=lambda x: ((x[0] - 2) ** 2) + kept_above(x[0], 2.0) ** 2 + x[1] ** 2,
        inequality=lambda x: kept_above(x[0], 2.0) - 5 + x[1],
        x=tensor(3.0, 2.0),
    )
    off = problem.certify(Point(tensor(2.0, 0.0)))
    assert off["objective: gradient"] > 0.5
    assert off["inequality: Jacobian"] > 0.1
    assert "objective: gradient" not in problem.certify(Point(tensor(2.5, 0.0)))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.relu(x - 1).sum() + ((x - 1) ** 2).sum(),
        lambda x: (x - 1).abs().sum(),
        lambda x: (x - 1).norm(),
        lambda x: torch.maximum(x[0] - 1, 3 * (1 - x[1])) + ((x - 1) ** 2).sum(),
        lambda x: torch.nn.functional.huber_loss(x, torch.ones_like(x)),
        lambda x: ((x - 1) ** 2).sum() + 1e12,
        lambda x: 1e12 * ((x - 1) ** 4).sum(),
        lambda x: torch.logsumexp(1e4 * torch.cat([x - 1, 1 - x]), 0) * 1e-4,
    ],
)
@pytest.mark.parametrize("dtype", [D, torch.float32])
def test_kinks_bends_and_rounding_are_no_errors(f, dtype):
    one = torch.ones(2, dtype=dtype)
    problem = ConstrainedProblem(objective=f, x=one)
    for at in (one, one * (1 + 1e-7), one + 1e-4, one - 1e-5):
        assert "objective: gradient" not in problem.certify(Point(at))


def test_an_objective_of_a_tensor_from_outside():
    x = tensor(3.0, -2.0)
    for outside in (x, x.clone().requires_grad_()):
        with pytest.raises(ProblemError, match=r"^objective: expected a function of x, got one of other tensors alone"):
            constrained.solve(ConstrainedProblem(objective=lambda z, outside=outside: ((outside - 1) ** 2).sum(), x=x))
    feasible = ConstrainedProblem(objective=lambda z: 0 * z.sum(), equality=lambda z: z.sum() - 1, x=x)
    found = constrained.solve(feasible)
    assert found.status is Status.CONVERGED
    assert float(found.x.sum()) == pytest.approx(1)


def test_a_function_that_is_zero_where_its_derivative_is_not():
    x, d = Vec.of(torch.zeros(1, dtype=torch.float64)), Vec.of(torch.ones(1, dtype=torch.float64))
    scalar = looks.Scalar("f", ("x",), lambda at: 0.0, lambda at: (torch.zeros(()), [d]), lambda value: abs(float(value)))
    off = looks.off_here((scalar, ["f: gradient"], torch.zeros(()), [d * 1e-3]), (x,), [d])
    assert off == {"f: gradient": pytest.approx(1.0)}
