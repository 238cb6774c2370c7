"""Diagrams of the paper pages: named curves side by side, in colours told apart with any colour vision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..report.pictures import figure, headline, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")


def side_by_side(
    title: str, across: str, diagrams: Mapping[str, Mapping[str, tuple[Any, Any]]], marker: str = "o", scale: str = "loglog"
) -> Figure:
    """Diagrams side by side: title -> name of a curve -> (abscissas, ordinates). A name has one colour in all of them.

    marker: of points, "" for none; scale: "loglog", "semilogy" or "plot".
    """
    picture = figure(8.0, 3.5)
    names = list(dict.fromkeys(name for curves in diagrams.values() for name in curves))
    colours = dict(zip(names, COLOURS, strict=False))
    handles = {}
    for place, (name, curves) in enumerate(diagrams.items()):
        axes = picture.add_subplot(1, len(diagrams), place + 1)
        plain(axes)
        for label, (xs, ys) in curves.items():
            draw = getattr(axes, scale)
            (handles[label],) = draw(xs, ys, color=colours[label], marker=marker, markersize=3, linewidth=1.4, label=label)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel(across)
    columns = 4 if len(names) > 3 else len(names)
    picture.legend(handles.values(), names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    headline(picture, title)
    return picture
