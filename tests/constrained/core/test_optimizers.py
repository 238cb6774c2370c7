"""Optimizers against torch.optim, step for step."""

import doctest

import pytest
import torch

from constrained.core import optimizers
from constrained.core.errors import OptionError
from constrained.core.optimizers import SGD, AdamW, Optimizer, ScalarAdam, TailAverage
from constrained.core.options import outside
from constrained.core.vec import Vec

F64 = torch.float64


def start(dtype: torch.dtype = F64) -> Vec:
    rng = torch.Generator().manual_seed(0)
    return Vec.of({"w": torch.randn(3, 2, generator=rng, dtype=dtype), "b": [torch.randn(4, generator=rng, dtype=dtype)]})


def grads(k: int, like: Vec) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(100 + k)
    return [torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype) * 10.0 ** (k % 3 - 1) for leaf in like.leaves]


def ours(optimizer: Optimizer, lrs: list[float], x: Vec) -> Vec:
    state = optimizer.init(x)
    for k, lr in enumerate(lrs):
        x, state = optimizer.update(x, grads(k, x), state, lr)
    return x


def theirs(cls: type, lrs: list[float], x: Vec, **options: object) -> Vec:
    params = [leaf.clone().requires_grad_() for leaf in x.leaves]
    optimizer = cls(params, lr=1.0, **options)
    for k, lr in enumerate(lrs):
        for p, g in zip(params, grads(k, x)):
            p.grad = g
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return x.like([p.detach() for p in params])


LRS = [0.1 / (1 + k) for k in range(30)]


def agree(a: Vec, b: Vec, ulps: float = 20) -> None:
    eps = torch.finfo(a.dtype).eps
    torch.testing.assert_close(a.ravel(), b.ravel(), rtol=ulps * eps, atol=ulps * eps)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum, dtype):
    x = start(dtype)
    agree(ours(SGD(momentum=momentum), LRS, x), theirs(torch.optim.SGD, LRS, x, momentum=momentum))


def test_sgd_decay_is_torchs_without_momentum_and_stays_out_of_the_moment_with_it():
    x = start()
    agree(ours(SGD(decay=0.3), LRS, x), theirs(torch.optim.SGD, LRS, x, weight_decay=0.3))
    m, y = None, x
    for k, lr in enumerate(LRS):
        d = Vec(grads(k, x), x.spec)
        m = d if m is None else 0.8 * m + d
        y = y - lr * (m + 0.3 * y)
    agree(ours(SGD(momentum=0.8, decay=0.3), LRS, x), y)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("betas", "eps", "decay"), [((0.9, 0.999), 1e-8, 0.0), ((0.5, 0.9), 1e-3, 0.2), ((0.0, 0.99), 1e-8, 0.01)]
)
def test_adamw_is_torchs(betas, eps, decay, dtype):
    x = start(dtype)
    wanted = theirs(torch.optim.AdamW, LRS, x, betas=betas, eps=eps, weight_decay=decay)
    agree(ours(AdamW(betas=betas, eps=eps, decay=decay), LRS, x), wanted, ulps=100)


