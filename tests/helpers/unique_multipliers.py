"""Multipliers of least squares at an answer, by torch.func and numpy alone, where the conditions at it make them unique."""

import numpy as np
import torch

NEAR, INDEPENDENT, STRICT = 1e-5, 1e-6, 1e-4


def unique(problem, x: torch.Tensor, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """Those of c, h, low and high in one vector, at x, a flat one.

    None where the gradients of what is active, each of length 1, have a singular value below INDEPENDENT, or an active inequality
    or bound takes less than STRICT |grad f| (strict complementarity). Active: steps of NEAR max(1, |x_j|) in each x_j reach it.
    """
    n, at, parts = len(x), x.numpy(), (problem.equality, problem.inequality)
    c, h = (np.zeros(0) if part is None else part(x).numpy() for part in parts)
    slopes = [np.zeros((0, n)) if part is None else torch.func.jacrev(part)(x).numpy() for part in parts]
    rows, slack = np.vstack([*slopes, -np.eye(n), np.eye(n)]), np.concatenate([0 * c, -h, at - low, high - at])
    length, active = np.linalg.norm(rows, axis=1) + 1e-300, slack <= NEAR * np.abs(rows) @ np.maximum(1.0, np.abs(at))
    unit, g, z = rows[active] / length[active, None], torch.func.grad(problem.objective)(x).numpy(), np.zeros(len(rows))
    if len(unit) > n or (len(unit) and np.linalg.svd(unit, compute_uv=False)[-1] < INDEPENDENT):
        return None
    force = np.linalg.lstsq(unit.T, -g, rcond=None)[0]
    z[active] = force / length[active]
    one_sided = np.flatnonzero(active) >= len(c)
    return z if (force[one_sided] >= STRICT * np.linalg.norm(g)).all() else None


def stacked(result) -> np.ndarray:
    """A result's multipliers in one vector, 0 for bounds that there are none of."""
    own, none, zero = result.multipliers, result.x.new_zeros(0), torch.zeros_like(result.x)
    rows = [none if part is None else part for part in (own.equality, own.inequality)]
    return torch.cat([*rows, *(zero if part is None else part for part in (own.low, own.high))]).numpy()
