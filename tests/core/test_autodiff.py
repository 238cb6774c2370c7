"""Derivatives against closed forms and finite differences in float64, and how they are counted."""

import contextlib
import copy
import doctest
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained.core import autodiff
from constrained.core.autodiff import Constraint, Objective, gradient, randomness, shaped
from constrained.core.calls import Calls, Count
from constrained.core.data import FullBatch, MiniBatches
from constrained.core.errors import ProblemError, Unsuitable
from constrained.core.function import Function
from constrained.core.vec import Vec

F64 = torch.float64
NX, NY, M = 3, 4, 5


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# g(x, y) = y'Ay / 2 + x'By + c'y + d'x, all derivatives known
root = randn(NY, NY, seed=1)
A, B, c, d = root @ root.T, randn(NX, NY, seed=2), randn(NY, seed=3), randn(NX, seed=4)
X, Y = randn(NX, seed=5), randn(NY, seed=6)


def quadratic(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * y @ A @ y + x @ B @ y + c @ y + d @ x


def smooth(x: dict, y: tuple) -> Tensor:
    """Nothing about it is linear, and both arguments are trees."""
    u, (v, w) = x["a"] * x["b"].exp(), y
    return (u.sin() @ v.tanh().T).square().sum() * (1 + w.square()).log() + (x["a"].prod() * v.sum()).cos() / (1 + w**4)


SX = Vec.of({"a": randn(2, 3, seed=7), "b": randn(3, seed=8)})
SY = Vec.of((randn(4, 3, seed=9), randn(seed=10)))


def objective(call, **options) -> Objective:
    return Objective("g", call, Calls(), **options)


def numeric(f, v: Vec, h: float = 1e-5) -> Tensor:
    """Central differences of a vector-valued function of v: one row an entry of v."""
    flat, rows = v.ravel(), []
    for i in range(v.size):
        step = torch.zeros_like(flat)
        step[i] = h
        rows.append((f(v.unravel(flat + step)) - f(v.unravel(flat - step))) / (2 * h))
    return torch.stack(rows)


def close(a: Tensor, b: Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# -- values and gradients ---------------------------------------------------------------------------------------------------
def test_value_is_a_float64_scalar():
    for dtype in (torch.float32, F64):
        value = objective(lambda y: y.sum()).value([Vec.of(torch.ones(3, dtype=dtype))])
        assert (value.dtype, value.shape, float(value), value.requires_grad) == (F64, (), 3.0, False)


def test_gradient_of_the_quadratic():
    g, args = objective(quadratic), [Vec.of(X), Vec.of(Y)]
    value, (gx, gy) = g.gradient(args, wrt=(0, 1))
    close(value, quadratic(X, Y))
    close(gx.tree(), B @ Y + d)
    close(gy.tree(), A @ Y + B.T @ X + c)
    close(g.gradient(args, wrt=(1,))[1][0].tree(), gy.tree(), 0)
    close(g.gradient(args)[1][0].tree(), gx.tree(), 0)


def test_gradient_of_trees_against_differences():
    g = objective(smooth)
    _, (gx, gy) = g.gradient([SX, SY], wrt=(0, 1))
    close(gx.ravel(), numeric(lambda x: g.value([x, SY]), SX), 1e-8)
    close(gy.ravel(), numeric(lambda y: g.value([SX, y]), SY), 1e-8)
    assert (gx.spec, gy.spec) == (SX.spec, SY.spec)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_keep_the_dtype(dtype):
    x, y = SX.map(lambda leaf: leaf.to(dtype)), SY.map(lambda leaf: leaf.to(dtype))
    line = objective(smooth).linearize([x, y])
    value, grads = objective(smooth).gradient([x, y], wrt=(0, 1))
    for vec in (*grads, *line.grads, line.product(y, 1, 1), line.product(y, 0, 1)):
        assert all(leaf.dtype == dtype for leaf in vec.leaves)
    assert value.dtype == line.value.dtype == F64


def test_weighted_terms_by_one_backward():
    calls = Calls()
    f = Objective("f", lambda x, y: (x.sin() @ B @ y).square(), calls)
    g = Objective("g", quadratic, calls)
    own = Objective("own", Function(lambda x, y: 0.5 * y @ y, gradient=lambda x, y: (torch.zeros_like(x), y)), calls)
    args = [Vec.of(X), Vec.of(Y)]
    values, grads = gradient([(0.3, f, None), (1.0, own, None), (-2.0, g, None)], args, (0, 1))
    for value, one in zip(values, (f, own, g)):
        close(value, one.value(args))
    for i in (0, 1):
        wanted = sum(w * one.gradient(args, wrt=(i,))[1][0].ravel() for w, one in ((0.3, f), (1.0, own), (-2.0, g)))
        close(grads[i].ravel(), wanted)


def test_the_variables_are_left_alone():
    x, y = Vec.of(X.clone()), Vec.of(Y.clone())
    line = objective(quadratic).linearize([x, y])
    line.product(y, 1, 1)
    objective(quadratic).gradient([x, y], wrt=(0, 1))
    assert torch.equal(x.ravel(), X)
    assert torch.equal(y.ravel(), Y)
    assert not any(leaf.requires_grad for leaf in [*x.leaves, *y.leaves, *(leaf for g in line.grads for leaf in g.leaves)])


# -- what an objective ignores has derivative zero --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "call",
    [lambda x, y: y["u"] @ y["u"], lambda x, y: torch.tensor(3.0, dtype=F64), lambda x, y: x.sum() * 0.0],
    ids=["ignores x and a leaf", "constant", "only x"],
)
def test_an_objective_that_ignores_an_argument_has_gradient_zero(call):
    y = Vec.of({"u": randn(2), "w": randn(3)})
    g, args = objective(call), [Vec.of(X), y]
    _, (gx, gy) = g.gradient(args, wrt=(0, 1))
    line = g.linearize(args)
    assert torch.equal(gx.tree(), torch.zeros(NX, dtype=F64))
    assert torch.equal(gy.tree()["w"], torch.zeros(3, dtype=F64))
    assert torch.equal(line.grads[0].ravel(), gx.ravel())
    assert torch.equal(line.product(y, 0, 1).ravel(), torch.zeros(NX, dtype=F64))
    assert torch.equal(line.product(args[0], 1, 0).tree()["w"], torch.zeros(3, dtype=F64))
    assert line.product(y, 1, 1).spec == y.spec
    stack = y.map(lambda leaf: torch.stack([leaf, leaf]))
    assert [leaf.shape for leaf in line.products(stack, 0, 1).leaves] == [(2, NX)]
    close(line.products(stack, 1, 1).tree()["u"][1], line.product(y, 1, 1).tree()["u"])


def test_a_linear_objective_has_second_derivative_zero():
    line = objective(lambda x, y: c @ y + d @ x).linearize([Vec.of(X), Vec.of(Y)])
    for row, col, size in ((0, 0, NX), (1, 1, NY), (0, 1, NX), (1, 0, NY)):
        v = Vec.of([X, Y][col])
        assert torch.equal(line.product(v, row, col).ravel(), torch.zeros(size, dtype=F64))


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


# -- ambient state ----------------------------------------------------------------------------------------------------------
def test_works_under_ambient_no_grad():
    g, args = objective(smooth), [SX, SY]
    free = g.linearize(args)
    with torch.no_grad():
        line = g.linearize(args)
        hv, vs = line.product(SY, 1, 1), line.products(SY.map(lambda leaf: leaf.unsqueeze(0)), 0, 1)
        _, grads = g.gradient(args, wrt=(0, 1))
        back = Constraint("c", lambda x: x["b"] ** 2, Calls()).vjp([SX], torch.ones(3, dtype=F64))
    close(hv.ravel(), free.product(SY, 1, 1).ravel(), 0)
    close(vs.ravel(), free.product(SY, 0, 1).ravel())
    close(grads[0].ravel(), free.grads[0].ravel(), 0)
    close(back[0].tree()["b"], 2 * SX.tree()["b"])


def test_inference_mode_does_not_make_gradients_vanish():
    with torch.inference_mode(), contextlib.suppress(ProblemError):
        close(objective(lambda y: y @ y).gradient([Vec.of(Y)])[1][0].tree(), 2 * Y)


def test_leaves_no_graph_behind_under_ambient_grad():
    value, grads = objective(quadratic).gradient([Vec.of(X.clone().requires_grad_()), Vec.of(Y)], wrt=(0, 1))
    assert not value.requires_grad
    assert not any(g.ravel().requires_grad for g in grads)


# -- what is not an objective -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda y: y, ["(4,)"]),
        (lambda y: y.sum().reshape(1, 1).expand(2, 1), ["(2, 1)"]),
        (lambda y: 3.0, ["float", "3.0"]),
        (lambda y: y.sum().long(), ["int64"]),
        (lambda y: None, ["NoneType"]),
        (lambda y: (y.sum(), y), ["tuple"]),
    ],
)
def test_a_value_that_is_not_scalar_is_refused(call, words):
    for ask in (lambda g: g.value([Vec.of(Y)]), lambda g: g.gradient([Vec.of(Y)]), lambda g: g.linearize([Vec.of(Y)])):
        with pytest.raises(ProblemError) as caught:
            ask(objective(call))
        for word in ["g: expected a scalar", *words]:
            assert word in str(caught.value)


