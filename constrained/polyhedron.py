"""Projection on {v in S: A v <= b, E v = d} by Newton's method, on the dual or on few variables.

    theta(mu) = min over w in S of |w - u|^2 / 2 + mu'(R w - r),  w(mu) = P_S(u - R'mu),  grad theta = R w(mu) - r

with R the rows of E and A, mu free for the first and >= 0 for the second. theta is concave and C1. Where S projects entry by
entry its generalised Hessian is -R F R', F one on the entries that S leaves alone; on other sets F = I gives a majorant. What
Newton leaves is done by projected L-BFGS.

Where each row is an inequality with slack variables of its own (columns with one entry, squares adding up to a_i) and S is the
whole space, these are eliminated, and the rest s is the minimiser of a smooth piecewise quadratic function,

    |s - s0|^2 / 2 + sum max(0, D s + c)_i^2 / (2 a_i),      mu_i = max(0, D s + c)_i / a_i

on which Newton ends after a few steps; the cost is linear in the number of rows or in that of the shared variables, whichever is
larger.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from .core.deadline import look
from .core.errors import ProblemError, Unsuitable
from .core.vec import Vec
from .descent import ProjectedLBFGS, minimise
from .sets import Box, ConvexSet, Everywhere
from .sets.tangent import Tangent, has_tangent, tangent

STEPS = 50  # Newton steps
ARMIJO = 1e-4
HELD = 1e-11  # of the multipliers: larger ones hold their row
SHIFT = 1e-3  # of the Newton matrix, times the residual


class Sheet:
    """A scipy.sparse matrix R by its columns: those with one entry (row, column, value) apart, the others dense."""

    def __init__(self, matrix: Any):
        csc = matrix.tocsc()
        csc.eliminate_zeros()
        counts = np.diff(csc.indptr)
        single = np.flatnonzero(counts == 1)
        self.shape = csc.shape
        self.shared = torch.from_numpy(np.flatnonzero(counts > 1))
        self.dense = torch.from_numpy(csc[:, self.shared.numpy()].toarray())
        at = csc.indptr[single]
        self.column, self.row = torch.from_numpy(single), torch.from_numpy(csc.indices[at].astype(np.int64))
        self.value = torch.from_numpy(csc.data[at])

    def times(self, v: Tensor) -> Tensor:
        """R v."""
        return (self.dense @ v[self.shared]).index_add(0, self.row, self.value * v[self.column])

    def transposed(self, mu: Tensor) -> Tensor:
        """R'mu."""
        out = mu.new_zeros(self.shape[1])
        out[self.shared] = self.dense.T @ mu
        out[self.column] = self.value * mu[self.row]
        return out

    @property
    def slack(self) -> Tensor:
        """a: squares of each row's own columns."""
        return self.value.new_zeros(self.shape[0]).index_add(0, self.row, self.value**2)

    def eliminated(self, u: Tensor, right: Tensor) -> Tensor:
        """mu of the projection of u on R w <= right, where each row has a slack variable of its own."""
        a, root = self.slack, self.slack.sqrt()
        s0 = u[self.shared]
        s, c = s0, right.new_zeros(len(right)).index_add(0, self.row, self.value * u[self.column]) - right
        over = (self.dense @ s + c).clamp(min=0)
        value = 0.5 * float((over**2 / a).sum())
        for _ in range(STEPS):
            V = (self.dense / root[:, None])[over > 0]
            gradient = s - s0 + self.dense.T @ (over / a)
            if len(V) < len(s):
                W = V @ V.T + torch.eye(len(V), dtype=V.dtype)
                step = V.T @ torch.linalg.solve(W, V @ gradient) - gradient
            else:
                step = -torch.linalg.solve(V.T @ V + torch.eye(len(s), dtype=V.dtype), gradient)
            slope, t = float(gradient @ step), 1.0
            if -slope <= 1e-28 * (1 + float(s0 @ s0)) or t * float(step.abs().max()) <= 1e-16 * float(s.abs().max()):
                break
            while True:
                new = s + step * t
                over = (self.dense @ new + c).clamp(min=0)
                lower = 0.5 * float((new - s0) @ (new - s0) + (over**2 / a).sum())
                if lower <= value + ARMIJO * t * slope or t * -slope <= 1e-13 * value or t < 1e-10:
                    break
                t *= 0.5
            s, value = new, lower
        return over / a

    def newton(self, r: Tensor, rows: Tensor, free: Tensor, shift: float) -> Tensor:
        """d on `rows` with (R F R' + shift I) d = r there; zero elsewhere."""
        D = self.dense[rows] * free[self.shared]
        own = r.new_zeros(self.shape[0]).index_add(0, self.row, self.value**2 * free[self.column])[rows]
        right, d = r[rows], torch.zeros_like(r)
        if D.shape[1] < len(own) and bool((own > 1e-6).all()):
            small = torch.eye(D.shape[1], dtype=D.dtype) + D.T @ (D / own[:, None])
            d[rows] = (right - D @ torch.linalg.solve(small, D.T @ (right / own))) / own
        else:
            d[rows] = torch.linalg.solve(torch.diag(own + shift) + D @ D.T, right)
        return d