@pytest.mark.parametrize(
    "optimizer", [SGD(momentum=0.9, decay=0.1), AdamW(decay=0.1), ScalarAdam()], ids=lambda o: type(o).__name__
)
class TestEvery:
    def test_protocol_and_options(self, optimizer):
        assert isinstance(optimizer, Optimizer)
        assert eval(repr(optimizer), vars(optimizers)) == optimizer
        for name, value in outside(type(optimizer)):
            with pytest.raises(OptionError, match=type(optimizer).__name__):
                type(optimizer)(**{name: value})

    def test_nothing_is_written_to(self, optimizer):
        x, state = start(), {}
        for k in range(3):
            d = grads(k, x)
            kept = [t.clone() for t in [*x.leaves, *d]]
            memory = {path: {n: t.clone() for n, t in block.items()} for path, block in state.items()}
            y, new = optimizer.update(x, d, state, 0.1)
            assert all(torch.equal(a, b) for a, b in zip([*x.leaves, *d], kept))
            assert all(torch.equal(t, memory[path][n]) for path, block in state.items() for n, t in block.items())
            x, state = y, new

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_dtype_and_structure_are_kept(self, optimizer, dtype):
        x = start(dtype)
        y, state = optimizer.update(x, grads(0, x), optimizer.init(x), 0.1)
        assert y.spec == x.spec
        assert [leaf.dtype for leaf in y.leaves] == [dtype] * 2
        assert all(isinstance(t, torch.Tensor) for block in state.values() for t in block.values())

    def test_state_can_be_saved_and_resumed(self, optimizer):
        x, state = start(), {}
        for k in range(4):
            x, state = optimizer.update(x, grads(k, x), state, 0.1)
        saved = {path: {n: t.clone() for n, t in block.items()} for path, block in state.items()}
        a, _ = optimizer.update(x, grads(4, x), state, 0.1)
        b, _ = optimizer.update(x, grads(4, x), saved, 0.1)
        assert torch.equal(a.ravel(), b.ravel())

    def test_no_gradient_freezes_the_block_and_drops_its_state(self, optimizer):
        x, state = start(), {}
        for k in range(2):
            x, state = optimizer.update(x, grads(k, x), state, 0.1)
        w, b = x.paths()
        y, new = optimizer.update(x, [None, grads(2, x)[1]], state, 0.1)
        assert torch.equal(y.leaves[0], x.leaves[0])
        assert not torch.equal(y.leaves[1], x.leaves[1])
        assert w not in new
        assert b in new
        # It thaws as new: the same as without a past.
        thawed, _ = optimizer.update(y, grads(3, x), new, 0.1)
        fresh, _ = optimizer.update(y, grads(3, x), {path: block for path, block in new.items() if path != w}, 0.1)
        assert torch.equal(thawed.ravel(), fresh.ravel())

    def test_all_blocks_frozen(self, optimizer):
        x = start()
        y, _ = optimizer.update(x, [None, None], optimizer.init(x), 0.1)
        assert torch.equal(y.ravel(), x.ravel())


# -- kernels ----------------------------------------------------------------------------------------------------------------
KERNELS = [SGD(), SGD(momentum=0.9, decay=0.1), AdamW(decay=0.1, betas=(0.8, 0.95))]
LAYOUTS = {
    "transposed": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "gaps": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "part": lambda t: torch.cat([t, t])[len(t) :],
}


def twin(optimizer: Optimizer, x: Vec) -> torch.optim.Optimizer:
    """torch's own, on copies; SGD's decay is that of the loop without momentum alone."""
    params = [leaf.clone(memory_format=torch.contiguous_format).requires_grad_() for leaf in x.leaves]
    if isinstance(optimizer, SGD):
        return torch.optim.SGD(params, lr=1.0, momentum=optimizer.momentum)
    return torch.optim.AdamW(params, lr=1.0, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.decay)


def compare(optimizer: Optimizer, x: Vec, rtol: float, change=lambda k, d: d, layout=lambda t: t, steps: int = 12) -> None:
    """Step by step against torch's, in place and by copies, with gradients in other layouts."""
    theirs, y = twin(optimizer, x), x.clone()
    state, own = optimizer.init(x), optimizer.init(y)
    params = theirs.param_groups[0]["params"]
    for k in range(steps):
        d = change(k, grads(k, x))
        for p, g in zip(params, d):
            p.grad = None if g is None else g.clone(memory_format=torch.contiguous_format)
            if g is None:
                theirs.state.pop(p, None)  # what rests is new when it comes back
            elif isinstance(optimizer, SGD) and optimizer.decay:
                p.data.mul_(1 - LRS[k] * optimizer.decay)
        theirs.param_groups[0]["lr"] = LRS[k]
        theirs.step()
        d = [None if g is None else layout(g) for g in d]
        x, state = optimizer.update(x, d, state, LRS[k])
        own = optimizer.update_(y, d, own, LRS[k])
        for a, b, p in zip(x.leaves, y.leaves, params):
            torch.testing.assert_close(a, p.detach(), rtol=rtol, atol=rtol)
            assert torch.equal(a, b)
        assert all(torch.equal(t, own[path][name]) for path, block in state.items() for name, t in block.items())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", KERNELS, ids=repr)
