"""What no unit of f, g, x or y changes: which share of the improvement since the start may still be missing.

    upper        grad Phi'(x - P_X(x - t grad Phi)) / 2 |Phi(x0) - Phi(x)|
                 + |f_y'(y+ - y)| / the larger of |Phi(x0) - Phi(x)| and |f(x, y0) - Phi(x)|
    lower        the larger of |g_y'(y+ - y)| / 2 and the lower gap, in what the lower level gains from y0: at x, or at x0
    constraints  the largest violation, in the change of that constraint since the start

y+ is y after more steps on the lower level, to a thousandth of its residual; the step in x is as long as the way |x - x0|, as in
`constrained/progress.py`. Round-off is taken off each of these. Not measured: a lower level of more than 1e5 unknowns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from constrained.core.derivatives.constraint import Constraint
from constrained.core.problem import Multipliers
from constrained.core.vec import Vec
from constrained.descent import residual
from constrained.descent.newton_cg import NewtonCG
from constrained.linear.diagonal import Diagonal
from constrained.progress import ROUNDING, decrease, share
from constrained.sets.tangent import has_tangent

from ..lower.coupled_set import coupled
from ..lower.regularised_value import solve_constrained_lower
from ..lower.solution import UNKNOWNS, Lower, solve_lower
from ..oracle import BilevelOracle
from . import lower_kkt
from .derivatives import twice
from .residuals import by_implicit_differentiation, penalised_estimate

POLISH = 1e-3  # of the lower residual, to which the lower level is solved further
ACCURATE = 1e-9  # of the lower residual at the start, to which responses are solved
STEPS = 300
Pair = tuple[Vec, Vec]


def shares(
    oracle: BilevelOracle, at: Pair, given: Multipliers | None, start: Pair, found: Mapping[str, float]
) -> dict[str, float]:
    """upper, lower, and constraints where there are some, as above. `found`: what `certify` says of the point."""
    (x, y), (x0, y0) = at, start
    if y.size > UNKNOWNS:
        return {}
    level = Levels(oracle, given)
    r, r0 = level.residual(x, y), level.residual(x0, y0)
    better = level.respond(x, y, POLISH * r)
    gradient = level.hypergradient(x, better)
    if gradient is None:
        return {}
    first = level.respond(x0, y0, ACCURATE * max(r0, r))
    slopes = gradient, level.hypergradient(x0, first) or gradient
    measured = {
        "upper": level.upper((x, y), better, slopes, start, first, max(ACCURATE * r0, POLISH * r)),
    }
    if not level.coupled:
        gap = next((value for name, value in found.items() if name.startswith("lower_gap")), 0.0)
        measured["lower"] = level.lower(at, better, start, first, gap)
    if oracle.constraints:
        measured["constraints"] = max(violated(name, c, at, start) for name, c in oracle.constraints.items())
    return measured


class Levels:
    """Responses y(x), hypergradients, and the two shares, for a problem and the multipliers of its point."""

    def __init__(self, oracle: BilevelOracle, given: Multipliers | None):
        self.oracle, self.given = oracle, given
        self.coupled = lower_kkt.has_lower_constraints(oracle)

    def residual(self, x: Vec, y: Vec) -> float:
        return residual(self.oracle.Y, y, self.oracle.g.grad_y(x, y))

    def respond(self, x: Vec, y: Vec, tol: float) -> Vec:
        """argmin over Y of g(x, .) under the lower constraints, from y."""
        oracle = self.oracle
        if self.coupled:
            set = coupled(oracle, lower_kkt.LIMIT)
            zero, tol = torch.zeros_like(set.rows.low), 1e6 * torch.finfo(y.dtype).eps
            return solve_constrained_lower(oracle, set.rows, x, y, zero, tol, method=NewtonCG().for_set(oracle.Y)).y
        if tol == 0:
            return y
        if not twice(oracle, x, y):
            return solve_lower(oracle, x, y, tol, max_steps=STEPS).x
        level = Lower(oracle, x, Diagonal.blank(y))
        return level.minimised(NewtonCG().for_set(oracle.Y), y, tol, max_steps=STEPS).x

    def hypergradient(self, x: Vec, y: Vec) -> Vec | None:
        """grad Phi as `residuals` has it; None where there is none."""
        oracle = self.oracle
        if self.coupled:
            gradient = lower_kkt.hypergradient(oracle, x, y, self.given)
        elif has_tangent(oracle.Y) and twice(oracle, x, y):
            found, _, v, _ = by_implicit_differentiation(oracle, x, y)
            gradient = found if math.isfinite(v.residual) else None
        else:
            gradient = penalised_estimate(oracle, x, y)
        return gradient if gradient is not None and bool(gradient.finite()) else None

    def upper(self, at: Pair, better: Vec, slopes: tuple[Vec, Vec], start: Pair, first: Vec, tol: float) -> float:
        """slopes: grad Phi at x and at x0."""
        oracle, (x, y), (x0, y0), gradient = self.oracle, at, start, slopes[0]
        f, (f_x, f_y) = oracle.f.gradient((x, better), None, (0, 1))
        way, size = float((x - x0).norm()), float(x.norm())

        def slope_at(u: Vec) -> Vec | None:
            return None if self.coupled else self.hypergradient(u, self.respond(u, better, tol))

        terms = abs(float(f)) + float(f_x.norm()) * (size + way) + float(f_y.norm()) * float(better.norm())
        rounding = ROUNDING * torch.finfo(x.dtype).eps * terms
        missing = decrease(oracle.X, x, gradient, way, rounding, slope_at)
        gained = abs(float(oracle.f.value((x0, first))) - float(f))
        steepest = max(float(one.norm()) for one in slopes)
        gained = min(gained, 10 * steepest * way)  # the rest of it, at a point near x0, is how accurately y was solved for
        moved = 0.0 if self.coupled else max(abs(float(slope @ (better - y))) for slope in (f_y, oracle.f.grad(x, y)[1]))
        if moved == 0:
            return share(missing, rounding, gained)
        responded = abs(float(oracle.f.value((x, y0))) - float(f))  # where x has no effect, that of the response is all there is
        return share(missing, rounding, gained) + share(moved, rounding, max(gained, responded))

    def lower(self, at: Pair, better: Vec, start: Pair, first: Vec, gap: float) -> float:
        g, (x, y), (x0, y0) = self.oracle.g, at, start
        here, begun, before, responded = (float(g.value(pair)) for pair in ((x, better), (x, y0), (x0, y0), (x0, first)))
        gained = max(begun - here, before - responded)
        rounding = ROUNDING * torch.finfo(x.dtype).eps * (abs(here) + float(g.grad_x(x, better).norm() * x.norm()))
        left = 0.5 * abs(float(g.grad_y(x, y) @ (better - y)))
        return max(share(left, rounding, gained), share(gap, 10 * rounding, gained))


def violated(name: str, part: Constraint, at: Pair, start: Pair) -> float:
    """The largest violation of one constraint in what the way from the start changes it."""
    (x, y), (x0, y0) = at, start
    here = part.value(at)
    scale = torch.stack([(part.value(pair) - here).abs() for pair in ((x0, y0), (x, y0), (x0, y))]).amax(0)
    amount = here.abs() if name.endswith("_equality") else here.clamp(min=0)
    return max((share(v, 0.0, s) for v, s in zip(amount.tolist(), scale.tolist()) if s > 0), default=0.0)
