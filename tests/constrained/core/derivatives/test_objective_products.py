"""Second derivatives against closed forms and finite differences in float64, and how all derivatives are counted."""

import copy

import pytest
import torch
from derivative_cases import DATA, F64, NX, NY, SX, SY, A, B, M, X, Y, c, close, numeric, objective, quadratic, randn, smooth
from torch import Tensor

from constrained.core.data import FullBatch, MiniBatches
from constrained.core.derivatives.counts import Calls, Count
from constrained.core.derivatives.objective import Objective, gradient
from constrained.core.vec import Vec


# -- second derivatives -----------------------------------------------------------------------------------------------------
def test_products_of_the_quadratic():
    line = objective(quadratic).linearize([Vec.of(X), Vec.of(Y)])
    u, v = randn(NX, seed=11), randn(NY, seed=12)
    close(line.value, quadratic(X, Y))
    close(line.grads[1].tree(), A @ Y + B.T @ X + c)
    close(line.product(Vec.of(v), 1, 1).tree(), A @ v)
    close(line.product(Vec.of(v), 0, 1).tree(), B @ v)
    close(line.product(Vec.of(u), 1, 0).tree(), B.T @ u)
    close(line.product(Vec.of(u), 0, 0).tree(), torch.zeros(NX, dtype=F64))


def test_products_of_trees_against_differences():
    g = objective(smooth)
    line = g.linearize([SX, SY])
    points = [SX, SY]
    for row in (0, 1):
        for col in (0, 1):
            v = points[col].map(torch.cos)

            def along(w: Vec, row: int = row, col: int = col, v: Vec = v) -> Tensor:
                args = [w if i == row else p for i, p in enumerate(points)]
                return g.gradient(args, wrt=(col,))[1][0] @ v

            close(line.product(v, row, col).ravel(), numeric(along, points[row]), 1e-7)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_batched_products_are_the_stacked_ones(row, col):
    line = objective(smooth).linearize([SX, SY])
    point = [SX, SY][col]
    vs = [point.unravel(randn(point.size, seed=20 + i)) for i in range(M)]
    batch = point.like(torch.stack([v.leaves[j] for v in vs]) for j in range(len(point.leaves)))
    out = line.products(batch, row, col)
    for i, v in enumerate(vs):
        one = line.product(v, row, col)
        for stacked, leaf in zip(out.leaves, one.leaves):
            close(stacked[i], leaf)


class Cube(torch.autograd.Function):
    """x**3 whose second derivative cannot be batched: it asks for a number."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return Slope.apply(ctx.saved_tensors[0], g)


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, g):
        ctx.save_for_backward(x, g)
        return 3 * x**2 * g

    @staticmethod
    def backward(ctx, h):
        x, g = ctx.saved_tensors
        h.abs().sum().item()
        return 6 * x * g * h, 3 * x**2 * h


def test_products_loop_where_an_operator_has_no_batching_rule():
    g = objective(lambda x, y: (Cube.apply(y) * y.detach().new_ones(NY)).sum() + x @ B @ y)
    line = g.linearize([Vec.of(X), Vec.of(Y)])
    vs = randn(M, NY, seed=13)
    close(line.products(Vec.of(vs), 1, 1).tree(), 6 * Y * vs)
    assert (g.calls.hvps, g.calls.jvps, g.calls.gradients) == (M, 0, 1)


def test_products_of_a_float64_vector_with_a_float32_function():
    line = objective(lambda y: y.square().sum()).linearize([Vec.of(torch.ones(3))])
    assert line.product(Vec.of(torch.ones(3, dtype=F64)), 0, 0).dtype == torch.float32


# -- batches and counting ---------------------------------------------------------------------------------------------------


def test_batches_reach_the_function():
    g = objective(lambda y, batch: (batch @ y).sum(), sampler=MiniBatches(DATA, 4), seed=3, stream=1)
    for n in (0, 5):
        batch = DATA[MiniBatches(DATA, 4).indices(3, 1, n)]
        close(g.gradient([Vec.of(Y)], g.draw(n))[1][0].tree(), batch.sum(0))
        close(g.value([Vec.of(Y)], g.draw(n)), (batch @ Y).sum())
    whole = objective(lambda y, batch: (batch @ y).sum(), sampler=FullBatch(DATA))
    close(whole.gradient([Vec.of(Y)])[1][0].tree(), DATA.sum(0))


def test_calls_are_counted_with_rows():
    calls = Calls()
    args = [Vec.of(X), Vec.of(Y)]
    f = Objective("f", lambda x, y, batch: (batch @ y).sum() + x.sum(), calls, sampler=MiniBatches(DATA, 4))
    g = Objective("g", quadratic, calls)
    f.value(args, f.draw(0))
    f.gradient(args, f.draw(0), wrt=(0, 1))  # one backward, 4 rows
    f.gradient(args, f.draw(2))  # the last of the epoch, 2 rows
    gradient([(1.0, f, f.draw(1)), (0.1, g, None)], args, (1,))
    line = g.linearize(args)
    line.product(args[1], 1, 1)
    line.products(Vec.of(randn(M, NY)), 1, 1)
    line.product(args[1], 0, 1)
    line.products(Vec.of(randn(M, NY)), 0, 1)
    assert calls.of("f") == Count(values=1, gradients=3, rows=10)
    assert calls.of("g") == Count(gradients=2, hvps=1 + M, jvps=1 + M)
    assert calls.total() == Count(values=1, gradients=5, rows=10, hvps=1 + M, jvps=1 + M)
    assert (calls.gradients, calls.rows, calls.hvps, calls.jvps, calls.vjps) == (5, 10, 1 + M, 1 + M, 0)


def test_calls_are_kept_apart_by_purpose():
    g = objective(quadratic)
    args = [Vec.of(X), Vec.of(Y)]
    g.gradient(args)
    with pytest.raises(RuntimeError), g.calls.counting("answer"):
        g.gradient(args)
        g.value(args)
        with g.calls.counting("certificate"):
            g.gradient(args)
        raise RuntimeError
    g.gradient(args)
    assert g.calls.gradients == 2
    assert g.calls.total("answer") == Count(values=1, gradients=1)
    assert g.calls.total("certificate") == Count(gradients=1)
    assert g.calls.total("nothing") == Count()


def test_products_count_under_the_purpose_they_run_for():
    g = objective(quadratic)
    line = g.linearize([Vec.of(X), Vec.of(Y)])
    with g.calls.counting("answer"):
        line.product(Vec.of(Y), 1, 1)
    assert g.calls.total("answer").hvps == 1
    assert g.calls.hvps == 0


def test_calls_copy_and_go_through_a_dict():
    g = objective(quadratic)
    g.gradient([Vec.of(X), Vec.of(Y)])
    twin, again, deep = g.calls.copy(), Calls.from_dict(g.calls.as_dict()), copy.deepcopy(g.calls)
    g.gradient([Vec.of(X), Vec.of(Y)])
    assert twin.gradients == again.gradients == deep.gradients == 1
    assert g.calls.gradients == 2
    with pytest.raises(AttributeError):
        _ = twin.gradient