class TestKernels:
    @pytest.fixture(autouse=True)
    def _kernels(self, fused, monkeypatch):
        if not fused:
            monkeypatch.setattr(optimizers, "FUSED", ())

    @pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 5e-2)])
    def test_every_step_is_torchs(self, optimizer, dtype, rtol):
        compare(optimizer, start(dtype), rtol)

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    def test_gradients_of_any_layout(self, optimizer, layout):
        compare(optimizer, start(), 1e-12, layout=layout)

    def test_expanded_gradients(self, optimizer):
        compare(optimizer, start(), 1e-12, change=lambda k, d: [g.reshape(-1)[0].expand(g.shape) for g in d])

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    def test_values_of_any_layout(self, optimizer, layout):
        compare(optimizer, start().map(layout), 1e-12)

    def test_blocks_that_come_and_go_count_their_own_steps(self, optimizer):
        compare(optimizer, start(), 1e-12, change=lambda k, d: [d[0] if k % 3 else None, d[1] if k != 5 else None])

    def test_leaves_of_two_dtypes_empty_and_without_dimension(self, optimizer):
        leaves = [torch.ones(3), torch.ones(2, dtype=F64), torch.ones((), dtype=F64), torch.ones(0, 2), torch.ones(5) * 2]
        compare(optimizer, Vec.of(leaves), 2e-5)


def test_a_state_of_another_shape_is_an_error():
    """The fused kernels would read beyond it."""
    for optimizer in KERNELS[1:]:
        state = optimizer.update(start(), grads(0, start()), {}, 0.1)[1]
        state[start().paths()[0]]["first"] = torch.zeros(2, dtype=F64)
        with pytest.raises(RuntimeError, match=r"size|shape"):
            optimizer.update(start(), grads(1, start()), state, 0.1)


def test_the_state_of_adamw_is_two_moments_and_a_count():
    """As checkpoints have it."""
    x = start(torch.float32)
    _, state = AdamW().update(x, grads(0, x), {}, 0.1)
    for path, leaf in zip(x.paths(), x.leaves):
        kinds = {name: (t.shape, t.dtype) for name, t in state[path].items()}
        moment = (leaf.shape, torch.float32)
        assert kinds == {"first": moment, "second": moment, "count": (torch.Size(), F64)}


# -- ScalarAdam -------------------------------------------------------------------------------------------------------------
def flat_steps(optimizer: Optimizer, x: torch.Tensor, ds: list[torch.Tensor], lr: float = 0.1) -> list[torch.Tensor]:
    v, state, out = Vec.of(x), {}, []
    for d in ds:
        v, state = optimizer.update(v, [d], state, lr)
        out.append(v.ravel())
    return out


def test_scalar_adam_of_one_entry_is_adam():
    rng = torch.Generator().manual_seed(1)
    ds = [torch.randn(1, generator=rng, dtype=F64) for _ in range(40)]
    p = torch.ones(1, dtype=F64).requires_grad_()
    adam = torch.optim.Adam([p], lr=0.1, eps=1e-12)
    for d, x in zip(ds, flat_steps(ScalarAdam(), torch.ones(1, dtype=F64), ds)):
        p.grad = d
        adam.step()
        torch.testing.assert_close(x, p.detach(), rtol=1e-13, atol=1e-14)


def test_scalar_adam_has_one_second_moment_for_the_whole_variable():
    x = start()
    b1, b2 = 0.9, 0.999
    first, second, y = x.zeros(), 0.0, x
    for k in range(20):
        d = Vec(grads(k, x), x.spec)
        first = b1 * first + (1 - b1) * d
        second = b2 * second + (1 - b2) * float(d @ d) / d.size
        y = y - 0.1 * (first / (1 - b1 ** (k + 1)) / ((second / (1 - b2 ** (k + 1))) ** 0.5 + 1e-12))
    agree(ours(ScalarAdam(), [0.1] * 20, x), y, ulps=200)


