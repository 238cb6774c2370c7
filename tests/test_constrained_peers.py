"""The judge, the counts and the models of `benchmarks/constrained_peers.py`, on what is known by hand."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from nlp import judge, sparse, with_torch
from nlp.judge import At, residual
from nlp.model import Model, Part, Tally, TorchModel
from nlp.multipliers import judged, paired, report
from nlp.run import run

FREE = np.full(2, np.inf)


def disc(x, **more):
    """min x0 + x1, |x|^2 <= 2, solved by (-1, -1) with mu = 1/2."""
    x = np.asarray(x, dtype=float)
    own = {
        "c": np.zeros(0),
        "J": np.zeros((0, 2)),
        "h": np.array([x @ x - 2]),
        "Jh": csr_array(2 * x[None]),
        "low": -FREE,
        "high": FREE,
    }
    return At(x=x, f=x.sum(), g=np.ones(2), **{**own, **more})


def test_a_solution_has_no_residual():
    assert residual(disc([-1, -1])) <= 1e-14


def test_violation_and_stationarity_are_seen():
    assert residual(disc([-1.1, -1])) >= 0.2  # h = 0.21
    assert residual(disc([1, 1])) == pytest.approx(2**0.5)  # mu would be negative
    assert residual(disc([-0.5, -0.5])) == pytest.approx((18 / 17) ** 0.5)  # least of 2 (1 - mu)^2 + (1.5 mu)^2, mu = 8 / 17
    assert residual(disc([np.nan, 0])) == np.inf


def test_bounds_have_multipliers():
    """x >= -1/2: (-1/2, -sqrt(7)/2) with z = 1 - 1/sqrt(7); below the bound is a violation."""
    low = np.array([-0.5, -np.inf])
    assert residual(disc([-0.5, -(1.75**0.5)], low=low)) <= 1e-14
    assert residual(disc([-0.6, -(1.64**0.5)], low=low)) >= 0.1


def test_equalities_alone_are_unscaled():
    """g = (3, 4), c = 0: |g + J'lam| at the least-squares lam = -3."""
    none = {"h": np.zeros(0), "Jh": np.zeros((0, 2)), "low": -FREE, "high": FREE}
    at = At(x=np.zeros(2), f=0.0, g=np.array([3.0, 4]), c=np.array([3.0]), J=np.array([[1.0, 0]]), **none)
    assert residual(at) == pytest.approx(5)


def test_large_problems_are_judged_alike(monkeypatch):
    points = [disc([-1, -1]), disc([-0.5, -0.5]), disc([-1, -1], low=np.array([-1.0, -np.inf]))]
    wanted = [residual(at) for at in points]
    monkeypatch.setattr(judge, "DENSE", 0)
    assert [residual(at) for at in points] == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("model", [sparse.path(8), sparse.membrane(8), sparse.pendulum(8)], ids=lambda model: model.name)
def test_derivatives_of_the_sparse_models(model):
    """Along a random direction, against central differences."""
    rng = np.random.default_rng(0)
    x, v, t = model.x0 + 0.1 * rng.standard_normal(len(model.x0)), rng.standard_normal(len(model.x0)), 1e-5
    for part, weighted in ((model.f, False), (model.c, True), (model.h, True)):
        if part is None:
            continue
        slope = (part.value(x + t * v) - part.value(x - t * v)) / (2 * t)
        np.testing.assert_allclose(part.first(x) @ v, slope, atol=1e-6)
        w = rng.standard_normal(np.shape(slope))
        down, up = (part.first(y).T @ w if weighted else part.first(y) for y in (x - t * v, x + t * v))
        np.testing.assert_allclose(part.second(x, *([w] if weighted else [])) @ v, (up - down) / (2 * t), atol=1e-6)


def test_multipliers_are_those_of_what_is_active():
    """The disc's: mu = 1/2; with x0 >= -1/2 too, mu = 1/sqrt(7) and 1 - 1/sqrt(7) of the bound."""
    found = judged(disc([-1, -1]))
    np.testing.assert_allclose(found.z, [0.5, 0, 0, 0, 0], atol=1e-15)
    assert (found.licq, found.strict) == pytest.approx((1, 1))
    found = judged(disc([-0.5, -(1.75**0.5)], low=np.array([-0.5, -np.inf])))
    np.testing.assert_allclose(found.z, [7**-0.5, 1 - 7**-0.5, 0, 0, 0], atol=1e-15)
    assert 0.1 <= found.licq < 1
    assert found.strict == pytest.approx((1 - 7**-0.5) / 2**0.5)


