"""How good a point is where the lower level has constraints of its own: by the KKT conditions of the lower problem.

    L = g + lam'c + mu'h,   mu >= 0
    lower   |(y - P_Y(y - L_y), mu - max(mu + h, 0))|, with the multipliers of the point where it brings any, else those that
            make it least
    upper   |x - P_X(x - grad Phi)|,  grad Phi = f_x - L_xy v - A_x'w,  [[T L_yy T + C, T A'], [A T, 0]] (v, w) = (T f_y, 0)

with A the Jacobian in y of the equalities and of the active inequalities (mu + h > 0), A_x the one in x, T and C the tangent of Y
at y. The system's least-norm solution is taken. Where it is singular and inconsistent, its residual is `optimism`: among several
lower solutions y is not, to first order, the one that f prefers. Where inequalities are active with mu = 0, Phi has a kink:
`upper` is then that of the shortest convex combination of the gradients on its sides (0 there: Clarke stationary), which is where
minima often are. x is taken to be inside the set where the lower level is feasible.

References: Friesz, Tobin, Cho and Mehta 1990; Dempe 2002, chapter 4 (sensitivity of a KKT point); arXiv 2401.16164.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained.core.derivatives.constraint import Constraint
from constrained.core.errors import Unsuitable
from constrained.core.problem import Multipliers
from constrained.core.vec import Tree, Vec
from constrained.descent import residual
from constrained.descent.newton_cg import NewtonCG
from constrained.kkt import half_bounded
from constrained.linear import LinearStatus, Minres, System
from constrained.sets.tangent import Tangent, tangent

from ..lower.constraints import NAMES
from ..lower.coupled_set import coupled, jacobian
from ..lower.regularised_value import solve_constrained_lower
from ..oracle import BilevelOracle, Level, LevelAt

KINK = 1.0  # times eps^(3/8), 1e-6 in float64: rows with mu and |h| below it are at an edge
EDGES = 4  # of them, up to which every choice is looked at
LIMIT = 1e6  # on multipliers, where the lower level is solved again


def has_lower_constraints(oracle: BilevelOracle) -> bool:
    return any(name in oracle.constraints for name in NAMES)


def residuals(oracle: BilevelOracle, x: Vec, y: Vec, multipliers: Multipliers | None = None) -> dict[str, float]:
    """lower, upper, optimism or linear at (x, y). Raises Unsuitable where second derivatives are missing."""
    lower, gradient, worst, size = _upper(oracle, x, y, multipliers)
    found = {"lower": lower, "upper": residual(oracle.X, x, gradient) if math.isfinite(worst.left) else math.nan}
    if worst.reason is LinearStatus.LEAST_SQUARES:
        found["optimism"] = worst.left
    elif worst.reason is not LinearStatus.SOLVED and not worst.left <= 1e-3 * size:
        found["linear"] = worst.left
    return found


def hypergradient(oracle: BilevelOracle, x: Vec, y: Vec, multipliers: Multipliers | None = None) -> Vec | None:
    """The gradient that `upper` is made from; None where its linear system has no finite solution."""
    _, gradient, worst, _ = _upper(oracle, x, y, multipliers)
    return gradient if math.isfinite(worst.left) else None


def _upper(oracle: BilevelOracle, x: Vec, y: Vec, multipliers: Multipliers | None) -> tuple[float, Vec, Piece, float]:
    """`lower`, grad Phi, the piece of it that was solved worst, |f_y|."""
    parts = [oracle.constraints.get(name) for name in NAMES]
    if not oracle.g.own.torch or any(part is not None and not part.own.torch for part in parts):
        raise Unsuitable(
            "residuals: a lower level with constraints needs second derivatives: write g and the constraints in torch"
        )
    values = [part.value((x, y)) if part is not None else torch.zeros(0, dtype=torch.float64) for part in parts]
    J = [jacobian(part, x, y) if part is not None else None for part in parts]
    lam, mu = _given(multipliers, values) or _least(oracle, x, y, values, J)
    f_x, f_y = oracle.f.grad(x, y)
    lower = _lagrangian(oracle, parts, lam, mu).at(x, y)
    stationary = residual(oracle.Y, y, lower.y)
    complementary = float((mu - (mu + values[1]).clamp(min=0)).norm())

    # Where rows are active with mu = 0, each choice of those that stay so gives the gradient of one smooth piece of Phi.
    edge = KINK * torch.finfo(y.dtype).eps ** 0.375
    active, both = mu + values[1] > edge, (mu <= edge) & (values[1].abs() <= edge)
    active = active & ~both
    pieces = [_piece(x, lower, tangent(oracle.Y, y - lower.y), J, choice, f_x, f_y) for choice in _choices(active, both)]
    weights = _nearest_zero(torch.stack([piece.gradient.ravel().double() for piece in pieces]), _normals(oracle, x))
    grad = x.zeros()
    for piece, weight in zip(pieces, weights):
        grad = grad.add(piece.gradient, weight)
    worst = max(pieces, key=lambda piece: piece.left)
    return math.hypot(stationary, complementary), grad, worst, float(f_y.norm())


@dataclass(frozen=True)
class Piece:
    """grad Phi with one choice of active rows; the residual of its linear system, and why that solve ended."""

    gradient: Vec
    left: float
    reason: LinearStatus


def _piece(x: Vec, lower: LevelAt, face: Tangent, J: list[Any], active: Tensor, f_x: Vec, f_y: Vec) -> Piece:
    rows = _stacked([J[0], J[1][active.cpu().numpy()] if J[1] is not None else None])
    v, w, left, reason = _adjoint(lower.yy, face, rows[:, x.size :], f_y)
    pull = x.unravel(torch.from_numpy(np.asarray(rows[:, : x.size].T @ w)).to(x.device))
    return Piece(f_x - lower.xy(v) - pull, left, reason)


def _choices(active: Tensor, both: Tensor) -> list[Tensor]:
    """The active rows with each subset of those at an edge; with none and all of them where there are many."""
    at = both.nonzero()[:, 0].tolist()
    subsets = itertools.product((False, True), repeat=len(at)) if len(at) <= EDGES else ([False] * len(at), [True] * len(at))
    found = []
    for subset in subsets:
        one = active.clone()
        one[at] = torch.tensor(subset, dtype=torch.bool, device=active.device)
        found.append(one)
    return found


def _normals(oracle: BilevelOracle, x: Vec) -> np.ndarray:
    """Directions that X blocks at x, as rows; none for sets that do not project entry by entry."""
    if not oracle.X.entrywise:
        return np.zeros((0, x.size))
    step = 1e-3 * (1.0 + float(x.max_norm()))
    found = []
    for sign in (1.0, -1.0):
        moved = oracle.X.project(x.map(lambda t, s=sign: t + s * step)) - x
        found.append(sign * np.eye(x.size)[(moved.ravel().abs() <= 1e-9 * step).cpu().numpy()])
    return np.concatenate(found)


def _nearest_zero(gradients: Tensor, normals: np.ndarray) -> list[float]:
    """Weights >= 0 of sum 1 that make the combination of the rows shortest, up to what the normals take away."""
    from scipy.optimize import nnls

    if len(gradients) == 1 or not bool(gradients.isfinite().all()):
        return [1.0] + [0.0] * (len(gradients) - 1)
    rows = gradients.cpu().numpy()
    heavy = 1e3 * (1 + np.abs(rows).max())  # holds the sum at 1
    one = np.r_[np.full(len(rows), heavy), np.zeros(len(normals))][None]
    found = nnls(np.concatenate([np.concatenate([rows, normals]).T, one]), np.r_[np.zeros(rows.shape[1]), heavy])[0][: len(rows)]
    return list(found / found.sum())


def lower_gap(oracle: BilevelOracle, x: Vec, y: Vec, starts: Sequence[Vec]) -> float:
    """g(x, y) minus the lowest lower value found at points that satisfy the lower constraints, from y and the given starts."""
    set = coupled(oracle, LIMIT)
    tol = 1e6 * torch.finfo(y.dtype).eps
    here, best = float(oracle.g.value((x, y))), math.inf
    zero = torch.zeros_like(set.rows.low)
    for w in (y, *starts):
        found = solve_constrained_lower(oracle, set.rows, x, oracle.Y.project(w), zero, tol, method=NewtonCG().for_set(oracle.Y))
        if found.residual <= tol:
            best = min(best, float(oracle.g.value((x, found.y))) - tol * float(found.multipliers.abs().sum()))
    return max(0.0, here - best)


def _given(multipliers: Multipliers | None, values: list[Tensor]) -> tuple[Tensor, Tensor] | None:
    """lam and mu of the point; None where it brings none that fit."""
    tree: Tree = multipliers.lower if multipliers is not None else None
    if not isinstance(tree, dict):
        return None
    found = [torch.as_tensor(tree.get(name[6:], torch.zeros(0))).to(value).reshape(-1) for name, value in zip(NAMES, values)]
    if [len(one) for one in found] != [len(value) for value in values] or not all(bool(one.isfinite().all()) for one in found):
        return None
    return found[0], found[1].clamp(min=0)


def _least(oracle: BilevelOracle, x: Vec, y: Vec, values: list[Tensor], J: list[Any]) -> tuple[Tensor, Tensor]:
    """lam, mu >= 0 that make |T (g_y + J'lam + J_h'mu)|^2 + |mu h|^2 least, T the tangent of Y at y."""
    face = tangent(oracle.Y, y)
    rows = _stacked(J)
    slope = face.project(oracle.g.grad_y(x, y)).ravel().double().cpu().numpy()
    counts = [len(value) for value in values]
    of_y = np.asarray(rows[:, x.size :].todense()) if rows is not None else np.zeros((0, y.size))
    held = [face.project(y.unravel(torch.from_numpy(row).to(y.device))).ravel().double().cpu().numpy() for row in of_y]
    slack = np.diag(np.concatenate([np.zeros(counts[0]), values[1].cpu().numpy()]))[counts[0] :]
    system = np.concatenate([np.array(held).T.reshape(y.size, len(held)), slack])
    right = np.concatenate([-slope, np.zeros(counts[1])])
    lam, mu = np.split(half_bounded(system, right, counts[0], tol=1e-14), [counts[0]])
    return torch.from_numpy(lam).to(values[0]), torch.from_numpy(mu).to(values[1])


def _lagrangian(oracle: BilevelOracle, parts: Sequence[Constraint | None], lam: Tensor, mu: Tensor) -> Level:
    """L as a level of its own, so that it is differentiated like g."""
    draw = oracle.g.draw(0)

    def call(x: Tree, y: Tree) -> Tensor:
        total = oracle.g.evaluate((x, y), draw)
        for part, weights in zip(parts, (lam, mu)):
            if part is not None:
                c = part.evaluate((x, y))
                total = total + weights.to(c) @ c
        return total

    return Level("lower", call, oracle.calls)


def _adjoint(yy: Any, face: Tangent, of_y: Any, f_y: Vec) -> tuple[Vec, np.ndarray, float, LinearStatus]:
    """v, w of the module's system, its residual and why MINRES ended."""
    n, m = f_y.size, of_y.shape[0]

    def turned(v: Vec) -> Vec:
        flat = v.leaves[0]
        one = f_y.unravel(flat[:n])
        along = face.project(one)
        push = f_y.unravel(torch.from_numpy(np.asarray(of_y.T @ flat[n:].cpu().numpy())).to(f_y.device))
        top = face.project(yy(along) + push) + (one - along)
        if face.bend is not None:
            top = top + face.bend(along)
        bottom = torch.from_numpy(np.asarray(of_y @ along.ravel().double().cpu().numpy())).to(flat)
        return v.like([torch.cat([top.ravel().double(), bottom])])

    b = face.project(f_y).ravel().double()
    right = Vec.of(torch.cat([b, b.new_zeros(m)]))
    minres, eps = Minres(), torch.finfo(f_y.dtype).eps
    found = minres.solve(minres.init(System(turned, n + m, like=right)), right, tol=1e4 * eps * float(right.norm()))
    flat = found.x.leaves[0]
    return face.project(f_y.unravel(flat[:n])), flat[n:].cpu().numpy(), found.residual, found.reason


def _stacked(parts: Sequence[Any]) -> Any:
    from scipy import sparse

    rows = [part for part in parts if part is not None]
    return sparse.vstack(rows).tocsr() if rows else None
