"""ScaleBiO against a loop of torch, its gradient against autodiff, its schedules and counters; Mixture, per_source, blocks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel import (
    LISA,
    SGD,
    AdamW,
    AllBlocks,
    BilevelProblem,
    Cosine,
    Cyclic,
    FullBatch,
    Implicit,
    MiniBatches,
    Mixture,
    Penalty,
    Power,
    ScaleBiO,
    Simplex,
    SourceBatches,
    Status,
    iterate,
    per_source,
    softmax,
    solve,
)
from bilevel.blocks import blocks_of
from constrained.core.errors import OptionError, ProblemError, Unsuitable
from constrained.core.vec import Vec

M, D = 5, 3


def problem(seed: int = 0, weights=softmax) -> BilevelProblem:
    """Least squares of M sources in D unknowns, f those of the first; float64, deterministic."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(M, 20, D, generator=generator, dtype=torch.float64)
    b = torch.randn(M, 20, generator=generator, dtype=torch.float64)

    def losses(y: Tensor) -> Tensor:
        return ((A @ y - b) ** 2).mean(1)

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return losses(y)[0] + 0.01 * (x**2).sum()

    x = torch.randn(M, generator=generator, dtype=torch.float64)
    y = torch.randn(D, generator=generator, dtype=torch.float64)
    return BilevelProblem(upper=upper, lower=Mixture(losses, weights), x=x, y=y)


# -- the step -----------------------------------------------------------------------------------------------------------------
def test_the_gradient_of_the_weights_is_the_closed_form_and_that_of_autodiff():
    """alpha p (d - p'd), d = l(w) - l(u), equals the gradient of alpha (g(x, w) - g(x, u)) in x to 1e-12."""
    what, alpha = problem(), 7.0
    oracle = what.oracle()
    assert oracle.sources is not None
    x = oracle.variables["x"]
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        u, w = (torch.randn(D, generator=generator, dtype=torch.float64) for _ in range(2))
        p, d = softmax(what.x), what.lower.losses(w) - what.lower.losses(u)  # pyright: ignore
        free = what.x.clone().requires_grad_()
        (auto,) = torch.autograd.grad(alpha * (what.lower(free, w) - what.lower(free, u)), free)
        closed = alpha * p * (d - p @ d)
        ours = (oracle.sources.pull(x, d) * alpha).tree()
        assert float((ours - auto).norm()) <= 1e-12 * float(auto.norm())
        assert float((ours - closed).norm()) <= 1e-12 * float(auto.norm())


@pytest.mark.parametrize("alpha", [2.0, Power(20.0, 0.5)])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_steps_are_those_of_a_loop_of_torch(alpha, clip):
    """u and w by SGD with momentum, x by SGD, all from the losses before the step, to 1e-12 after 20 steps."""
    what = problem()
    solver = ScaleBiO(alpha=alpha, inner=SGD(lr=0.05, momentum=0.5), outer=SGD(lr=0.2), clip=clip)
    result = solve(what, solver, max_steps=20)
    x, u, w = what.x.clone(), what.y.clone(), what.y.clone()
    momenta = [torch.zeros(D, dtype=torch.float64) for _ in range(2)]
    for k in range(20):
        a = alpha if isinstance(alpha, float) else alpha(k)
        l_u, l_w = what.lower.losses(u), what.lower.losses(w)  # pyright: ignore
        p = softmax(x)
        free = [t.clone().requires_grad_() for t in (x, u, w)]
        (g_u,) = torch.autograd.grad(p @ what.lower.losses(free[1]), free[1])  # pyright: ignore
        (g_w,) = torch.autograd.grad(p @ what.lower.losses(free[2]) + what.upper(x, free[2]) / a, free[2])  # pyright: ignore
        f_x = torch.autograd.grad(what.upper(free[0], w), free[0])[0]
        d = l_w - l_u
        moved = []
        for i, (y, g) in enumerate(((u, g_u), (w, g_w))):
            g = g if clip is None else g * min(1.0, clip / float(g.norm()))
            momenta[i] = 0.5 * momenta[i] + g
            moved.append(y - 0.05 * momenta[i])
        x, (u, w) = x - 0.2 * (f_x + a * p * (d - p @ d)), moved
    for ours, theirs in ((result.x, x), (result.y, u), (result.state.w.tree(), w)):
        assert float((ours - theirs).norm()) <= 1e-12 * float(theirs.norm())


