"""The page of BO-REP: the slope that it reports, equal costs, the files, and what the full figures must show."""

import json

import numpy as np
import pytest
import torch

from bilevel import BORep, StocBiO
from problems import exponential
from problems.papers.bo_rep import LEVELS, bo_rep, level, separation, slope, spent, trace
from problems.papers.bo_rep_text import representation


def test_the_slope_is_that_of_the_hyper_objective():
    for instance in (exponential(), exponential(n=4, size=0.7, cond=20.0, seed=3)):
        problem = instance.problem
        x = problem.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.upper(x, problem.lower_solution(x)), x)
        assert slope(instance, x.detach()) == pytest.approx(float(gradient.norm()), rel=1e-12)


@pytest.mark.parametrize("cond", [1.0, 20.0])
def test_the_lower_level_has_the_condition_asked_for(cond):
    problem = exponential(n=5, cond=cond, seed=1).problem
    H = torch.autograd.functional.hessian(lambda y: problem.lower(problem.x, y), problem.y)
    wanted = torch.logspace(-np.log10(cond), 0, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(H), wanted, rtol=0, atol=1e-12)
    gradient = torch.autograd.functional.jacobian(lambda y: problem.lower(problem.x, y), problem.lower_solution(problem.x))
    assert float(gradient.norm()) <= 1e-12


def test_runs_end_at_their_steps_budget_or_overflow():
    instance = exponential()
    ours = trace(instance, BORep(epochs=1), 0, 40, 40)
    assert (ours.steps, ours.overflowed) == (40, False)
    assert ours.cost[-1] == spent(ours.calls)
    assert (np.diff(ours.cost) >= 0).all()
    other = trace(instance, StocBiO(alpha=1e-8), 0, 300)
    assert 300 <= spent(other.calls) <= 300 + 28
    lost = trace(instance, StocBiO(alpha=1e-3), 0, 10_000)
    assert lost.overflowed
    assert lost.steps <= 10


def test_the_tables_are_whole():
    for one in (separation(1, 12), level(1, 12), representation(1, 0.003)):
        assert all(len(row) == len(one.columns) for row in one.rows)
        assert one.rows[0][0].endswith("BORep")
        assert one.picture is not None


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_the_page_is_written(tmp_path, seeds):
    page = bo_rep(seeds=seeds, steps=12, share=0.003)
    assert [one.name for one in page.findings] == ["separation", "level", "cleaning", "representation"]
    page.write(tmp_path)
    record = json.loads((tmp_path / "findings.json").read_text())
    for one in page.findings:
        assert len(record[one.name]) == len(one.rows)
        assert "arXiv" in one.published or one.name == "level"
        assert len(one.here) > 100
        assert (tmp_path / f"{one.name}.png").exists() == (one.picture is not None)
        assert all(len(row) == len(one.columns) for row in one.rows)


@pytest.mark.slow
def test_normalised_steps_arrive_where_others_overflow():
    """Steep: BORep at most 0.5 where the others leave a hundred times more or overflow. From 1 the best alpha is no worse."""
    ours, *others = separation(3, 2000).rows
    assert float(ours[2].split(" to ")[1]) <= 0.5
    for name, median, _, overflowed, *_ in others:
        assert overflowed.startswith("3 of 3") or float(median) >= 50, name
        assert overflowed.startswith("3 of 3") == (float(name.split("alpha = ")[1].split(",")[0]) >= 1e-6), name
    rows = {row[0]: row for row in level(2, 2000).rows}
    for name in LEVELS:
        ours = float(rows[f"{name}: BORep"][1])
        best = min(float(row[1]) for key, row in rows.items() if key.startswith(f"{name}: StocBiO") and row[1])
        assert (best >= 10 * ours) if name == "x from 2" else (best <= ours), name
