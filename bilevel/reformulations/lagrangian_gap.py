"""phi = (f + c (g - v)) / max(c, 1), v the regularised value of the constrained lower level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from constrained.core.vec import Vec
from constrained.descent import DescentStatus, Method, Reformulation, residual
from constrained.sets import ConvexSet, Everywhere

from ..lower.constraints import LowerConstraints
from ..lower.coupled_set import Coupled, join
from ..lower.regularised_value import RegularisedValue, Saddle, lower_value
from ..oracle import BilevelOracle
from .accuracy import floor, tightened


@dataclass
class Gap:
    """phi = (f + c (g - v)) / max(c, 1) with its parts at one (x, y, z)."""

    value: float
    x: Vec
    y: Vec
    z: Tensor
    upper: float  # f
    gap: float  # g - v
    at: RegularisedValue


def penalised_gap(
    oracle: BilevelOracle,
    rows: LowerConstraints,
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
    # l = g + la'h at y minus the same at th: two large numbers, of which c times the difference counts. Where that is
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


def flat(x: Vec, y: Vec, z: Tensor) -> Vec:
    """w = (x, y, z) as one tensor."""
    return Vec.of(torch.cat([join(x, y), z.to(x.dtype)]))


def parts(coupled: Coupled, w: Vec) -> tuple[Vec, Vec, Tensor]:
    """x, y and z of w."""
    (entries,) = w.leaves
    cut = len(entries) - sum(coupled.rows.count)
    return *coupled.pair.split(entries[:cut]), entries[cut:].double()


class CoupledWithMultipliers(ConvexSet):
    """C x Z, of w."""

    def __init__(self, coupled: Coupled):
        super().__init__()
        self.coupled, self.entrywise = coupled, coupled.C.entrywise

    def project(self, v: Vec) -> Vec:
        (entries,) = v.leaves
        rows = self.coupled.rows
        cut = len(entries) - sum(rows.count)
        inside = self.coupled.C.project(Vec.of(entries[:cut])).leaves[0]
        return v.like([torch.cat([inside, rows.clipped(entries[cut:].double()).to(entries)])])


class LagrangianGap(Reformulation):
    """phi at c, of w. Where C is affine: of w projected on C, with the gradient along C.

    After a call: `saddle`, `gap` = g - v, `upper` = f. theta: the saddle is found to a residual theta min(1, R) / max(c, 1), so
    that the error of the gradient is a fraction theta of R.
    """

    def __init__(
        self,
        oracle: BilevelOracle,
        coupled: Coupled,
        gammas: tuple[float, float],
        inner: Method,
        saddle: Saddle,
        c: float,
        theta: float,
        best: float,
        max_inner: int,
    ):
        self.oracle, self.coupled, self.gammas, self.inner, self.saddle = oracle, coupled, gammas, inner, saddle
        self.c, self.theta, self.best, self.max_inner = c, theta, best, max_inner
        self.set = Everywhere() if coupled.plane else CoupledWithMultipliers(coupled)
        self.scale = max(c, 1.0)
        self.gap = self.upper = math.nan

    def __call__(self, w: Vec) -> tuple[float, Vec]:
        known, least = self.best, floor(w)
        value, grad = math.nan, w

        def evaluate(tol: float) -> float:
            nonlocal value, grad
            value, grad = self.at(w, tol)
            return self.scale * residual(self.set, w, grad)

        def wanted(r: float) -> float:
            return max(self.theta * min(1.0, known, r) / self.scale, least)

        self.best = min(known, tightened(evaluate, wanted, least))
        return value, grad

    def at(self, w: Vec, tol: float) -> tuple[float, Vec]:
        at, rows = parts(self.coupled, self.inside(w)), self.coupled.rows
        found = penalised_gap(self.oracle, rows, self.gammas, self.inner, at, self.saddle, self.c, tol, self.max_inner)
        self.saddle, self.gap, self.upper = found.at.saddle, found.gap, found.upper
        failed = found.at.reason in (DescentStatus.NONFINITE, DescentStatus.UNBOUNDED)
        self.reason = found.at.reason if failed else DescentStatus.CONVERGED
        both = join(found.x, found.y)
        return found.value, Vec.of(torch.cat([self._along(both), found.z.to(both)]))

    def inside(self, w: Vec) -> Vec:
        """w, where C is affine with its (x, y) projected on C."""
        if not self.coupled.plane:
            return w
        (entries,) = w.leaves
        cut = len(entries) - sum(self.coupled.rows.count)
        return w.like([torch.cat([self.coupled.C.project(Vec.of(entries[:cut])).leaves[0], entries[cut:]])])

    def _along(self, both: Tensor) -> Tensor:
        """The part of a gradient in (x, y) that points along an affine C."""
        if not self.coupled.plane:
            return both
        v, C = Vec.of(both), self.coupled.C
        return (C.project(v) - C.project(v.zeros())).leaves[0]
