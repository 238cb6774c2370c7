"""Unrolled: differentiate the steps of gradient descent on g instead of their limit.

    forward    y_{k+1} = P_Y(y_k - eta g_y(x, y_k)),   k < K
    backward   lam_K = f_y(x, y_K);   mu = D_k lam_{k+1},  lam_k = mu - eta g_yy mu,  grad <- grad - eta g_xy mu     at y_k

from grad = f_x, D_k the derivative of P_Y at y_k - eta g_y. v = eta sum of the mu solves the adjoint system at y_K up to lam_0,
which is what y_0 would have contributed.

References: Franceschi, Donini, Frasconi and Pontil, arXiv 1703.01785 (reverse mode); Shaban, Cheng, Hatch and Boots, arXiv
1810.10667 (truncated).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from constrained.core.options import Steps
from constrained.core.vec import Vec
from constrained.descent import residual
from constrained.linear import CG, LinearSolution, LinearStatus, System
from constrained.linear.neumann import least_norm
from constrained.linear.spectrum import largest
from constrained.sets.tangent import Tangent, tangent

from .adjoint import Adjoint, AdjointMethod, LevelsAt, Wanted, on_tangent, read

FIRST = 16  # steps of the first round, where y needs none


@dataclass(frozen=True, kw_only=True)
class Unrolled(AdjointMethod):
    """Gradient descent on g from the y that is given, differentiated step by step from the last to the first.

    It steps until |y - P_Y(y - g_y)| is within the tolerance, and on, in rounds that double, until the adjoint residual
    |T f_y - (T g_yy T + C) v| at the last y is too, or `steps` are taken (MAX_STEPS). eta: 1 / |g_yy| by the power method at the
    start of each round, halved where g_y changes faster. The first y counts as constant.

    steps: at most. keep: the last iterates that are differentiated; None: all of them, which are K copies of y in memory. With
    `keep` the truncated gradient is off by a factor (1 - eta mu)^keep at most, mu the smallest eigenvalue of g_yy near y: what is
    left is the residual.

    A round of K steps costs K gradients forward, K gradients and K products with g_yy and g_xy each backward.

    >>> import bilevel
    >>> one = torch.ones(2, dtype=torch.float64)
    >>> f, g = lambda x, y: (y**2).sum(), lambda x, y: ((y - 3 * x) ** 2).sum()
    >>> problem = bilevel.BilevelProblem(upper=f, lower=g, x=one, y=one)
    >>> bilevel.hypergradient(problem, one, inverse=Unrolled()).value
    tensor([18., 18.], dtype=torch.float64)

    Source: arXiv 1703.01785, 1810.10667; the rounds and eta are this library's.
    """

    moves: ClassVar[bool] = True

    steps: Steps = 10_000
    keep: Steps | None = None

    def at(self, here: LevelsAt, wanted: Wanted, *, start: Vec | None = None) -> Adjoint:
        path: deque[tuple[Vec, float]] = deque(maxlen=self.keep)
        taken, products = 0, 0
        while True:
            size, spent = largest(here.lower.yy, here.y)
            here, more = self._forward(here, path, 1 / size if size > 0 else 1.0, wanted.lower, max(taken, FIRST), taken)
            found = backward(here, path, wanted, size)
            taken, products = taken + more, products + spent + found.products
            if found.reason is not LinearStatus.MAX_STEPS or taken >= self.steps or len(path) < taken or more == 0:
                reason = LinearStatus.NONFINITE if more == 0 else found.reason  # no step leads to a finite gradient
                return replace(found, reason=reason, products=products)

    def _forward(
        self, here: LevelsAt, path: deque[tuple[Vec, float]], eta: float, tol: float, least: int, taken: int
    ) -> tuple[LevelsAt, int]:
        """At least `least` steps after those `taken`, then until |y - P_Y(y - g_y)| <= tol. Where y ends, and the steps."""
        oracle, x, y, g = here.oracle, here.x, here.y, here.lower.y
        Y, eps, steps = oracle.Y, torch.finfo(y.dtype).eps, 0
        while taken + steps < self.steps and (steps < least or residual(Y, y, g) > tol):
            new = Y.project(y.add(g, -eta))
            g_new, moved, size = oracle.g.grad_y(x, new), float((new - y).norm()), 1.0 + float(y.norm())
            if steps >= least and moved <= eps * size:
                break  # rounding
            finite = bool(g_new.finite())
            # Differences of gradients say nothing where the step is too short for them.
            if not finite or (eta * float((g_new - g).norm()) > 1.5 * moved and moved > math.sqrt(eps) * size):
                if not finite and not moved > eps * size:
                    break
                eta /= 2
                continue
            path.append((y, eta))
            y, g, steps = new, g_new, steps + 1
        return (here if steps == 0 else LevelsAt.of(oracle, x, y)), steps


def backward(here: LevelsAt, path: deque[tuple[Vec, float]], wanted: Wanted, size: float) -> Adjoint:
    """The reverse pass from `here`, the end of the path; `size` about |g_yy|."""
    oracle, x, lam = here.oracle, here.x, here.f_y
    v, cross = lam.zeros(), here.f_x.zeros()
    for y, eta in reversed(path):
        there = oracle.g.at(x, y)
        mu = through(tangent(oracle.Y, y.add(there.y, -eta)), lam)
        cross, v, lam = cross.add(there.xy(mu), -eta), v.add(mu, eta), mu.add(there.yy(mu), -eta)
    A, b, eps = on_tangent(here.lower.yy, here.face), here.face.project(here.f_y), torch.finfo(lam.dtype).eps
    q = A(v)
    r = b - q
    norm, reason, tol = float(r.norm()), LinearStatus.MAX_STEPS, wanted.of(b)
    if not (math.isfinite(norm) and bool(cross.finite())):
        reason = LinearStatus.NONFINITE
    elif float(v @ q) < -100 * eps * size * float(v @ v):
        reason = LinearStatus.NEGATIVE_CURVATURE
    elif norm <= tol:
        reason = LinearStatus.SOLVED
    found = read(here, LinearSolution(v, norm, 2 * len(path) + 1, reason))
    if reason is LinearStatus.MAX_STEPS:
        least, null = least_norm(A, v, r, size)
        if null:
            return read(here, LinearSolution(least, norm, 2 * len(path) + 2, LinearStatus.LEAST_SQUARES))
    return replace(found, cross=cross)


def through(face: Tangent, v: Vec) -> Vec:
    """D v, D the derivative of the projection: T v, and with curvature the u with (T + C) u = T v."""
    along = face.project(v)
    if face.bend is None:
        return along
    curved = on_tangent(face.project, face)  # T T T + C + I - T: as many eigenvalues as curved parts, one CG step each
    return CG().solve(System(curved, v.size), along, tol=10 * torch.finfo(v.dtype).eps * float(along.norm())).x
