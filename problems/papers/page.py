"""A paper's page: findings with what was published, what runs here, the figures of both, and every difference."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from constrained.core.callbacks import write_text
from constrained.core.errors import OutputError
from constrained.core.version import VERSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """One claim of a paper and our figures beside it.

    name: of its files; title; published: what the paper says, with its place; here: what runs, and each difference from the
    paper; columns and rows: the figures, texts as they are printed; picture: draws them, or None.
    """

    name: str
    title: str
    published: str
    here: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    picture: Callable[[], Figure] | None = None

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        table = Table(title=self.title)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the documents."""
        lines = [f"## {self.title}", "", f"**Published.** {_plain(self.published)}", "", f"**Here.** {_plain(self.here)}", ""]
        lines += ["| " + " | ".join(map(_plain, self.columns)) + " |", "|" + "---|" + "---:|" * (len(self.columns) - 1)]
        lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in self.rows]
        if self.picture is not None:
            lines += ["", f"![{self.title}]({self.name}.png)"]
        return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Formulas in running text, kept from Markdown: | ends a table's cell, _ and * are emphasis."""
    parts = text.split("`")
    return "`".join(re.sub(r"([|_*^])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


@dataclass(frozen=True)
class Page:
    """The findings of one paper, or of a few that belong together."""

    name: str
    papers: Sequence[str]
    findings: Sequence[Finding]

    def write(self, folder: Path) -> None:
        """findings.md, findings.json and a picture a finding."""
        made = f"Figures of `bilevel reproduce {self.name}`, version {VERSION}, torch {torch.__version__}."
        write_text(folder / "findings.md", "\n".join([made + "\n", *(one.markdown() for one in self.findings)]))
        write_text(folder / "findings.json", json.dumps(self.record(), indent=1) + "\n")
        for one in self.findings:
            if one.picture is not None:
                try:
                    one.picture().savefig(folder / f"{one.name}.png", dpi=110)
                except OSError as cause:
                    raise OutputError(f"{folder}: a picture cannot be written: {cause}") from cause

    def record(self) -> dict[str, Any]:
        """The figures as plain data."""
        found = {one.name: [dict(zip(one.columns, row)) for row in one.rows] for one in self.findings}
        return {
            "page": self.name,
            "papers": list(self.papers),
            "versions": {"bilevel": VERSION, "torch": torch.__version__},
            **found,
        }
