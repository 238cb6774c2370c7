"""f, c and their derivatives for many points at once."""

import pytest
import torch

from constrained.core.derivatives import lanes
from constrained.core.derivatives.lanes import LaneTape, values

F64 = torch.float64


def whole(x, p):
    """c = (x0 x1, p x2^3), f = p x0 x1^2 + x2."""
    return torch.stack([x[0] * x[1], p * x[2] ** 3, p * x[0] * x[1] ** 2 + x[2]])


@pytest.fixture(params=["copies", "batched backward"])
def way(request, monkeypatch):
    if request.param != "copies":
        monkeypatch.setattr(lanes, "ROOM", 0)


def test_derivatives_are_those_of_the_formulas(way):
    X, p = torch.randn(4, 3, dtype=F64), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    x0, x1, x2 = X.unbind(1)
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    lam, sigma = torch.randn(4, 2, dtype=F64), torch.rand(4, dtype=F64)
    with torch.no_grad():
        tape = LaneTape(whole, X, (p,), 2)
        H = tape.hessian(lam, sigma)
    assert torch.allclose(tape.value, p * x0 * x1**2 + x2)
    assert torch.allclose(tape.c, torch.stack([x0 * x1, p * x2**3], 1))
    assert torch.allclose(tape.gradient, torch.stack([p * x1**2, 2 * p * x0 * x1, one], 1))
    J = torch.stack([torch.stack([x1, x0, zero], 1), torch.stack([zero, zero, 3 * p * x2**2], 1)], 1)
    assert torch.allclose(tape.jacobian, J)
    h01 = sigma * 2 * p * x1 + lam[:, 0]
    rows = [[zero, h01, zero], [h01, sigma * 2 * p * x0, zero], [zero, zero, lam[:, 1] * 6 * p * x2]]
    assert torch.allclose(H, torch.stack([torch.stack(row, 1) for row in rows], 1))
    f, c = values(whole, X, (p,))
    assert torch.equal(f, tape.value)
    assert torch.equal(c, tape.c)


@pytest.mark.parametrize("rows", [0, 2])
def test_what_is_linear_or_constant_has_derivatives_of_zero(way, rows):
    def plain(x):
        return torch.cat([torch.ones(rows, dtype=F64), 2 * x[:1]])

    tape = LaneTape(plain, torch.zeros(3, 2, dtype=F64), (), rows)
    assert torch.equal(tape.gradient, torch.tensor([[2.0, 0.0]] * 3, dtype=F64))
    assert torch.equal(tape.jacobian, torch.zeros(3, rows, 2, dtype=F64))
    assert torch.equal(tape.hessian(torch.ones(3, rows, dtype=F64), torch.ones(3, dtype=F64)), torch.zeros(3, 2, 2, dtype=F64))


def test_float32_comes_back_as_float64():
    tape = LaneTape(lambda x: (x**2).sum().reshape(1), torch.ones(2, 3), (), 0)
    assert {t.dtype for t in (tape.value, tape.c, tape.gradient, tape.hessian(tape.c, tape.value))} == {F64}