def test_scalar_adam_does_not_depend_on_the_cut_into_leaves():
    x = start()
    one, tree, s, t = Vec.of(x.ravel()), x, {}, {}
    for k in range(5):
        d = grads(k, x)
        tree, t = ScalarAdam().update(tree, d, t, 0.1)
        one, s = ScalarAdam().update(one, [torch.cat([g.reshape(-1) for g in d])], s, 0.1)
    agree(one, Vec.of(tree.ravel()))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_scalar_adam_steps_ignore_the_scale_of_the_gradient(scale, dtype):
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(6, generator=rng, dtype=dtype)
    ds = [torch.randn(6, generator=rng, dtype=dtype) for _ in range(20)]
    for a, b in zip(flat_steps(ScalarAdam(), x, ds), flat_steps(ScalarAdam(), x, [scale * d for d in ds])):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_scalar_adam_first_step_keeps_the_ratios():
    d = torch.tensor([1.0, -3.0, 0.01], dtype=F64)
    (x,) = flat_steps(ScalarAdam(), torch.zeros(3, dtype=F64), [d])
    torch.testing.assert_close(x, -0.1 * d / d.square().mean().sqrt(), rtol=1e-10, atol=0)


def test_scalar_adam_leaves_entries_without_gradient_bit_equal():
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(10, generator=rng)
    v, state = Vec.of(x), {}
    for k in range(12):
        d = torch.randn(10, generator=rng)
        here = torch.rand(10, generator=rng) < 0.4
        w, new = ScalarAdam().update(v, [d * here], state, 0.1)
        assert torch.equal(w.ravel()[~here], v.ravel()[~here])
        assert bool((w.ravel()[here] != v.ravel()[here]).all())
        if k:
            assert torch.equal(new[""]["first"][~here], state[""]["first"][~here])
        v, state = w, new


def test_scalar_adam_entry_seen_for_the_first_time_steps_as_if_new():
    one, both = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64)
    *_, before, after = flat_steps(ScalarAdam(), torch.zeros(2, dtype=F64), [one] * 5 + [both])
    torch.testing.assert_close(after - before, torch.full((2,), -0.1, dtype=F64), rtol=1e-9, atol=0)


def test_scalar_adam_learns_nothing_from_a_batch_that_touches_nothing():
    x = torch.ones(3, dtype=F64)
    d, none = torch.tensor([1.0, 2.0, 0.0], dtype=F64), torch.zeros(3, dtype=F64)
    a = flat_steps(ScalarAdam(), x, [none, none, d, none, -d])
    b = flat_steps(ScalarAdam(), x, [d, -d])
    assert torch.equal(a[1], x)
    assert torch.equal(a[3], a[2])
    torch.testing.assert_close(a[4], b[1], rtol=1e-15, atol=0)


# -- TailAverage ------------------------------------------------------------------------------------------------------------
def test_tail_average_is_the_mean_of_the_last_half_to_three_quarters():
    xs = [Vec.of({"a": v}) for v in torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=F64)]
    average = TailAverage.of(xs[0])
    assert torch.equal(average.mean.ravel(), xs[0].ravel())
    for n, x in enumerate(xs, 1):
        average = average.add(x)
        kept = n - average.old_start
        close = torch.stack([y.ravel() for y in xs[n - kept : n]]).mean(0)
        torch.testing.assert_close(average.mean.ravel(), close, rtol=1e-12, atol=1e-13)
        if n >= 4:
            assert n / 2 <= kept <= 3 * n / 4
            assert kept == n / 2 or n & (n - 1)


def test_tail_average_of_a_constant_is_the_constant():
    x = Vec.of(torch.full((4,), 0.1))
    average = TailAverage.of(x)
    for _ in range(50):
        average = average.add(x)
    assert torch.equal(average.mean.ravel(), x.ravel())


def test_docstring_examples():
    assert doctest.testmod(optimizers).failed == 0
