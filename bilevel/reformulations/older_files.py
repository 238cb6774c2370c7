"""States of 0.1.0 as they are now: what checkpoints and pickles of that version hold."""

from __future__ import annotations

from typing import Any

from constrained.core.states import solver_state
from constrained.core.vec import Vec
from constrained.descent import Descent, DescentStatus, Pairs

from .extrapolation import Path
from .lagrangian_gap import flat


@solver_state("JointDescent")
class JointDescent:
    """A `Descent` in u = (x, y) with the variables apart."""

    k: int
    x: Vec
    y: Vec
    value: float
    x_gradient: Vec
    y_gradient: Vec
    residual: float
    memory: Pairs | float | None
    recent: tuple[float, ...]
    reason: DescentStatus
    free: tuple[Vec, Vec] | None

    def joined(self) -> Descent:
        return Descent(
            k=self.k,
            x=Vec.of((self.x, self.y)),
            value=self.value,
            gradient=Vec.of((self.x_gradient, self.y_gradient)),
            residual=self.residual,
            memory=self.memory,
            recent=self.recent,
            reason=self.reason,
            free=None if self.free is None else Vec.of(self.free),
        )


def path_of_pbgd(fields: dict[str, Any]) -> dict[str, Any]:
    """Of `PBGDState`: the next end needs the last one and the line, which are there."""
    end, line, found = (Vec.of((fields[f"x_{name}"], fields[f"y_{name}"])) for name in ("end", "line", "found"))
    kept = {name: value for name, value in fields.items() if name[:2] not in ("x_", "y_") and name != "stages"}
    path = Path(fields["stages"], end, line, end.zeros())
    return {**kept, "outer": fields["outer"].joined(), "path": path, "found": found}


def stage_of_lv_hba(fields: dict[str, Any]) -> dict[str, Any]:
    """Of `LVHBAState`: w = (x, y, z) was put together at each step, and the ends of two stages were kept."""
    w = flat(fields["x"], fields["y"], fields["z"])
    outer = Descent(
        k=fields["k"],
        x=w,
        value=fields["value"],
        gradient=Vec.of(fields["gradient"]),
        residual=fields["residual"] / max(fields["c"], 1.0),
        memory=fields["memory"],
        recent=fields["recent"],
        reason=DescentStatus.RUNNING,
        free=None if fields["free"] is None else Vec.of(fields["free"]),
    )
    path = Path.at(w)
    for end in fields["stages"]:
        path = path.then(Vec.of(end))
    gone = ("value", "gradient", "memory", "recent", "free", "stages")
    kept = {name: value for name, value in fields.items() if name not in gone}
    return {**kept, "outer": outer, "path": path, "guess": Vec.of(fields["guess"])}
