"""The tiny decoder, the sources of tokens, and that weights find the sources that match."""

from dataclasses import replace

import pytest
import torch

from bilevel import LISA, FullBatch, ScaleBiO, softmax, solve
from constrained.core.errors import OptionError
from constrained.core.problem import Point
from problems import reweighting_lm, reweighting_text
from problems.reweighting.tiny_decoder import TinyDecoder, row_losses
from problems.reweighting.token_sources import byte_texts, noisy_chains


def learned(instance, max_steps=None, **options):
    one = instance.recommended[ScaleBiO]
    return solve(instance.problem, replace(one.solver, **options), max_steps=max_steps or one.max_steps)


# -- the decoder ------------------------------------------------------------------------------------------------------------
def test_the_decoder_is_causal_and_made_by_its_seed():
    before = torch.get_rng_state()
    net, same, other = (TinyDecoder(11, 8, 2, 2, 6, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 5, 6]])
    with torch.no_grad():
        logits = net(tokens)
        assert logits.shape == (2, 6, 11)
        assert torch.equal(logits[0, :3], logits[1, :3])
        assert not torch.allclose(logits[0, 4], logits[1, 4])
        assert torch.equal(same(tokens), logits)
        torch.testing.assert_close(TinyDecoder(11, 8, 2, 2, 6, seed=3, twice=True)(tokens), logits)
        assert not torch.equal(other(tokens), logits)


def test_the_head_is_tied_or_its_own():
    tied, own = TinyDecoder(11, 8, 2, 3, 6), TinyDecoder(11, 8, 2, 3, 6, tied=False)
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 8
    assert len(tied.h) == 3
    for wrong in ({"heads": 3}, {"layers": 0}, {"vocab": 1.5}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            TinyDecoder(**{"vocab": 11, "width": 8, "heads": 2, "layers": 1, "context": 6, **wrong})


def test_losses_of_rows_are_means_over_their_tokens():
    net = TinyDecoder(11, 8, 2, 2, 6).double()
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    logits = net(tokens)[:, :-1].log_softmax(-1)
    wanted = torch.stack([-torch.stack([logits[i, t, tokens[i, t + 1]] for t in range(5)]).mean() for i in range(4)])
    torch.testing.assert_close(row_losses(net, tokens), wanted, rtol=1e-12, atol=0)
    half = row_losses(net.float(), tokens, torch.bfloat16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), wanted, rtol=0, atol=0.02)
    assert not torch.equal(half, row_losses(net, tokens))


# -- the sources ------------------------------------------------------------------------------------------------------------
def test_walks_are_as_noisy_as_they_say():
    data = noisy_chains(0, (0.0, 0.5, 1.0), rows=2000)
    assert data.names == ("0 noise 0", "1 noise 0.5", "2 noise 1")
    assert data.matching == ("0 noise 0",)
    assert (data.vocab, data.length) == (64, 32)
    pairs = data.test[:, :-1] * 64 + data.test[:, 1:]
    seen = torch.bincount(pairs.ravel(), minlength=64 * 64) > 0
    share = {name: float(seen[rows[:, :-1] * 64 + rows[:, 1:]].double().mean()) for name, rows in data.sources.items()}
    assert share["0 noise 0"] >= 0.95
    assert share["2 noise 1"] <= share["1 noise 0.5"] <= share["0 noise 0"] - 0.3
    tokens = torch.bincount(data.sources["2 noise 1"].ravel(), minlength=64).double() / 64_000
    assert float((tokens - 1 / 64).abs().max()) <= 0.003
    again, other = noisy_chains(0, rows=2000), noisy_chains(1, rows=2000)
    assert torch.equal(again.test, data.test)
    assert torch.equal(again.sources["1 noise 0.5"], data.sources["1 noise 0.5"])
    assert not torch.equal(other.test, data.test)


def test_texts_are_cut_into_parts_without_overlap():
    data = byte_texts(0)
    assert {"numpy", "python", "scipy", "shuffled", "torch"} <= set(data.names)
    assert {rows.shape[1] for rows in (*data.sources.values(), data.validation, data.test)} == {64}
    assert max(int(rows.max()) for rows in data.sources.values()) < data.vocab == 128
    python = data.sources["python"]
    counts = [torch.bincount(rows.ravel(), minlength=128) for rows in (python, data.sources["shuffled"])]
    assert torch.equal(*counts)
    whole = len(python) + len(data.validation) + len(data.test)
    assert len(data.test) == pytest.approx(whole / 10, abs=64)
    held = {tuple(row) for row in data.test.tolist()}
    assert sum(tuple(row) in held for row in python.tolist()) <= 0.02 * len(held)  # the topics themselves repeat a few lines
    assert "rfft" in bytes(data.sources["numpy"].ravel().tolist()).decode()


