"""Lanes that InteriorPoint takes on: from where they stand, or from their starts."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..core.problem import Point
from ..core.result import Result
from ..core.run import ended
from ..core.running import Run
from ..core.status import Status
from ..core.vec import Vec
from ..problem import ConstrainedProblem
from ..solvers.interior_point import InteriorPoint, InteriorPointState
from .iterate import State
from .program import Program


def goes_on(
    problem: ConstrainedProblem,
    solver: InteriorPoint,
    program: Program,
    lane: State,
    start: Vec,
    max_steps: int,
    max_seconds: float | None,
    seconds: float,
) -> Result:
    """The run of one lane to its end. program, lane: with a leading axis of length one; seconds: that it took so far."""
    run = Run(problem, solver, 0, max_steps, max_seconds, [])
    run.start = Point(start)
    run.k, run.seconds = int(lane.steps), seconds
    with torch.no_grad():
        run.state = state_of(program, lane, run.oracle.variables["x"], start)
    return ended(run)


def state_of(program: Program, lane: State, like: Vec, start: Vec) -> InteriorPointState:
    """The state of InteriorPoint that is this lane's."""
    layout, z = program.layout, lane.z[0].cpu()
    of_x = z[: layout.of_x]
    low, high = (layout.P.cpu().mul(sign).clamp(min=0) @ of_x for sign in (1, -1))
    pairs = lane.pairs[0].cpu()
    return InteriorPointState(
        k=int(lane.steps),
        x=like.unravel(program.full(lane.x)[0]),
        s=_own(lane.s[0]),
        lam=_own(lane.lam[0]),
        z=torch.stack([low, high]),
        zs=z[layout.of_x :].clone(),
        mu=float(lane.mu),
        pairs=pairs[pairs[:, 0].isfinite()],
        limit=float(lane.limit),
        sigma=float(program.sigma),
        rows=_own(program.rows[0]),
        sparse=False,
        dw=float(lane.dw),
        shifted=bool(lane.shifted),
        saddle=False,
        growing=0,
        grown=0.0,
        peak=0.0,
        value=math.nan,
        residual=float(lane.residual),
        violation=float(lane.violation),
        short=int(lane.short),
        stuck=int(lane.stuck),
        failed=int(lane.failed),
        restored=int(lane.restored),
        first=None,
        best=float(lane.best),
        least=float(lane.least),
        waited=int(lane.waited),
        start=start,
        outcome=Status.RUNNING,
    )


def _own(t: Tensor) -> Tensor:
    return torch.from_numpy(np.array(t.cpu().numpy()))
