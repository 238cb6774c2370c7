"""Table 2: cost and error of one hypergradient, from a cold start."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .side import Found, Peer, asked, measured
from .task import Exact, Task

ASKED = (1e-3, 1e-6)
POINTS = {"x = 0, the start": 0.0, "x = -4": -4.0}


def accuracy(peers: list[Peer], task: Task, repeats: int, console: Console) -> list[dict[str, Any]]:
    exact, found = Exact(task), []
    for title, value in POINTS.items():
        x = np.full_like(task.x, value)
        gradient, error = exact.gradient(x), exact.checked(x)
        console.print(
            f"\n{title}: g_yy has condition {exact.condition(x):.0f}; the exact one against differences of Phi: {error:.0e}"
        )
        table = Table(
            "asked", "side", "setting", "error", "ms", "ratio", "first, ms", "it says", title="one hypergradient, y = 0 at first"
        )
        for error in ASKED:
            first = 0.0
            for peer in peers:
                if peer.missing:
                    continue
                one = asked(peer, task, x, gradient, error, repeats)
                first = first or (one.seconds if one else 0.0)
                _row(table, f"{error:.0e}", peer, one, first)
                found.append(_record(title, error, peer, one))
            table.add_section()
        for peer in peers:
            if peer.missing:
                table.add_row("", peer.name, f"not here: {peer.missing}", *[""] * 5)
            for side in peer.documented:
                one = measured(side, task, x, gradient, repeats)
                _row(table, "as documented", peer, one, 0.0)
                found.append(_record(title, None, peer, one))
        console.print(table)
    return found


def _row(table: Table, wanted: str, peer: Peer, one: Found | None, first: float) -> None:
    if one is None:
        table.add_row(wanted, peer.name, "no setting of the ladder", *[""] * 5)
        return
    ratio = f"{one.seconds / first:.2f}" if first else ""
    costs = f"{1e3 * one.seconds:.1f}", ratio, f"{1e3 * one.first:.0f}"
    table.add_row(wanted, peer.name, one.side.setting, f"{one.error:.1e}", *costs, one.status or "nothing")


def _record(point: str, wanted: float | None, peer: Peer, one: Found | None) -> dict[str, Any]:
    row: dict[str, Any] = {"point": point, "asked": wanted, "side": peer.name, "version": peer.version}
    if one is not None:
        row |= {"setting": one.side.setting, "error": one.error, "seconds": one.seconds, "first": one.first, "says": one.status}
    return row
