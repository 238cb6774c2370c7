"""What the single loops of mini-batch methods share: a safe step for the lower copies, and the end of a run that grows."""

from __future__ import annotations

from constrained.core.status import Status
from constrained.core.vec import Vec
from constrained.linear.spectrum import curvature

from .oracle import BilevelOracle

GROWTH = 1e10  # of the iterates over their start, beyond which the run has diverged


def size(*vectors: Vec) -> float:
    """1 + the norms: what the growth of a run is measured against."""
    return 1.0 + sum(float(v.norm()) for v in vectors)


def grown(start: float, *vectors: Vec) -> Status:
    """DIVERGED where a vector is GROWTH times larger than the start."""
    return Status.DIVERGED if max(float(v.norm()) for v in vectors) > GROWTH * start else Status.RUNNING


def largest_curvature(oracle: BilevelOracle, x: Vec, y: Vec) -> float:
    """The largest |eigenvalue| of g_yy at (x, y) on the first batch; 1 where it is 0."""
    zeta = oracle.g.draw(0)
    return curvature(lambda y: oracle.g.grad_y(x, y, zeta), oracle.Y, y) or 1.0
