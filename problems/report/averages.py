"""A study whose rows are plain figures: tables of them, of one seed or of means over several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from constrained.core.errors import extra

from ..instance import Study
from .spread import spread


class Averages(Study):
    """Rows are dataclasses with a `name` and fields that are figures or None, the same names in the same order for every seed.

    title: of the table; columns: field -> heading.
    """

    title: str
    columns: Mapping[str, str]

    def tables(self, runs: list[list[Any]]) -> list[Any]:
        title = self.title if len(runs) == 1 else f"{self.title}, {len(runs)} seeds, mean ± standard deviation"
        table = extra("rich.table", "zoo").Table(title=title)
        table.add_column("method")
        for heading in self.columns.values():
            table.add_column(heading, justify="right")
        for rows in zip(*runs):
            cells = (spread([getattr(row, column) for row in rows]) for column in self.columns)
            table.add_row(rows[0].name, *("–" if cell is None else str(cell) for cell in cells))
        return [table]

    def summary(self, runs: list[list[Any]]) -> dict[str, Any]:
        means = {}
        for rows in zip(*runs):
            found = {column: spread([getattr(row, column) for row in rows]) for column in self.columns}
            means[rows[0].name] = {column: cell and dataclasses.asdict(cell) for column, cell in found.items()}
        return {"means": means}
