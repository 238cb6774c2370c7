"""Batched derivatives of the Lagrangian against torch.func, on functions whose batched backward takes each of the ways."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from constrained import ConstrainedProblem
from constrained.core.derivatives.graph import BATCHED
from constrained.core.vec import Vec
from problems.pde import laplacian

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=F64)


class Product(torch.autograd.Function):
    """a * b by numpy: any derivative exists, a batch of backwards does not."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.from_numpy(a.detach().numpy() * b.detach().numpy())

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return Product.apply(grad, b), Product.apply(grad, a)


A, LABELS, ROWS, COLUMN, PLANE = normal(90, 60), normal(90).sign(), normal(40, 9), normal(80, 60), normal(4, 60)


def logistic(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-LABELS * (A @ x)).mean()


def chain(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def network(x: Tensor) -> Tensor:
    W, b, v = x[:54].reshape(6, 9), x[54:60], x[60:66]
    return (torch.tanh(nn.functional.linear(ROWS, W, b)) @ v).square().mean()


def sphere(x: Tensor) -> Tensor:
    return torch.stack([x @ x - 1, x[0] * x[1] - x[2]])


# f, c and n.
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]] = {
    "logistic": (logistic, lambda x: torch.cat([PLANE @ x - 1, sphere(x)]), 60),
    "stencil": (lambda x: (x**2).sum() + (x[:36] ** 4).sum(), lambda x: laplacian(x[:36].reshape(6, 6)).reshape(-1) + x[36:], 72),
    "chain": (chain, sphere, 60),
    "network": (network, sphere, 66),
    "one column": (lambda x: torch.log1p((COLUMN @ x[:, None]) ** 2).mean(), sphere, 60),
    "no batching rule": (lambda x: (Product.apply(x, x) * x).sum(), sphere, 60),
    "small": (chain, sphere, 5),
    "small, no batching rule": (lambda x: (Product.apply(x, x) * x).sum(), sphere, 5),
    "linear constraint": (chain, lambda x: x[:3] - 1, 60),
    "linear": (lambda x: x.sum(), lambda x: x[:3] - 1, 60),
}
BY_HAND = {"no batching rule", "small, no batching rule"}  # torch.func does not know it either: x^3 is what it computes


@pytest.mark.parametrize("name", CASES)
def test_products_and_hessians(name):
    f, c, n = CASES[name]
    x, lam = 0.3 * normal(n), normal(len(c(torch.ones(n, dtype=F64))))
    true_f = (lambda t: (t**3).sum()) if name in BY_HAND else f
    H = torch.func.hessian(lambda t: true_f(t) + c(t) @ lam)(x)
    J = torch.func.jacrev(c)(x)
    tape = ConstrainedProblem(objective=f, equality=c, x=x).oracle().tape(Vec.of(x))
    at = tape.lagrangian(lam)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * max(1, float(H.abs().max())))  # noqa: E731
    close(tape.jacobian, J)
    close(at.hessian, H)
    U, V = normal(7, n), normal(7, len(lam))
    tops, bottoms = at.products(U, V)
    close(tops, U @ H + V @ J)
    close(bottoms, U @ J.T)
    for u, v, top, bottom in zip(U, V, tops, bottoms):
        one = at.product(u, v)
        close(one[0], top)
        close(one[1], bottom)
    again = tape.lagrangian(lam).products(U, V)
    assert torch.equal(again[0], tops)
    assert torch.equal(again[1], bottoms)


def test_both_ways_of_batching_are_covered():
    sizes = [n for _, _, n in CASES.values()]
    assert min(sizes) <= BATCHED < max(sizes)


def test_data_dependent_branches_are_no_obstacle():
    """The user's function is never run under vmap."""
    x = torch.linspace(-1, 2, BATCHED + 10, dtype=F64)
    problem = ConstrainedProblem(objective=lambda t: (t**4).sum() if float(t.detach()[0]) < 0 else t.sum(), x=x)
    at = problem.oracle().tape(Vec.of(x)).lagrangian(x.new_zeros(0))
    U = normal(3, len(x))
    torch.testing.assert_close(at.products(U, U[:, :0])[0], 12 * x**2 * U)
    torch.testing.assert_close(at.hessian, torch.diag(12 * x**2))
