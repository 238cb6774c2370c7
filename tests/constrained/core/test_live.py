"""Live variables: the same iterates as functional ones, nothing else of the module touched, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from bilevel import (
    F2SA,
    LISA,
    SGD,
    AdamW,
    BilevelProblem,
    BORep,
    Box,
    Checkpoint,
    FullBatch,
    KwonDoubleLoop,
    Live,
    MiniBatches,
    Mixture,
    Point,
    ScaleBiO,
    SourceBatches,
    Status,
    TorchOptimizer,
    hypergradient,
    iterate,
    multistart,
    per_source,
    recommend,
    retrain,
    solve,
)
from constrained.core.errors import NonFiniteStart, ProblemError, Unsuitable
from constrained.core.live import LiveVec
from constrained.core.vec import Vec

SOLVERS = (
    ScaleBiO(),
    ScaleBiO(blocks=LISA(layers=1, every=3), accumulate=2, clip=0.1),
    ScaleBiO(inner=SGD(lr=0.1, momentum=0.5)),
    ScaleBiO(inner=TorchOptimizer(torch.optim.Adam, lr=0.01)),
    F2SA(gamma=0.1),
    KwonDoubleLoop(gamma=0.05, alpha=0.01, inner=2),
)


class Net(nn.Module):
    """Two numbered layers and a head; dropout where it is asked for."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.h = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.h:
            x = torch.tanh(layer(x))
        return self.head(self.drop(x))[:, 0]