@final
class Polyhedron(ConvexSet):
    """{v in S: A ravel(v) <= b, E ravel(v) = d}, over all leaves; S is a box or any other convex set.

    `A`, `E`: matrices, dense or scipy.sparse, with one column an entry of the variable; `b`, `d`: one number a row. `inside`: S.
    Redundant rows are allowed. By Newton's method on the dual, to rounding where S is a box or the whole space; S needs a point
    in its interior with E v = d. Rows that each have a slack variable of their own cost time linear in their number.

    Raises ProblemError where matrices and vectors are not finite or do not fit; `check`, and any projection, where the variable
    has another number of entries and where the set is empty.

    >>> Polyhedron([[1.0, 1.0], [-1.0, 0.0]], [1.0, 0.0]).project(Vec.of(torch.tensor([2.0, 2.0]))).tree()
    tensor([0.5000, 0.5000])

    Source: Qi and Sun 2006 and Li, Sun and Toh 2018 (semismooth Newton on the dual); see the module.
    """

    def __init__(self, A: Any = None, b: Any = None, E: Any = None, d: Any = None, inside: ConvexSet | None = None):
        super().__init__()
        if (A is None) != (b is None) or (E is None) != (d is None) or (A is None and E is None):
            raise ProblemError("Polyhedron: expected A with b, E with d, or both pairs")
        equal, right_e = _pair(E, d, "E", "d")
        below, right_b = _pair(A, b, "A", "b")
        parts = [part for part in (equal, below) if part is not None]
        from scipy import sparse

        if len({part.shape[1] for part in parts}) != 1:
            raise ProblemError(f"Polyhedron: A and E have {parts[0].shape[1]} and {parts[1].shape[1]} columns")
        if not parts[0].shape[1]:
            raise ProblemError("Polyhedron: A, E: expected a column for each entry of the variable, got none")
        rows: Any = sparse.vstack(parts).tocsr()
        right = np.concatenate([right_e, right_b])
        size = np.sqrt(np.asarray(rows.multiply(rows).sum(1)).ravel())
        size[size == 0] = 1.0
        self.size, self.equalities, self.rows = rows.shape[1], len(right_e), len(right)
        self.inside = inside if inside is not None else Everywhere()
        self.sheet, self.right = Sheet(sparse.diags(1 / size) @ rows), torch.from_numpy(right / size)
        self.own = self.inside.whole and not self.equalities and bool((self.sheet.slack > 1e-6).all())

    def project(self, v: Vec) -> Vec:
        self._on(v)
        return self._projected(v)[0]

    def _projected(self, v: Vec) -> tuple[Vec, Tensor, Tensor]:
        """The projection, mu, and F."""
        u = v.ravel().double().cpu()
        if not bool(u.isfinite().all()):
            return v, torch.zeros_like(self.right), torch.ones_like(u)
        like = Vec.of(u) if self.inside.whole else v.map(torch.Tensor.double)
        if not self.rows:
            w, _, _, free = self._at(u, self.right, like)
            return v.unravel(w.to(v.device)), self.right, free
        tol = 1e-13 * (1 + float(u.abs().max()) + float(self.right.abs().max()))
        mu = self.sheet.eliminated(u, self.right) if self.own else self._dual(u, like, tol)
        w, _, _, free = self._at(u, mu, like)
        violation = self.sheet.times(w) - self.right
        violation[self.equalities :].clamp_(min=0)
        if not float(violation.abs().max()) <= 1e4 * tol + 1e-9 * (1 + float(u.abs().max())):
            raise ProblemError(f"{self!r}: a violation of {float(violation.abs().max()):.1e} remains: the set is empty")
        return v.unravel(w.to(v.device)), mu, free

    def _dual(self, u: Tensor, like: Vec, tol: float) -> Tensor:
        """The maximiser of theta."""
        mu = torch.zeros_like(self.right)
        _, theta, slope, free = self._at(u, mu, like)
        for _ in range(STEPS):
            gap = float((mu - self._clipped(mu + slope)).abs().max())
            if gap <= tol:
                break
            # Multipliers at 0, or near it, that the slope pushes there move along the slope (two-metric projection).
            bound = (mu <= gap) & (slope <= 0)
            bound[: self.equalities] = False
            shift = max(min(SHIFT, SHIFT * gap), 1e-14)  # R F R' is singular where S leaves few entries alone
            step = slope.clone()
            step[~bound] = 0.0
            step = step + self.sheet.newton(slope, ~bound, free, shift) if not bool(bound.all()) else step
            for direction in (step, slope):
                found = self._search(u, mu, direction, theta, slope, gap, like)
                if found is not None:
                    break
            if found is None:  # nothing better along either: round-off
                break
            mu, _, theta, slope, free = found
        if float((mu - self._clipped(mu + slope)).norm()) <= 1e2 * tol:
            return mu

        def negative(m: Vec) -> tuple[float, Vec]:
            _, value, gradient, _ = self._at(u, m.leaves[0], like)
            return -float(value), m.like([-gradient])

        low = torch.full_like(mu, -math.inf)
        low[self.equalities :] = 0.0
        return minimise(ProjectedLBFGS(), negative, Vec.of(mu), tol=tol, X=Box(low), max_steps=2000).x.leaves[0]

    def _at(self, u: Tensor, mu: Tensor, like: Vec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """w(mu), theta, its gradient, and F."""
        look()
        moved = u - self.sheet.transposed(mu)
        w = moved if self.inside.whole else self.inside.project(like.unravel(moved.to(like.device))).ravel().cpu()
        slope = self.sheet.times(w) - self.right
        apart = w - u
        free = (w == moved).double() if self.inside.entrywise else torch.ones_like(w)
        return w, 0.5 * (apart @ apart) + mu @ slope, slope, free

    def _search(
        self, u: Tensor, mu: Tensor, direction: Tensor, theta: Tensor, slope: Tensor, gap: float, like: Vec
    ) -> tuple[Tensor, ...] | None:
        """The first of mu + t direction, t = 1, 1/2, ..., projected, with a higher theta; at rounding, with a smaller gap."""
        noise = 1e-13 * (1 + float(theta.abs()) + float(mu.abs() @ self.right.abs()))
        for halvings in range(40):
            new = self._clipped(mu + direction * 0.5**halvings)
            w, value, gradient, free = self._at(u, new, like)
            promised = float(slope @ (new - mu))
            smaller = float((new - self._clipped(new + gradient)).abs().max()) < 0.9 * gap
            if promised > 0 and (value >= theta + ARMIJO * promised or (value >= theta - noise and smaller)):
                return new, w, value, gradient, free
        return None

    def _clipped(self, mu: Tensor) -> Tensor:
        return torch.cat([mu[: self.equalities], mu[self.equalities :].clamp(min=0)])

    def _fit(self, v: Vec, name: str) -> tuple[()]:
        if v.size != self.size:
            raise ProblemError(f"{name}: {self!r} expects {self.size} entries, got {v.size}")
        self.inside.check(v, name)
        self._projected(v.zeros())
        return ()

    def __repr__(self) -> str:
        return f"Polyhedron(A=<{self.rows - self.equalities} x {self.size}>, E=<{self.equalities} x {self.size}>)"


@has_tangent.register
def _(Y: Polyhedron) -> bool:
    return Y.inside.entrywise


@tangent.register
def _(Y: Polyhedron, z: Vec) -> Tangent:
    """The null space of the rows with multipliers, among the entries that S leaves alone."""
    if not Y.inside.entrywise:
        raise Unsuitable(f"Y: derivatives through {Y!r} are known where `inside` is a Box or the whole space")
    Y._on(z)
    _, mu, free = Y._projected(z)
    held = mu > HELD * (1 + max(mu.abs().tolist(), default=0.0))
    held[: Y.equalities] = True
    normals = [free * Y.sheet.transposed(row) for row in torch.eye(Y.rows, dtype=mu.dtype)[held]]
    U, size, _ = torch.linalg.svd(torch.stack([torch.zeros_like(free), *normals]).T, full_matrices=False)
    basis = U[:, size > 1e-12 * max(1.0, float(size[0]))]

    def project(v: Vec) -> Vec:
        kept = free * v.ravel().double().cpu()
        return v.unravel((kept - basis @ (basis.T @ kept)).to(v.device))

    return Tangent(project)


def _pair(matrix: Any, right: Any, left_name: str, right_name: str) -> tuple[Any, np.ndarray]:
    """A scipy.sparse matrix and its right-hand side; nothing where there is none."""
    if matrix is None:
        return None, np.zeros(0)
    if isinstance(matrix, Tensor):
        matrix = matrix.detach().double().cpu().numpy()
    from scipy import sparse

    try:
        rows: Any = sparse.csr_matrix(matrix, dtype=np.float64)
        side = np.atleast_1d(np.asarray(right.detach().cpu() if isinstance(right, Tensor) else right, dtype=np.float64))
    except (TypeError, ValueError, OverflowError) as cause:
        raise ProblemError(f"Polyhedron: {left_name}, {right_name}: expected a matrix and one number a row ({cause})") from None
    if side.ndim != 1 or rows.shape[0] != len(side):
        raise ProblemError(f"Polyhedron: {left_name}, {right_name}: got shapes {rows.shape} and {side.shape}")
    if not (np.isfinite(rows.data).all() and np.isfinite(side).all()):
        raise ProblemError(f"Polyhedron: {left_name}, {right_name}: expected finite numbers")
    return rows, side
