"""Values and gradients against closed forms and finite differences in float64, and what is not an objective."""

import contextlib

import pytest
import torch
from derivative_cases import DATA, F64, NX, NY, SX, SY, A, B, X, Y, c, close, d, numeric, objective, quadratic, randn, smooth
from torch import Tensor

from constrained.core.data import MiniBatches
from constrained.core.derivatives.constraint import Constraint
from constrained.core.derivatives.counts import Calls
from constrained.core.derivatives.function import Function
from constrained.core.derivatives.objective import Objective, gradient
from constrained.core.errors import ProblemError
from constrained.core.shared_state import Randomness
from constrained.core.vec import Vec


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
        with Randomness()(key, [Vec.of(Y)]):
            masks.append(tuple(torch.rand(5).tolist()))
    assert len(set(masks)) == 4
    assert masks[0] == masks[4]


def test_the_global_state_is_kept_when_the_function_raises():
    before = torch.random.get_rng_state()
    with contextlib.suppress(ValueError), Randomness()((0, 0, 0), [Vec.of(Y)]):
        torch.rand(3)
        raise ValueError
    assert torch.equal(torch.random.get_rng_state(), before)
