"""Reweighting of labelled sources: the data, the baselines, and that the weights find the clean sources."""

import numpy as np
import pytest
import torch

from bilevel import Penalty, PenaltySGD, ScaleBiO, softmax, solve
from constrained.core.data import FullBatch, MiniBatches
from constrained.core.errors import OptionError
from constrained.core.sources import SourceBatches
from problems import reweighting_logistic, reweighting_noise
from problems.__main__ import main
from problems.papers.scalebio import SGD, _learned
from problems.reweighting.labelled_sources import Labels, alone, entropies, labelled_sources
from problems.reweighting.problem import SIX, TEN
from problems.reweighting.study import correlation, most

CPU = torch.device("cpu")


def drawn(kinds=SIX, sizes=(300,) * 6, seed=0):
    return labelled_sources(kinds, sizes, seed, torch.float64, CPU)


# -- the data ---------------------------------------------------------------------------------------------------------------
def test_labels_are_wrong_as_often_as_they_say():
    """Judged by a model of 20,000 clean rows, whose own errors are those of its clean source."""
    kinds = (Labels(), Labels(0.5), Labels(1.0), Labels(flipped=True), Labels(0.5, flipped=True))
    data = drawn(kinds, (20_000,) * 5)
    assert data.wrong == (0.0, 0.25, 0.5, 1.0, 0.75)
    w = alone(data.sources["0 clean"])
    right = [float(((features @ w > 0) == labels.bool()).double().mean()) for features, labels in data.sources.values()]
    for share, wrong in zip(right, data.wrong):
        assert share == pytest.approx((1 - wrong) * right[0] + wrong * (1 - right[0]), abs=0.015)
    assert data.accuracy(w) == pytest.approx(right[0], abs=0.02)


def test_sources_are_the_documented_ones():
    assert [kind.wrong for kind in SIX] == [0, 0, 0.25, 0.25, 1, 1]
    assert [kind.random for kind in TEN] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])
    data = drawn(sizes=(3, 5, 7, 9, 11, 13))
    assert data.sizes == (3, 5, 7, 9, 11, 13)
    assert data.names == tuple(sorted(data.names)), "the order of SourceBatches"
    assert len(data.validation[1]) == 300
    assert len(data.test[1]) == 4000
    assert torch.bincount(data.joined[1]).tolist() == [3, 5, 7, 9, 11, 13]


def test_batches_have_rows_of_every_source():
    whole, few = reweighting_logistic(), reweighting_logistic(batch=10)
    assert isinstance(whole.problem.lower_data, FullBatch)
    assert isinstance(few.problem.lower_data, SourceBatches)
    assert isinstance(few.problem.upper_data, MiniBatches)
    assert few.problem.lower_data.sizes == (10,) * 6
    assert few.problem.upper_data.size == 60
    x, w = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.linspace(0, 1, 20, dtype=torch.float64)
    one, other = whole.problem, few.problem.full_batch()
    assert one.lower(x, w, one.lower_data.draw(0, 1, 0)).item() == other.lower(x, w, other.lower_data.draw(0, 1, 0)).item()
    report = other.check()
    assert report.ok, str(report)


@pytest.mark.parametrize(
    "wrong",
    [{"sizes": (300,) * 5}, {"sizes": 300}, {"sizes": (300, 300, 300, 300, 300, 0)}, {"batch": 0}, {"batch": 301}, {"seed": -1}],
    ids=str,
)
def test_bad_arguments_are_refused(wrong):
    (argument,) = wrong
    with pytest.raises(OptionError, match=argument):
        reweighting_logistic(**wrong)


# -- the baselines ----------------------------------------------------------------------------------------------------------
def test_fitted_models_are_stationary():
    data = drawn()
    p = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.1, 0.2], dtype=torch.float64)
    w = data.fitted(p).requires_grad_()
    (slope,) = torch.autograd.grad(p @ data.losses(w, data.joined), w)
    assert float(slope.norm()) <= 1e-8


