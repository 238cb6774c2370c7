"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path

from constrained.core.callbacks import WEIGHT, History
from constrained.core.errors import OptionError, OutputError, extra


def plot_weights(history: History, path: Path | str) -> None:
    """The weight of each source over the steps that a `History` recorded, as a picture; the format follows from the name.

    Raises OptionError where it recorded no weights (a solver that has none, or more sources than it monitors), MissingExtra
    without matplotlib, OutputError where the file cannot be written.

    >>> plot_weights(history, "weights.png")  # doctest: +SKIP
    """
    rows = [row for row in history.rows if any(name.startswith(WEIGHT) for name in row)]
    if not rows:
        raise OptionError("plot_weights: history: expected rows with weights of sources, as ScaleBiO monitors them, got none")
    extra("matplotlib", "zoo")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in (name for name in rows[-1] if name.startswith(WEIGHT)):
        axes.plot([row["k"] for row in rows], [row[name] for row in rows], label=name[len(WEIGHT) :])
    axes.set(xlabel="step", ylabel="weight", ylim=(0, 1))
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as cause:  # the second for a format that it does not know
        raise OutputError(f"plot_weights: {path}: cannot be written: {cause}") from cause
