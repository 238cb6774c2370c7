"""Tables, paired differences and pictures of the hyper-cleaning demonstration.

Means come with sample standard deviations over seeds. The pictures use matplotlib's Figure and never its global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from constrained.core.errors import OptionError, extra

from ..report.pictures import BLUE, INK, RED, figure, headline
from ..report.spread import Paired, Spread, digits, paired, spread
from .baselines import Row
from .data import CleaningData

if TYPE_CHECKING:
    from rich.table import Table

CLAIMS = (
    "One seed proves little: a difference below .02 means nothing (one test image is .002). Over seeds, learned weights beat no "
    "cleaning and, with 100 clean images or fewer, training on the clean images alone.",
    "They do not beat everything: 4 rounds of the clean-only filter find right labels better on digits, and confident learning "
    "is as accurate once the clean images are added. sigma = 10 solves a regularised surrogate, not the bilevel problem itself: "
    "towards sigma = 0 the weights overfit the clean images.",
)

COLUMNS = {"f1": "F1", "auc": "AUC", "accuracy": "accuracy", "with_clean": "accuracy\n+ clean images"}


@dataclass(frozen=True)
class Summary:
    """One method over several seeds: the columns of `Row`, each a Spread, or None where no seed has a value."""

    name: str
    f1: Spread | None
    auc: Spread | None
    accuracy: Spread | None
    with_clean: Spread | None


def summary(seeds: Sequence[Sequence[Row]]) -> list[Summary]:
    """One row a method from one list of rows a seed; every seed must hold the same methods in the same order."""
    names = [[row.name for row in rows] for rows in seeds]
    if not names or any(other != names[0] for other in names):
        raise OptionError(f"summary(seeds): expected the same methods for every seed, at least one seed, got {names}")
    return [
        Summary(rows[0].name, **{column: spread([getattr(row, column) for row in rows]) for column in COLUMNS})
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


def paired_table(seeds: Sequence[Sequence[Row]]) -> Table:
    """A rich table of the first method's figures minus each other method's, paired over seeds."""
    built = extra("rich.table", "zoo").Table(title=f"{seeds[0][0].name} minus ..., paired: mean ± std, wins, least")
    built.add_column("method")
    columns = [column for column in COLUMNS if column != "auc"]
    for column in columns:
        built.add_column(COLUMNS[column], justify="right")
    for rows in list(zip(*seeds))[1:]:
        built.add_row(rows[0].name, *(_gap(seeds, rows, column) for column in columns))
    return built


def differences(seeds: Sequence[Sequence[Row]], rows: Sequence[Row], column: str) -> Paired | None:
    """The first method minus `rows`, one a seed, in a column; None where a seed has no such figure."""
    ours, theirs = ([getattr(row, column) for row in side] for side in ([seed[0] for seed in seeds], rows))
    return None if None in ours or None in theirs else paired(ours, theirs)


def _gap(seeds: Sequence[Sequence[Row]], rows: Sequence[Row], column: str) -> str:
    gap = differences(seeds, rows, column)
    return "–" if gap is None else str(gap)


def _cell(value: float | Spread | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, Spread) else digits(value)


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
    picture = figure(max(1.05 * columns, 6.0), 1.25 * lines + 0.85)
    for index, i in enumerate(lowest):
        colour = BLUE if data.wrong[i] else RED
        axes = picture.add_subplot(lines, columns, index + 1)
        axes.imshow(data.images[i].cpu().numpy(), cmap="gray_r", vmin=0, vmax=16, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.0)
        axes.set_title(f"given {int(data.given[i])} · true {int(data.truth[i])}", fontsize=7.5, color=colour, pad=3)
    caught = int(data.wrong[lowest].sum())
    headline(picture, f"The {count} least trusted of {len(x)} training labels")
    patch = extra("matplotlib.patches", "zoo").Patch
    keys = {BLUE: f"label wrong, rightly distrusted: {caught}", RED: f"label right, distrusted by mistake: {count - caught}"}
    picture.legend(
        handles=[patch(edgecolor=colour, facecolor="none", linewidth=2.0, label=label) for colour, label in keys.items()],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    picture.savefig(path, dpi=150)
