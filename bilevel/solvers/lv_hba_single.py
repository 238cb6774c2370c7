"""LVHBASingleLoop: the published single-loop Hessian-free iteration of Yao, Yu, Zeng and Zhang (2024).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y, h(x, y) = 0 or <= 0 };  C = {(x, y) in X x Y : constraints}
    convex, g convex in y, with multipliers at its solutions.

Reformulation
    min f / c + g - v over C x Z, c -> infinity, with v the proximal Lagrangian value function of `regularised_value.py` and
    Z = [0, r] for inequalities, [-r, r] for equalities.

Algorithm 1 (step k, c_k = c(k))
    (1) th+ = P_Y(th - eta (g_y(x, th) + J_y(x, th)'la + (th - y) / gamma1))
        la+ = P_Z(la + eta (h(x, th) - (la - z) / gamma2))                                          from the old th, la
    (2) d_x = f_x / c_k + g_x(x, y) - g_x(x, th+) - J_x(x, th+)'la+
        d_y = f_y / c_k + g_y(x, y) - (y - th+) / gamma1,      d_z = -(la+ - z) / gamma2
    (3) (x, y) <- P_C((x, y) - alpha (d_x, d_y)),      z <- P_Z(z - beta d_z)
    (4) stop where c_k >= 1 / tol and what each moved over its step, max(c_k, 1) |(x, y)+ - (x, y)| / alpha, |z+ - z| / beta and
        |(th, la)+ - (th, la)| / eta, is <= tol / 10
    answer: x, and the lower solution reached from (y, z)

Notation
    f upper, g lower, h both kinds of constraints; F, f, g of the paper. th = theta in the state, J the Jacobian of h; of `rows`:
    value = h, vjp = (J_x'la, J_y'la), clipped = P_Z. t_th and t_la are the directions of (1).

References
    Yao, Yu, Zeng, Zhang: ICLR 2024, arXiv 2401.16164, Algorithm 1. Deviations: the constraints' rows are normalised
    (`coupled_set.py`), which scales la and z; the step sizes are estimated where none are given; the answer is a lower solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constrained.core.options import Positive, Power, Schedule, Steps, at
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec
from constrained.descent.newton_cg import NewtonCG
from constrained.linear.spectrum import curvature
from constrained.sets import ConvexSet, Everywhere

from ..lower.constraints import LowerConstraints
from ..lower.coupled_set import Coupled, coupled, join
from ..lower.regularised_value import solve_constrained_lower
from ..oracle import BilevelOracle
from ..single_loop import grown, size

PROBES = 12  # gradient differences an estimate of a Lipschitz constant takes
STEEP = 1e150  # a slope whose square is a number


@solver_state("LVHBASingleLoopState")
class LVHBASingleLoopState:
    """The point, the saddle, the step sizes in use."""

    k: int
    x: Vec
    y: Vec
    z: Tensor  # multipliers of the normalised rows
    theta: Vec
    la: Tensor
    eta: float  # step of (1) where it is estimated
    alpha: float  # step of (x, y) where it is estimated
    moved: float  # the largest of c |(x, y) step| / alpha, |z step| / beta, |(1)'s step| / eta
    scale: float  # 1 + the norm of the start
    upper: float  # f(x, y)
    gap: float  # g(x, y) - g(x, theta)


@dataclass(frozen=True, kw_only=True)
class LVHBASingleLoop(Solver[BilevelOracle, LVHBASingleLoopState]):
    """Algorithm 1 of the LV-HBA paper: one projected step of the saddle, then one of (x, y, z).

    th, la by a step of descent and ascent; (x, y) <- P_C((x, y) - alpha (grad f / c + grad (g - v))), z <- P_Z(z - beta d_z).

    c: penalty weights, growing. gamma1, gamma2: regularisation in y and the multipliers. alpha, beta, eta: steps of (x, y), z and
    the saddle; None: eta = mu / (2 L^2) with mu = min(1 / gamma1, 1 / gamma2) and L estimated for the saddle's operator, alpha =
    1 / (2 L), at most eta, with L estimated for grad f + grad g and 1 / gamma1 added, beta = gamma2 / 2, at most alpha. r: bound
    on the multipliers. coupled: as in `LVHBA`. max_outer: steps. A step takes four gradients a step, first order only; none of
    its steps is guarded by a line search. Accurate to about a hundredth: the bias is 1 / c.

    >>> LVHBASingleLoop.paper().alpha
    0.008

    Source: arXiv 2401.16164, Algorithm 1; see the module for the deviations.
    """

    supports: ClassVar[Feature] = (
        Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.LOWER_EQUALITY | Feature.LOWER_INEQUALITY
    )
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    c: Positive | Schedule = Power(1.0, -0.45)
    gamma1: Positive = 1.0
    gamma2: Positive = 1.0
    alpha: Positive | Schedule | None = None
    beta: Positive | Schedule | None = None
    eta: Positive | Schedule | None = None
    r: Positive = 1e3
    coupled: ConvexSet | None = None
    max_outer: Steps = 25_000

    @classmethod
    def paper(cls) -> LVHBASingleLoop:
        """The step sizes of the authors' script for `lv-hba-llc`, on normalised rows."""
        return cls(alpha=0.008, beta=0.02, eta=0.01, gamma1=10.0, gamma2=10.0, c=Power(0.025, -0.3))

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: BilevelOracle, start: Point) -> LVHBASingleLoopState:
        set = self._set(oracle)
        x, y = set.pair.split(set.C.project(Vec.of(join(start.x, start.y))).leaves[0])
        z = set.rows.start(start.multipliers)
        mu = min(1 / self.gamma1, 1 / self.gamma2)

        def saddle(u: Tensor) -> Tensor:
            d_th, d_la = self._operator(oracle, set.rows, x, y, z, y.unravel(u[: y.size]), u[y.size :])
            return torch.cat([d_th.ravel().double(), d_la])

        def levels(u: Tensor) -> Tensor:
            at_u = set.pair.split(u)
            return join(*(a + b / max(at(self.c, 0), 1.0) for a, b in zip(oracle.g.grad(*at_u), oracle.f.grad(*at_u)))).double()

        eta = 1.0 if self.eta is not None else 0.5 * mu / _lipschitz(saddle, torch.cat([y.ravel().double(), z])) ** 2
        alpha = 1.0 if self.alpha is not None else 0.5 / (_lipschitz(levels, join(x, y)) + 1 / self.gamma1)
        inf = math.inf
        alpha = min(alpha, eta) if self.alpha is None and self.eta is None else alpha  # the saddle must follow (x, y)
        return LVHBASingleLoopState(0, x, y, z, y, z, eta, alpha, inf, size(x, y), math.nan, math.nan)

    def step(self, oracle: BilevelOracle, state: LVHBASingleLoopState) -> LVHBASingleLoopState:
        f, g, Y, set = oracle.f, oracle.g, oracle.Y, self._set(oracle)
        k, x, y, z, th, la, rows = state.k, state.x, state.y, state.z, state.theta, state.la, set.rows
        eta = state.eta if self.eta is None else at(self.eta, k)
        alpha = state.alpha if self.alpha is None else at(self.alpha, k)
        beta = min(self.gamma2 / 2, alpha) if self.beta is None else at(self.beta, k)
        c = at(self.c, k)

        t_th, t_la = self._operator(oracle, rows, x, y, z, th, la)
        new_th, new_la = Y.project(th - t_th * eta), rows.clipped(la - t_la * eta)  # (1)

        upper, (f_x, f_y) = f.gradient((x, y), wrt=(0, 1))
        lower, (g_x, g_y) = g.gradient((x, y), wrt=(0, 1))
        value, (v_x,) = g.gradient((x, new_th), wrt=(0,))
        v_x = v_x + rows.vjp(x, new_th, new_la)[0]
        d_x = f_x / c + g_x - v_x  # (2)
        d_y = f_y / c + g_y - (y - new_th) / self.gamma1  # (2)
        d_z = -(new_la - z) / self.gamma2  # (2)

        old = join(x, y)
        new = set.C.project(Vec.of(old - alpha * join(d_x, d_y))).leaves[0]  # (3)
        new_z = rows.clipped(z - beta * d_z)  # (3)
        moved = max(
            max(c, 1.0) * float((new - old).double().norm()) / alpha,
            float((new_z - z).norm()) / beta,
            math.hypot(float((new_th - th).norm()), float((new_la - la).norm())) / eta,
        )
        new_x, new_y = set.pair.split(new)
        return LVHBASingleLoopState(
            k + 1,
            new_x,
            new_y,
            new_z,
            new_th,
            new_la,
            state.eta,
            state.alpha,
            moved,
            state.scale,
            float(upper),
            float(lower - value),
        )

    def terminate(self, oracle: BilevelOracle, state: LVHBASingleLoopState) -> Status:
        if state.moved <= 0.1 * self.tolerance and at(self.c, state.k) >= 1 / self.tolerance:  # (4)
            return Status.CONVERGED
        return grown(state.scale, state.x, state.y, state.theta)

    def answer(self, oracle: BilevelOracle, state: LVHBASingleLoopState) -> Point:
        rows, x, y = self._set(oracle).rows, oracle.X.project(state.x), oracle.Y.project(state.y)
        tol = max(1e-2 * self.tolerance, 500 * torch.finfo(y.dtype).eps)
        found = solve_constrained_lower(oracle, rows, x, y, state.z, tol, method=NewtonCG().for_set(oracle.Y))
        return Point(x, found.y, rows.report(found.multipliers))

    def monitor(self, state: LVHBASingleLoopState) -> dict[str, float]:
        return {"upper": state.upper, "gap": state.gap, "moved": state.moved} if state.k else {}

    def notes(self, state: LVHBASingleLoopState) -> tuple[str, ...]:
        if bool((state.z.abs() >= 0.99 * self.r).any()):
            return (f"A lower multiplier reached r = {self.r:g}: no multipliers exist, or r must be larger.",)
        return ()

    def _set(self, oracle: BilevelOracle) -> Coupled:
        return coupled(oracle, self.r, self.coupled)

    def _operator(
        self, oracle: BilevelOracle, rows: LowerConstraints, x: Vec, y: Vec, z: Tensor, th: Vec, la: Tensor
    ) -> tuple[Vec, Tensor]:
        """(1): T(th, la), the gradient in th and minus the one in la of the regularised Lagrangian."""
        g_y = oracle.g.grad_y(x, th) + rows.vjp(x, th, la)[1]
        return g_y + (th - y) / self.gamma1, (la - z) / self.gamma2 - rows.value(x, th)


def _lipschitz(operator: Callable[[Tensor], Tensor], u: Tensor) -> float:
    """The largest |T(u + d) - T(u)| / |d| along a power iteration from a fixed random direction; at most `STEEP`."""
    length = 1e-4 * (1 + float(u.norm()))
    found = curvature(lambda v: v.map(lambda t: operator(t).to(t)), Everywhere(), Vec.of(u), PROBES + 1, length)
    return min(max(found, 1e-8), STEEP)