def test_one_entry_is_a_scalar():
    value, (g,) = objective(lambda y: y.sum().reshape(1, 1)).gradient([Vec.of(Y)])
    assert value.shape == ()
    close(g.tree(), torch.ones(NY, dtype=F64), 0)


def test_a_stochastic_objective_needs_a_draw():
    g = objective(lambda y, batch: (y * batch).sum(), sampler=MiniBatches(randn(8, NY), 2))
    with pytest.raises(ProblemError, match=r"g: .*draw"):
        g.gradient([Vec.of(Y)])


# -- batches and counting ---------------------------------------------------------------------------------------------------
DATA = randn(10, NY, seed=14)


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


# -- module randomness ------------------------------------------------------------------------------------------------------
def noisy(y: Tensor, batch: Tensor) -> Tensor:
    return torch.nn.functional.dropout(batch * y, 0.5).sum()


def test_equal_draws_see_one_mask_and_the_global_state_is_kept():
    g, y = objective(noisy, sampler=MiniBatches(DATA, 4), seed=1), Vec.of(Y)
    before = torch.random.get_rng_state()
    first = g.gradient([y], g.draw(3))[1][0].tree()
    torch.rand(7)
    torch.random.set_rng_state(before)
    assert torch.equal(g.gradient([y], g.draw(3))[1][0].tree(), first)
    line = g.linearize([y], g.draw(3))
    assert torch.equal(line.grads[0].tree(), first)
    line.product(y, 0, 0)
    close(g.value([y], g.draw(3)), first @ Y)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(g.gradient([y], g.draw(6))[1][0].tree(), first)  # another epoch


