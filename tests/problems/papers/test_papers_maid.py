"""The page of MAID: known constants against finite differences, descent by fixed accuracies, the files."""

import json

import pytest
import torch

from problems.images import least_squares
from problems.papers.maid import FALLING, FIXED, SOLVERS, Quadratic, adaptive, maid, scheduled


@pytest.fixture(scope="module")
def instance():
    return least_squares(n=60, m=5, cond=5.0)


def test_what_is_known_of_the_quadratic(instance):
    known = Quadratic(instance)
    assert known.mu == pytest.approx(1 / 25)  # condition 5 of the matrix, its largest singular value sqrt(n)
    assert known.gap(instance.problem.x) == pytest.approx(1)
    assert known.gap(instance.solution[0].x) == pytest.approx(0, abs=1e-12)
    ends = [torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)]
    slopes = [torch.autograd.functional.jacobian(known.phi, x) for x in ends]
    assert float((slopes[0] - slopes[1]).norm() / (ends[0] - ends[1]).norm()) <= known.L


@pytest.mark.slow
def test_fixed_accuracies_descend_to_their_own_accuracy(instance):
    known = Quadratic(instance)
    gaps = {
        eps: known.gap(scheduled(instance, FIXED[f"fixed {eps:g}"], 1 / known.L, known.mu, 4000).x[-1]) for eps in (0.1, 1e-5)
    }
    assert gaps[1e-5] <= 1e-3
    assert gaps[1e-5] < gaps[0.1]
    falling = scheduled(instance, FALLING["geometric"], 1 / known.L, known.mu, 500)
    assert all(later < earlier for earlier, later in zip(falling.eps, falling.eps[1:]))
    assert all(later >= earlier for earlier, later in zip(falling.cost, falling.cost[1:]))


@pytest.mark.parametrize("name", SOLVERS)
def test_maid_from_other_first_accuracies_and_steps(instance, name):
    known = Quadratic(instance)
    for eps, alpha in ((1e-1, 1e-2), (1e-5, 1e2)):
        found = adaptive(instance, SOLVERS[name], 8000, eps=eps, alpha=alpha / known.L, until=lambda x: known.gap(x) <= 1e-3)
        assert known.gap(found.x[-1]) <= 1e-3
        assert found.eps[0] == eps


@pytest.mark.slow
def test_the_page_is_written(tmp_path):
    page = maid(seeds=1, budget=150, size=8)
    assert [one.name for one in page.findings] == ["quadratic", "marks", "robustness", "denoising", "accuracy"]
    page.write(tmp_path)
    record = json.loads((tmp_path / "findings.json").read_text())
    for one in page.findings:
        assert len(record[one.name]) == len(one.rows)
        assert "arXiv" in one.published
        assert (tmp_path / f"{one.name}.png").exists() == (one.picture is not None)
        assert all(len(row) == len(one.columns) for row in one.rows)
