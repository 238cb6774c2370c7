"""What problems of both kinds share."""

import pytest
import torch

from bilevel import F2SA, BilevelProblem, Live, MiniBatches, Status, solve
from constrained import ConstrainedProblem
from constrained.core.errors import ProblemError


@pytest.mark.parametrize("kind", [BilevelProblem, ConstrainedProblem])
def test_a_default_solve_makes_few_oracles(kind, monkeypatch):
    made, oracle = [], kind.oracle
    monkeypatch.setattr(kind, "oracle", lambda self, *seed: made.append(1) or oracle(self, *seed))
    x = torch.ones(2, dtype=torch.float64)
    if kind is BilevelProblem:
        problem = kind(upper=lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=x, y=x)
    else:
        problem = kind(objective=lambda x: ((x - 2) ** 2).sum(), x=x)
    assert solve(problem).status is Status.CONVERGED
    assert len(made) == 2  # one to try second derivatives, and the run's, which the certificate and the measures take


def smooth(**changed):
    one = torch.ones(2, dtype=torch.float64)
    parts = {"upper": lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum(), "lower": lambda x, y: ((y - x) ** 2).sum()}
    return BilevelProblem(**{**parts, "x": one, "y": one, **changed})


def plane(x):
    return ConstrainedProblem(objective=lambda x: sum((leaf**2).sum() for leaf in x), x=x)


NOTHING = torch.zeros(0, dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: smooth(x=NOTHING), "x"),
        (lambda: smooth(y={"a": NOTHING, "b": torch.zeros(3, 0, dtype=torch.float64)}), "y"),
        (lambda: smooth(y=Live(torch.nn.Linear(0, 2, bias=False).double())), "y"),
        (lambda: plane([NOTHING]), "x"),
    ],
)
def test_a_variable_without_entries_is_refused_by_name(make, name):
    with pytest.raises(ProblemError, match=f"^{name}: expected at least one number"):
        make()


def test_leaves_without_entries_beside_others_are_left_alone():
    start = [NOTHING, torch.ones(2, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.float64)]
    result = solve(plane(start))
    assert result.status is Status.CONVERGED
    assert [tuple(leaf.shape) for leaf in result.x] == [(0,), (2,), (0, 3)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision_is_refused_by_name(dtype):
    one = torch.ones(2).to(dtype)
    for make, names in ((lambda: smooth(x=one, y=one), "x, y"), (lambda: plane([one]), "x")):
        with pytest.raises(ProblemError, match=f"^{names}: expected float32 or float64, .* got {dtype}"):
            make()


def live(dtype):
    rows = torch.linspace(-1, 1, 30).reshape(10, 3).to(dtype)
    return BilevelProblem(
        upper=lambda x, y, b: ((y(b) - 1) ** 2).mean(),
        lower=lambda x, y, b: (y(b) ** 2).mean() + x.exp() * sum((p**2).sum() for p in y.parameters()),
        x=torch.zeros(()).to(dtype),
        y=Live(torch.nn.Linear(3, 1).to(dtype)),
        upper_data=MiniBatches(rows, 5),
        lower_data=MiniBatches(rows, 5),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_live_modules_may_be_in_half_precision(dtype):
    result = solve(live(dtype), F2SA(), max_steps=3)
    assert result.x.dtype is dtype
    assert result.x.isfinite()
    with pytest.raises(ProblemError, match="float8"):
        live(torch.float8_e4m3fn)
