"""Training and judging: against autograd, against scikit-learn, and against the figures of a prototype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from torch.nn import functional as F

from problems.cleaning import baselines as cb
from problems.cleaning.data import digits


@pytest.fixture(scope="module")
def data():
    return digits(0, clean=100)


@pytest.fixture(scope="module")
def logits(data):
    """A weighting that is mostly right: +-1 plus noise."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.8, len(data.given)))
    return torch.where(data.wrong, -1.0, 1.0) + noise


@pytest.fixture(scope="module")
def seeds():
    """The baselines of seeds 0-4: linear, 300 clean images, half the labels wrong."""
    return [cb.baselines(digits(seed, clean=300), "linear") for seed in range(5)]


def gradient(module, inputs, labels, weights, ridge):
    loss = (F.cross_entropy(module(inputs), labels, reduction="none") * weights).sum() / weights.sum()
    loss = loss + ridge / 2 * sum((p**2).sum() for p in module.parameters())
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])


def test_networks_start_where_they_should():
    linear = cb.network("linear")
    assert sum(p.numel() for p in linear.parameters()) == 650
    assert all((p == 0).all() for p in linear.parameters())
    state = torch.random.get_rng_state()
    mlp, again, other = cb.network("mlp", 1), cb.network("mlp", 1), cb.network("mlp", 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sum(p.numel() for p in mlp.parameters()) == 4810
    assert all(p.dtype == torch.float64 for p in mlp.parameters())
    assert torch.equal(mlp[0].weight, again[0].weight)
    assert not torch.equal(mlp[0].weight, other[0].weight)
    assert mlp[0].weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert mlp[2].weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert (mlp[0].bias == 0).all()
    assert (mlp[2].bias == 0).all()
    with pytest.raises(ValueError, match="'linear', 'mlp', got 'cnn'"):
        cb.network("cnn")


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_trained_gradient_is_small(data, logits, model, weighted):
    rows = slice(0, 150)
    weights = torch.sigmoid(logits[rows]) if weighted else torch.ones(150, dtype=torch.float64)
    start = cb.network(model, 0)
    before = [p.clone() for p in start.parameters()]
    trained = cb.train(start, data.inputs[rows], data.truth[rows], weights if weighted else None, ridge=0.01)
    assert gradient(trained, data.inputs[rows], data.truth[rows], weights, 0.01).abs().max() <= 1.001e-5
    assert all(torch.equal(p, q) for p, q in zip(start.parameters(), before))  # a copy was trained


def test_train_agrees_with_sklearn(data, logits):
    """C sum_i s_i CE_i + 1/2 |w|^2 with the bias as a penalised column is our objective divided by the ridge."""
    weights, ridge = torch.sigmoid(logits), 0.02
    ours = cb.train(cb.network("linear"), data.inputs, data.given, weights, ridge=ridge, tolerance=1e-8)
    rows = np.hstack([data.inputs.numpy(), np.ones((1000, 1))])
    theirs = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-9, max_iter=5000)
    theirs.fit(rows, data.given.numpy(), sample_weight=(weights / weights.sum()).numpy())
    found = np.hstack([ours.weight.detach().numpy(), ours.bias.detach().numpy()[:, None]])
    assert np.abs(found - theirs.coef_).max() < 1e-5


def test_only_the_proportions_of_the_weights_count(data, logits):
    weights = torch.sigmoid(logits)
    first, second = (
        cb.train(cb.network("linear"), data.inputs, data.given, scale * weights, ridge=0.02, tolerance=1e-7)
        for scale in (1.0, 1e-3)
    )
    assert torch.allclose(first.weight, second.weight, atol=1e-5)


def test_train_under_no_grad_and_from_float32(data):
    with torch.no_grad():
        trained = cb.train(cb.network("linear"), data.inputs[:100].float(), data.truth[:100], ridge=0.01)
    assert trained.weight.dtype == torch.float64
    ones = torch.ones(100, dtype=torch.float64)
    assert gradient(trained, data.inputs[:100].float().double(), data.truth[:100], ones, 0.01).abs().max() <= 1.001e-5


def test_train_says_when_it_did_not_get_there(data):
    with pytest.warns(RuntimeWarning, match="stopped at a gradient of"):
        cb.train(cb.network("linear"), data.inputs, data.given, ridge=0.01, max_steps=3)


@pytest.mark.parametrize("weights", [torch.zeros(5), -torch.ones(5), torch.full((5,), float("nan")), torch.ones(4)])
def test_train_refuses_weights_that_are_none(data, weights):
    with pytest.raises(ValueError, match="expected 5 finite numbers >= 0 with a positive sum"):
        cb.train(cb.network("linear"), data.inputs[:5], data.given[:5], weights, ridge=0.01)


def test_train_refuses_no_samples(data):
    with pytest.raises(ValueError, match="positive sum"):
        cb.train(cb.network("linear"), data.inputs[:0], data.given[:0], ridge=0.01)


