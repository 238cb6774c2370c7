"""K = [[H + D + dw I, J'], [J, -E]] factored, dw and a diagonal in E raised until it has n positive and m negative eigenvalues.

Then the step is one of descent for the barrier function on the null space of J (Waechter and Biegler 2006, section 3.1). Dense K:
Bunch and Kaufman's L B L', whose blocks tell the inertia. Sparse K: SuperLU without pivoting off the diagonal, where the
signs of its pivots do; QUASI in E keeps these away from zero, and refinement takes its effect away again. Either is equilibrated
first: S K S has the inertia of K, and of its pivots one that is round-off can be told from one in small units.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .program import Array

FIRST, LEAST, MOST = 1e-4, 1e-20, 1e30  # shifts of the Hessian
AGAIN, GROWTH, FIRST_GROWTH = 1 / 3, 8.0, 100.0
REGULAR = 1e-8  # mu^(1/4) times that against rows that depend on one another
PIVOT = 1e-14  # a pivot of the equilibrated K that counts as zero
QUASI = 1e-8
EVENED = 3  # rounds of equilibration
BLOCK = 64  # columns that dsytrf works on at once: without room for them it goes one by one, ten times slower
REFINEMENTS, EXACT = 10, 1e-12  # steps at most, and the relative residual at which they end
SOLVED = 1e-8  # the relative residual of a sparse system that has a solution


@dataclass(frozen=True)
class Factors:
    """K's solver, the shift dw and the regularisation dc it took."""

    solve: Callable[[Array], Array]
    dw: float
    dc: float


@dataclass(frozen=True)
class Matrices:
    """H, D (a vector), J and Sigma_s, the slacks' part, 0-length without inequalities; the others of m are equalities."""

    H: Any
    D: Array
    J: Any
    slack: Array
    sparse: bool

    def corner(self, dw: float, dc: float) -> Array:
        """E."""
        e = self.J.shape[0] - len(self.slack)
        return np.concatenate([np.full(e, dc), dc + 1.0 / (self.slack + dw)])

    def product(self, z: Array, dw: float, E: Array) -> Array:
        """K z."""
        n = len(self.D)
        x, y = z[:n], z[n:]
        return np.concatenate([self.H @ x + (self.D + dw) * x + self.J.T @ y, self.J @ x - E * y])


def factored(matrices: Matrices, last: float, mu: float) -> Factors | None:
    """With the smallest shift tried that gives the inertia (n, m, 0). last: the shift of before. None: there is none."""
    n, m = len(matrices.D), matrices.J.shape[0]
    if not np.isfinite([largest(A) for A in (matrices.H, matrices.J, matrices.D)]).all():
        return None
    dw = dc = 0.0
    while True:
        found, dependent = factor(matrices, dw, dc, PIVOT), True
        if found is not None:
            solve, positive, zero = found
            refined = _refined(matrices, solve, dw, dc)
            dependent = zero > 0 or (matrices.sparse and positive == n and not _solves(matrices, refined, dw, dc))
            if positive == n and not (dependent and m and dc == 0.0):
                return Factors(refined, dw, dc)
        if dependent and m and dc == 0.0:  # of inequalities too: where they are active, E vanishes
            dc = REGULAR * max(mu, 1e-16) ** 0.25
            continue
        if dw == 0.0:
            dw = FIRST if last == 0.0 else max(LEAST, last * AGAIN)
        else:
            dw *= FIRST_GROWTH if last == 0.0 else GROWTH
        if dw > MOST:
            return None


def largest(A: Any) -> float:
    """Its largest entry in size, 0 where it has none; of a vector or a matrix."""
    entries = A.data if hasattr(A, "tocsr") else A
    return float(np.abs(entries).max(initial=0.0))