def test_the_mask_depends_on_seed_stream_and_n():
    masks = []
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]:
        with randomness(key, [Vec.of(Y)]):
            masks.append(tuple(torch.rand(5).tolist()))
    assert len(set(masks)) == 4
    assert masks[0] == masks[4]


def test_the_global_state_is_kept_when_the_function_raises():
    before = torch.random.get_rng_state()
    with contextlib.suppress(ValueError), randomness((0, 0, 0), [Vec.of(Y)]):
        torch.rand(3)
        raise ValueError
    assert torch.equal(torch.random.get_rng_state(), before)


# -- derivatives of the user ------------------------------------------------------------------------------------------------
def own(**only: object) -> tuple[Function, SimpleNamespace]:
    """The quadratic with derivatives that note their calls."""
    seen = SimpleNamespace(gradient=0, hvp=0, jvp=0)

    def note(name, function):
        def call(*args):
            setattr(seen, name, getattr(seen, name) + 1)
            return function(*args)

        return call

    every = {
        "gradient": note("gradient", lambda x, y: (B @ y + d, A @ y + B.T @ x + c)),
        "hvp": note("hvp", lambda x, y, v: A @ v),
        "jvp": note("jvp", lambda x, y, v: B @ v),
    }
    return Function(quadratic, **{name: every[name] for name in only}), seen


ALL = {"gradient": 1, "hvp": 1, "jvp": 1}


def subsets():
    return [{n: 1 for i, n in enumerate(ALL) if k >> i & 1} for k in range(8)]


