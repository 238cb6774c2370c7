"""The judge: a residual of the conditions of Karush, Kuhn and Tucker at x, from the functions and least multipliers alone.

    r = min over lam, mu >= 0, z >= 0 of |(grad L / max(1, |g|_inf), multipliers times slacks)|,  joined with the violation
    grad L = g + J'lam + J_h'mu - z_low + z_high

With equalities alone: r = |(g + J'lam, c)| at the least-squares lam, unscaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear
from scipy.sparse import block_array, coo_array, csr_array, diags_array, eye_array

DENSE = 500  # unknowns; more are a cone program


@dataclass(frozen=True)
class At:
    """Values and first derivatives at a point."""

    x: np.ndarray
    f: float
    g: np.ndarray
    c: np.ndarray
    J: Any
    h: np.ndarray
    Jh: Any
    low: np.ndarray
    high: np.ndarray


def residual(at: At) -> float:
    parts = (at.x, at.g, at.c, at.h, *(A if isinstance(A, np.ndarray) else A.data for A in (at.J, at.Jh)))
    if not (np.isfinite(at.f) and all(np.isfinite(part).all() for part in parts)):
        return math.inf
    finite_low, finite_high = np.isfinite(at.low), np.isfinite(at.high)
    if not (len(at.h) or finite_low.any() or finite_high.any()):
        J = dense(at.J)
        lam = np.linalg.lstsq(J.T, -at.g, rcond=None)[0]
        return math.hypot(float(np.linalg.norm(at.g + J.T @ lam)), float(np.linalg.norm(at.c)))
    slacks = np.concatenate([-at.h, (at.x - at.low)[finite_low], (at.high - at.x)[finite_high]])
    violation = np.concatenate([at.c, np.minimum(slacks, 0)])
    eye, scale = eye_array(len(at.x), format="csr"), max(1.0, float(np.abs(at.g).max()))
    free = len(at.c)
    columns = [csr_array(at.J).T, csr_array(at.Jh).T, -eye[:, finite_low], eye[:, finite_high]]
    top = block_array([[column for column in columns if column.shape[1]]], format="csr") / scale
    bottom = diags_array(np.concatenate([np.zeros(free), np.abs(slacks)]), format="csr")[free:]
    A, b = block_array([[top], [bottom]], format="csr"), np.concatenate([-at.g / scale, np.zeros(len(slacks))])
    return math.hypot(_least(A, b, free), float(np.linalg.norm(violation)))


def _least(A: Any, b: np.ndarray, free: int) -> float:
    """min |A z - b|, the entries of z from `free` on >= 0."""
    low = np.concatenate([np.full(free, -np.inf), np.zeros(A.shape[1] - free)])
    if A.shape[1] > DENSE:
        return _by_cone(A, b, free)
    dense = A.toarray()
    size = np.linalg.norm(dense, axis=0)  # columns of norm 1: bounds at 0 stay
    size[size == 0] = 1.0
    found = [
        lsq_linear(dense / size, b, bounds=(low, np.inf), method=method, tol=1e-14, max_iter=1000).x for method in ("bvls", "trf")
    ]
    return min(float(np.linalg.norm(dense / size @ z.clip(low) - b)) for z in found)


def _by_cone(A: Any, b: np.ndarray, free: int) -> float:
    """min t subject to |A z - b| <= t, z >= 0 by Clarabel."""
    import clarabel

    rows, n = A.shape
    signs = coo_array((-np.ones(n - free), (np.arange(n - free), np.arange(free, n))), shape=(n - free, n + 1))
    last = coo_array((np.array([-1.0]), (np.array([0]), np.array([n]))), shape=(1, n + 1))
    cone = block_array([[signs], [last], [block_array([[-A, csr_array((rows, 1))]])]], format="csc")
    right = np.concatenate([np.zeros(n - free + 1), -b])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    cones = [clarabel.NonnegativeConeT(n - free), clarabel.SecondOrderConeT(rows + 1)]
    from scipy.sparse import csc_matrix

    price = np.concatenate([np.zeros(n), [1.0]])
    found = clarabel.DefaultSolver(csc_matrix((n + 1, n + 1)), price, csc_matrix(cone), right, cones, settings).solve()
    z = np.array(found.x[:n])
    z[free:] = z[free:].clip(0)
    return float(np.linalg.norm(A @ z - b))


def dense(A: Any) -> np.ndarray:
    return A if isinstance(A, np.ndarray) else A.toarray()
