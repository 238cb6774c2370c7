"""The state of InteriorPoint: the iterate and what its safeguards count."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.states import solver_state
from ..core.status import Status
from ..core.vec import Vec
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


def stored(a: Array) -> Tensor:
    """A copy, with strides of torch's own."""
    return torch.empty(a.shape, dtype=torch.float64).copy_(torch.from_numpy(a))