@pytest.mark.parametrize("only", subsets(), ids=lambda only: " ".join(only) or "none")
def test_own_derivatives_are_used_and_the_rest_is_autodiff(only):
    function, seen = own(**only)
    g, args = objective(function), [Vec.of(X), Vec.of(Y)]
    u, v, vs = randn(NX, seed=15), randn(NY, seed=16), randn(M, NY, seed=17)
    _, (gx, gy) = g.gradient(args, wrt=(0, 1))
    line = g.linearize(args)
    for grads in ((gx, gy), line.grads):
        close(grads[0].tree(), B @ Y + d)
        close(grads[1].tree(), A @ Y + B.T @ X + c)
    close(line.product(Vec.of(v), 1, 1).tree(), A @ v)
    close(line.product(Vec.of(v), 0, 1).tree(), B @ v)
    close(line.products(Vec.of(vs), 1, 1).tree(), vs @ A)
    close(line.products(Vec.of(vs), 0, 1).tree(), vs @ B.T)
    assert g.second_order
    assert (g.calls.gradients, g.calls.hvps, g.calls.jvps) == (2, 1 + M, 1 + M)
    assert seen.gradient >= only.get("gradient", 0)
    assert seen.hvp == (1 + M if "hvp" in only else 0)
    assert seen.jvp == (1 + M if "jvp" in only else 0)
    # These two have no place in Function: what is missing is autodiff.
    close(line.product(Vec.of(u), 1, 0).tree(), B.T @ u)
    close(line.product(Vec.of(u), 0, 0).tree(), torch.zeros(NX, dtype=F64))


def test_own_derivatives_of_one_variable():
    function = Function(lambda y: 0.5 * y @ A @ y, gradient=lambda y: A @ y, hvp=lambda y, v: A @ v)
    g = objective(function)
    line = g.linearize([Vec.of(Y)])
    close(g.gradient([Vec.of(Y)])[1][0].tree(), A @ Y)
    close(line.product(Vec.of(X[:1].repeat(NY)), 0, 0).tree(), A @ X[:1].repeat(NY))
    assert float(function(Y)) == pytest.approx(float(0.5 * Y @ A @ Y))


def test_own_derivatives_of_trees_and_batches():
    def value(y, batch):
        return (batch @ y["w"] + y["b"]).sum()

    function = Function(value, gradient=lambda y, batch: {"w": batch.sum(0), "b": torch.tensor(float(len(batch)), dtype=F64)})
    g = objective(function, sampler=MiniBatches(DATA, 4))
    y = Vec.of({"w": Y, "b": torch.tensor(0.5, dtype=F64)})
    _, (mine,) = g.gradient([y], g.draw(2))
    _, (auto,) = objective(value, sampler=MiniBatches(DATA, 4)).gradient([y], g.draw(2))
    close(mine.ravel(), auto.ravel())
    assert g.calls.rows == 2


def test_own_derivatives_of_the_wrong_shape_are_refused():
    args = [Vec.of(X), Vec.of(Y)]
    swapped = Function(quadratic, gradient=lambda x, y: (A @ y, B @ y))
    with pytest.raises(ProblemError, match=r"g\.gradient.*\(3,\).*\(4,\)"):
        objective(swapped).gradient(args, wrt=(0, 1))
    lonely = Function(quadratic, gradient=lambda x, y: A @ y)
    with pytest.raises(ProblemError, match=r"g\.gradient: expected 2"):
        objective(lonely).gradient(args)
    flat = Function(quadratic, gradient=own(**ALL)[0].gradient, hvp=lambda x, y, v: A, jvp=lambda x, y, v: B @ v)
    with pytest.raises(ProblemError, match=r"\(4,\).*\(4, 4\)"):
        objective(flat).linearize(args).product(args[1], 1, 1)


def test_own_derivatives_of_a_dict_are_matched_by_key():
    # JAX gives dicts back with sorted keys.
    y = Vec.of({"w": randn(2, seed=21), "b": randn(2, seed=22)})
    w, b = y.tree()["w"], y.tree()["b"]

    def value(y):
        return (y["w"] ** 2).sum() + 3 * y["b"].sum()

    function = Function(value, gradient=lambda y: {"b": 3 + 0 * b, "w": 2 * w}, hvp=lambda y, v: {"b": 0 * b, "w": 2 * v["w"]})
    g = objective(function)
    close(g.gradient([y])[1][0].ravel(), torch.cat([2 * w, 3 + 0 * b]))
    close(g.linearize([y]).product(y, 0, 0).ravel(), torch.cat([2 * w, 0 * b]))
    eye, zero = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    for own in ({"jacobian": lambda y: {"b": zero, "w": eye}}, {"vjp": lambda y, u: {"b": 0 * u, "w": u}}):
        (back,) = Constraint("c", Function(lambda y: y["w"], **own), Calls()).vjp([y], b)
        close(back.ravel(), torch.cat([b, 0 * b]))