def rows(n: int, seed: int, noise: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return x, torch.randn(n, generator=generator) if noise else torch.sin(x.sum(1))


def problem(live: bool, net: nn.Module | None = None, **more) -> BilevelProblem:
    if net is None:
        torch.manual_seed(0)
        net = Net()

    def losses(net: nn.Module, batch: tuple) -> Tensor:
        (x, wanted), source = batch
        return per_source((net(x) - wanted) ** 2, source, 2)

    def upper(x: Tensor, net: nn.Module, batch: tuple) -> Tensor:
        return ((net(batch[0]) - batch[1]) ** 2).mean()

    data = {"clean": rows(32, 1), "noise": rows(32, 2, noise=True)}
    batches = {"upper_data": MiniBatches(rows(32, 3), 8), "lower_data": SourceBatches(data, 4)}
    options = {"upper": upper, "lower": Mixture(losses), "x": torch.zeros(2), "y": Live(net) if live else net, **batches, **more}
    return BilevelProblem(**options)  # pyright: ignore


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_live_and_functional_runs_agree_to_the_bit(solver):
    one, other = (solve(problem(live), solver, max_steps=8, seed=2) for live in (False, True))
    assert one.status is other.status is Status.MAX_STEPS
    assert torch.equal(one.x, other.x)
    assert all(torch.equal(one.y[name], other.y[name]) for name in one.y)
    assert one.calls.gradients == other.calls.gradients


def test_dropout_masks_are_those_of_functional_runs():
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(Net(dropout=0.3).train())
    one, other = (solve(problem(live, net), ScaleBiO(), max_steps=5) for live, net in zip((False, True), nets))
    assert torch.equal(one.x, other.x)


def test_the_module_holds_the_answer_and_no_gradients():
    net = Net()
    before = copy.deepcopy(net.state_dict())
    result = solve(problem(True, net), ScaleBiO(blocks=LISA(layers=1)), max_steps=4)
    assert result.module() is net
    assert all(torch.equal(net.state_dict()[name], value) for name, value in result.y.items())
    assert any(not torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert isinstance(result.state.u, LiveVec)
    assert result.state.w.module is not net
    assert set(result.residuals()) == {"lower_estimate"}
    assert result.fun > 0


def test_a_start_is_copied_into_the_module():
    start = {name: torch.full_like(p, 0.1) for name, p in Net().named_parameters()}
    for event in iterate(problem(True), ScaleBiO(), start=Point(torch.ones(2), start), max_steps=0):
        assert all(bool((leaf == 0.1).all()) for leaf in (*event.state.u.leaves, *event.state.w.leaves))


def test_frozen_parameters_are_shared_by_the_copies():
    net = Net()
    for p in net.h.parameters():
        p.requires_grad_(False)
    result = solve(problem(True, net), ScaleBiO(), max_steps=3)
    twin = result.state.w.module
    assert twin.h[0].weight is net.h[0].weight
    assert twin.head.weight is not net.head.weight
    assert set(result.y) == {"head.weight", "head.bias"}


def test_tied_parameters_stay_tied():
    net = Net()
    net.h[1].weight = net.h[0].weight
    result = solve(problem(True, net), ScaleBiO(), max_steps=3)
    assert result.state.w.module.h[1].weight is result.state.w.module.h[0].weight
    assert "h.1.weight" not in result.y


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_resumed_runs_equal_uninterrupted_ones(solver, tmp_path):
    whole = solve(problem(True), solver, max_steps=9, seed=1)
    solve(problem(True), solver, max_steps=4, seed=1, callbacks=[Checkpoint(tmp_path / "run.pt")])
    resumed = solve(problem(True), solver, max_steps=9, seed=1, resume=tmp_path / "run.pt")
    assert torch.equal(resumed.x, whole.x)
    assert all(torch.equal(resumed.y[name], whole.y[name]) for name in whole.y)
    assert resumed.calls.gradients == whole.calls.gradients


def test_a_gradient_that_is_nan_is_never_stepped_along():
    net = Net()
    calls = [0]

    def losses(net: nn.Module, batch: tuple) -> Tensor:
        calls[0] += 1
        (x, wanted), source = batch
        return per_source((net(x) - wanted) ** 2, source, 2) * (float("nan") if calls[0] > 12 else 1.0)

    result = solve(problem(True, net, lower=Mixture(losses)), ScaleBiO(), max_steps=50)
    assert result.status is Status.NONFINITE
    assert 0 < result.steps < 50
    assert all(bool(p.isfinite().all()) for p in (*net.parameters(), *result.state.w.module.parameters()))
    assert bool(result.x.isfinite().all())


def test_what_is_refused():
    for bad in (3, torch.zeros(2), {"a": torch.zeros(1)}):
        with pytest.raises(ProblemError, match=r"module: expected an nn\.Module, got"):
            Live(bad)  # pyright: ignore
    with pytest.raises(ProblemError, match="trainable"):
        Live(nn.ReLU())
    with pytest.raises(ProblemError, match="wrap: expected a function"):
        Live(Net(), wrap="fsdp")  # pyright: ignore
    with pytest.raises(ProblemError, match="BatchNorm"):
        problem(True, nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ProblemError, match="only y can be live"):
        problem(False, x=Live(Net()))
    with pytest.raises(ProblemError, match="Y: expected Everywhere"):
        problem(True, Y=Box(-1, 1))
    net = Net()
    with torch.no_grad():
        net.head.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteStart):
        solve(problem(True, net), ScaleBiO(), max_steps=1)


def test_what_needs_more_than_first_derivatives_in_place_is_refused_by_name():
    live = problem(True)
    with pytest.raises(Unsuitable, match=r"BORep does not handle a live module.*ScaleBiO does"):
        solve(live, BORep(), max_steps=1)
    whole = problem(
        True, upper_data=FullBatch(*rows(32, 3)), lower_data=SourceBatches({"a": rows(32, 1), "b": rows(32, 2)}, 4).full()
    )
    for call in (lambda: hypergradient(whole, whole.x), whole.check, whole.diagnose, lambda: whole.value(whole.x)):
        with pytest.raises(Unsuitable, match="live module"):
            call()
    result = solve(live, ScaleBiO(), max_steps=1)
    with pytest.raises(Unsuitable, match="live module"):
        retrain(result)
    oracle = live.oracle()
    with pytest.raises(Unsuitable, match="no second derivatives in a live module"):
        oracle.g.at(oracle.variables["x"], oracle.variables["y"], oracle.g.draw(0))


def test_the_default_for_live_variables():
    assert recommend(problem(True)).solver == ScaleBiO()
    plain = problem(True, lower=lambda x, net, batch: (x.sum() * net(batch[0][0])).mean())
    assert isinstance(recommend(plain).solver, F2SA)


def test_vector_operations_leave_the_module_alone_unless_in_place():
    vec = Live(Net()).vec()
    before = [leaf.clone() for leaf in vec.leaves]
    assert type(vec + vec) is type(2 * vec) is type(vec.zeros()) is type(vec.plain()) is Vec
    assert all(torch.equal(a, b) for a, b in zip(before, vec.leaves))
    twin = vec.clone()
    assert isinstance(twin, LiveVec)
    twin.add_(vec.map(torch.ones_like))
    assert all(torch.equal(a, b) for a, b in zip(before, vec.leaves))
    assert torch.equal(twin.module.head.bias, before[-1] + 1)
    assert vec.tree() is vec.module


def test_in_place_steps_equal_steps_on_copies():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    for optimizer in (SGD(lr=0.1, momentum=0.9, decay=0.1), AdamW(decay=0.01), TorchOptimizer(torch.optim.RMSprop, lr=0.1)):
        kept, moved = Vec.of(tensors), Vec.of([t.clone() for t in tensors])
        one, other = optimizer.init(kept), optimizer.init(moved)
        for k in range(4):
            grads = [torch.cos(leaf + k) for leaf in tensors]
            given = [grads[0], None if k == 2 else grads[1]]
            kept, one = optimizer.update(kept, given, one, 0.1)
            other = optimizer.update_(moved, given, other, 0.1)
            assert all(torch.equal(a, b) for a, b in zip(kept.leaves, moved.leaves))
            assert one.keys() == other.keys()
        assert torch.equal(tensors[0], Vec.of(tensors).leaves[0])


def test_a_result_can_be_pickled_without_its_module():
    result = solve(problem(True), ScaleBiO(), max_steps=2)
    kept = pickle.loads(pickle.dumps(result))
    assert torch.equal(kept.x, result.x)
    assert type(kept.state.u) is Vec
    assert all(torch.equal(a, b) for a, b in zip(kept.state.w.leaves, result.state.w.leaves))


def test_several_starts_of_one_module_are_refused():
    with pytest.raises(Unsuitable, match="multistart: does not handle a live module"):
        multistart(problem(True), ScaleBiO(), 3, max_steps=1)


# -- what a review found ------------------------------------------------------------------------------------------------------
def test_gradients_that_the_module_holds_are_no_part_of_a_step():
    """Of the user's own training before, and of a callback's `backward()` in between."""
    net = Net()
    for p in net.parameters():
        p.grad = torch.full_like(p, 100.0)
    torch.manual_seed(0)
    net.load_state_dict(Net().state_dict())

    def meddle(event) -> None:
        with torch.enable_grad():
            event.module()(torch.ones(3, 4)).sum().backward()

    torch.manual_seed(0)
    plain = solve(problem(True), ScaleBiO(inner=SGD(lr=0.01)), max_steps=5)
    found = solve(problem(True, net), ScaleBiO(inner=SGD(lr=0.01)), max_steps=5, callbacks=[meddle])
    assert all(torch.equal(found.y[name], plain.y[name]) for name in plain.y)


@pytest.mark.parametrize("last", [False, True])
def test_a_value_that_is_nan_with_a_finite_gradient_ends_the_run(last):
    calls = [0]

    def losses(net: nn.Module, batch: tuple) -> Tensor:
        calls[0] += 1
        (x, wanted), source = batch
        nothing = torch.tensor(float("nan") if calls[0] > 12 else 0.0)
        return per_source((net(x) - wanted) ** 2, source, 2) + nothing

    result = solve(problem(True, lower=Mixture(losses)), ScaleBiO(), max_steps=50)
    steps = result.steps + 1
    calls[0] = 0
    result = solve(problem(True, lower=Mixture(losses)), ScaleBiO(), max_steps=steps if last else 50)
    assert result.status is Status.NONFINITE
    assert bool(result.x.isfinite().all())


def test_questions_to_an_older_result_move_nothing():
    what = problem(True)
    old = solve(what, ScaleBiO(), max_steps=2)
    kept = pickle.loads(pickle.dumps(old))
    new = solve(what, ScaleBiO(), max_steps=3)
    before = {name: value.clone() for name, value in new.y.items()}
    once = kept.on(what)
    assert once.fun != new.fun
    assert once.residuals() != new.residuals()
    assert once.module() is not what.y.module
    assert all(torch.equal(new.y[name], value) for name, value in before.items())
    assert all(torch.equal(once.module().state_dict()[name], value) for name, value in kept.y.items())


def test_parameters_frozen_after_live_are_told():
    net = Net()
    what = problem(True, net)
    net.h[0].weight.requires_grad_(False)
    with pytest.raises(ProblemError, match="frozen since"):
        solve(what, ScaleBiO(), max_steps=1)


def test_a_wrap_that_forgets_to_return_is_told():
    with pytest.raises(ProblemError, match="wrap: expected a function that returns the module, got NoneType"):
        Live(Net(), wrap=lambda net: None)  # pyright: ignore
