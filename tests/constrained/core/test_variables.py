"""Modules as variables: functions get copies of them, and the user's own is never written to, in threads either."""

import copy
import threading

import pytest
import torch
from threaded import in_threads
from torch import nn

import bilevel
import constrained
from constrained.core.errors import ProblemError
from constrained.core.variables import Modules, calling

F64 = torch.float64
INPUTS = torch.linspace(-1, 2, 12, dtype=F64).reshape(4, 3)


@pytest.fixture
def net():
    made = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(torch.cos(torch.arange(p.numel(), dtype=F64) + i).reshape(p.shape))
    return made


def fitted(net, **changes):
    """Weight decay of a small network, without mini-batches."""

    def lower(x, y):
        return (y(INPUTS) ** 2).mean() + x.exp() * sum((p - 1).pow(2).sum() for p in y.parameters())

    parts = {
        "upper": lambda x, y: ((y(INPUTS) - 1) ** 2).mean() + x**2,
        "lower": lower,
        "x": torch.zeros((), dtype=F64),
        "y": net,
    }
    return bilevel.BilevelProblem(**{**parts, **changes})


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


def test_threads_that_share_a_problem_give_the_bits_of_one_and_leave_the_module(net):
    problem, own = fitted(net), {name: (p, p.detach().clone()) for name, p in net.named_parameters()}
    alone = bilevel.solve(problem, max_steps=3)
    for result in in_threads(lambda: bilevel.solve(problem, max_steps=3)):
        assert same(result.y, alone.y)
        assert torch.equal(result.x, alone.x)
    for name, p in net.named_parameters():
        assert p is own[name][0]
        assert torch.equal(p, own[name][1])


def test_threads_that_share_a_constrained_problem(net):
    problem = constrained.ConstrainedProblem(
        objective=lambda net: (net(INPUTS) ** 2).sum(), equality=lambda net: net(INPUTS[0]).reshape(()) - 1, x=net
    )
    alone = constrained.solve(problem, max_steps=4)
    assert all(same(result.x, alone.x) for result in in_threads(lambda: constrained.solve(problem, max_steps=4)))


class Worn(nn.Module):
    """Counts its calls, in a buffer and in an attribute, and holds data."""

    def __init__(self, kept=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=F64))
        self.register_buffer("calls", torch.zeros(()))
        self.own_calls, self.data, self.kept = 0, [INPUTS], kept

    def forward(self):
        self.calls += 1
        self.own_calls += 1
        return (self.data[0] @ self.weight).sum()


def swapped(module, function=lambda module: module()):
    modules = Modules(module)
    return modules, calling("objective", function, modules)


def test_what_a_call_writes_into_a_module_is_written_into_the_copy():
    module = Worn()
    modules, f = swapped(module)
    assert float(f({"weight": torch.zeros(3, dtype=F64)})) == 0
    assert (float(module.calls), module.own_calls) == (0, 0)
    assert modules.called[0].weight is module.weight, "parameters are shared"
    assert modules.called[0].data[0] is INPUTS, "data are shared"


def test_what_cannot_be_copied_is_called_by_one_thread_at_a_time():
    module = Worn(kept=threading.Lock())
    with pytest.raises(TypeError):
        copy.deepcopy(module)
    weight, (modules, f) = module.weight, swapped(module)
    assert modules.called[0] is module
    values = in_threads(lambda: [float(f({"weight": torch.full((3,), v, dtype=F64)})) for v in (1.0, 2.0) * 20])
    assert values == [[values[0][0], 2 * values[0][0]] * 20] * 3
    assert values[0][0] == pytest.approx(float(INPUTS.sum()))
    assert module.weight is weight


def test_a_module_whose_copy_is_itself_counts_as_one_that_cannot_be_copied():
    class Single(Worn):
        def __deepcopy__(self, memo):
            return self

    module = Single()
    assert swapped(module)[0].called[0] is module


def test_modules_that_share_parts_share_them_in_the_copies(net):
    modules = Modules(net[0], net)
    assert modules.called[1][0] is modules.called[0]


@pytest.mark.parametrize("level", ["upper", "lower"])
def test_a_function_of_the_module_that_was_given_is_refused(net, level):
    with pytest.raises(ProblemError, match=f"{level}: .*the module that it is handed"):
        bilevel.solve(fitted(net, **{level: lambda x, y: (net(INPUTS) ** 2).mean() + x**2 + (y(INPUTS) ** 2).mean()}))


def test_detached_parameters_of_the_module_that_was_given_are_constants(net):
    def near(x, y):
        return sum((p - q.detach()).pow(2).sum() for p, q in zip(y.parameters(), net.parameters())) + x**2

    result = bilevel.solve(fitted(net, lower=near, upper=lambda x, y: (x - 1) ** 2 + (y(INPUTS) ** 2).mean()))
    assert result.status.ok
    assert all(torch.allclose(result.y[name], p) for name, p in net.named_parameters())


def test_recurrent_layers_have_the_parameters_they_are_handed():
    net = nn.GRU(3, 2).double()
    f = swapped(net, lambda net: net(INPUTS)[0].sum())[1]
    zeros = {name: torch.zeros_like(p).requires_grad_() for name, p in net.named_parameters()}
    assert float(f(zeros).detach()) == 0
    assert torch.autograd.grad(f(zeros), list(zeros.values()), allow_unused=True)[0] is not None
