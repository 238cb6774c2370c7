"""Tables, paired differences and pictures of the hyper-cleaning demonstration.

Means come with sample standard deviations over seeds. The pictures use matplotlib's Figure and never its global state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from constrained.core.errors import OptionError, extra

from .cleaning_baselines import Row
from .cleaning_data import CleaningData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

CLAIMS = (
    "One seed proves little: a difference below .02 means nothing (one test image is .002). Over seeds, learned weights beat no "
    "cleaning and, with 100 clean images or fewer, training on the clean images alone.",
    "They do not beat everything: 4 rounds of the clean-only filter find right labels better on digits, and confident learning "
    "is as accurate once the clean images are added. sigma = 10 solves a regularised surrogate, not the bilevel problem itself: "
    "towards sigma = 0 the weights overfit the clean images.",
)

COLUMNS = {"f1": "F1", "auc": "AUC", "accuracy": "accuracy", "with_clean": "accuracy\n+ clean images"}
BLUE, RED, INK, GRID = "#0072B2", "#D55E00", "#333333", "#DDDDDD"  # told apart with any colour vision


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one seed) over the `seeds` that have a value, of `of` in all."""

    mean: float
    std: float | None
    seeds: int
    of: int

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {_digits(self.std)}"
        return f"{_digits(self.mean)}{spread}" + (f" ({self.seeds} of {self.of})" if self.seeds < self.of else "")


@dataclass(frozen=True)
class Summary:
    """One method over several seeds: the columns of `Row`, each a Spread, or None where no seed has a value."""

    name: str
    f1: Spread | None
    auc: Spread | None
    accuracy: Spread | None
    with_clean: Spread | None


@dataclass(frozen=True)
class Paired:
    """Differences ours - baseline, seed by seed: mean, sample standard deviation, wins (> 0) of seeds, and the smallest."""

    mean: float
    std: float | None
    wins: int
    seeds: int
    least: float

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {_digits(self.std)}"
        return f"{_digits(self.mean, '+')}{spread}, {self.wins}/{self.seeds} seeds, least {_digits(self.least, '+')}"