def test_accumulated_batches_step_like_one_large_batch():
    """Four batches of 2 rows a source, accumulated, make the steps of one batch of 8 with the same rows."""
    rows = torch.randn(2, 8, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def losses(y: Tensor, batch: tuple) -> Tensor:
        return per_source(((y - batch[0]) ** 2).sum(1), batch[1], 2)

    start = {"x": torch.zeros(2, dtype=torch.float64), "y": torch.zeros(D, dtype=torch.float64)}
    results = []
    for size, accumulate in ((2, 4), (8, 1)):
        solver = ScaleBiO(inner=SGD(lr=0.1), outer=SGD(lr=0.5), accumulate=accumulate)
        data = SourceBatches({"a": rows[0], "b": rows[1]}, size)
        what = BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=Mixture(losses), lower_data=data, **start)
        results.append(solve(what, solver, max_steps=6))
    assert float((results[0].x - results[1].x).norm()) <= 1e-12
    assert results[0].calls.rows == results[1].calls.rows
    assert results[0].calls.gradients == 4 * results[1].calls.gradients


def test_it_finds_what_implicit_differentiation_finds():
    what = problem()
    exact = solve(what, Implicit())
    assert exact.success
    found = solve(what, ScaleBiO(alpha=100.0, inner=SGD(lr=0.2), outer=SGD(lr=0.5)), max_steps=3000)
    assert found.status is Status.MAX_STEPS
    assert float((found.x - exact.x).norm()) <= 0.02 * float(exact.x.norm())


def test_the_copies_part_like_one_over_alpha():
    gaps = []
    alphas = (3.0, 30.0)
    for alpha in alphas:
        state = solve(problem(), ScaleBiO(alpha=alpha, inner=SGD(lr=0.2), outer=SGD(lr=0.2)), max_steps=800).state
        gaps.append(float((state.w - state.u).norm()))
    slope = np.polyfit(np.log(alphas), np.log(gaps), 1)[0]
    assert abs(slope + 1) <= 0.1


def test_weights_on_a_simplex_without_softmax():
    """weights(x) = x on the simplex: the projection keeps them there, and every other solver takes the same mixture."""
    what = problem(weights=lambda x: x)
    flat = torch.full((M,), 1 / M, dtype=torch.float64)
    what = BilevelProblem(upper=what.upper, lower=what.lower, x=flat, y=what.y, X=Simplex())
    found = solve(what, ScaleBiO(alpha=30.0, inner=SGD(lr=0.2), outer=SGD(lr=0.05)), max_steps=1500)
    other = solve(what, Penalty())
    assert abs(float(found.x.sum()) - 1) <= 1e-12
    assert bool((found.x >= 0).all())
    assert float((found.x - other.x).norm()) <= 0.05


# -- blocks -------------------------------------------------------------------------------------------------------------------
def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)]).double()


def layered(**more) -> BilevelProblem:
    rows = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = FullBatch(rows, torch.arange(12) % 2)

    def losses(model: torch.nn.Module, batch: tuple) -> Tensor:
        return per_source(((model(batch[0]) - 1) ** 2).sum(1), batch[1], 2)

    options = {"upper": lambda x, model: (model(rows) ** 2).mean(), "x": torch.zeros(2, dtype=torch.float64), **more}
    return BilevelProblem(lower=Mixture(losses), y=net(), lower_data=data, **options)  # pyright: ignore


def test_lisa_moves_its_layers_alone_and_drops_the_state_of_the_others():
    schedule, every = LISA(layers=1, every=3), 3
    before, chosen = None, []
    for event in iterate(layered(), ScaleBiO(blocks=schedule), max_steps=12, seed=4):
        now = [leaf.clone() for leaf in (*event.state.u.leaves, *event.state.w.leaves)]
        if before is not None:
            active = schedule.active(event.state.u.paths(), 4, event.k - 1)
            chosen.append(tuple(active))
            moved = [not torch.equal(a, b) for a, b in zip(now, before)]
            assert moved == active * 2
            for kept in (event.state.inner_u, event.state.inner_w):
                assert list(kept) == [path for path, moves in zip(event.state.u.paths(), active) if moves]
                numel = sum(t.numel() for entry in kept.values() for t in entry.values())
                assert numel == 2 * 6 + 2  # first and second moment of one layer of 4 + 2 entries, two counts
        before = now
    assert all(len(set(chosen[i : i + every])) == 1 for i in range(0, 12, every))
    assert len(set(chosen)) > 1


def test_cyclic_blocks_take_turns_and_embeddings_may_rest():
    paths = ["wte", "h.0.w", "h.0.b", "h.1.w", "h.2.w", "head"]
    turns = [Cyclic(layers=2, every=2).active(paths, 0, k) for k in range(6)]
    assert turns[0] == turns[1] == [True, True, True, True, False, True]
    assert turns[2] == [True, True, True, False, True, True]
    assert LISA(layers=3, embeddings=False).active(paths, 0, 0) == [False, True, True, True, True, False]
    assert AllBlocks().active(paths, 0, 0) == [True] * 6


