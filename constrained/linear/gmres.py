"""GMRES: minimal residuals for systems that are not symmetric."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..core.vec import Vec
from .system import LinearStatus, Operator


def gmres(product: Operator, b: Vec, w: Vec, tol: float, memory: int, limit: int) -> tuple[Vec, LinearStatus, int, bool]:
    """Restarted GMRES on A w = b: w, why it ended, products, and whether a Ritz value of A had a negative real part."""
    spent, bent, eps = 1, False, torch.finfo(b.dtype).eps
    r = b - product(w)
    norm = float(r.norm())
    while norm > tol and spent < limit:
        basis, H = [r / norm], np.zeros((memory + 1, memory))
        ended, reach, y = False, 0, np.zeros(0)
        while reach < memory and spent < limit and not ended:
            q = product(basis[reach])
            spent += 1
            for _ in range(2):  # once more: rounding
                for i, one in enumerate(basis):
                    along = float(one @ q)
                    q, H[i, reach] = q.add(one, -along), H[i, reach] + along
            H[reach + 1, reach] = length = float(q.norm())
            reach += 1
            if not np.isfinite(H).all():
                return w, LinearStatus.NONFINITE, spent, bent
            small, right = H[: reach + 1, :reach], norm * np.eye(reach + 1)[0]
            y = np.linalg.lstsq(small, right, rcond=None)[0]
            ended = length <= 10 * eps * np.abs(small).max() or np.linalg.norm(right - small @ y) <= 0.5 * tol
            basis.append(q / length if length > 0 else q)
        values = np.linalg.eigvals(H[:reach, :reach])
        bent |= bool((values.real < -math.sqrt(eps) * np.abs(values).max()).any())
        for one, share in zip(basis, y):
            w = w.add(one, float(share))
        r, old, spent = b - product(w), norm, spent + 1
        norm = float(r.norm())
        if norm > max(tol, 0.9 * old):
            exhausted = H[reach, reach - 1] <= 10 * eps * np.abs(H).max()
            return w, LinearStatus.SINGULAR if exhausted else LinearStatus.STALLED, spent, bent
    return w, LinearStatus.SOLVED if norm <= tol else LinearStatus.MAX_STEPS, spent, bent