def paired(ours: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two methods on the same seeds, given in the same order; a tie is no win."""
    if len(ours) != len(baseline) or len(ours) == 0:
        raise OptionError(
            f"paired(ours, baseline): expected equally many figures, at least one, got {len(ours)} and {len(baseline)}"
        )
    gaps = np.asarray(ours, dtype=float) - np.asarray(baseline, dtype=float)
    if not np.isfinite(gaps).all():
        raise OptionError(f"paired(ours, baseline): expected finite figures, got {list(ours)} and {list(baseline)}")
    return Paired(float(gaps.mean()), _std(gaps), int((gaps > 0).sum()), len(gaps), float(gaps.min()))


def summary(seeds: Sequence[Sequence[Row]]) -> list[Summary]:
    """One row a method from one list of rows a seed; every seed must hold the same methods in the same order."""
    names = [[row.name for row in rows] for rows in seeds]
    if not names or any(other != names[0] for other in names):
        raise OptionError(f"summary(seeds): expected the same methods for every seed, at least one seed, got {names}")
    return [
        Summary(rows[0].name, **{column: _spread([getattr(row, column) for row in rows]) for column in COLUMNS})
        for rows in zip(*seeds)
    ]


def table(rows: Sequence[Row | Summary], title: str | None = None) -> Table:
    """A rich table of one seed's rows or of a summary; a dash where a figure does not exist."""
    built = extra("rich.table", "zoo").Table(title=title)
    built.add_column("method")
    for heading in COLUMNS.values():
        built.add_column(heading, justify="right")
    for row in rows:
        built.add_row(row.name, *(_cell(getattr(row, column)) for column in COLUMNS))
    return built


def _cell(value: float | Spread | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, Spread) else _digits(value)


def _digits(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}"


def _std(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = np.array([value for value in values if value is not None], dtype=float)
    return Spread(float(known.mean()), _std(known), len(known), len(values)) if len(known) else None


# -- pictures -----------------------------------------------------------------------------------------------------------
def convergence_picture(history: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """One small diagram for each series against the step.

    history: one mapping a recorded step, with "k" (the step), "seconds" (of the whole run so far) and any numeric series,
    which need not be in every entry. Axes are logarithmic where a series is positive and spans more than a decade; values
    that are not finite are left out. The file's suffix decides the format.
    """
    series, ticks = _series(history), extra("matplotlib.ticker", "zoo").MaxNLocator
    columns = 2 if len(series) == 4 else min(3, len(series))
    lines = math.ceil(len(series) / columns)
    figure = _figure(max(3.6 * columns, 5.0), 2.4 * lines + 0.6)
    for index, (name, (k, values)) in enumerate(series.items()):
        axes = figure.add_subplot(lines, columns, index + 1)
        _plain(axes)
        axes.plot(k, values, color=BLUE, linewidth=1.6, marker="o" if len(k) <= 40 else "", markersize=2.5)
        axes.set_title(name.replace("_", " "), fontsize=10, color=INK, loc="left")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(ticks(nbins=6, integer=True))
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter("{x:.6g}")
    seconds = history[-1].get("seconds")
    timing = "" if seconds is None else f", {seconds:.{1 if seconds < 100 else 0}f} s"
    _headline(figure, f"Convergence over {history[-1]['k']} steps{timing}")
    figure.savefig(path, dpi=150)


def _series(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (k, values), finite values only, in order of first appearance."""
    names = dict.fromkeys(key for entry in history for key, value in entry.items() if _number(value))
    series = {}
    for name in names:
        if name in ("k", "seconds"):
            continue
        points = np.array([(entry["k"], float(entry[name])) for entry in history if _number(entry.get(name))])
        points = points[np.isfinite(points).all(1)]
        if len(points):
            series[name] = (points[:, 0], points[:, 1])
    if not series:
        raise OptionError("convergence_picture(history, ...): expected entries with k and at least one finite numeric series")
    return series


def _number(value: Any) -> bool:
    return (isinstance(value, Real) and not isinstance(value, bool)) or (isinstance(value, Tensor) and value.ndim == 0)


def distrusted_picture(data: CleaningData, x: Tensor, path: Path | str, count: int = 40) -> None:
    """The training images with the smallest x, in order, each with its given label.

    Framed blue: the label is wrong indeed, and the right one is printed. Framed red: the label is right and was distrusted
    by mistake. x: (n,) logits of a weighting; 1 <= count <= n.
    """
    x = torch.as_tensor(x).detach().cpu()
    if x.shape != data.given.shape or not 1 <= count <= len(x):
        raise OptionError(
            f"distrusted_picture(x, count): expected {len(data.given)} logits and a count of at most as many, got shape "
            f"{tuple(x.shape)} and {count}"
        )
    lowest = torch.argsort(x, stable=True)[:count].tolist()
    columns = min(10, count)
    lines = math.ceil(count / columns)
    figure = _figure(max(1.05 * columns, 6.0), 1.25 * lines + 0.85)
    for index, i in enumerate(lowest):
        colour = BLUE if data.wrong[i] else RED
        axes = figure.add_subplot(lines, columns, index + 1)
        axes.imshow(data.images[i].cpu().numpy(), cmap="gray_r", vmin=0, vmax=16, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.0)
        axes.set_title(f"given {int(data.given[i])} · true {int(data.truth[i])}", fontsize=7.5, color=colour, pad=3)
    caught = int(data.wrong[lowest].sum())
    _headline(figure, f"The {count} least trusted of {len(x)} training labels")
    patch = extra("matplotlib.patches", "zoo").Patch
    keys = {BLUE: f"label wrong, rightly distrusted: {caught}", RED: f"label right, distrusted by mistake: {count - caught}"}
    figure.legend(
        handles=[patch(edgecolor=colour, facecolor="none", linewidth=2.0, label=label) for colour, label in keys.items()],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float) -> Figure:
    figure = extra("matplotlib.figure", "zoo").Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.03)
    return figure


def _headline(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.012, ha="left", fontsize=12, color=INK)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, size=9)