def test_multipliers_are_compared_where_they_are_unique():
    """Not where a row stands twice, where a bound is met by chance, or where one would be negative."""
    twice = {"h": np.zeros(2), "Jh": np.array([[-2.0, -2], [-1, -1]])}
    assert judged(disc([-1, -1], **twice)).licq <= 1e-15
    assert judged(disc([-1, -1], low=np.array([-1.0, -np.inf]))).strict == pytest.approx(0, abs=1e-15)
    assert judged(disc([1, 1])).strict == pytest.approx(-1)
    assert judged(disc([np.nan, 0], Jh=np.full((1, 2), np.nan))) is None


def corner(z):
    """Rows of (x0 - 1)^2 + x1, x0 <= 1/2, x1 >= 0, as from two solvers: multipliers 1 and 1."""
    part = Part(
        value=lambda x: (x[0] - 1) ** 2 + x[1], first=lambda x: np.array([2 * x[0] - 2, 1.0]), second=lambda x: np.diag([2.0, 0])
    )
    row = Part(value=lambda x: x[:1] - 0.5, first=lambda x: np.array([[1.0, 0]]), second=lambda x, w: np.zeros((2, 2)))
    model = Model(name="corner", x0=np.zeros(2) + 0.2, low=np.array([-np.inf, 0.0]), high=FREE, f=part, h=row)
    ours = run("corners", model, "default", 10.0, 1)
    return [ours, dataclasses.replace(ours, solver="Other", z=np.array(z))]


def test_ends_at_one_point_are_paired_and_reported():
    rows = corner([1.0, 0, 1, 0, 0])
    np.testing.assert_allclose(rows[0].z, rows[1].z, atol=1e-7)
    ((key, pair),) = paired(rows).items()
    assert key == ("Other", "corners", "corner")
    assert pair.qualifies
    assert pair.agrees
    assert len(list(report(rows))) == 4
    rows = corner([1.0, 0, 1.01, 0, 0])
    assert not next(iter(paired(rows).values())).agrees
    assert "corner" in list(report(rows))[-1]
    assert not paired([rows[0], dataclasses.replace(rows[1], x=rows[0].x + 1e-5)])


KNOWN = {"HS43": -44, "HS71": 17.0140173, "HS100": 680.6300573, "HS104": 3.9511634, "HS113": 24.3062091}


@pytest.mark.parametrize("model", [model for model in with_torch.small() if model.name in KNOWN], ids=lambda model: model.name)
def test_optima_of_the_small_models(model):
    """As in Hock and Schittkowski (1981)."""
    row = run("torch-small", model, "SLSQP", 60.0, 1)
    assert row.residual <= 1e-5
    assert row.objective == pytest.approx(KNOWN[model.name], rel=1e-6)


def test_what_is_counted():
    """The solver's own calls, by order of derivative; not those of checks and certificates."""
    part = Part(value=lambda x: x @ x, first=lambda x: 2 * x, second=lambda x: 2 * np.eye(2))
    model = Model(name="bowl", x0=np.ones(2), low=-FREE, high=FREE, f=part)
    theirs, ours = (run("bowls", model, name, 10.0, 1) for name in ("SLSQP", "default"))
    assert theirs.counts["beside"] == 0
    assert ours.counts["beside"] > 0
    for row in (theirs, ours):
        assert row.residual <= 1e-6
        assert row.claimed
        assert not row.false
        assert row.counts["f"] <= row.counts["f_calls"]
        assert 1 <= row.counts["f"] <= 20
        assert 1 <= row.counts["g"] <= 20


def test_torch_models_count_their_points():
    tally = Tally()
    model = next(with_torch.small())
    assert isinstance(model, TorchModel)
    view = model.view(tally)
    for x in (view.x0, view.x0, view.x0 + 1):
        view.f(x)
        view.gradient(x)
    counts = model.counts(tally)
    assert (counts["f"], counts["g"], counts["f_calls"]) == (2, 2, 2)
    assert torch.isfinite(torch.tensor(view.f(view.x0)))