def test_lisa_is_uniform_and_a_function_of_seed_and_interval():
    paths = [f"h.{i}.w" for i in range(6)]
    schedule = LISA(layers=2, every=1)
    counts = sum(np.array(schedule.active(paths, 0, k), int) for k in range(3000))
    assert np.all(abs(counts / 3000 - 1 / 3) < 0.03)
    assert schedule.active(paths, 3, 7) == schedule.active(paths, 3, 7)
    assert [schedule.active(paths, 0, k) for k in range(9)] != [schedule.active(paths, 1, k) for k in range(9)]


def test_blocks_are_found_in_names():
    gpt = ["['transformer.wte.weight']", "['transformer.h.0.attn.c_attn.weight']", "['transformer.h.11.mlp.c_fc.bias']"]
    assert blocks_of(gpt) == [None, 0, 11]
    llama = ["model.embed_tokens.weight", "model.layers.0.mlp.experts.0.w", "model.layers.1.mlp.experts.5.w", "lm_head.weight"]
    assert blocks_of([*llama, "model.layers.2.w"]) == [None, 0, 1, None, 2]
    assert blocks_of(["enc.0.w", "enc.1.w", "dec.0.w", "dec.1.w", "dec.2.w"], "enc") == [0, 1, None, None, None]
    assert blocks_of(["w", "fc1.weight"]) == [None, None]
    with pytest.raises(OptionError, match="no numbered list called 'layers'"):
        blocks_of(gpt, "layers")
    with pytest.raises(OptionError, match=r"at least 9 numbered blocks in the lower variable, got 4"):
        solve(layered(), ScaleBiO(blocks=LISA(layers=9)), max_steps=1)


# -- mixtures -----------------------------------------------------------------------------------------------------------------
def test_what_is_no_mixture_is_refused():
    with pytest.raises(ProblemError, match="losses: expected a function"):
        Mixture(torch.zeros(2))  # pyright: ignore
    with pytest.raises(ProblemError, match="weights: expected a function"):
        Mixture(lambda y: y, "softmax")  # pyright: ignore
    for wrong in (lambda y: y.sum(), lambda y: [y.sum()], lambda y: torch.stack([y.sum()] * 3)):
        what = BilevelProblem(upper=lambda x, y: y.sum(), lower=Mixture(wrong), x=torch.zeros(2), y=torch.zeros(2))
        with pytest.raises(ProblemError, match="expected 2 losses"):
            solve(what, ScaleBiO(), max_steps=1)
    plain = BilevelProblem(
        upper=lambda x, y: y.sum(), lower=lambda x, y: (y**2).sum() + x.sum(), x=torch.zeros(2), y=torch.zeros(2)
    )
    with pytest.raises(Unsuitable, match="ScaleBiO needs a Mixture as its lower level"):
        solve(plain, ScaleBiO(), max_steps=1)


def test_sampling_plans_add_up():
    mixture = Mixture(lambda y: y)
    x = torch.tensor([3.0, 0.0, -2.0, 1.0])
    p = softmax(x.double())
    for n in (0, 1, 7, 1000):
        plan = mixture.sampling_plan(x, n)
        assert sum(plan) == n
        assert all(abs(count - n * float(share)) < 1 for count, share in zip(plan, p))
    flat = mixture.sampling_plan(x, 4000, temperature=1e6)
    assert max(flat) - min(flat) <= 1
    assert min(mixture.sampling_plan(x, 1000, floor=0.1)) >= 100
    for bad in ({"n": -1}, {"n": 2.5}, {"temperature": 0}, {"floor": 0.5}, {"floor": math.nan}):
        with pytest.raises(OptionError):
            mixture.sampling_plan(x, **{"n": 4, **bad})


def test_losses_per_source():
    values, source = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 2, 2])
    assert per_source(values, source, 3).tolist() == [1.5, 0.0, 6.5]
    shares = torch.tensor([0.5, 0.25, 0.25])
    assert per_source(values, source, 3, shares).tolist() == [1.5, 0.0, 13.0]
    generator = torch.Generator().manual_seed(0)  # the weighted form is unbiased though sources come and go
    pool, total = torch.arange(4.0), torch.zeros(2, dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 1])
    for _ in range(20_000):
        rows = torch.randint(4, (2,), generator=generator)
        total += per_source(pool[rows], owner[rows], 2, torch.tensor([0.75, 0.25])).double() / 20_000
    assert float((total - torch.tensor([1.0, 3.0])).abs().max()) < 0.05


