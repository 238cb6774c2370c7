"""The paper pages: their truths against finite differences and known solutions, the published orders, the files."""

import json
import math

import numpy as np
import pytest
import torch

from constrained import Sketch, Vec
from constrained.linear import LinearStatus
from constrained.newton.kkt_system import kkt_system
from problems import pl_toy, quadratic
from problems.__main__ import main
from problems.cutest import CUTEST, PAPER_47, cutest
from problems.papers import PAPERS
from problems.papers.page import Finding, Page
from problems.papers.penalty import METHODS, QuadraticTruth, ToyTruth, bias, penalty
from problems.papers.sketched_newton import blocks, sketched_newton

TRUTHS = {
    "strongly convex": (quadratic, QuadraticTruth),
    "flat": (lambda: quadratic(rank=12, flat=True, seed=1), QuadraticTruth),
    "optimistic": (lambda: quadratic(rank=12, seed=2), QuadraticTruth),
    "toy": (pl_toy, ToyTruth),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_the_truths_are_true(name):
    """The formula of the gradient is that of finite differences; it vanishes at the known solutions."""
    make, truth_of = TRUTHS[name]
    instance = make()
    truth = truth_of(instance)
    x = truth.x - 0.3
    torch.testing.assert_close(truth.gradient(x), truth.difference(x), rtol=1e-7, atol=1e-7)
    for known in instance.solution:
        assert float(truth.gradient(known.x).norm()) <= 1e-8
    if isinstance(truth, QuadraticTruth):
        (known,) = instance.solution
        assert truth.value(known.x) == pytest.approx(float(instance.problem.upper(known.x, known.y)), rel=1e-10)


def test_the_bias_is_of_first_order():
    """Value and gradient, for each kind of lower level: the exponent that the theorem gives."""
    for row in bias().rows:
        assert float(row[1]) == pytest.approx(1, abs=0.05), row
        assert float(row[2]) == pytest.approx(1, abs=0.05), row
        assert float(row[-1]) <= 1e-8


@pytest.fixture(scope="module")
def small() -> Page:
    """The page of the penalty papers from runs too short to prove anything."""
    return penalty(seeds=2, budget=300, cleaning_steps=5)


def test_the_page_says_everything(small, tmp_path):
    assert [one.name for one in small.findings] == ["bias", "rates-noisy", "rates-exact", "cleaning"]
    for one in small.findings:
        assert "arXiv" in one.published
        assert len(one.here) > 100
        assert all(len(row) == len(one.columns) for row in one.rows)
    small.write(tmp_path)
    record = json.loads((tmp_path / "findings.json").read_text())
    text = (tmp_path / "findings.md").read_text()
    for one in small.findings:
        assert len(record[one.name]) == len(one.rows)
        assert f"## {one.title}" in text
        assert (tmp_path / f"{one.name}.png").exists() == (one.picture is not None)


def test_equal_gradients_are_equal(small):
    """Each method of the rates runs for about the same gradients, within one of its steps."""
    for one in small.findings[1:3]:
        for row in one.rows:
            assert float(row[1]) == pytest.approx(300, abs=METHODS[row[0]].gradients + 10)


def test_cells_survive_markdown():
    finding = Finding("n", "T", "|a_b|", "`|c|` d^2", ["m", "v"], [["x|y", "1"]])
    lines = finding.markdown().splitlines()
    assert "**Published.** \\|a\\_b\\|" in lines
    assert "**Here.** `|c|` d\\^2" in lines
    assert "| x\\|y | 1 |" in lines


def test_the_command(small, tmp_path, monkeypatch, capsys):
    asked = []

    def stored(*, seeds: int) -> Page:
        asked.append(seeds)
        return small

    monkeypatch.setitem(PAPERS, "penalty", stored)
    assert main(["reproduce", "penalty", "--seeds", "3", "--out", str(tmp_path / "page")]) == 0
    assert asked == [3]
    assert "hyper-cleaning" in capsys.readouterr().out.lower()
    assert (tmp_path / "page" / "findings.md").exists()
    assert main(["reproduce", "penalty", "--seeds", "0"]) == 1
    with pytest.raises(SystemExit):
        main(["reproduce", "nothing"])


def test_a_sketch_takes_at_most_a_product_an_unknown_and_a_check_a_block():
    """The table of block widths, and its solver on the first system of each CUTEst problem."""
    table = blocks(sizes=(20, 60), widths=(1, 8, 32))
    assert [row[1] for row in table.rows][-5:] == [*(f"Sketch, block {q}" for q in (1, 8, 32)), "Minres", "Direct"]
    for d, name, *cells in table.rows:
        assert "misses" not in cells
        if name.startswith("Sketch"):
            checks = math.ceil(int(d) / int(name.split()[-1]))
            for products, looks in ((cells[0], cells[1]), (cells[3], cells[4])):
                assert int(looks) <= checks
                assert int(products) <= int(d) + checks
    for name in set(PAPER_47) & set(CUTEST):
        instance = cutest(name=name)
        at = instance.problem.oracle(0).tape(Vec.of(instance.start.x)).lagrangian(instance.start.multipliers.equality)
        system, b = kkt_system(at, torch.ones_like(at.lam)), Vec.of(-torch.cat([at.gradient, at.tape.c]))
        for q in (1, 4, None):
            found = Sketch(block=q).solve(system, b, tol=1e-8 * float(b.norm()))
            exhausted = found.reason is LinearStatus.LEAST_SQUARES  # two looks more, to say so
            checks = math.ceil(system.size / (q or 128))
            assert found.products <= system.size + checks + 2 * exhausted, (name, q, found)


@pytest.mark.slow
def test_sketched_newton_page(tmp_path):
    """Every definable problem is solved by the sketch, within the published order of steps; the page is written."""
    page = sketched_newton(seeds=1)
    runs = page.findings[0]
    assert len(runs.rows) == 47
    for row in runs.rows:
        if row[3] != "not defined":
            assert float(row[-1]) <= 2e-8, row
            if row[1] != "fails":
                assert int(row[3]) <= max(int(row[1]), int(row[2])) + 1, row
    assert [row[-1] for row in page.findings[2].rows] == ["CONVERGED"] * 4
    page.write(tmp_path)
    assert (tmp_path / "cutest.png").exists()


@pytest.mark.slow
def test_the_penalty_papers():
    """The full page: Algorithm 2 ahead of Algorithm 1 for equal gradients, as its better exponent says; all clean digits well."""
    rates, _, cleaning = penalty().findings[1:]
    error = {row[0]: float(row[3]) for row in rates.rows}
    assert error["KwonSingleLoop"] <= 0.15
    assert error["KwonSingleLoop"] < error["KwonDoubleLoop"]
    scores = np.array([[float(cell.split()[0]) for cell in row[1:3]] for row in cleaning.rows])
    assert (scores >= [0.960, 0.983]).all()
