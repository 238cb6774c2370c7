"""Pictures of any run, by matplotlib's Figure and never its global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from constrained.core.errors import OptionError, extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, INK, GRID = "#0072B2", "#D55E00", "#333333", "#DDDDDD"  # told apart with any colour vision


def convergence_picture(history: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """One small diagram for each series against the step.

    history: one mapping a recorded step, with "k" (the step), "seconds" (of the whole run so far) and any numeric series,
    which need not be in every entry. Axes are logarithmic where a series is positive and spans more than a decade; values
    that are not finite are left out. The file's suffix decides the format.
    """
    series, ticks = _series(history), extra("matplotlib.ticker", "zoo").MaxNLocator
    columns = 2 if len(series) == 4 else min(3, len(series))
    lines = math.ceil(len(series) / columns)
    picture = figure(max(3.6 * columns, 5.0), 2.4 * lines + 0.6)
    for index, (name, (k, values)) in enumerate(series.items()):
        axes = picture.add_subplot(lines, columns, index + 1)
        plain(axes)
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
    headline(picture, f"Convergence over {history[-1]['k']} steps{timing}")
    picture.savefig(path, dpi=150)


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


def figure(width: float, height: float) -> Figure:
    made = extra("matplotlib.figure", "zoo").Figure(figsize=(width, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.03)
    return made


def headline(on: Figure, text: str) -> None:
    on.suptitle(text, x=0.012, ha="left", fontsize=12, color=INK)


def plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, size=9)
