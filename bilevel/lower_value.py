"""The regularised value of a constrained lower level, and the gap that vanishes exactly at its solutions.

    v(x, y, z) = min over th in Y, max over la in Z of  g(x, th) + la'c(x, th) + |th - y|^2 / (2 gamma1) - |la - z|^2 / (2 gamma2)
    v_x = g_x(x, th) + J_x(x, th)'la,     v_y = (y - th) / gamma1,     v_z = (la - z) / gamma2     at the saddle (th, la)

with c the constraints, equalities first, and Z = [-r, r] for these, [0, r] for inequalities. The maximiser over la is
la = P_Z(z + gamma2 c(x, th)), so that the saddle is one smooth strongly convex minimisation over th: of an augmented Lagrangian.
g - v >= 0 where (x, y) satisfies the constraints, and = 0 iff y solves the lower level with multipliers z.

Source: arXiv 2401.16164, section 2; the elimination of la is the proximal method of multipliers (Rockafellar 1976).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constrained.core.errors import ProblemError
from constrained.core.solver import Multipliers
from constrained.core.states import solver_state
from constrained.core.vec import Vec
from constrained.descent import Method, Minimum, Reason, minimise
from constrained.newton_cg import Differenced, NewtonCG
from constrained.pairs import Pairs

from .oracle import BilevelOracle

NAMES = ("lower_equality", "lower_inequality")


class Rows:
    """The lower constraints of a problem with scaled rows, equalities first: T c_E = 0 and s c_I <= 0, with their multipliers in
    Z. T: a matrix or one factor a row.
    """

    def __init__(self, oracle: BilevelOracle, transform: Tensor, scale: Tensor, limit: float):
        self.parts = [oracle.constraints.get(name) for name in NAMES]
        self.transform, self.scale = transform, scale
        self.count = len(transform), len(scale)
        high = torch.cat([torch.full_like(scale.new_zeros(n), limit) for n in self.count])
        self.low, self.high = torch.cat([-high[: self.count[0]], torch.zeros_like(scale)]), high

    def value(self, x: Vec, y: Vec) -> Tensor:
        """The scaled constraints, float64."""
        found = [part.value((x, y)) if part is not None else self.scale[:0] for part in self.parts]
        return torch.cat([self._apply(found[0]), self.scale * found[1]])

    def vjp(self, x: Vec, y: Vec, la: Tensor) -> tuple[Vec, Vec]:
        """(J_x'la, J_y'la)."""
        total = x.zeros(), y.zeros()
        for part, weights in zip(self.parts, self.unscaled(la)):
            if part is not None:
                add = part.vjp((x, y), weights)
                total = total[0] + add[0], total[1] + add[1]
        return total

    def unscaled(self, la: Tensor) -> tuple[Tensor, Tensor]:
        """The multipliers of the user's own rows: T'la_E, s la_I."""
        equal, rest = la.split(self.count)
        T = self.transform
        return (T.T @ equal if T.ndim == 2 else T * equal), self.scale * rest

    def scaled(self, equality: Tensor, inequality: Tensor) -> Tensor:
        """The inverse of `unscaled`."""
        T = self.transform
        equal = torch.linalg.lstsq(T.T, equality[:, None]).solution[:, 0] if T.ndim == 2 and len(T) else equality / T
        return self.clipped(torch.cat([equal, inequality / self.scale]))

    def start(self, given: Multipliers | None) -> Tensor:
        """The scaled multipliers of a start; zero where it brings none."""
        tree = (given.lower if given is not None else None) or {}
        parts = [torch.as_tensor(tree.get(name[6:], torch.zeros(n))).reshape(-1) for name, n in zip(NAMES, self.count)]
        if [len(part) for part in parts] != list(self.count):
            raise ProblemError(f"start: multipliers.lower: expected {self.count} numbers, got {[len(part) for part in parts]}")
        return self.scaled(*(part.to(self.scale) for part in parts))

    def report(self, la: Tensor) -> Multipliers:
        """Multipliers of the problem's own rows, by the kind of constraint."""
        parts = zip(NAMES, self.parts, self.unscaled(la))
        return Multipliers(lower={name[6:]: value for name, part, value in parts if part is not None})

    def clipped(self, la: Tensor) -> Tensor:
        """P_Z(la)."""
        return la.clamp(self.low, self.high)

    def _apply(self, c: Tensor) -> Tensor:
        return self.transform @ c if self.transform.ndim == 2 else self.transform * c


@solver_state("Saddle")
class Saddle:
    """The saddle at the last (x, y, z), and what the inner method remembers."""

    theta: Vec
    y: Vec
    memory: Pairs | float | None


@dataclass
class Value:
    """v = lagrangian + rest with its gradients; the saddle; |th - P_Y(th - L_th)|; why the minimisation ended."""

    lagrangian: float  # g + la'c at (x, th)
    rest: float
    lagrangian_y: Vec  # its gradient in th
    x: Vec
    y: Vec
    z: Tensor
    multipliers: Tensor  # la
    saddle: Saddle
    residual: float
    reason: Reason


