"""What is no problem, point or function is refused at once, in the library's own words, by the name of the argument."""

import numpy as np
import pytest
import torch

import bilevel
import constrained
from bilevel import BilevelError, BilevelProblem, OptionError, Point, ProblemError
from constrained import ConstrainedProblem, minimize

D = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=D)


def smooth(**changed):
    f, g = lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum(), lambda x, y: ((y - x) ** 2).sum()
    return BilevelProblem(**{"upper": f, "lower": g, "x": tensor(3.0), "y": tensor(0.0), **changed})


def square(x):
    return ((x - 1) ** 2).sum()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, dtype=D).to_sparse(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(2, dtype=D), torch.zeros(3, dtype=D)]), "nested"),
        (torch.nn.LazyLinear(2), "lazy"),
    ],
)
def test_a_variable_without_plain_entries(value, words):
    with pytest.raises(ProblemError, match=rf"^x.*: .*{words}"):
        ConstrainedProblem(objective=square, x=value)


def test_variables_without_values():
    one = torch.zeros(2, dtype=D, device="meta")
    for problem in (ConstrainedProblem(objective=square, x=one), smooth(x=one, y=one)):
        with pytest.raises(ProblemError, match=r"^x.*: .* got tensors on the meta device"):
            bilevel.solve(problem)


@pytest.mark.parametrize("name", ["lower_equality", "lower_inequality"])
@pytest.mark.parametrize("function", [lambda y: y, lambda x, y: 1 / 0])
def test_constraints_that_raise_at_the_start(name, function):
    with pytest.raises(ProblemError, match=rf"^{name}: raised (TypeError|ZeroDivisionError) at the start, given x and y"):
        bilevel.solve(smooth(**{name: function}))


@pytest.mark.parametrize(
    "formula", [lambda x, y: x, lambda x: 1 / 0, lambda x: None, lambda x: torch.zeros(3, dtype=D), lambda x: x * np.nan]
)
def test_a_lower_solution_that_is_none(formula):
    with pytest.raises(ProblemError, match=r"^lower_solution: "):
        bilevel.solve(smooth(lower_solution=formula))


def test_own_products_that_cannot_be_called():
    wrong = bilevel.Function(
        lambda x, y: ((y - x) ** 2).sum(), gradient=lambda x, y: (2 * (x - y), 2 * (y - x)), hvp=lambda x, y, v, w: 2 * v
    )
    for call in (lambda: bilevel.solve(smooth(lower=wrong)), lambda: bilevel.hypergradient(smooth(lower=wrong), tensor(3.0))):
        with pytest.raises(ProblemError, match=r"^lower.hvp: raised TypeError"):
            call()
    f = bilevel.Function(square, gradient=lambda x: 2 * (x - 1), hvp=lambda x: 2 * x)
    with pytest.raises(ProblemError, match=r"^objective.hvp: raised TypeError"):
        constrained.solve(ConstrainedProblem(objective=f, x=tensor(0.0, 0.0)))


def test_what_is_no_point():
    one, both = smooth(), ConstrainedProblem(objective=square, x=tensor(0.0, 0.0))
    for call in (one.check, one.residuals, one.certify, one.diagnose, both.check, both.residuals, both.certify):
        for value in (tensor(0.0), tensor(1.0, 2.0)):
            with pytest.raises(OptionError, match=r"^point: expected Point\(x=..., y=...\), got Tensor"):
                call(value)
    with pytest.raises(OptionError, match=r"^start.multipliers: expected Multipliers"):
        constrained.solve(both, start=Point(tensor(0.0, 0.0), None, 3))
    with pytest.raises(ProblemError, match=r"^start.y: expected None"):
        constrained.solve(both, start=Point(tensor(0.0, 0.0), tensor(0.0)))


@pytest.mark.parametrize("value", [None, square, 3])
def test_what_is_no_problem(value):
    for call in (bilevel.recommend, lambda problem: bilevel.hypergradient(problem, tensor(1.0))):
        with pytest.raises(OptionError, match=r"^problem: expected a"):
            call(value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fun": lambda x: x.sum() * 1j}, r"^objective: expected a scalar floating-point tensor, got .*complex128"),
        ({"fun": lambda x: np.asarray(x).sum() * 1j}, r"^fun: expected real numbers"),
        ({"jac": lambda x: (x - 1) * 2j}, "^jac: expected real numbers"),
        ({"constraints": {"type": "eq", "fun": lambda x: np.asarray(x) * 1j}}, r"^constraints: expected"),
        ({"constraints": {"type": "eq", "fun": lambda x: x[0], "args": (1, 2)}}, "^constraints: raised TypeError at the start"),
        ({"jac": lambda x: 2 * (x - 1), "hess": np.eye(2)}, "^hess: expected a function"),
        ({"x0": torch.zeros(2, dtype=D, device="meta")}, "^x0: expected a vector of numbers"),
        ({"x0": torch.zeros(2, dtype=D).to_sparse()}, "^x0: expected a vector of numbers"),
    ],
)
def test_minimize(changed, words):
    with pytest.raises(BilevelError, match=words):
        minimize(**{"fun": lambda x: float(((np.asarray(x) - 1) ** 2).sum()), "x0": [0.0, 0.0], **changed})
