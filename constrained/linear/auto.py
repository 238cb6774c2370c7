"""AutoLinear: the linear solver where none is named.

    explicit or sparse K, or at most `small` unknowns    factorise (Direct)
    KKT systems of few constraints                       ProjectedCG, while its end is in sight; then Direct
    else                                                 MINRES, while its end is in sight; then ProjectedCG where the constraints
                                                         are cheap to factorise, then Direct

A method is left when, by its own rate of convergence, it has longer to go than the rival takes to begin: m batched products and
a Cholesky factorisation, or d batched products and L D L'. What those take is reckoned from one product, by the calls, bytes and
multiplications of its operations (`Operations`): from shapes alone, so that the choice is the same every time.

Measured on one core, d = 500 to 5,000, matrix-free: a product in a batch costs 0.05 to 1.5 single ones, MINRES needs 4 to 10,000
of them, and the best solver changes from system to system. The progressive sketch needs the d products of Direct as well, and
more arithmetic than L D L': it is never the fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ..core.options import Count
from ..core.vec import Vec
from .cost import MACHINES, Machine, Operations
from .direct import Direct, Factors
from .minres import Minres
from .projected_cg import ProjectedCG, Projector
from .system import CHUNK, LinearSolution, LinearSolver, LinearStatus, System

LOOK = 8  # steps between two looks at a method's rate
FEW = 16  # steps that ProjectedCG is expected to need at least
OWN = 20  # operations on vectors in a step of MINRES or CG, beside the product
EARLY = 0.1  # of a rival's cost: before, a rate of convergence says nothing
ROWS, THIN = 32, 2**17  # constraints, or numbers in J, that cost no more than the vectors that a product goes through


class Choice:
    """A prepared system and what is known of it: factors, the seconds of a product alone and among many, whether batches pay."""

    def __init__(self, system: System):
        self.system, self.spent, self.batched = system, 0, True
        self.factors: Factors | None = None
        self.projected: Projector | None = None
        self.projectable = system.split is not None and system.split[1] > 0
        self.reckoned: tuple[float, float] | None = None

    @property
    def chosen(self) -> System:
        return self.system if self.batched else replace(self.system, products=None)

    @property
    def machine(self) -> Machine:
        return MACHINES[self.system.template.device.type]

    def factorised(self) -> Factors:
        self.factors = Direct().init(self.chosen)
        return self.factors

    def project(self) -> Projector:
        self.projected = ProjectedCG().init(self.chosen)
        return self.projected

    def reckon(self) -> int:
        """The seconds of a product from its operations, once; the products that this took."""
        if self.reckoned is not None:
            return 0
        with Operations() as done:
            self.system.product(self.system.template)
        to = self.machine
        calls, elementwise, flops = done.calls * to.call, done.bytes / to.bytes, done.flops / to.products
        single = calls + elementwise + max(done.matrices / to.bytes, flops)
        each = calls / CHUNK + elementwise + flops  # matrices that are the same for all are read once
        self.batched = self.system.products is not None and each < single
        self.reckoned = single, min(each, single) if self.batched else single
        return 1


@dataclass(frozen=True, kw_only=True)
class AutoLinear(LinearSolver):
    """Direct where K is explicit, sparse or small; else MINRES, and ProjectedCG or Direct where they prove cheaper.

    What was factorised stays with the prepared system, for further right-hand sides. Every solution has its true residual; one
    that misses `tol` was tried by Direct too, where K may be made dense.

    small: unknowns up to which a matrix-free K is factorised at once. dense: unknowns up to which it may be at all (8 d^2 bytes,
    three times). What products cost is reckoned from the shapes of their operations, not timed: runs repeat bit for bit.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> auto, b = AutoLinear(), Vec.of(torch.tensor([3.0, 1.0], dtype=torch.float64))
    >>> auto.solve(auto.init(System(lambda v: v.map(lambda t: K @ t), 2)), b, tol=1e-12).inertia
    (1, 1, 0)
    """

    small: Count = 128
    dense: Count = 6000

    def init(self, system: System) -> Choice:
        choice = Choice(system)
        if system.matrix is not None or system.sparse is not None or system.size <= self.small:
            choice.spent = choice.factorised().spent
        elif system.below is not None and system.inverse is None and system.split is not None:
            n, m = system.split
            if 0 < m <= n and (m <= ROWS or m * n <= THIN):
                choice.project()
        return choice

    def solve(
        self, prepared: Choice, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        system, spent = prepared.system, 0
        if prepared.factors is not None:
            found = Direct().solve(prepared.factors, b, tol=tol)
            if found.reason is not LinearStatus.SINGULAR:
                return found
            other = Minres().solve(system, b, tol=tol)  # sparse, singular and too large for a rank-revealing factorisation
            better = min(found, other, key=lambda solution: solution.residual)
            return replace(better, products=found.products + other.products)
        found, slow = None, False  # slow: left for a factorisation
        if prepared.projected is not None:
            found, slow, spent = self._project(prepared, prepared.projected, b, tol, start)
            if _final(system, found):
                return replace(found, products=spent)
        if not slow:
            watch = _Watch(self, prepared, tol, projectable=prepared.projectable)
            found = Minres().watched(system, b, tol=tol, start=start if found is None else found.x, go_on=watch)
            spent += found.products + watch.spent
            if found.reason in (LinearStatus.SOLVED, LinearStatus.NONFINITE, LinearStatus.LEAST_SQUARES):
                return replace(found, products=spent)
            if watch.project:
                constraint = prepared.project()
                other, slow, more = self._project(prepared, constraint, b, tol, found.x)
                spent += constraint.spent + more
                if _final(system, other) or other.residual < found.residual:
                    found = replace(other, smallest=found.smallest, largest=found.largest)
                if _final(system, other):
                    return replace(found, products=spent)
        assert found is not None
        if system.size <= self.dense:
            factors = prepared.factorised()
            other = Direct().solve(factors, b, tol=tol)
            spent += factors.spent + other.products
            found = other if other.reason is LinearStatus.LEAST_SQUARES or other.residual <= found.residual else found
        elif found.reason is not LinearStatus.PRECISION:
            found = Minres().solve(system, b, tol=tol, start=found.x)
            spent += found.products
        return replace(found, products=spent)

    def _project(
        self, prepared: Choice, constraint: Projector, b: Vec, tol: float, start: Vec | None
    ) -> tuple[LinearSolution, bool, int]:
        """ProjectedCG, whether it was left as slow, and the products; where it found no solution it is not tried again."""
        watch = _Watch(self, prepared, tol, projectable=False, projecting=True)
        found = ProjectedCG().watched(constraint, b, tol=tol, start=start, go_on=watch)
        if not _final(prepared.system, found):
            prepared.projected, prepared.projectable = None, False
        return found, watch.left, found.products + watch.spent


def _final(system: System, found: LinearSolution) -> bool:
    """Whether nothing better is wanted: a solution, or negative curvature where the system is worthless with it."""
    return found.reason is LinearStatus.SOLVED or (system.convex and found.reason is LinearStatus.NEGATIVE_CURVATURE)


class _Watch:
    """Whether a method should go on: not if its own rate says that it has longer to go than a rival takes.

    left, project: whether it was left, and for ProjectedCG. spent: products of its own.
    """

    def __init__(self, options: AutoLinear, choice: Choice, tol: float, *, projectable: bool, projecting: bool = False):
        self.options, self.choice, self.tol = options, choice, tol
        self.projectable, self.projecting = projectable, projecting
        self.residuals: list[float] = []
        self.spent, self.left, self.project = 0, False, False

    def __call__(self, steps: int, residual: float) -> bool:
        self.residuals.append(residual)
        if steps % LOOK or not residual > self.tol:
            return True
        self.left = not self._cheaper()
        return not self.left

    def _cheaper(self) -> bool:
        """Whether the method has less to go than its rivals."""
        single, each = self._reckoned()
        direct, projected = self._rivals(single, each)
        self.project = projected < direct
        step = single + self._own() + (self._projection() if self.projecting else 0.0)
        rival, done = min(direct, projected), len(self.residuals) * step
        ahead = self._ahead() * step * (1 + done / rival)  # an end in sight for long is believed less
        return done < EARLY * rival or ahead <= rival * max(1.0, rival / (4 * done))  # and so is none in sight so early

    def _ahead(self) -> float:
        """Steps to go, at the rate of the later half of the steps so far."""
        half, now = len(self.residuals) // 2, self.residuals[-1]
        rate = math.log(self.residuals[half] / now) / half
        return math.log(now / self.tol) / rate if rate > 0 and self.tol > 0 else math.inf

    def _rivals(self, single: float, each: float) -> tuple[float, float]:
        """The seconds of Direct, and of ProjectedCG with a few steps."""
        system, d, to = self.choice.system, self.choice.system.size, self.choice.machine
        direct = d * each + d**3 / (3 * to.factors) if d <= self.options.dense else math.inf
        if not self.projectable or system.split is None:
            return direct, math.inf
        n, m = system.split
        factorised = 2 * n * m**2 / to.products + m**3 / (3 * to.factors)
        projected = m * each + factorised + FEW * (single + self._own() + self._projection())
        return direct, projected if m * n <= self.options.dense**2 else math.inf

    def _own(self) -> float:
        """Seconds of a step's own operations."""
        to, d = self.choice.machine, self.choice.system.size
        return OWN * (to.call + 24 * d / to.bytes)

    def _projection(self) -> float:
        """Seconds of P^-1: five passes through J, four through the triangle of its Gram matrix, in float64."""
        assert self.choice.system.split is not None
        n, m = self.choice.system.split
        return 8 * (5 * n * m + 2 * m**2) / self.choice.machine.bytes

    def _reckoned(self) -> tuple[float, float]:
        self.spent += self.choice.reckon()
        assert self.choice.reckoned is not None
        return self.choice.reckoned