# -- the problems -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("make", "smaller"), [(reweighting_lm, {"width": 16}), (reweighting_text, {})])
def test_derivatives_agree_with_finite_differences(make, smaller):
    """On one batch of each level, away from the start, where all sources have the same loss and derivatives in x are rounding."""
    problem = make(live=False, dtype=torch.float64, **smaller).problem
    upper, lower = problem.upper_data.draw(0, 0, 0), problem.lower_data.draw(0, 1, 0)
    generator = torch.Generator().manual_seed(0)
    y = {name: p.detach() + 0.2 * torch.randn(p.shape, generator=generator) for name, p in problem.y.named_parameters()}
    report = replace(problem, upper_data=FullBatch(upper), lower_data=FullBatch(*lower)).check(Point(problem.x, y))
    assert report.ok, str(report)
    assert len(report.findings) >= 6


@pytest.mark.parametrize("make", [reweighting_lm, reweighting_text])
def test_instances_say_what_they_are(make):
    instance = make()
    assert "2406.19976" in instance.source
    assert isinstance(instance.recommended[ScaleBiO].solver, ScaleBiO)
    for wrong in ({"live": 1}, {"precision": torch.int8}, {"batch": 0}, {"seed": -1}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            make(**wrong)
    with pytest.raises(OptionError, match="rates"):
        reweighting_lm(rates=(0.0, 1.5))


@pytest.fixture(scope="module")
def small():
    return learned(reweighting_lm(width=16), 50)


def test_the_clean_source_gains_weight(small):
    p = softmax(small.x)
    assert float(p[0]) >= 0.65  # 0.71 from 1/3; float32 moves it by 1e-5 from one processor to the next, bf16 by 1e-3
    assert float(p[1:].max()) <= 0.2


def test_live_and_functional_runs_are_one(small):
    same = learned(reweighting_lm(width=16, live=False), 50)
    torch.testing.assert_close(same.x, small.x, rtol=0, atol=1e-4)
    for name, leaf in small.y.items():
        torch.testing.assert_close(same.y[name], leaf, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [({}, {"blocks": LISA(layers=1, every=5)}), ({"precision": torch.bfloat16}, {})],
    ids=["LISA", "bf16"],
)
def test_layers_and_half_precision_go_the_same_way(small, arguments, options):
    run = learned(reweighting_lm(width=16, **arguments), 50, **options)
    p = softmax(run.x)
    assert float(p[0]) >= 0.65
    assert float((p - softmax(small.x)).abs().max()) <= 0.1
    assert run.x.dtype == torch.float32


def test_the_study_trains_on_the_batches_of_the_run():
    """With p fixed at the learned weights of a run whose weights never move, plain training is the run's u."""
    instance = reweighting_lm(width=16)
    fixed = learned(instance, 5, outer=replace(instance.recommended[ScaleBiO].solver.outer, lr=1e-12))
    net = instance.study.task.trained(torch.full((3,), 1 / 3), 5, seed=0)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), fixed.y[name], rtol=0, atol=1e-5)
    rows = instance.study.rows(fixed)
    assert rows[0].clean == pytest.approx(1 / 3)
    assert rows[0].cross_entropy == pytest.approx(rows[3].cross_entropy, abs=1e-4)
    assert softmax(fixed.x).tolist() == pytest.approx(rows[0].weights)


# -- the acceptance rows ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def uniform() -> float:
    task = reweighting_lm().study.task
    return task.cross_entropy(task.trained(torch.full((3,), 1 / 3), 300, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "options"),
    [({}, {}), ({"live": False}, {}), ({}, {"blocks": LISA(layers=1, every=20)}), ({"precision": torch.bfloat16}, {})],
    ids=["full", "functional", "LISA", "bf16"],
)
def test_the_clean_source_gets_the_weight(uniform, arguments, options):
    """S5."""
    instance = reweighting_lm(**arguments)
    run = learned(instance, **options)
    assert float(softmax(run.x)[0]) >= 0.95
    task = instance.study.task
    assert task.cross_entropy(task.filled(run.y)) <= uniform - 0.2


@pytest.mark.slow
def test_the_matching_text_gets_the_weight():
    """S10."""
    instance = reweighting_text()
    p = dict(zip(instance.study.names, softmax(learned(instance).x).tolist()))
    assert max(p, key=lambda name: p[name]) == "python"
    assert p["python"] >= 0.5
    assert p["shuffled"] <= 0.05
