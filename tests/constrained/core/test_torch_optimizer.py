"""TorchOptimizer: the bits of torch.optim itself; refusals at construction; state that survives a checkpoint."""

import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch

import bilevel
from bilevel import BilevelProblem, MiniBatches, PenaltySGD, Power, TorchOptimizer, iterate, solve
from constrained.core import checkpoint
from constrained.core.errors import OptionError
from constrained.core.optimizers import Optimizer
from constrained.core.vec import Vec

F64 = torch.float64
STEPS = 25


def start(dtype: torch.dtype = F64) -> Vec:
    rng = torch.Generator().manual_seed(0)
    return Vec.of(
        {
            "w": torch.randn(3, 2, generator=rng, dtype=dtype),
            "b": [torch.randn(4, generator=rng, dtype=dtype), torch.randn((), generator=rng, dtype=dtype)],
        }
    )


def grads(k: int, like: Vec) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(100 + k)
    return [torch.randn(leaf.shape, generator=rng, dtype=leaf.dtype) * 10.0 ** (k % 3 - 1) for leaf in like.leaves]


def theirs(cls: type, x: Vec, lrs: list[float], **options: object) -> Vec:
    """The torch optimizer on leaves of its own, never interrupted."""
    params = [leaf.clone().requires_grad_() for leaf in x.leaves]
    optimizer = cls(params, lr=lrs[0], **options)
    for k, lr in enumerate(lrs):
        for p, d in zip(params, grads(k, x)):
            p.grad = d
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return x.like([p.detach() for p in params])


def ours(optimizer: Optimizer, x: Vec, lrs: list[float]) -> Vec:
    state = optimizer.init(x)
    for k, lr in enumerate(lrs):
        x, state = optimizer.update(x, grads(k, x), state, lr)
    return x


def same(a: Vec, b: Vec) -> bool:
    return all(torch.equal(p, q) and p.dtype == q.dtype for p, q in zip(a.leaves, b.leaves, strict=True))


# -- the bits of torch ------------------------------------------------------------------------------------------------------
CLASSES = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.1, "maximize": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"betas": [0.5, 0.9], "amsgrad": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"foreach": True}),
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.AdamW, {"weight_decay": 0.3, "eps": 1e-4}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1, "lr_decay": 0.01}),
    (torch.optim.NAdam, {"momentum_decay": 0.01}),
    (torch.optim.RAdam, {"weight_decay": 0.1}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.ASGD, {"lambd": 0.1, "t0": 10}),
    (torch.optim.Rprop, {}),
]
if hasattr(torch.optim, "Adafactor"):
    CLASSES.append((torch.optim.Adafactor, {}))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("cls", "options"), CLASSES, ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(v))
def test_bit_equal_to_torch(cls, options, dtype):
    x, lrs = start(dtype), [0.1 / (1 + k) for k in range(STEPS)]
    wanted = theirs(cls, x, lrs, **options)
    assert not same(wanted, x)
    assert same(ours(TorchOptimizer(cls, lr=Power(0.1, 1.0), **options), x, lrs), wanted)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch is older than Muon")
def test_muon_takes_matrices_and_refuses_the_rest():
    x, lrs = Vec.of([start().leaves[0], start().leaves[0] * 2]), [0.1] * STEPS
    assert same(ours(TorchOptimizer(torch.optim.Muon), x, lrs), theirs(torch.optim.Muon, x, lrs))
    with pytest.raises(OptionError, match=r"Muon.*1-dim torch\.float64.*2D"):
        TorchOptimizer(torch.optim.Muon).init(start())


@pytest.mark.parametrize(("cls", "options"), CLASSES, ids=lambda v: v.__name__ if isinstance(v, type) else "-".join(v))
def test_nothing_is_written_to(cls, options):
    optimizer, x, state = TorchOptimizer(cls, **options), start(), {}
    for k in range(4):
        d = grads(k, x)
        kept = [t.clone() for t in [*x.leaves, *d]]
        memory = {path: {n: t.clone() for n, t in block.items()} for path, block in state.items()}
        y, new = optimizer.update(x, d, state, 0.1)
        assert all(torch.equal(a, b) for a, b in zip([*x.leaves, *d], kept))
        assert all(torch.equal(t, memory[path][n]) for path, block in state.items() for n, t in block.items())
        assert not any(t.requires_grad or t.grad is not None for t in [*x.leaves, *y.leaves, *d])
        assert all(type(t) is torch.Tensor and not t.requires_grad for block in new.values() for t in block.values())
        x, state = y, new


