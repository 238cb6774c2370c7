"""The state of InteriorPoint: the iterate and what its safeguards count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.states import solver_state
from ..core.status import Status
from ..core.vec import Vec
from .iterate import Iterate
from .program import Array


@solver_state("InteriorPointState")
class InteriorPointState:
    """The iterate, the barrier's parameter, the filter; the scales; what the safeguards count."""

    k: int
    x: Vec
    s: Tensor
    lam: Tensor  # of the scaled rows
    z: Tensor  # of low, high and s, one row a kind for the first two
    zs: Tensor
    mu: float
    pairs: Tensor  # the filter
    limit: float  # theta at the start
    sigma: float
    rows: Tensor
    sparse: bool  # K
    dw: float  # the last shift
    shifted: bool  # the last system was; True before the first
    saddle: bool  # K at the answer has not the inertia of a minimum
    growing: int  # steps in a row in which |lam| grew
    grown: float  # |lam| where that began
    peak: float  # the largest |lam|
    value: float
    residual: float
    violation: float
    short: int  # steps in a row that were short
    stuck: int  # steps in a row at infeasible points stationary for |C|^2
    failed: int  # polishing steps
    restored: int
    first: InteriorPointState | None  # how the first attempt ended, in the second
    best: float
    least: float  # violation
    waited: int
    start: Vec
    outcome: Status


def blank(it: Iterate, mu: float, start: Vec) -> InteriorPointState:
    """At the first iterate of an attempt, of which nothing is known yet."""
    program = it.at.program
    return InteriorPointState(
        k=0,
        x=it.at.vec,
        lam=stored(it.lam),
        **barred(it),
        mu=mu,
        pairs=torch.zeros(0, 2, dtype=torch.float64),
        limit=it.at.theta,
        sigma=program.sigma,
        rows=stored(program.rows),
        sparse=program.sparse,
        dw=0.0,
        shifted=True,
        saddle=False,
        growing=0,
        grown=0.0,
        peak=0.0,
        value=it.at.value,
        residual=math.inf,
        violation=math.inf,
        short=0,
        stuck=0,
        failed=0,
        restored=0,
        first=None,
        best=math.inf,
        least=math.inf,
        waited=0,
        start=start,
        outcome=Status.RUNNING,
    )


def barred(it: Iterate) -> dict[str, Any]:
    """The fields that are of bounds and inequalities alone."""
    return {"s": stored(it.at.s), "z": stored(np.stack([it.zl, it.zu])), "zs": stored(it.zs)}


def stored(a: Array) -> Tensor:
    """A copy, with strides of torch's own."""
    return torch.empty(a.shape, dtype=torch.float64).copy_(torch.from_numpy(a))
