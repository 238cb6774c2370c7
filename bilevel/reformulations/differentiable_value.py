"""Phi(x) = f(x, y(x)) as a function that torch differentiates: for a loop of the user's own, with any torch optimizer.

forward    y = argmin over Y of g(x, .), from the last y;   v from g_yy v = f_y, from the last v
backward   f_x - g_xy v, times what comes in
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from constrained.core.errors import OptionError, SolveFailed, Unsuitable
from constrained.core.variables import checked_start, parameters
from constrained.core.vec import Tree, Vec, tensors
from constrained.descent import DescentStatus
from constrained.descent.newton_cg import NewtonCG
from constrained.linear import CG, LinearStatus
from constrained.linear.diagonal import Diagonal

from ..lower.solution import Lower
from ..oracle import BilevelOracle
from .hyperobjective import Answer, Hyperobjective, Response

MAX_INNER = 10_000
LINEAR_FAILED = {
    LinearStatus.LEAST_SQUARES: "g_yy is singular there and f_y not in its range: no hypergradient exists",
    LinearStatus.NEGATIVE_CURVATURE: "g_yy has negative curvature there, so that y is no minimiser",
}


class DifferentiableValue:
    """Phi of one problem, with the lower solution that the next evaluation starts from."""

    def __init__(self, oracle: BilevelOracle):
        self.oracle = oracle
        self.like, y = self.oracle.variables["x"], self.oracle.variables["y"]
        y = self.oracle.Y.project(y.detach().clone())
        response = Response(y, y.zeros(), None, Diagonal.blank(y))
        lower = NewtonCG().for_set(self.oracle.Y)
        self.phi = Hyperobjective(self.oracle, lower, CG(), response, 1.0, 1.0, 1.0, MAX_INNER)

    def __call__(self, x: Tree, tol: float | None) -> Tensor:
        vec = checked_start("x", x, self.like)
        given = tensors(parameters(x) if isinstance(x, torch.nn.Module) else x)  # with their graphs
        leaves = given if len(given) == len(vec.leaves) else vec.leaves
        out: Tensor = _Phi.apply(self, self.accuracy(tol), vec, *leaves)  # pyright: ignore[reportAssignmentType]
        return out

    def accuracy(self, tol: float | None) -> float:
        """The tolerance on |g_y|: 1e-8, in float32 1e-4."""
        least = 30 * torch.finfo(self.like.dtype).eps
        if tol is None:
            return 1e-8 if self.like.dtype == torch.float64 else 1e-4
        if isinstance(tol, bool) or not isinstance(tol, (int, float)) or not tol >= least:
            raise OptionError(f"tol: must be a number >= {least:.1e}, got {tol!r}")
        return float(tol)

    def at(self, x: Vec, tol: float) -> Answer:
        """Phi and grad Phi. Raises SolveFailed where there is none, and keeps the last good y."""
        before = self.phi.response
        level = Lower(self.oracle, x, before.diagonal.faded())
        found = self.phi.at(level, tol)
        why = None
        if found.reason is not DescentStatus.CONVERGED and not found.lower <= 100 * tol:
            why = f"the lower level was not solved: |g_y| = {found.lower:.1e}, wanted {tol:.1e}. {found.reason.value}"
        why = why or LINEAR_FAILED.get(found.linear_reason)
        if why is None and not bool(found.gradient.finite()):
            why = "NaN or infinity in a derivative"
        if why is not None:
            self.phi.response = before
            raise SolveFailed(f"value: {why}")
        return found


class _Phi(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: DifferentiableValue, tol: float, x: Vec, *leaves: Tensor) -> Tensor:
        found = value.at(x.like(leaf.detach().clone() for leaf in leaves), tol)
        ctx.gradient = found.gradient
        ctx.save_for_backward(*leaves)
        return leaves[0].new_tensor(found.value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = (grads[0], *ctx.saved_tensors)
        return (None, None, None, *(_Once.apply(grads[0].detach() * leaf, *x) for leaf in ctx.gradient.leaves))


class _Once(torch.autograd.Function):
    """A gradient that is not to be differentiated: torch would take it for a constant, and second derivatives for zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *of: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise Unsuitable("value: differentiable once: second derivatives of Phi are not computed")
