"""How exactly the KKT system of a Newton step is solved: the paper's rule, and one by an estimated smallest singular value.

|b - K z| <= theta delta (s / |K|) |b|  implies  |z - z*| <= theta delta |z*|, where s <= sigma_min(K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.derivatives.tape import Lagrangian
from ..core.options import Options, Positive
from ..core.vec import Vec
from ..linear import LinearSolution, LinearSolver, LinearStatus


@dataclass(frozen=True, kw_only=True)
class Situation:
    """K z = b of one step, ready to be solved, and what a rule may look at: the derivatives, the shift and the penalties, the
    solver's constants, and the residual |b - K z| that is `enough` whatever the rule says.
    """

    solver: LinearSolver
    prepared: Any  # what solver.init(K) returned
    b: Vec
    generator: torch.Generator  # of the solver's sketches
    at: Lagrangian
    rows: Tensor
    shift: float
    eta1: float
    eta2: float
    beta: float
    xi: float
    enough: float

    def solve(self, tol: float, start: Vec | None) -> LinearSolution:
        """z with |b - K z| <= tol."""
        return self.solver.solve(self.prepared, self.b, tol=tol, generator=self.generator, start=start)


class Accuracy(Options):
    """A rule: `delta(situation, delta)` is the accuracy to ask for, `solve` finds z to it, from `start` where a z that was not
    accurate enough is known.
    """

    def delta(self, situation: Situation, delta: float) -> float:
        return delta

    def solve(self, situation: Situation, accuracy: float, *, start: Vec | None = None) -> LinearSolution:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EstimatedAccuracy(Accuracy):
    """|b - K z| <= accuracy (s / |K|) |b| with s and |K| from the linear solver's by-products, never below round-off, and
    at first not below what is enough for the method's tolerance: |b - K z| is what a full step leaves, to first order.

    first: s / |K| assumed until a solver tells; preconditioned: the same for a solver with a preconditioner, which is there
    because K is ill-conditioned, and makes a product cheaper than another outer step. floor: multiples of eps (|K||z| + |b|)
    below which nothing is asked.
    """

    first: Positive = 1.0
    preconditioned: Positive = 1e-2
    floor: Positive = 10.0

    def solve(self, situation: Situation, accuracy: float, *, start: Vec | None = None) -> LinearSolution:
        size, eps = float(situation.b.norm()), torch.finfo(situation.b.dtype).eps
        plain = getattr(situation.solver, "preconditioner", None) is None
        tol, spent = accuracy * (self.first if plain else self.preconditioned) * size, 0
        enough = situation.enough if start is None else 0.0  # a start: the direction was no good
        tol = max(tol, enough)
        while True:
            found = situation.solve(max(tol, self.floor * eps * size), start)
            spent += found.products
            known = found.smallest is not None and found.largest is not None and found.reason is LinearStatus.SOLVED
            least = self.floor * eps * ((found.largest or 0.0) * float(found.x.norm()) + size)
            wanted = max(accuracy * (found.smallest or 0.0) / max(found.largest or 0.0, 1e-300) * size, least, enough)
            if not known or found.residual <= wanted or tol <= least:
                return replace(found, products=spent)
            tol, start = min(wanted, 0.5 * tol), found.x


@dataclass(frozen=True, kw_only=True)
class PaperAccuracy(Accuracy):
    """The published rule: |K|_F Psi |b - K z| <= accuracy |b|, Psi = 20 max(|B|_F^2, 1) / (min(lambda_min(JJ'), 1) min(xi, 1)),
    with delta <= (1/2 - beta) eta2 / ((1 + eta1 + eta2) Upsilon^2 Psi^2) and delta >= 1e-6, Upsilon = max(|J|_F, |H|_F, 1).

    With the published constants Psi >= 200 and delta is 1e-6 from the first step on: nearly exact steps.

    Source: arXiv 2305.18379 and its authors' code.
    """

    least: Positive = 1e-6

    def delta(self, situation: Situation, delta: float) -> float:
        H, J, psi = self._parts(situation)
        upsilon = max(float(J.norm()), float(H.norm()), 1.0)
        s = situation
        size = upsilon * psi  # infinite where J has dependent rows
        trial = (0.5 - s.beta) * s.eta2 / ((1 + s.eta1 + s.eta2) * size * size)
        return max(min(delta, trial), self.least)

    def solve(self, situation: Situation, accuracy: float, *, start: Vec | None = None) -> LinearSolution:
        H, J, psi = self._parts(situation)
        B = H + situation.shift * torch.eye(len(H), dtype=H.dtype, device=H.device)
        norm = math.hypot(float(B.norm()), math.sqrt(2) * float(J.norm()))
        return situation.solve(accuracy * float(situation.b.norm()) / (norm * psi), start)

    @staticmethod
    def _parts(situation: Situation) -> tuple[Tensor, Tensor, float]:
        H, J = situation.at.hessian, situation.rows[:, None] * situation.at.tape.jacobian
        B = H + situation.shift * torch.eye(len(H), dtype=H.dtype, device=H.device)
        least = float(torch.linalg.eigvalsh(J @ J.T)[0]) if len(J) else 1.0
        psi = 20 * max(float(B.norm()) * float(B.norm()), 1.0) / (max(min(least, 1.0), 1e-300) * min(situation.xi, 1.0))
        return H, J, psi
