"""Tables, paired differences and pictures."""

from __future__ import annotations

import io
import math
import statistics
import sys

import pytest
import torch
from rich.console import Console

from constrained.core.errors import MissingExtra
from problems.cleaning import report as report
from problems.cleaning.baselines import Row
from problems.cleaning.data import digits
from problems.report import pictures

SEEDS = [
    [Row("ours", 0.97, 0.99, 0.950, 0.948), Row("clean", None, None, None, 0.938)],
    [Row("ours", 0.96, None, 0.946, 0.952), Row("clean", None, None, None, 0.942)],
    [Row("ours", 0.98, 0.98, 0.954, 0.947), Row("clean", None, None, None, 0.934)],
]


@pytest.fixture(scope="module")
def data():
    return digits(0)


def printed(table) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def size(path) -> tuple[int, int]:
    """Width and height of a PNG file, from its header."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 5000
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_summary_is_mean_and_sample_deviation():
    ours, clean = report.summary(SEEDS)
    assert (ours.name, clean.name) == ("ours", "clean")
    assert ours.f1.mean == pytest.approx(0.97)
    assert ours.f1.std == pytest.approx(statistics.stdev([0.97, 0.96, 0.98]))
    assert (ours.f1.seeds, ours.f1.of) == (3, 3)
    assert (ours.auc.mean, ours.auc.seeds, ours.auc.of) == (pytest.approx(0.985), 2, 3)
    assert clean.f1 is None
    assert clean.with_clean.mean == pytest.approx(0.938)


def test_one_seed_has_no_deviation():
    (ours, _) = report.summary(SEEDS[:1])
    assert ours.f1.std is None
    assert str(ours.f1) == "0.970"


def test_summary_wants_the_same_methods():
    with pytest.raises(ValueError, match="the same methods"):
        report.summary([SEEDS[0], SEEDS[1][:1]])
    with pytest.raises(ValueError, match="at least one seed"):
        report.summary([])


def test_tables_show_every_figure_and_a_dash_where_there_is_none():
    one = printed(report.table(SEEDS[0], title="seed 0"))
    for word in ("seed 0", "ours", "clean", "F1", "AUC", "+ clean images", "0.970", "0.990", "0.950", "0.948", "0.938", "–"):
        assert word in one
    many = printed(report.table(report.summary(SEEDS)))
    for word in ("0.970 ± 0.010", "0.985 ± 0.007 (2 of 3)", "0.950 ± 0.004", "0.938 ± 0.004", "–"):
        assert word in many


def test_paired_differences():
    gap = report.paired([0.95, 0.94, 0.96, 0.90], [0.93, 0.95, 0.93, 0.90])
    gaps = [0.02, -0.01, 0.03, 0.0]
    assert gap.mean == pytest.approx(0.01)
    assert gap.std == pytest.approx(statistics.stdev(gaps))
    assert (gap.wins, gap.seeds, gap.least) == (2, 4, pytest.approx(-0.01))
    assert str(gap) == "+0.010 ± 0.018, 2/4 seeds, least -0.010"
    assert report.paired([0.5], [0.4]).std is None


@pytest.mark.parametrize(("ours", "baseline"), [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [1.0]), ([None], [1.0])])
def test_paired_refuses_what_does_not_pair(ours, baseline):
    with pytest.raises(ValueError, match="expected"):
        report.paired(ours, baseline)


def test_claims_say_what_is_not_shown():
    text = " ".join(report.CLAIMS)
    for word in ("4 rounds", "confident learning", "surrogate", ".02"):
        assert word in text


def test_convergence_picture(tmp_path, monkeypatch):
    history = [
        {"k": k, "seconds": 0.1 * k, "upper": 1 / (1 + k), "lower": torch.tensor(0.5 - 0.01 * k), "note": "text", "done": False}
        for k in range(20)
    ]
    history[3]["upper"] = math.inf
    history[5]["stationarity"] = history[15]["stationarity"] = 1e-3
    drawn = []
    monkeypatch.setattr(pictures, "plain", lambda axes, plain=pictures.plain: drawn.append(axes) or plain(axes))
    pictures.convergence_picture(history, tmp_path / "history.png")
    assert size(tmp_path / "history.png") == (int(10.8 * 150), int(3.0 * 150))
    upper, lower, stationarity = drawn
    assert [axes.get_title(loc="left") for axes in drawn] == ["upper", "lower", "stationarity"]
    assert [axes.get_yscale() for axes in drawn] == ["log", "linear", "linear"]
    assert all(axes.get_xlabel() == "step" for axes in drawn)
    assert 3 not in upper.lines[0].get_xdata()
    assert len(upper.lines[0].get_xdata()) == 19
    assert lower.lines[0].get_ydata()[10] == pytest.approx(0.4)
    assert list(stationarity.lines[0].get_xdata()) == [5, 15]
    assert "19 steps, 1.9 s" in upper.figure.get_suptitle()


@pytest.mark.parametrize("history", [[], [{"k": 0, "seconds": 0.0}], [{"k": 0, "upper": float("nan")}]])
def test_convergence_picture_wants_a_series(tmp_path, history):
    with pytest.raises(ValueError, match="at least one finite numeric series"):
        pictures.convergence_picture(history, tmp_path / "history.png")


def test_distrusted_picture(tmp_path, data, monkeypatch):
    """39 wrong labels and one right one at the bottom of the order: that many frames of each colour, in order of x."""
    x = torch.linspace(1, 2, 1000, dtype=torch.float64)
    wrong, right = torch.nonzero(data.wrong)[:39, 0], torch.nonzero(~data.wrong)[0, 0]
    x[wrong] = torch.linspace(-2, -1, 39, dtype=torch.float64)
    x[right] = -0.5
    figures = []
    monkeypatch.setattr(report, "figure", lambda *size, figure=pictures.figure: figures.append(figure(*size)) or figures[0])
    report.distrusted_picture(data, x, tmp_path / "distrusted.png")
    width, height = size(tmp_path / "distrusted.png")
    assert width > height > 600
    (figure,) = figures
    assert figure.get_suptitle() == "The 40 least trusted of 1000 training labels"
    legend = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert legend == ["label wrong, rightly distrusted: 39", "label right, distrusted by mistake: 1"]
    titles = [axes.get_title() for axes in figure.axes]
    order = [*wrong.tolist(), int(right)]
    assert titles == [f"given {data.given[i]} · true {data.truth[i]}" for i in order]
    colours = [axes.title.get_color() for axes in figure.axes]
    assert colours == [report.BLUE] * 39 + [report.RED]
    assert torch.equal(torch.as_tensor(figure.axes[0].images[0].get_array().data), data.images[order[0]])


@pytest.mark.parametrize(("length", "count"), [(999, 40), (1000, 0), (1000, 1001)])
def test_distrusted_picture_refuses_bad_sizes(tmp_path, data, length, count):
    with pytest.raises(ValueError, match="expected 1000 logits"):
        report.distrusted_picture(data, torch.zeros(length), tmp_path / "x.png", count=count)


def test_pictures_leave_pyplot_alone(tmp_path):
    """No window system is asked for: pyplot is never imported by a picture."""
    before = "matplotlib.pyplot" in sys.modules
    pictures.convergence_picture([{"k": 0, "upper": 1.0}, {"k": 1, "upper": 0.5}], tmp_path / "two.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    with pytest.raises(MissingExtra, match=r"pip install 'bilevel\[zoo\]'"):
        pictures.convergence_picture([{"k": 0, "upper": 1.0}], tmp_path / "x.png")