def test_cosine():
    schedule = Cosine(2.0, steps=100, warmup=10)
    assert schedule(0) == pytest.approx(2 / 11)
    assert schedule(10) == 2.0
    assert schedule(55) == pytest.approx(1.0)
    assert schedule(100) == schedule(1000) == pytest.approx(0.002)


def test_the_monitor_names_the_sources():
    rows = {"good": torch.zeros(4, 1), "bad": torch.ones(4, 1)}
    mixture = Mixture(lambda y, batch: per_source(((y - batch[0]) ** 2).sum(1), batch[1], 2))
    what = BilevelProblem(
        upper=lambda x, y: (y**2).sum(), lower=mixture, x=torch.zeros(2), y=torch.ones(1), lower_data=SourceBatches(rows, 2)
    )
    *_, event = iterate(what, ScaleBiO(inner=AdamW(lr=0.05), outer=AdamW(lr=0.1)), max_steps=100)
    assert event.monitor["weight good"] > 0.8
    assert event.monitor["weight good"] + event.monitor["weight bad"] == pytest.approx(1)
    assert Vec.of(event.state.x).size == 2


def test_what_per_source_refuses():
    ones = torch.ones(4)
    for values, source in ((ones.sum(), torch.zeros(4).long()), (ones[:, None], torch.zeros(4).long()), (ones, torch.zeros(4))):
        with pytest.raises(ProblemError, match="per_source: expected one value and one integer source a row"):
            per_source(values, source, 2)
    for wrong in (-1, 2):
        with pytest.raises(ProblemError, match=r"per_source: source: expected numbers in 0\.\.1, got"):
            per_source(ones, torch.tensor([0, 1, 1, wrong]), 2)


@pytest.mark.parametrize(
    ("late", "told"),
    [
        (lambda l: torch.cat([l, l[:1]]), "expected 2 losses, one a weight, got 3"),
        (lambda l: l > 0, "one loss a source, got .*bool"),
        (lambda l: l.to(torch.complex64), "one loss a source, got .*complex64"),
        (lambda l: l.to("meta"), "one loss a source, got .*meta"),
    ],
)
def test_losses_that_change_their_kind_are_told(late, told):
    calls = [0]

    def losses(y: Tensor) -> Tensor:
        calls[0] += 1
        found = torch.stack([y.sum() ** 2] * 2)
        return found if calls[0] < 25 else late(found)

    what = BilevelProblem(upper=lambda x, y: y.sum(), lower=Mixture(losses), x=torch.zeros(2), y=torch.zeros(2))
    with pytest.raises(ProblemError, match=told):
        solve(what, ScaleBiO(), max_steps=20)


def test_losses_that_are_no_numbers_are_told():
    what = BilevelProblem(
        upper=lambda x, y: y.sum(), lower=Mixture(lambda y: torch.stack([y.sum() > 0] * 2)), x=torch.zeros(2), y=torch.zeros(2)
    )
    with pytest.raises(ProblemError, match=r"losses: expected floating-point numbers, got torch\.bool"):
        solve(what, ScaleBiO(), max_steps=2)


def test_softmax_of_what_is_no_vector():
    for bad, got in (({"a": torch.zeros(2)}, "dict"), (torch.zeros(2, 2), "shape")):
        with pytest.raises(ProblemError, match=f"softmax: x: expected logits as a 1-D tensor, got {got}"):
            softmax(bad)  # pyright: ignore


def test_w_starts_anew_at_doubling_steps():
    """At k = 3, 6, 12 w and its moments are u's, so that the step after has the difference of one step."""
    gaps = {}
    for event in iterate(problem(), ScaleBiO(inner=SGD(lr=0.05, momentum=0.5), sync=3), max_steps=14):
        gaps[event.k] = float((event.state.w - event.state.u).norm())
    plain = {}
    for event in iterate(problem(), ScaleBiO(inner=SGD(lr=0.05, momentum=0.5), sync=None), max_steps=14):
        plain[event.k] = float((event.state.w - event.state.u).norm())
    assert all(gaps[k] == plain[k] for k in range(4))
    assert [k for k in range(2, 15) if gaps[k] < gaps[k - 1]] == [4, 7, 13]


def test_gradients_that_are_one_number_for_all_entries_add_up():
    """The gradient of a sum is an expanded tensor, which cannot be written to: l = (sum y - 1, sum y + 2), accumulated twice."""
    rows = MiniBatches(torch.ones(8, 1), 2)
    linear = Mixture(lambda y, batch: torch.stack([y.sum() - batch.sum(), y.sum() + 2]))
    what = BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=linear, x=torch.zeros(2), y=torch.zeros(3), lower_data=rows)
    assert solve(what, ScaleBiO(accumulate=2), max_steps=2).status is Status.MAX_STEPS
