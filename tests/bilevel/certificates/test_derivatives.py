"""`problem.check()`: accepts right derivatives and names exactly the wrong one, for users' own in torch and numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from bilevel import BilevelProblem, Function, Point
from constrained.core.errors import ProblemError

F64 = torch.float64


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


X1, Y1 = vector(0.4, -0.7), vector(1.1, 0.6)
NAMES = {
    ("upper", "gradient", 0): "upper: d/dx",
    ("upper", "gradient", 1): "upper: d/dy",
    ("lower", "gradient", 0): "lower: d/dx",
    ("lower", "gradient", 1): "lower: d/dy",
    ("lower", "hvp", None): "lower: d2/dy2 v",
    ("lower", "jvp", None): "lower: d2/dxdy v",
    ("upper_inequality", "jacobian", 0): "upper_inequality: d/dx",
    ("upper_inequality", "jacobian", 1): "upper_inequality: d/dy",
    ("upper_inequality", "vjp", 0): "upper_inequality: d/dx",
    ("upper_inequality", "vjp", 1): "upper_inequality: d/dy",
}


def own_derivatives(kind, wrong=None, form="jacobian"):
    """A problem whose functions bring all their derivatives, in torch or numpy, with one of them wrong by 1 part in 1000."""
    m = torch if kind == "torch" else np

    def matrix(*rows):
        return m.stack([m.stack(list(row)) for row in rows])

    def jacobian(x, y):
        zero = 0 * x[0]
        return matrix((y[0], zero), (zero, zero + 1), (zero + 1, zero + 1)), matrix((x[0], zero), (zero, 2 * y[1]), (zero, zero))

    def vjp(x, y, w):
        jx, jy = jacobian(x, y)
        return jx.T @ w, jy.T @ w

    parts = {
        "upper": {
            "value": lambda x, y: ((y - 1) ** 2).sum() / 2 + m.sin(x).sum(),
            "gradient": lambda x, y: (m.cos(x), y - 1),
        },
        "lower": {
            "value": lambda x, y: (m.exp(x) * y**2 / 2 + y**4 / 12 - 3 * x * y).sum(),
            "gradient": lambda x, y: (m.exp(x) * y**2 / 2 - 3 * y, m.exp(x) * y + y**3 / 3 - 3 * x),
            "hvp": lambda x, y, v: (m.exp(x) + y**2) * v,
            "jvp": lambda x, y, v: (m.exp(x) * y - 3) * v,
        },
        "upper_inequality": {
            "value": lambda x, y: m.stack([x[0] * y[0] - 1, x[1] + y[1] ** 2, x.sum()]),
            form: {"jacobian": jacobian, "vjp": vjp}[form],
        },
    }
    if wrong:
        function, part, place = wrong
        right = parts[function][part]

        def off(*args):
            out = right(*args)
            return out * 1.001 if place is None else tuple(o * (1.001 if i == place else 1) for i, o in enumerate(out))

        parts[function][part] = off
    make = Function if kind == "torch" else Function.numpy
    made = {name: make(part.pop("value"), **part) for name, part in parts.items()}
    return BilevelProblem(x=X1, y=Y1, **made)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("form", ["jacobian", "vjp"])
def test_check_accepts_right_derivatives(kind, form):
    report = own_derivatives(kind, form=form).check()
    assert report.ok
    assert {finding.name for finding in report.findings} == set(NAMES.values())
    assert report.raise_for_errors() is report


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("wrong", NAMES, ids=lambda w: "-".join(map(str, w)))
def test_check_names_exactly_the_wrong_derivative(kind, wrong):
    report = own_derivatives(kind, wrong, form="vjp" if wrong[1] == "vjp" else "jacobian").check()
    assert report.bad == (NAMES[wrong],), str(report)
    with pytest.raises(ProblemError, match="check: ") as caught:
        report.raise_for_errors()
    assert NAMES[wrong] in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_check_accepts_autodiff(dtype):
    """A network, at the start and at a given point."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    data = torch.randn(5, 3, dtype=dtype)

    def fit(x, y):
        return (y(data) ** 2).mean() + (torch.exp(x) * sum((p**2).sum() for p in y.parameters())).sum()

    one = BilevelProblem(upper=lambda x, y: (y(data) - 1).square().mean() + (x**2).sum(), lower=fit, x=data[:1, 0], y=net)
    assert one.check().ok, str(one.check())
    at = Point(one.x + 1, {name: p.detach() + 0.1 for name, p in net.named_parameters()})
    assert one.check(at).ok, str(one.check(at))
