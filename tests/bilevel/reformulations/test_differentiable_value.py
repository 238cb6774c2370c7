"""problem.value(x) in a loop of torch's own."""

import pytest
import torch
from torch import nn

from bilevel import BilevelProblem, Box, hypergradient
from constrained.core.errors import OptionError, ProblemError, SolveFailed, Unsuitable
from problems import quadratic, ridge_1

F64 = torch.float64


def test_gradients_agree_with_differences_of_values():
    problem = ridge_1().problem
    x = torch.tensor([-2.5], dtype=F64, requires_grad=True)
    problem.value(x, tol=1e-12).backward()
    h = 1e-5
    with torch.no_grad():
        up, down = problem.value(x + h, tol=1e-12), problem.value(x - h, tol=1e-12)
    assert float(x.grad) == pytest.approx(float(up - down) / (2 * h), rel=1e-6)


def test_an_optimizer_of_torch_reaches_the_closed_form():
    instance = quadratic(seed=2)
    x = torch.zeros(10, dtype=F64, requires_grad=True)
    ends = {"tolerance_grad": 1e-9, "tolerance_change": 0.0}  # by the gradient alone: 1e-9 in the value is 1e-6 and more in x
    optimizer = torch.optim.LBFGS([x], lr=1.0, max_iter=60, line_search_fn="strong_wolfe", **ends)

    def closure():
        optimizer.zero_grad()
        loss = instance.problem.value(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert instance.error(x.detach()) <= 1e-6


def test_it_is_part_of_a_larger_graph():
    """d/dt of 3 Phi(t^2 a) by the chain rule."""
    instance = quadratic(seed=3)
    a, t = (
        torch.randn(10, dtype=F64, generator=torch.Generator().manual_seed(0)),
        torch.tensor(0.7, dtype=F64, requires_grad=True),
    )
    (3 * instance.problem.value(t**2 * a, tol=1e-11)).backward()
    grad = hypergradient(instance.problem, 0.49 * a).value
    assert float(t.grad) == pytest.approx(3 * 2 * 0.7 * float(grad @ a), rel=1e-7)


def test_modules_and_sets():
    net = nn.Linear(2, 1).double()
    problem = BilevelProblem(
        upper=lambda m, y: ((y - 1) ** 2).sum() + 0.01 * (m.weight**2).sum(),
        lower=lambda m, y: ((y - m(torch.ones(2, dtype=F64))) ** 2).sum(),
        x=net,
        y=torch.zeros(3, dtype=F64),
        Y=Box(-5, 5),
    )
    problem.value(net).backward()
    y = net(torch.ones(2, dtype=F64)).item()
    assert net.bias.grad.item() == pytest.approx(2 * 3 * (y - 1), rel=1e-8)
    assert problem.response(net).numpy() == pytest.approx([y] * 3, rel=1e-8)


def test_later_calls_start_from_the_last_solution():
    problem = ridge_1().problem
    calls = problem._live().oracle.calls
    x = torch.tensor([-2.0], dtype=F64)
    problem.value(x)
    first = calls.total().hvps
    problem.value(x + 1e-6)
    assert calls.total().hvps - first < 0.8 * first


def test_failures_are_raised():
    one = torch.ones(1, dtype=F64)

    def made(lower):
        return BilevelProblem(
            upper=lambda x, y: ((y - 3) ** 2).sum() + x.sum(), lower=lower, x=one, y=0 * torch.ones(2, dtype=F64)
        )

    with pytest.raises(SolveFailed, match="singular"):
        made(lambda x, y: (y[0] - x[0]) ** 2 + 0 * y[1]).value(one)
    with pytest.raises(SolveFailed, match="lower level"):
        made(lambda x, y: (y[0] - x[0]) ** 2 + y[1]).value(one)
    good = made(lambda x, y: ((y - x) ** 2).sum())
    with pytest.raises(OptionError, match="tol"):
        good.value(one, tol=0.0)
    with pytest.raises(ProblemError, match="x: "):
        good.value(torch.ones(2, dtype=F64))
    coupled = BilevelProblem(
        upper=lambda x, y: x.sum(), lower=lambda x, y: (y**2).sum(), x=one, y=one, lower_inequality=lambda x, y: x + y
    )
    with pytest.raises(Unsuitable, match="lower_inequality"):
        coupled.value(one)


def test_a_failure_keeps_the_last_good_solution():
    one = torch.ones(1, dtype=F64)
    problem = BilevelProblem(
        upper=lambda x, y: (y**2).sum() + 0 * x.sum(), lower=lambda x, y: ((y - x.log()) ** 2).sum(), x=one, y=one
    )
    value = problem.value(2 * one)
    with pytest.raises(SolveFailed):
        problem.value(-one)
    assert float(problem.value(2 * one)) == pytest.approx(float(value))
