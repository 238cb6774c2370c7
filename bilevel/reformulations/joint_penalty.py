"""Penalised objectives in both variables at once, (f + gamma p) / max(gamma, 1) as a function of u = (x, y) for `descent`.

    ValueGap        p = g(x, y) - v(x),  v(x) = min over Y of g(x, .)     grad p = (g_x(x, y) - g_x(x, z), g_y(x, y))
    GradientNorm    p = |g_y(x, y)|^2 / 2                                 grad p = (g_xy g_y, g_yy g_y)

z is a minimiser of g(x, .), found from the last one. Source: Shen and Chen, arXiv 2302.05185.
"""

from __future__ import annotations

import math

from constrained.core.vec import Vec
from constrained.descent import Descent, DescentStatus, Method, Reformulation, residual
from constrained.sets import ConvexSet, Product

from ..oracle import BilevelOracle
from .accuracy import floor, tightened
from .nested_penalty import Inner, inner_minimum


def joint(x: Vec, y: Vec) -> Vec:
    """u = (x, y); `apart` gives the two back."""
    return Vec.of((x, y))


def apart(u: Vec) -> tuple[Vec, Vec]:
    """(x, y) of u."""
    x, y = u.tree()
    return x, y


def joint_set(oracle: BilevelOracle) -> ConvexSet:
    """X x Y."""
    return Product({0: oracle.X, 1: oracle.Y})


class JointPenalty(Reformulation):
    """(f + gamma p) / max(gamma, 1). After a call: `upper` = f, `gap` = p, and `reason`, which tells a failed inner solve.

    The scale keeps the curvature along p that of p, whatever gamma. `best`: the smallest residual seen.
    """

    def __init__(self, oracle: BilevelOracle, gamma: float, best: float):
        self.oracle, self.gamma, self.best = oracle, gamma, best
        self.set = joint_set(oracle)
        self.upper = self.gap = math.nan

    @property
    def scale(self) -> float:
        return max(self.gamma, 1.0)

    def residual(self, s: Descent) -> float:
        """R = |u - P(u - grad (f + gamma p))|, unscaled."""
        return residual(self.set, s.x, s.gradient * self.scale)


class ValueGap(JointPenalty):
    """p = g - v, by gradients only. `z`: the minimiser of g(x, .) at the last x, and the inner method's memory.

    theta: |g_y(x, z)| is kept below theta times the scaled residual, so that the error of v's gradient is a fraction of it.
    """

    def __init__(self, oracle: BilevelOracle, gamma: float, best: float, method: Method, z: Inner, theta: float, max_inner: int):
        super().__init__(oracle, gamma, best)
        self.method, self.z, self.theta, self.max_inner = method, z, theta, max_inner

    def __call__(self, u: Vec) -> tuple[float, Vec]:
        x, y = apart(u)
        (f, g), (h_x, h_y) = self.oracle.penalised(1 / self.gamma, x, y, wrt=(0, 1))
        share, least, known = self.gamma / self.scale, floor(x), self.best
        v, grad = None, u

        def evaluate(tol: float) -> float:
            nonlocal v, grad
            v = inner_minimum(self.oracle, self.method, x, self.z, tol, self.max_inner)
            self.z = v.inner
            grad = joint(h_x - v.x_gradient, h_y) * share
            return residual(self.set, u, grad)

        def wanted(r: float) -> float:
            return max(self.theta * min(1.0, known, r), least)

        r = tightened(evaluate, wanted, least)
        assert v is not None
        self.best = min(known, r) if math.isfinite(r) else known
        self.upper, self.gap = float(f), float(g) - v.g
        self.reason = v.reason if v.reason in (DescentStatus.NONFINITE, DescentStatus.UNBOUNDED) else DescentStatus.CONVERGED
        return share * (float(f) / self.gamma + self.gap), grad


class GradientNorm(JointPenalty):
    """p = |g_y|^2 / 2: one product with g_yy and one with g_xy an evaluation. The whole space for y only."""

    def __call__(self, u: Vec) -> tuple[float, Vec]:
        x, y = apart(u)
        here, share = self.oracle.g.at(x, y), self.gamma / self.scale
        f, (f_x, f_y) = self.oracle.f.gradient((x, y), None, (0, 1))
        grad = joint(f_x / self.gamma + here.xy(here.y), f_y / self.gamma + here.yy(here.y)) * share
        self.upper, self.gap = float(f), 0.5 * float(here.y @ here.y)
        self.best = min(self.best, residual(self.set, u, grad))
        return share * (self.upper / self.gamma + self.gap), grad