def lower_value(
    oracle: BilevelOracle,
    rows: Rows,
    gammas: tuple[float, float],
    method: Method,
    at: tuple[Vec, Vec, Tensor],
    start: Saddle,
    tol: float,
    max_steps: int,
) -> Value:
    """v at (x, y, z), from the saddle of the last call moved along with y. A step is one gradient of g and one J'la."""
    (x, y, z), (gamma1, gamma2) = at, gammas
    last: dict[str, tuple[Vec, Vec, Vec, Tensor, float, float]] = {}

    def lagrangian(th: Vec) -> tuple[float, Vec]:
        value, (g_x, g_y) = oracle.g.gradient((x, th), wrt=(0, 1))
        c = rows.value(x, th)
        la = rows.clipped(z + gamma2 * c)
        a_x, a_y = rows.vjp(x, th, la)
        apart, moved = th - y, la - z
        plain, own_y = float(value) + float(la @ c), g_y + a_y
        rest = float(apart @ apart) / (2 * gamma1) - float(moved @ moved) / (2 * gamma2)
        last["call"] = th, g_x + a_x, own_y, la, plain, rest
        return plain + rest, own_y.add(apart, 1 / gamma1)

    begin = oracle.Y.project(start.theta + (y - start.y))
    objective = Differenced(lagrangian) if isinstance(method, NewtonCG) else lagrangian
    found: Minimum = minimise(method, objective, begin, tol=tol, X=oracle.Y, max_steps=max_steps, memory=start.memory)
    if last["call"][0] is not found.x:  # the search ended elsewhere than where it looked last
        lagrangian(found.x)
    th, v_x, own_y, la, plain, rest = last["call"]
    kept = Saddle(th, y, found.memory)
    return Value(plain, rest, own_y, v_x, (y - th) / gamma1, (la - z) / gamma2, la, kept, found.residual, found.reason)


@dataclass
class Gap:
    """phi = (f + c (g - v)) / max(c, 1) with its parts at one (x, y, z)."""

    value: float
    x: Vec
    y: Vec
    z: Tensor
    upper: float  # f
    gap: float  # g - v
    at: Value


def penalised_gap(
    oracle: BilevelOracle,
    rows: Rows,
    gammas: tuple[float, float],
    method: Method,
    at: tuple[Vec, Vec, Tensor],
    start: Saddle,
    c: float,
    tol: float,
    max_steps: int,
) -> Gap:
    """phi at (x, y, z) in C x Z; the saddle to a residual tol. One gradient of f and one of g more than the saddle takes."""
    x, y, _ = at
    upper, (f_x, f_y) = oracle.f.gradient((x, y), wrt=(0, 1))
    lower, (g_x, g_y) = oracle.g.gradient((x, y), wrt=(0, 1))
    v = lower_value(oracle, rows, gammas, method, at, start, tol, max_steps)
    weight, small = c / max(c, 1.0), 1 / max(c, 1.0)
    # l = g + la'c at y minus the same at th: two large numbers, of which c times the difference counts. Where that is
    # round-off, the trapezoid rule along y - th is exact to third order and keeps its digits. Rounding of c is no violation.
    la, eps = v.multipliers, torch.finfo(y.dtype).eps
    values = rows.value(x, y)
    noise = 1e2 * eps * (1 + float(x.norm()) + float(y.norm()))
    fall = float(lower) + float(la @ values) - v.lagrangian
    size = abs(float(lower)) + abs(v.lagrangian) + float(la.abs().sum())
    smooth = 0.5 * float((g_y + rows.vjp(x, y, la)[1] + v.lagrangian_y) @ (y - v.saddle.theta))
    fall = smooth if abs(smooth - fall) <= 1e3 * eps * size else fall
    slack = torch.where(values.abs() > noise, values, 0.0)
    gap = fall - float(la @ slack) - v.rest
    return Gap(
        float(upper) * small + weight * gap,
        f_x * small + (g_x - v.x) * weight,
        f_y * small + (g_y - v.y) * weight,
        -weight * v.z,
        float(upper),
        gap,
        v,
    )


@dataclass(frozen=True)
class LowerSolution:
    """A point of S(x) with the multipliers of the scaled rows, and |(L_y, violation and complementarity)| there."""

    y: Vec
    multipliers: Tensor
    residual: float
    reason: Reason


def solve_constrained_lower(
    oracle: BilevelOracle, rows: Rows, x: Vec, y: Vec, z: Tensor, tol: float, *, method: Method, max_steps: int = 100
) -> LowerSolution:
    """argmin over y in Y of g(x, y) under the lower constraints, from (y, z): (y, z) <- the saddle of the regularised Lagrangian,
    with gamma1 and gamma2 growing (proximal method of multipliers). Of several solutions one next to y.
    """
    saddle, weight = Saddle(y, y, None), 1.0
    floor = 30 * torch.finfo(y.dtype).eps
    best = LowerSolution(y, z, float("inf"), Reason.MAX_STEPS)
    for _ in range(max_steps):
        gammas = weight, min(weight, 10.0)  # a large gamma2 would only make the inner problem ill-conditioned
        found = lower_value(oracle, rows, gammas, method, (x, y, z), saddle, max(0.1 * tol, floor), 10_000)
        y, z, saddle = found.saddle.theta, found.multipliers, found.saddle
        residual = float(found.y.norm()) + float(found.z.norm()) + found.residual
        if not residual >= best.residual:
            best = LowerSolution(y, z, residual, Reason.CONVERGED if residual <= tol else Reason.MAX_STEPS)
        if residual <= tol or found.reason in (Reason.NONFINITE, Reason.UNBOUNDED):
            return best if residual <= tol else LowerSolution(y, z, residual, found.reason)
        weight = min(10 * weight, 1e4)
    return best