def test_evaluate_agrees_with_sklearn(data, logits):
    row = cb.evaluate(data, "linear", logits)
    right = (~data.wrong).numpy()
    assert row.name == "bilevel"
    assert row.f1 == pytest.approx(f1_score(right, (logits > 0).numpy()))
    assert row.auc == pytest.approx(roc_auc_score(right, logits.numpy()))
    ridge = cb.RIDGE["linear"]
    soft = cb.train(cb.network("linear"), data.inputs, data.given, torch.sigmoid(logits), ridge=ridge)
    assert row.accuracy == pytest.approx((soft(data.test_inputs).argmax(1) == data.test_labels).double().mean().item())
    kept = logits > 0
    both = torch.cat([data.inputs[kept], data.clean_inputs]), torch.cat([data.given[kept], data.clean_labels])
    hard = cb.train(cb.network("linear"), *both, ridge=ridge)
    assert row.with_clean == pytest.approx((hard(data.test_inputs).argmax(1) == data.test_labels).double().mean().item())


def test_perfect_and_saturated_weights_reach_the_oracle(data):
    perfect = cb.evaluate(data, "linear", torch.where(data.wrong, -50.0, 50.0))
    oracle = cb.oracle(data, "linear")
    assert perfect.f1 == perfect.auc == oracle.f1 == 1.0
    assert oracle.auc is None
    assert perfect.accuracy == oracle.accuracy
    assert perfect.with_clean == oracle.with_clean


def test_nothing_kept(data):
    """All logits far below zero: no sample is kept, and the tiny weights still are a weighting: the uniform one."""
    row, uniform = cb.evaluate(data, "linear", torch.full((1000,), -2000.0)), cb.uniform(data, "linear")
    assert row.f1 == 0.0
    assert row.auc == 0.5
    assert row.accuracy == uniform.accuracy
    assert row.with_clean == cb.clean_only(data, "linear").with_clean


def test_all_labels_wrong_or_all_right(data):
    wrong = replace(data, given=(data.truth + 1) % 10)
    nothing = cb.oracle(wrong, "linear")
    assert (nothing.f1, nothing.auc, nothing.accuracy) == (0.0, None, None)
    assert nothing.with_clean == cb.clean_only(data, "linear").with_clean
    right = replace(data, given=data.truth)
    assert cb.filtered(right, "linear").auc is None
    assert cb.uniform(right, "linear").f1 == 1.0


@pytest.mark.parametrize("x", [torch.zeros(999), torch.full((1000,), float("nan"))])
def test_evaluate_refuses_what_is_no_logit_vector(data, x):
    with pytest.raises(ValueError, match="expected 1000 finite logits"):
        cb.evaluate(data, "linear", x)


def test_filtered_refuses_no_rounds(data):
    with pytest.raises(ValueError, match=r"rounds.*>= 1, got 0"):
        cb.filtered(data, "linear", rounds=0)


def test_confident_learning_never_predicts_what_it_has_seen(data, monkeypatch):
    """Every model of the five folds is trained on 800 training samples and all clean images, on none that it judges."""
    seen = []
    fit = cb._fit
    monkeypatch.setattr(cb, "_fit", lambda data, model, inputs, *rest: seen.append(inputs) or fit(data, model, inputs, *rest))
    cb.confident(data, "linear")
    folds = seen[:5]
    assert all(torch.equal(inputs[-100:], data.clean_inputs) for inputs in folds)
    assert all(len(inputs) == 900 for inputs in folds)
    left_out = [{tuple(r) for r in data.inputs.tolist()} - {tuple(r) for r in inputs[:800].tolist()} for inputs in folds]
    assert len(set.union(*left_out)) == 1000
    assert all(len(part) == 200 for part in left_out)


def test_baselines_have_distinct_names_and_ranges(seeds):
    rows = seeds[0]
    assert len({row.name for row in rows}) == len(cb.BASELINES) == 6
    for row in rows:
        for value in (row.f1, row.auc, row.accuracy, row.with_clean):
            assert value is None or 0 <= value <= 1
    clean = next(row for row in rows if row.name == "clean images only")
    assert (clean.f1, clean.auc, clean.accuracy) == (None, None, None)


def test_figures_of_the_prototype(seeds):
    """Means over seeds, as measured beforehand by other code."""
    expected = {
        "no cleaning": (None, 0.830, 0.899),
        "clean images only": (None, None, 0.938),
        "clean-only filter": (0.966, 0.942, 0.944),
        "clean-only filter, 4 rounds": (0.975, 0.945, 0.944),
        "confident learning": (0.931, 0.935, 0.946),
        "oracle": (1.0, 0.961, None),
    }
    for rows in zip(*seeds):
        for column, figure in zip(("f1", "accuracy", "with_clean"), expected[rows[0].name]):
            if figure is not None:
                assert np.mean([getattr(row, column) for row in rows]) == pytest.approx(figure, abs=0.002), (rows[0].name, column)


def test_the_network_learns_the_clean_images(data):
    assert cb.clean_only(data, "mlp").with_clean > 0.85
