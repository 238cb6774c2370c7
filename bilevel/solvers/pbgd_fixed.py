"""VPBGDFixedStep and GPBGDFixedStep: penalty-based bilevel gradient descent as published (Shen and Chen 2023).

Problem
    min over x in X of f(x, y), y in argmin { g(x, y) : y in Y }; g(x, .) has the Polyak-Lojasiewicz property (for sets Y an error
    bound). G-PBGD: Y the whole space, and second derivatives.

Reformulation
    F(x, y) = f + gamma p, p = g - v with v(x) = min over Y of g(x, .) (V-PBGD), or p = |g_y|^2 / 2 (G-PBGD)

Algorithm (step k)
    (1) V-PBGD, T times: z <- P_Y(z - beta g_y(x, z))
    (2) u <- P(u - alpha grad F(u)), u = (x, y), P on X x Y; in V-PBGD with g_x(x, z) for the gradient of v
    (3) stop if |u - P(u - alpha grad F)| / alpha <= tol, of the step made
    answer: (x, z) in V-PBGD, (x, y) in G-PBGD

Notation
    f upper, g lower, gamma the penalty, alpha and beta the steps, z the paper's omega, T = `inner`; h = grad F.

References
    Shen, Chen: On penalty-based bilevel gradient descent method, arXiv 2302.05185. Deviations: z is kept from step to step, as in
    the authors' code, where the paper starts it at y; p halved in G-PBGD, as there; V-PBGD answers (x, z), which solves the lower
    level better than y does. A tuning-free form is in `pbgd.py`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from constrained.core.options import Positive, Schedule, Steps, at
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.states import solver_state
from constrained.core.status import Feature, Status
from constrained.core.vec import Vec

from ..oracle import BilevelOracle
from ..reformulations.joint_penalty import GradientNorm, joint, joint_set
from ..single_loop import grown, size


@solver_state("FixedStepState")
class FixedStepState:
    """The variables, and how far the last step went."""

    k: int
    x: Vec
    y: Vec
    z: Vec  # near the minimiser of g(x, .) (VPBGDFixedStep)
    moved: float  # |u - P(u - alpha grad F)| / alpha
    scale: float  # 1 + the norm of the start
    upper: float  # f
    gap: float  # p, of VPBGDFixedStep with g(x, z) for v


@dataclass(frozen=True, kw_only=True)
class FixedStep(Solver[BilevelOracle, FixedStepState]):
    """What the paper's two forms share: projected gradient steps on f + gamma p."""

    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    alpha: Positive | Schedule = 0.01
    gamma: Positive | Schedule = 10.0
    max_outer: Steps = 10_000

    @property
    def max_steps(self) -> int | None:
        return self.max_outer

    def init(self, oracle: BilevelOracle, start: Point) -> FixedStepState:
        x, y = start.x, start.y
        return FixedStepState(0, x, y, y, math.inf, size(x, y), math.nan, math.nan)

    def step(self, oracle: BilevelOracle, state: FixedStepState) -> FixedStepState:
        k, u, U = state.k, joint(state.x, state.y), joint_set(oracle)
        alpha = at(self.alpha, k)
        z, h, f, p = self._gradient(oracle, state, at(self.gamma, k))  # (1), and grad F of (2)
        new = U.project(u - h * alpha)  # (2)
        (x, y), moved = new.tree(), float((new - u).norm()) / alpha
        return FixedStepState(k + 1, x, y, z, moved, state.scale, f, p)

    def terminate(self, oracle: BilevelOracle, state: FixedStepState) -> Status:
        return Status.CONVERGED if state.moved <= self.tolerance else grown(state.scale, state.x, state.y, state.z)  # (3)

    def monitor(self, state: FixedStepState) -> dict[str, float]:
        return {"upper": state.upper, "gap": state.gap, "moved": state.moved} if state.k else {}

    def notes(self, state: FixedStepState) -> tuple[str, ...]:
        return ("gamma is given: the steps go to a minimiser of f + gamma p, which is O(1 / gamma) away from a solution.",)

    @abstractmethod
    def _gradient(self, oracle: BilevelOracle, s: FixedStepState, gamma: float) -> tuple[Vec, Vec, float, float]:
        """z after (1), grad F in (x, y), f and p."""


@dataclass(frozen=True, kw_only=True)
class VPBGDFixedStep(FixedStep):
    """V-PBGD as published: fixed steps on f + gamma (g(x, y) - g(x, z)), z following the minimiser of g(x, .).

    alpha: step of x and y; gamma: penalty (a schedule may ramp it); beta, inner: step of z and how many of them a step.
    max_outer: steps. A step takes `inner` + 3 gradients: with inner=1 it
    takes four gradients a step, first order only. The answer is x with z.

    Not tuning-free: alpha must stay below 2 / (L_f + gamma L_g), beta below 2 / L_g, and z must be as fast as y, else the run
    diverges. A run that has come to rest has solved the penalised problem; it is CONVERGED only if gamma is so large that
    the residuals of the bilevel problem agree, else STALLED.

    >>> VPBGDFixedStep(gamma=100.0, alpha=1e-3).beta
    0.1

    Source: arXiv 2302.05185; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET | Feature.NO_HVP

    beta: Positive | Schedule = 0.1
    inner: Steps = 1

    def answer(self, oracle: BilevelOracle, state: FixedStepState) -> Point:
        return Point(state.x, state.z)

    def _gradient(self, oracle: BilevelOracle, s: FixedStepState, gamma: float) -> tuple[Vec, Vec, float, float]:
        x, y, z = s.x, s.y, s.z
        for _ in range(self.inner):
            z = oracle.Y.project(z - oracle.g.grad_y(x, z) * at(self.beta, s.k))  # (1)
        (f, g), (q_x, q_y) = oracle.penalised(1 / gamma, x, y, wrt=(0, 1))  # of f / gamma + g
        v, (v_x,) = oracle.g.gradient((x, z), wrt=(0,))
        return z, joint(q_x - v_x, q_y) * gamma, float(f), float(g - v)


@dataclass(frozen=True, kw_only=True)
class GPBGDFixedStep(FixedStep):
    """G-PBGD as published: fixed steps on f + gamma |g_y|^2 / 2.

    alpha: step of x and y; gamma: penalty (a schedule may ramp it). max_outer: steps. It takes two gradients a step, and one
    product with each of g_yy and g_xy. The answer is (x, y) as they are.

    Not tuning-free: alpha must stay below 2 / (L_f + gamma L_g^2). A run that has come to rest has solved the penalised problem;
    it is CONVERGED only if gamma is so large that the residuals of the bilevel problem agree, else STALLED.

    >>> GPBGDFixedStep(gamma=37.0).gamma
    37.0

    Source: arXiv 2302.05185; see the module for the deviations.
    """

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET
    curved: ClassVar[bool] = True

    def answer(self, oracle: BilevelOracle, state: FixedStepState) -> Point:
        return Point(state.x, state.y)

    def _gradient(self, oracle: BilevelOracle, s: FixedStepState, gamma: float) -> tuple[Vec, Vec, float, float]:
        F = GradientNorm(oracle, gamma, math.inf)
        _, scaled = F(joint(s.x, s.y))  # of F / max(gamma, 1)
        return s.z, scaled * F.scale, F.upper, F.gap
