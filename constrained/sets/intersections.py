"""Convex sets that are intersections: a box with a hyperplane, and whatever cvxpy can write down.

`BoxHyperplane` is exact and fast; `CvxpySet` hands each projection to a solver of cone programs and costs milliseconds. Many rows
at once are a `Polyhedron` (polyhedron.py).
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from ..core.errors import ProblemError
from ..core.vec import Tree, Vec
from .base import ConvexSet, check_entries, normal, one_number
from .simple import Box
from .tangent import Tangent, tangent

TURN = threading.Lock()  # a compiled program holds its parameters and its answer: one thread at a time
TIGHT = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-12}  # the error of P(v) is the root of the gap's


@final
class BoxHyperplane(ConvexSet):
    """{v: a'ravel(v) = b, low <= v <= high}, over all leaves: P(v) = clip(v - t a, low, high), a'P(v) = b.

    `a`: one number an entry of the variable, in the order of `Vec.ravel`, or a dict like the variable; `b`: a number; `low`,
    `high`: as in Box. a'clip(v - t a) falls in t and is linear between the values of t where an entry meets a bound: these are
    sorted, the piece with the root is found by bisection, the root on it in closed form. O(n log n).

    Raises ProblemError where a or b is not finite; `check`, and any projection, where a or the bounds do not fit the variable and
    where no point of the box has a'v = b.

    >>> BoxHyperplane([1.0, 1.0, 1.0], 1.0, low=0.0).project(Vec.of(torch.tensor([2.0, 1.5, 0.0]))).tree()
    tensor([0.7500, 0.2500, 0.0000])

    Source: Brucker 1984; Kiwiel 2008 (breakpoint search for the continuous quadratic knapsack problem).
    """

    def __init__(self, a: Tree, b: float, low: Tree = -math.inf, high: Tree = math.inf):
        super().__init__()
        self._a, self._by_key = normal(a, "BoxHyperplane: a"), isinstance(a, Mapping)
        self.b, self.box = one_number(b, "BoxHyperplane: b"), Box(low, high)

    def project(self, v: Vec) -> Vec:
        a, b, low, high = self._on(v)
        return v.unravel(_moved(v.ravel().double(), a, b, low, high)[0])

    def _fit(self, v: Vec, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        parts = self._a.on(v, name) if self._by_key else list(self._a.leaves.values())
        a = torch.cat([part.expand(leaf.shape).reshape(-1) for part, leaf in zip(parts, v.leaves if self._by_key else parts)])
        check_entries(v, name, self, len(a))
        self.box.check(v, name)
        low, high = (self.box.project(v.map(lambda t, e=end: torch.full_like(t, e))).ravel() for end in (-math.inf, math.inf))
        a, low, high = a.to(v.device), low.double(), high.double()
        size = a.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        a, b = a / size, self.b / size
        least, most = (torch.where(a == 0, 0.0, a * torch.where(a > 0, p, q)).sum() for p, q in ((low, high), (high, low)))
        near = 100 * torch.finfo(v.dtype).eps * (1 + b.abs())
        if not bool((least <= b + near) & (b - near <= most)):
            raise ProblemError(f"{name}: {self!r}: a'v takes values in [{least * size:g}, {most * size:g}]: the set is empty")
        return a, b.clamp(least, most), low, high

    def __repr__(self) -> str:
        bounds = repr(self.box)[4:-1]
        return f"BoxHyperplane(a={self._a!r}, b={self.b!r}{', ' if bounds else ''}{bounds})"


def _moved(u: Tensor, a: Tensor, b: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """clip(u - t a) with a'clip(u - t a) = b, and where its entries are strictly between their bounds."""
    on = a != 0
    if not bool(on.any()) or not bool(u.isfinite().all()):
        return u.clamp(low, high), (u > low) & (u < high)
    ends = torch.cat([(u[on] - low[on]) / a[on], (u[on] - high[on]) / a[on]])
    ends = ends[ends.isfinite()].sort().values

    def value(t: Tensor) -> Tensor:
        return a @ (u - t * a).clamp(low, high)

    first, last = 0, len(ends)  # value(ends[i]) > b for i < first, <= b for i >= last
    while first < last:
        middle = (first + last) // 2
        first, last = (middle + 1, last) if bool(value(ends[middle]) > b) else (first, middle)
    # On the piece below ends[first] the entries that move are those that move at a point inside it.
    left = ends[first - 1] if first > 0 else ends[first] - 1.0 if len(ends) else u.new_zeros(())
    right = ends[first] if first < len(ends) else left + 1.0
    t = 0.5 * (left + right)
    free = on & (u - t * a > low) & (u - t * a < high)
    square = a[free] @ a[free]
    if bool(square > 0):
        for _ in range(2):  # the second pass takes out the rounding of the first
            t = t + (torch.where(free, a * (u - t * a), a * (u - t * a).clamp(low, high)).nan_to_num().sum() - b) / square
    else:
        t = right  # a flat piece: every t on it gives the same point
    moved = (u - t * a).clamp(low, high)
    return moved, (moved > low) & (moved < high)


@tangent.register
def _(Y: BoxHyperplane, z: Vec) -> Tangent:
    a, b, low, high = Y._on(z)
    free = _moved(z.ravel().double(), a, b, low, high)[1].double()
    along = free * a
    square = along @ along

    def project(v: Vec) -> Vec:
        kept = free * v.ravel().double()
        return v.unravel(kept - along * ((along @ kept) / square) if bool(square > 0) else kept)

    return Tangent(project)


@final
class CvxpySet(ConvexSet):
    """{v: the constraints that `build` returns}: P(v) by cvxpy, one small cone program a projection.

    `build`: a function that takes a cvxpy Variable shaped like the variable (a dict, list or tuple of them for one of several
    leaves) and returns a list of cvxpy constraints. The program min |u - p|^2 has p as its parameter, so that it is compiled once
    for each structure and not for each projection. `solver`: its name in cvxpy; `options`: passed to it. Accurate to about 1e-6
    with CLARABEL, which is asked for `TIGHT` unless `options` say otherwise. `warm_start`: start at the last solution, where the
    solver can (OSQP); results then depend, within its tolerance, on what was projected before, and a resumed run does not repeat
    bit for bit.

    Raises ProblemError where `build` is not a function or returns no constraints, where the program is not convex, where the set
    is empty, and where the solver fails, with its status.

    >>> ball = CvxpySet(lambda v: [(v**2).sum() <= 1])
    >>> ball.project(Vec.of(torch.tensor([3.0, 4.0]))).tree()
    tensor([0.6000, 0.8000])

    Source: Diamond and Boyd 2016; disciplined parametrized programs: Agrawal, Amos, Barratt, Boyd, Diamond and Kolter 2019.
    """

    def __init__(
        self,
        build: Callable[[Any], Any],
        *,
        solver: str = "CLARABEL",
        warm_start: bool = False,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if not callable(build):
            raise ProblemError(f"CvxpySet: build: expected a function of a cvxpy Variable, got {type(build).__name__}")
        self.build, self.solver, self.warm_start, self.options = (
            build,
            solver,
            warm_start,
            dict(options or (TIGHT if solver == "CLARABEL" else {})),
        )

    def project(self, v: Vec) -> Vec:
        import cvxpy

        with TURN:
            problem, variables, parameters = self._on(v)
            if not bool(v.finite()):
                return v
            for parameter, leaf in zip(parameters, v.leaves):
                if parameter.size:
                    parameter.value = leaf.detach().double().cpu().numpy()
            try:
                with warnings.catch_warnings(action="ignore", category=UserWarning):  # "may be inaccurate": just short of TIGHT
                    problem.solve(solver=self.solver, warm_start=self.warm_start, **self.options)
            except cvxpy.SolverError as cause:
                raise ProblemError(f"{self!r}: {self.solver} failed: {cause}") from cause
            status, found = problem.status, [one.value if one.size else () for one in variables]
        if status in (cvxpy.INFEASIBLE, cvxpy.INFEASIBLE_INACCURATE):
            raise ProblemError(f"{self!r}: {self.solver} says {status}: the set is empty")
        if status not in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE):
            raise ProblemError(f"{self!r}: {self.solver} ended with status {status}")
        return v.like(torch.as_tensor(one).to(leaf).reshape(leaf.shape) for one, leaf in zip(found, v.leaves))

    def _fit(self, v: Vec, name: str) -> tuple[Any, list[Any], list[Any]]:
        import cvxpy

        variables = [cvxpy.Variable(tuple(leaf.shape)) for leaf in v.leaves]
        constraints = self.build(Vec(variables, v.spec).tree())  # pyright: ignore[reportArgumentType]
        if not isinstance(constraints, (list, tuple)) or not constraints:
            raise ProblemError(f"{name}: {self!r}: build must return a list of cvxpy constraints, got {constraints!r:.60}")
        parameters = [cvxpy.Parameter(tuple(leaf.shape)) for leaf in v.leaves]
        away = sum(cvxpy.sum_squares(one - p) for one, p in zip(variables, parameters) if one.size)  # cvxpy has no empty ones
        problem = cvxpy.Problem(cvxpy.Minimize(away), list(constraints))  # pyright: ignore[reportArgumentType]
        if not problem.is_dpp():
            raise ProblemError(f"{name}: {self!r}: the constraints are not convex by cvxpy's rules")
        return problem, variables, parameters

    def __repr__(self) -> str:
        return f"CvxpySet({getattr(self.build, '__name__', type(self.build).__name__)}, solver={self.solver!r})"