def _refined(matrices: Matrices, solve: Callable[[Array], Array], dw: float, dc: float) -> Callable[[Array], Array]:
    """A solve and steps of refinement, as long as they help: one of a dense system."""
    E = matrices.corner(dw, dc)

    def refined(b: Array) -> Array:
        z, enough = solve(b), EXACT * float(np.linalg.norm(b))
        r = b - matrices.product(z, dw, E)
        for _ in range(REFINEMENTS if matrices.sparse else 1):
            size = float(np.linalg.norm(r))
            if size <= enough:
                break
            better = z + solve(r)
            left = b - matrices.product(better, dw, E)
            if not float(np.linalg.norm(left)) < size:
                break
            z, r = better, left
        return z

    return refined


def _solves(matrices: Matrices, solve: Callable[[Array], Array], dw: float, dc: float) -> bool:
    """A system with a right side drawn at random has a solution: K is not singular without QUASI."""
    E = matrices.corner(dw, dc)
    b = np.random.default_rng(0).standard_normal(len(matrices.D) + len(E))
    left = b - matrices.product(solve(b), dw, E)
    return float(np.linalg.norm(left)) <= SOLVED * float(np.linalg.norm(b))


def factor(matrices: Matrices, dw: float, dc: float, floor: float) -> tuple[Callable[[Array], Array], int, int] | None:
    """A solver, the number of positive pivots and of those that are zero; None: no factors, or no inertia to be had."""
    return (_sparse if matrices.sparse else _dense)(matrices, dw, dc, floor)


def _dense(matrices: Matrices, dw: float, dc: float, floor: float) -> tuple[Callable[[Array], Array], int, int] | None:
    from scipy.linalg.lapack import dsytrf, dsytrs  # pyright: ignore[reportAttributeAccessIssue]

    n, m = len(matrices.D), matrices.J.shape[0]
    K = np.zeros((n + m, n + m), order="F")
    K[:n, :n] = matrices.H
    K[n:, :n] = matrices.J
    diagonal = np.einsum("ii->i", K)
    diagonal[:n] += matrices.D + dw
    diagonal[n:] = -matrices.corner(dw, dc)
    s = _equilibrium(np.maximum(np.abs(K), np.abs(K.T)))
    K *= np.outer(s, s)
    ldl, pivots, info = dsytrf(K, lower=1, lwork=BLOCK * (n + m), overwrite_a=1)
    if info < 0:
        return None
    d, single = np.diagonal(ldl), pivots > 0
    pairs = int((~single).sum()) // 2  # a block of two has one eigenvalue of each sign
    ones = d[single]
    zero = int((np.abs(ones) <= floor).sum())
    return lambda b: s * dsytrs(ldl, pivots, s * b, lower=1)[0], int((ones > floor).sum()) + pairs, zero


def _equilibrium(size: Any) -> Array:
    """s that makes the largest entry of each row of s_i |K_ij| s_j about 1. size: |K|."""
    s = np.ones(size.shape[0])
    for _ in range(EVENED):
        rows = size.multiply(s).max(axis=1).toarray().ravel() if hasattr(size, "tocsr") else (size * s).max(axis=1)
        s = s / np.sqrt(np.where(rows > 0, s * rows, 1.0))
    return s


def _sparse(matrices: Matrices, dw: float, dc: float, floor: float) -> tuple[Callable[[Array], Array], int, int] | None:
    from scipy.sparse import block_array, csc_array, diags_array
    from scipy.sparse.linalg import splu

    m = matrices.J.shape[0]
    H = matrices.H + diags_array(matrices.D + dw)
    E = matrices.corner(dw, max(dc, QUASI))
    K = csc_array(block_array([[H, matrices.J.T], [matrices.J, diags_array(-E)]])) if m else csc_array(H)
    s = _equilibrium(abs(K))
    try:
        with warnings.catch_warnings(action="ignore"):
            even = csc_array(diags_array(s) @ K @ diags_array(s))
            lu = splu(even, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except RuntimeError:  # exactly singular
        return None
    if not np.array_equal(lu.perm_r, lu.perm_c):
        return None
    d = lu.U.diagonal()
    return lambda b: s * lu.solve(s * b), int((d > floor).sum()), int((np.abs(d) <= floor * 1e-6).sum())