def test_no_gradient_freezes_the_block_and_drops_its_state():
    """What thaws is as new, and the others do not notice."""
    optimizer, x, state = TorchOptimizer(torch.optim.Adam, lr=0.1), start(), {}
    for k in range(3):
        x, state = optimizer.update(x, grads(k, x), state, 0.1)
    _, b, c = x.paths()
    d = grads(3, x)
    y, new = optimizer.update(x, [None, d[1], d[2]], state, 0.1)
    whole, _ = optimizer.update(x, d, state, 0.1)
    assert torch.equal(y.leaves[0], x.leaves[0])
    assert torch.equal(y.leaves[1], whole.leaves[1])
    assert set(new) == {b, c}
    thawed, _ = optimizer.update(y, grads(4, x), new, 0.1)
    lonely, _ = TorchOptimizer(torch.optim.Adam, lr=0.1).update(Vec.of([y.leaves[0]]), [grads(4, x)[0]], {}, 0.1)
    assert torch.equal(thawed.leaves[0], lonely.leaves[0])
    frozen, none = optimizer.update(x, [None] * 3, state, 0.1)
    assert same(frozen, x)
    assert none == {}


class Counting(torch.optim.Optimizer):
    """Momentum whose state holds Python numbers, None, and a 0-dim integer tensor."""

    def __init__(self, params, lr=0.5, scale=1.0):
        super().__init__(params, {"lr": lr, "scale": scale})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s |= {"step": 0, "decay": 1.0, "warm": True, "count": torch.zeros((), dtype=torch.int64), "m": p * 0}
                assert type(s["step"]) is int
                assert type(s["decay"]) is float
                assert type(s["warm"]) is bool
                assert isinstance(s["count"], torch.Tensor)
                s["step"] += 1
                s["decay"] *= 0.9
                s["warm"] = s["step"] < 3
                s["count"] += 1
                s["spare"] = None
                s["m"].mul_(0.5 ** s["step"]).add_(p.grad)
                p.sub_(s["m"] * group["lr"] * s["decay"] * (2.0 if s["warm"] else 1.0))


def test_python_numbers_in_the_state():
    x, lrs = start(torch.float32), [0.1 / (1 + k) for k in range(STEPS)]
    optimizer = TorchOptimizer(Counting)
    assert same(ours(optimizer, x, lrs), theirs(Counting, x, lrs))
    _, state = optimizer.update(x, grads(0, x), {}, 0.1)
    (block, *_) = state.values()
    assert {name: (tuple(t.shape), t.dtype) for name, t in block.items() if name != "m"} == {
        "step:int": ((), torch.int64),
        "decay:float": ((), F64),
        "warm:bool": ((), torch.bool),
        "count": ((), torch.int64),
    }


# -- what it is -------------------------------------------------------------------------------------------------------------
def test_frozen_hashable_comparable_readable():
    optimizer = TorchOptimizer(torch.optim.Adam, lr=0.1, betas=[0.5, 0.9])
    assert isinstance(optimizer, Optimizer)
    assert repr(optimizer) == "TorchOptimizer(torch.optim.Adam, lr=0.1, betas=(0.5, 0.9))"
    for other in (optimizer, TorchOptimizer(torch.optim.SGD, lr=Power(0.1, 0.5), momentum=0.9)):
        assert eval(repr(other), {**vars(bilevel), "torch": torch}) == other
        assert hash(eval(repr(other), {**vars(bilevel), "torch": torch})) == hash(other)
        assert pickle.loads(pickle.dumps(other)) == other
    assert optimizer == TorchOptimizer(torch.optim.Adam, betas=(0.5, 0.9), lr=0.1)
    assert optimizer != TorchOptimizer(torch.optim.Adam, lr=0.1)
    assert optimizer != TorchOptimizer(torch.optim.AdamW, lr=0.1, betas=(0.5, 0.9))
    with pytest.raises(FrozenInstanceError):
        optimizer.lr = 1.0
    assert repr(TorchOptimizer(Counting)) == f"TorchOptimizer({__name__}.Counting, lr=0.5)"