def test_plans_draw_the_rows_they_say():
    """All rows once, or all twice, is the fit by size; too many of a source: as evenly as possible."""
    data = drawn(sizes=(30, 60, 90, 30, 60, 90))
    sizes = torch.tensor(data.sizes, dtype=torch.float64)
    by_size = data.fitted(sizes / sizes.sum())
    for times in (1, 2):
        torch.testing.assert_close(data.drawn([times * n for n in data.sizes], seed=0), by_size, rtol=0, atol=1e-6)
    part = data.drawn([45, 0, 0, 0, 0, 0], seed=1)
    assert not torch.equal(part, data.drawn([45, 0, 0, 0, 0, 0], seed=2))
    torch.testing.assert_close(data.drawn([30, 0, 0, 0, 0, 0], seed=1), alone(data.sources["0 clean"]), rtol=0, atol=1e-6)


def test_scores_are_those_of_the_paper():
    """The norms of error and gradient by their definitions, and that wrong labels score higher."""
    data = drawn()
    features, labels = data.validation
    w = torch.linspace(-0.3, 0.3, 20, dtype=torch.float64, requires_grad=True)
    for a, b in zip(features[:5], labels[:5]):
        s = torch.sigmoid(a @ w).detach()
        both = torch.stack([1 - s, s]) - torch.stack([1 - b, b])
        assert float(both.norm()) == pytest.approx(2**0.5 * float((s - b).abs()))
        (slope,) = torch.autograd.grad(entropies(w, (a[None], b[None])).sum(), w)
        assert float(slope.norm()) == pytest.approx(float((s - b).abs() * a.norm()))
    for score in data.scores(0):
        assert float(score[:2].max()) < float(score[4:].min())


def test_rank_correlations_know_ties():
    rates = [kind.random for kind in TEN]
    assert most(rates) == pytest.approx(-((870 / 990) ** 0.5))
    assert correlation(rates, [1.0 - rate for rate in rates]) == pytest.approx(-1)
    assert correlation(rates, [0.1] * 10) is None


def test_the_study_has_a_row_for_every_way(capsys):
    arguments = ["--with", "sizes=(60, 60, 90, 90, 120, 120)", "--max-steps", "3"]
    assert main(["run", "reweighting-logistic", *arguments]) == 0
    printed = capsys.readouterr().out
    for way in ("its y", "its w", "fitted anew", "sampling plan", "by size^(1/2)", "EL2N", "GraNd", "uniform", "validation rows"):
        assert way in printed


# -- what is learned --------------------------------------------------------------------------------------------------------
def test_the_clean_sources_get_the_weight():
    """S2 and S4 for one seed."""
    run = _learned(SGD, 10.0, 2000, seed=0)
    assert run.clean >= 0.97
    assert run.noisy <= 0.02
    assert run.accuracy >= run.uniform + 0.03


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_clean_sources_get_the_weight_for_every_alpha(alpha, seed):
    """S2 and S4."""
    run = _learned(SGD, alpha, 2000, seed)
    assert run.clean >= 0.97
    assert run.noisy <= 0.02
    assert run.accuracy >= run.uniform + 0.03


@pytest.mark.slow
def test_w_comes_to_u_like_one_over_alpha():
    """S3."""
    alphas = (3.0, 10.0, 30.0, 100.0)
    for seed in range(3):
        gaps = [_learned(SGD, alpha, 2000, seed).gap for alpha in alphas]
        assert np.polyfit(np.log(alphas), np.log(gaps), 1)[0] == pytest.approx(-1, abs=0.1)


@pytest.mark.slow
def test_other_solvers_find_the_clean_sources():
    instance = reweighting_logistic()
    result = solve(instance.problem, instance.recommended[Penalty].solver)
    assert result.status.ok
    assert float(softmax(result.x)[:2].sum()) >= 0.97
    instance = reweighting_logistic(batch=10)
    for cls, mass in ((ScaleBiO, 0.97), (PenaltySGD, 0.85)):
        one = instance.recommended[cls]
        assert float(softmax(solve(instance.problem, one.solver, max_steps=one.max_steps).x)[:2].sum()) >= mass


@pytest.mark.slow
def test_weights_fall_with_the_noise():
    """The ten sources: ranked by their noise, but for the five that are all noise."""
    instance = reweighting_noise()
    one = instance.recommended[ScaleBiO]
    p = softmax(solve(instance.problem, one.solver, max_steps=one.max_steps).x).tolist()
    rates = [kind.random for kind in TEN]
    assert correlation(rates, p) <= -0.85
    assert p[0] == max(p)
