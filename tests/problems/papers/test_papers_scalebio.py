"""The page on ScaleBiO: small, and in full with the rows it must meet."""

import json

import pytest

from problems.papers import PAPERS
from problems.papers.scalebio import ADAM, SGD, scalebio

NAMES = ["alpha", "gap", "noise", "baselines", "decoder", "text"]


def test_the_page_says_everything(tmp_path):
    page = scalebio(seeds=1, steps=4, decoder_steps=2, text_steps=4)
    assert [one.name for one in page.findings] == NAMES
    assert PAPERS["scalebio"] is scalebio
    for one in page.findings:
        assert len(one.published) > 80
        assert len(one.here) > 100
        assert all(len(row) == len(one.columns) for row in one.rows)
    page.write(tmp_path)
    record = json.loads((tmp_path / "findings.json").read_text())
    assert [row["alpha"] for row in record["alpha"] if row["method"] == SGD] == ["1", "3", "10", "30", "100"]
    assert (tmp_path / "gap.png").exists()
    assert (tmp_path / "text.png").exists()


@pytest.mark.slow
def test_the_full_page_meets_its_rows():
    alpha, gap, noise, ways, decoder, text = scalebio().findings
    for row in alpha.rows:
        if row[0] in (SGD, ADAM):
            assert float(row[3]) >= 0.97, row  # clean mass of the worst seed
            assert float(row[4]) <= 0.02, row
            assert float(row[6]) >= float(row[8]) + 0.03, row
    least, largest = (float(cell) for cell in gap.rows[0][2:])
    assert -1.1 <= least <= largest <= -0.9
    found = {row[0]: row for row in noise.rows}
    assert float(found["rank correlation"][2]) <= -0.85
    scores = {row[0]: float(row[1].split()[0]) for row in ways.rows}
    assert scores["ScaleBiO, its y"] >= scores["uniform weights"] + 0.03
    assert scores["ScaleBiO, its y"] >= scores["weights by size"] + 0.03
    losses = {row[0]: float(row[4]) for row in decoder.rows}
    for row in decoder.rows[:3]:
        assert float(row[1]) >= 0.95, row
        assert float(row[4]) <= losses["uniform weights"] - 0.2, row
    weights = {row[0]: float(row[4]) for row in text.rows}
    assert weights["python"] >= 0.5
    assert weights["shuffled"] <= 0.05
