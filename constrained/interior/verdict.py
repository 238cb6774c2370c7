"""What an iterate says of the problem: solved, without bound, no minimum, without multipliers.

residual and violation are those of the unscaled problem.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.status import Status
from .inertia import REGULAR, Matrices, factor, largest
from .iterate import Iterate
from .program import Array

FAR, LOW = 1e15, -1e20  # |x| and f without bound
BENT, HELD = 1e-6, 1e8  # of |H|: curvature that is not round-off; that of a constraint that is met
MATTERS = 1e3  # times the residual
MET = 1e-6  # a distance that is none
LARGE = 1e3  # |lam|
GROWS, STEPS = 1.2, 5  # |lam| in one step, so often in a row: without end
NEAR, DEPENDENT = 1e-3, 1e-2  # distance to a constraint that counts as active; of the length of gradients
FEASIBLE = 1e-4
LENGTH, LEFT = 1e4, 0.1  # of multipliers of gradients of length 1 that are no multipliers; of |g|, what others leave of it


def told(it: Iterate, tolerance: float) -> Status:
    """RUNNING where it says nothing yet."""
    if not (it.at.finite and it.at.smooth):
        return Status.NONFINITE
    far = largest(it.at.x) > FAR
    if it.residual <= tolerance and not far:  # so far out x - grad L is x
        return Status.CONVERGED
    if it.violation <= 1e-6 and (far or it.at.value < LOW):
        return Status.UNBOUNDED if it.at.value < -math.sqrt(FAR) else Status.DIVERGED
    return Status.RUNNING


def bends_down(it: Iterate) -> bool:
    """f falls to second order along a direction that the constraints leave: K, with a shift against round-off, says so.

    Bounds and inequalities hold where they are met, with a multiplier or without.
    """
    at, H = it.at, it.at.hessian(it.lam)
    size = largest(H)
    if size == 0 or not math.isfinite(size):
        return False
    against, J = at.g + at.J.T @ it.lam, _even(at.J)
    met = (it.dl <= np.maximum(against, MET)) | (it.du <= np.maximum(-against, MET))
    rows = at.s <= np.maximum(it.lam[at.program.equalities :], MET)
    found = factor(Matrices(H / size, HELD * met, J, HELD * rows, at.program.sparse), BENT, REGULAR, 0.0)
    return found is not None and found[1] < at.program.n


def matters(it: Iterate) -> bool:
    """grad f is more than the residual, so that there is something for multipliers to hold, whatever their units."""
    return float(np.linalg.norm(it.at.g)) > MATTERS * it.at.program.sigma * it.residual


def dependent(it: Iterate) -> bool:
    """At a feasible point the gradients of the active constraints are, nearly. Dense J."""
    p = it.at.program
    if p.sparse or it.violation > FEASIBLE:
        return False
    A = _active(it)
    sizes = np.linalg.norm(A, axis=1)
    if not len(A) or not np.isfinite(A).all():
        return False
    if len(A) > p.n:
        return True
    values = np.linalg.svd(A / np.maximum(sizes, np.finfo(float).tiny)[:, None], compute_uv=False)
    return float(values.min()) <= DEPENDENT


def lacking(it: Iterate) -> bool:
    """min |g + A'z|^2 + |z|^2 / LENGTH^2 over z, those of inequalities and bounds >= 0, leaves much of g: A, active gradients."""
    p, g = it.at.program, it.at.g
    if p.sparse or it.violation > FEASIBLE:
        return False
    from scipy.optimize import nnls

    A = _active(it)
    sizes = np.linalg.norm(A, axis=1)
    if not (len(A) and np.isfinite(A).all() and sizes.all()):
        return False
    A = A / sizes[:, None]
    A = np.concatenate([A, -A[: p.equalities]]).T  # of equalities with either sign
    z = nnls(np.concatenate([A, np.eye(A.shape[1]) / LENGTH]), np.concatenate([-g, np.zeros(A.shape[1])]))[0]
    return float(np.linalg.norm(A @ z + g)) > LEFT * float(np.linalg.norm(g))


def _active(it: Iterate) -> Array:
    """Gradients of what is nearly met, outward."""
    at, p, one = it.at, it.at.program, np.eye(it.at.program.n)
    rows = np.concatenate([np.ones(p.equalities, bool), at.s <= NEAR])
    near = NEAR * np.minimum(1.0, p.high - p.low)
    return np.concatenate([at.J[rows], -one[it.dl <= near], one[it.du <= near]])


def _even(J: Any) -> Any:
    """Rows of length 1, in whatever units they were; those of 0 stay."""
    from scipy.sparse import diags_array

    sparse = hasattr(J, "tocsr")
    sizes = np.sqrt(np.asarray(J.multiply(J).sum(axis=1)).ravel()) if sparse else np.linalg.norm(J, axis=1)
    scale = 1.0 / np.where(sizes > 0, sizes, 1.0)
    return diags_array(scale) @ J if sparse else scale[:, None] * J