def test_own_derivatives_of_another_structure_are_refused():
    y = Vec.of({"w": randn(2, seed=21), "b": randn(2, seed=22)})
    function = Function(lambda y: y["w"].sum(), gradient=lambda y: {"w": 1 + 0 * y["w"], "c": 0 * y["b"]})
    with pytest.raises(ProblemError, match=r"g\.gradient"):
        objective(function).gradient([y])


def test_functions_from_numpy():
    a, b, cc, dd = (t.numpy() for t in (A, B, c, d))

    def checked(function):
        def call(*arrays):
            assert all(isinstance(array, np.ndarray) for array in arrays)
            return function(*arrays)

        return call

    value = checked(lambda x, y: 0.5 * y @ a @ y + x @ b @ y + cc @ y + dd @ x)
    grad = checked(lambda x, y: (b @ y + dd, a @ y + b.T @ x + cc))
    first = objective(Function.numpy(value, gradient=grad))
    args = [Vec.of(X), Vec.of(Y)]
    found, (gx, gy) = first.gradient(args, wrt=(0, 1))
    close(found, quadratic(X, Y))
    close(gx.tree(), B @ Y + d)
    close(gy.tree(), A @ Y + B.T @ X + c)
    assert not first.second_order
    with pytest.raises(Unsuitable, match="g: no second derivatives"):
        first.linearize(args)

    second = objective(
        Function.numpy(value, gradient=grad, hvp=checked(lambda x, y, v: a @ v), jvp=checked(lambda x, y, v: b @ v))
    )
    assert second.second_order
    line = second.linearize(args)
    close(line.product(args[1], 1, 1).tree(), A @ Y)
    close(line.product(args[1], 0, 1).tree(), B @ Y)
    close(line.products(Vec.of(randn(M, NY)), 1, 1).tree(), randn(M, NY) @ A)
    with pytest.raises(Unsuitable, match="hvp=, jvp="):
        line.product(args[0], 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_functions_from_numpy_keep_trees_dtypes_and_batches(dtype):
    function = Function.numpy(
        lambda y, batch: float((batch @ y["w"]).sum()), gradient=lambda y, batch: {"w": batch.sum(0).astype(np.float64)}
    )
    g = objective(function, sampler=MiniBatches(DATA.to(dtype), 4))
    y = Vec.of({"w": Y.to(dtype)})
    value, (found,) = g.gradient([y], g.draw(0))
    batch = DATA[MiniBatches(DATA, 4).indices(0, 0, 0)]
    assert found.dtype == dtype
    torch.testing.assert_close(found.tree()["w"], batch.sum(0).to(dtype))
    assert float(value) == pytest.approx(float((batch @ Y).sum()), rel=1e-5)


def test_numpy_without_a_derivative_is_refused():
    with pytest.raises(ProblemError, match="gradient="):
        Function.numpy(lambda y: 0.0)


def test_numpy_functions_work_on_variables_that_require_grad_and_under_no_grad():
    g = objective(Function.numpy(lambda y: float(y @ y), gradient=lambda y: 2 * y))
    with torch.no_grad():
        close(g.gradient([Vec.of(Y)])[1][0].tree(), 2 * Y)


# -- constraints ------------------------------------------------------------------------------------------------------------
def curve(x: Tensor, y: dict) -> Tensor:
    return torch.stack([x @ x - y["w"].sum(), (y["w"] * y["w"]).sum() * x[0], y["b"] ** 3])


CY = Vec.of({"w": randn(2, 2, seed=18), "b": randn(seed=19)})
W = randn(3, seed=20)


def jacobian(x: Tensor, y: dict) -> tuple:
    zero, one = torch.zeros(NX, dtype=F64), torch.eye(NX, dtype=F64)[0]
    return (
        torch.stack([2 * x, (y["w"] ** 2).sum() * one, zero]),
        {
            "w": torch.stack([-torch.ones(2, 2, dtype=F64), 2 * x[0] * y["w"], torch.zeros(2, 2, dtype=F64)]),
            "b": torch.stack([torch.zeros((), dtype=F64)] * 2 + [3 * y["b"] ** 2]),
        },
    )


def own_vjp(x: Tensor, y: dict, w: Tensor) -> tuple:
    J, K = jacobian(x, y)
    return J.T @ w, {key: torch.tensordot(w, part, 1) for key, part in K.items()}


def in_numpy(function):
    def call(*trees):
        as_torch = [{k: torch.tensor(v) for k, v in t.items()} if isinstance(t, dict) else torch.tensor(t) for t in trees]
        out = function(*as_torch)
        parts = [
            {k: v.numpy() for k, v in p.items()} if isinstance(p, dict) else p.numpy()
            for p in (out if isinstance(out, tuple) else [out])
        ]
        return tuple(parts) if isinstance(out, tuple) else parts[0]

    return call


@pytest.mark.parametrize(
    "call",
    [
        curve,
        Function(curve, vjp=own_vjp),
        Function(curve, jacobian=jacobian),
        Function.numpy(in_numpy(curve), vjp=in_numpy(own_vjp)),
        Function.numpy(in_numpy(curve), jacobian=in_numpy(jacobian)),
    ],
    ids=["autodiff", "vjp", "jacobian", "numpy vjp", "numpy jacobian"],
)
def test_constraints(call):
    con = Constraint("c", call, Calls())
    args = [Vec.of(X), CY]
    close(con.value(args), curve(X, CY.tree()))
    cx, cy = con.vjp(args, W)
    close(cx.tree(), numeric(lambda x: con.value([x, CY]), args[0]) @ W, 1e-8)
    close(cy.ravel(), numeric(lambda y: con.value([args[0], y]), CY) @ W, 1e-8)
    assert cy.spec == CY.spec
    assert con.calls.vjps == 1


def test_constraints_of_one_variable_and_scalars():
    con = Constraint("c", lambda x: x.sum() - 1, Calls())
    assert con.value([Vec.of(X)]).shape == (1,)
    close(con.vjp([Vec.of(X)], torch.tensor([2.0], dtype=F64))[0].tree(), torch.full((NX,), 2.0, dtype=F64), 0)
    own = Constraint("c", Function(lambda x: x**2, vjp=lambda x, w: 2 * x * w), Calls())
    close(own.vjp([Vec.of(X)], X)[0].tree(), 2 * X * X)
    assert con.calls.of("c") == Count(values=1, vjps=1)


@pytest.mark.parametrize("wrong", [torch.ones(NX, dtype=F64), torch.ones(2, NX - 1, dtype=F64), torch.ones(2, 1, dtype=F64)])
def test_a_jacobian_of_the_wrong_shape_is_refused(wrong):
    con = Constraint("c", Function(lambda x: x[: 1 if wrong.ndim == 1 else 2], jacobian=lambda x: wrong), Calls())
    with pytest.raises(ProblemError, match=r"c\.jacobian"):
        con.vjp([Vec.of(X)], torch.ones(1 if wrong.ndim == 1 else 2, dtype=F64))


def test_a_constraint_that_ignores_an_argument_has_derivative_zero():
    con = Constraint("c", lambda x, y: x[:2], Calls())
    _, cy = con.vjp([Vec.of(X), CY], torch.ones(2, dtype=F64))
    assert torch.equal(cy.ravel(), torch.zeros(5, dtype=F64))
    fixed = Constraint("c", lambda x: torch.ones(2, dtype=F64), Calls())
    assert torch.equal(fixed.vjp([Vec.of(X)], torch.ones(2, dtype=F64))[0].tree(), torch.zeros(NX, dtype=F64))


def test_constraints_accumulate_values_in_float64_and_keep_the_variables_dtype():
    x = Vec.of(X.float())
    con = Constraint("c", lambda x: x**2, Calls())
    assert con.value([x]).dtype == F64
    assert con.vjp([x], torch.ones(NX, dtype=F64))[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"), [(lambda x: x.reshape(1, -1), "(1, 3)"), (lambda x: 1.0, "float"), (lambda x: x > 0, "(3,)")]
)
def test_a_constraint_that_is_not_a_vector_is_refused(call, words):
    with pytest.raises(ProblemError) as caught:
        Constraint("c", call, Calls()).value([Vec.of(X)])
    assert "c: expected a scalar or 1-D floating-point tensor" in str(caught.value)
    assert words in str(caught.value)


# -- helpers ----------------------------------------------------------------------------------------------------------------
def test_shaped_names_what_is_wrong():
    with pytest.raises(ProblemError, match=r"h: expected shapes \[\(3,\)\], got \[\(4,\)\]"):
        shaped(Y, Vec.of(X), "h")
    assert shaped(X.float(), Vec.of(X), "h").dtype == F64


def test_docstring_examples():
    assert doctest.testmod(autodiff).failed == 0