def test_lr_is_that_of_the_class_a_number_or_a_schedule():
    assert TorchOptimizer(torch.optim.Adadelta).lr == 1.0
    assert TorchOptimizer(torch.optim.Adam).lr == 1e-3
    assert TorchOptimizer(torch.optim.Adam, lr=2).lr == 2.0
    assert TorchOptimizer(torch.optim.Adam, lr=Power(0.1, 0.5)).lr == Power(0.1, 0.5)


class Grouped(Counting):
    """Counts in its group."""

    def step(self, closure=None):
        group = self.param_groups[0]
        group["k"] = group.get("k", 0) + 1
        for p in group["params"]:
            p.data -= group["lr"] / group["k"] * p.grad


class Noisy(Counting):
    """Draws random numbers."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data -= self.param_groups[0]["lr"] * (p.grad + torch.randn_like(p))


class Late(Counting):
    """Looks ahead every fifth step, counted in an attribute."""

    def step(self, closure=None):
        self.k = getattr(self, "k", 0) + 1
        for p in self.param_groups[0]["params"]:
            p.data -= self.param_groups[0]["lr"] * (p.grad + (p.data if self.k % 5 == 0 else 0))


class Shared(Counting):
    """State under a name of its own."""

    def step(self, closure=None):
        self.state["all"] = {"m": torch.zeros(())}


class Listing(Counting):
    """State that is no tensor."""

    def step(self, closure=None):
        self.state[self.param_groups[0]["params"][0]]["history"] = [1.0]


class Rateless(torch.optim.Optimizer):
    """No learning rate."""

    def __init__(self, params):
        super().__init__(params, {})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TorchOptimizer(3), ["cls", "torch.optim.Adam", "int"]),
        (lambda: TorchOptimizer(torch.nn.Linear), ["cls", "Linear"]),
        (lambda: TorchOptimizer(torch.optim.SGD([torch.zeros(1)])), ["cls", "an object: SGD"]),
        (lambda: TorchOptimizer(torch.optim.Optimizer), ["lr", "None"]),
        (lambda: TorchOptimizer(torch.optim.LBFGS), ["torch.optim.LBFGS", "closure"]),
        (lambda: TorchOptimizer(torch.optim.SparseAdam), ["torch.optim.SparseAdam", "dense"]),
        (lambda: TorchOptimizer(torch.optim.Adam, momentum=0.9), ["Adam", "no option 'momentum'", "betas"]),
        (lambda: TorchOptimizer(torch.optim.Adam, beta=0.9), ["did you mean betas?"]),
        (lambda: TorchOptimizer(torch.optim.Adam, params=[]), ["no option 'params'"]),
        (lambda: TorchOptimizer(torch.optim.Adam, betas=(0.5, 1.5)), ["betas=(0.5, 1.5)", "1.5"]),
        (lambda: TorchOptimizer(torch.optim.Adam, betas={0.5: 1}), ["betas", "constant", "dict"]),
        (lambda: TorchOptimizer(torch.optim.SGD, nesterov=True), ["nesterov=True", "Nesterov"]),
        (lambda: TorchOptimizer(torch.optim.SGD, weight_decay=torch.tensor(0.1)), ["weight_decay", "constant", "Tensor"]),
        (lambda: TorchOptimizer(torch.optim.Adam, differentiable=True), ["differentiable=True", "in-place"]),
        (lambda: TorchOptimizer(torch.optim.Adam, lr=0.0), ["lr must be a number > 0 or a Schedule", "0.0"]),
        (lambda: TorchOptimizer(torch.optim.Adam, lr=True), ["lr must be", "True"]),
        (lambda: TorchOptimizer(torch.optim.Adam, lr="fast"), ["lr must be", "'fast'"]),
        (lambda: TorchOptimizer(torch.optim.Adam, lr=torch.tensor(0.1)), ["lr must be", "tensor"]),
        (lambda: TorchOptimizer(Rateless), ["lr must be", "None"]),
        (lambda: TorchOptimizer(Rateless, lr=0.1), ["no option 'lr'"]),
        (lambda: TorchOptimizer(Grouped), ["Grouped", "something else"]),
        (lambda: TorchOptimizer(Noisy), ["Noisy", "something else"]),
        (lambda: TorchOptimizer(Late), ["Late", "something else"]),
        (lambda: TorchOptimizer(Shared), ["Shared", "no parameter"]),
        (lambda: TorchOptimizer(Listing), ["Listing", "a list", "'history'"]),
    ],
)
def test_refused_when_made(make, words):
    before = torch.get_rng_state()
    with pytest.raises(OptionError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "TorchOptimizer" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_capturable_is_refused_for_variables_on_the_cpu_before_the_first_step():
    optimizer = TorchOptimizer(torch.optim.Adam, capturable=True)
    with pytest.raises(OptionError, match=r"capturable=True.*float64 on cpu"):
        optimizer.init(start())


def test_made_and_used_in_any_mode():
    x = start()
    wanted = ours(TorchOptimizer(torch.optim.Adam), x, [0.1] * 3)
    with torch.no_grad():
        assert same(ours(TorchOptimizer(torch.optim.Adam), x, [0.1] * 3), wanted)
    with torch.inference_mode():
        TorchOptimizer(torch.optim.Adam)


# -- in a run ---------------------------------------------------------------------------------------------------------------
def problem():
    rng = torch.Generator().manual_seed(1)
    data = torch.randn(20, 3, generator=rng, dtype=F64)
    return BilevelProblem(
        upper=lambda x, y, batch: ((batch @ y - 1) ** 2).mean() + (x["a"] ** 2).sum(),
        lower=lambda x, y, batch: ((batch @ (y - x["a"]) - x["b"]) ** 2).mean() + 0.1 * (y**2).sum(),
        x={"a": torch.ones(3, dtype=F64), "b": torch.zeros((), dtype=F64)},
        y=torch.zeros(3, dtype=F64),
        upper_data=MiniBatches(data, 4),
        lower_data=MiniBatches(data, 4),
    )


@pytest.mark.parametrize(
    "outer",
    [
        TorchOptimizer(torch.optim.Adam, lr=0.1),
        TorchOptimizer(torch.optim.SGD, lr=Power(0.1, 0.5), momentum=0.9),
        TorchOptimizer(Counting, lr=0.01),
    ],
    ids=repr,
)
def test_a_resumed_run_is_the_uninterrupted_one(outer, tmp_path):
    solver, path = PenaltySGD(outer=outer, warmup=3), tmp_path / "run.pt"
    for event in iterate(problem(), solver, max_steps=30, seed=2):
        if event.k == 12:
            event.save(path)
    whole = solve(problem(), solver, max_steps=30, seed=2)
    resumed = solve(problem(), solver, max_steps=30, seed=2, resume=path)
    assert resumed.steps == whole.steps == 30
    for name in ("a", "b"):
        assert torch.equal(resumed.x[name], whole.x[name])
    assert torch.equal(resumed.y, whole.y)
    for path, block in whole.state.outer.items():
        assert set(resumed.state.outer[path]) == set(block)
        assert all(torch.equal(resumed.state.outer[path][name], value) for name, value in block.items())


def test_the_state_survives_a_checkpoint(tmp_path):
    optimizer, x, state = TorchOptimizer(Counting), start(torch.float32), {}
    for k in range(3):
        x, state = optimizer.update(x, grads(k, x), state, 0.1)
    header = {"run": {}, "k": 3, "seconds": 0.0, "calls": {}, "callbacks": []}
    checkpoint.save(tmp_path / "state", header, {"outer": state}, {"x": x})
    saved, tensors = checkpoint.load(tmp_path / "state")
    back = checkpoint.restore(tmp_path / "state", saved, tensors, {"x": x})["outer"]
    assert [*back] == [*state]
    for path, block in state.items():
        assert [*back[path]] == [*block]
        assert all(torch.equal(back[path][n], t) and back[path][n].dtype == t.dtype for n, t in block.items())
    assert same(optimizer.update(x, grads(3, x), back, 0.1)[0], optimizer.update(x, grads(3, x), state, 0.1)[0])
