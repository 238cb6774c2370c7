"""The page of LV-HBA: the published iteration against the known numbers, the problem without constraints against the one with."""

import json
import sys

import numpy as np
import pytest
import torch

from bilevel import solve
from bilevel.solvers.lv_hba import LVHBA
from problems.coupled import svm_weights
from problems.papers.lv_hba import OFFICIAL, SETTINGS, eliminated, inequality, lv_hba, machines, published


def test_the_authors_iteration_is_theirs():
    """118.6 after 1,500 steps and .15 after 434 are what their script gives."""
    found = published(OFFICIAL, 1500)
    assert found.x[-1] == pytest.approx(118.6, abs=0.05)
    assert found.x[:1000].argmin() == 433
    assert found.x.min() == pytest.approx(0.15, abs=0.005)


@pytest.mark.slow
def test_which_settings_converge():
    ends = {name: published(one, 20_000) for name, one in SETTINGS.items()}
    for name in ("second script, r = 1", "third script, r = 1", "shorter eta, r = 1000"):
        assert ends[name].x[-1] <= 0.02
        assert ends[name].y[-1] <= 0.01
        assert ends[name].multiplier == pytest.approx(-1, abs=0.01)
    for name in ("authors' script", "second script, r = 1000"):
        assert ends[name].x[-1] > 1


def test_the_machine_without_constraints_is_the_same():
    """xi = max(0, 1 - margin) satisfies the constraints, g is the same, and LVHBA's lower solution has the same w."""
    instance = svm_weights(data="fourclass", train=20, validate=10)
    problem, free = instance.problem, eliminated(instance)
    y = free.response(problem.x, tol=1e-9)
    full = {**y, "xi": torch.relu(problem.lower_inequality(problem.x, {**y, "xi": torch.zeros(20, dtype=torch.float64)}))}
    assert float(problem.lower_inequality(problem.x, full).max()) <= 1e-12
    torch.testing.assert_close(problem.lower(problem.x, full), free.lower(problem.x, y))
    constrained = solve(problem, LVHBA(), tol=1e-4, max_steps=1)
    torch.testing.assert_close(constrained.y["w"], free.response(constrained.x, tol=1e-9)["w"], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_toy_converges():
    single, ours = inequality(1).rows
    assert ours[-1] == "3 of 3"
    assert float(ours[1]) <= 1e-6
    assert single[-1] == "0 of 3"


@pytest.mark.slow
def test_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[lv_hba.__module__], "sizes", lambda: machines([("fourclass", 20, 10)]))
    page = lv_hba(seeds=1, steps=60, svm=[("fourclass", 20, 10)])
    assert [one.name for one in page.findings][:4] == ["llc", "llsc", "inequality", "svm"]
    page.write(tmp_path)
    record = json.loads((tmp_path / "findings.json").read_text())
    assert len(record["svm"]) == 4
    assert (tmp_path / "llc.png").read_bytes()[:4] == b"\x89PNG"
    for one in page.findings:
        assert "arXiv" in one.published
        assert all(len(row) == len(one.columns) for row in one.rows)
    moved = np.array([float(row[5]) for row in page.findings[3].rows])
    assert moved[0] == 0
