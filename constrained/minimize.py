"""`minimize` in scipy's shapes: its bounds and constraints in, this library's solvers and `Result` out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core.errors import ProblemError
from .core.result import Result
from .core.run import solve
from .core.solver import Solver
from .problem import ConstrainedProblem
from .sets import Box, Everywhere


def minimize(
    fun: Callable[[Any], Any],
    x0: Any,
    *,
    jac: Callable[[Any], Any] | None = None,
    bounds: Any = None,
    constraints: Any = (),
    solver: Solver[Any, Any] | None = None,
    tol: float | None = None,
    **options: Any,
) -> Result:
    """min fun(x) subject to scipy's bounds and constraints.

    fun: of a 1-D float64 tensor, differentiated by torch; or, where `jac` is given, a numpy function with its gradient. bounds:
    `scipy.optimize.Bounds` or pairs (low, high), None for a free side. constraints: one or several of `LinearConstraint`,
    `NonlinearConstraint` (torch functions, or numpy ones with a callable `jac`) and dicts {"type": "eq" | "ineq", "fun", "jac"},
    with scipy's signs: an "ineq" is fun(x) >= 0. Rows with equal bounds are equalities. solver: None chooses by what the problem
    has. options: those of `solve` (max_steps, max_seconds, callbacks, ...).

    Raises ProblemError for shapes that do not fit, and for numpy functions without derivatives.

    >>> from scipy.optimize import LinearConstraint
    >>> found = minimize(lambda x: (x**2).sum(), [3.0, 1.0], constraints=LinearConstraint([[1.0, 1.0]], 1, 1))
    >>> found.status.name, found.x.round(decimals=6)
    ('CONVERGED', tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    x = torch.as_tensor(np.array(x0, dtype=np.float64)) if not isinstance(x0, Tensor) else x0
    if x.ndim != 1:
        raise ProblemError(f"x0: expected a vector, got shape {tuple(x.shape)}")
    pieces = [_piece(one) for one in _several(constraints)]
    for piece in pieces:
        piece.look(x)
    equality, inequality = _rows(pieces, lambda p: p.equal), _rows(pieces, lambda p: ~p.equal)
    objective = fun if jac is None else _numpy(fun, jac, scalar=True)
    if jac is None and not isinstance(fun(x), Tensor):
        raise ProblemError("fun: expected a torch function, or jac= with a numpy one")
    X = Everywhere() if bounds is None else _box(bounds, len(x))
    problem = ConstrainedProblem(objective=objective, x=x, equality=equality, inequality=inequality, X=X)
    return solve(problem, solver, tol=tol, **options)


@dataclass
class _Piece:
    """low <= value(x) <= high, row by row."""

    value: Callable[[Tensor], Tensor]
    low: Any
    high: Any
    equal: Any = None

    def look(self, x: Tensor) -> None:
        """Bounds as vectors of the value's length."""
        value = self.value(x)
        if not isinstance(value, Tensor):
            raise ProblemError("constraints: expected torch functions, or numpy ones with a callable jac")
        count = value.numel()
        try:
            self.low, self.high = (
                torch.as_tensor(np.broadcast_to(np.asarray(side, dtype=np.float64), (count,)).copy()).to(x)
                for side in (self.low, self.high)
            )
        except ValueError as cause:
            raise ProblemError(f"constraints: expected bounds for {count} rows ({cause})") from cause
        if bool((self.low > self.high).any()):
            raise ProblemError("constraints: expected lb <= ub in every row")
        self.equal = self.low == self.high


def _rows(pieces: list[_Piece], chosen: Callable[[_Piece], Tensor]) -> Callable[[Tensor], Tensor] | None:
    """The equality rows as value - low, or the others as (low - value, value - high), of finite bounds."""
    masks = [chosen(piece) for piece in pieces]
    parts: list[tuple[_Piece, Tensor, Tensor, float]] = []
    for piece, mask in zip(pieces, masks):
        if bool((mask & piece.equal).any()):
            parts.append((piece, mask & piece.equal, piece.low, 1.0))
            continue
        parts += [
            (piece, mask & side.isfinite() & ~piece.equal, side, sign)
            for side, sign in ((piece.low, -1.0), (piece.high, 1.0))
            if bool((mask & side.isfinite() & ~piece.equal).any())
        ]
    if not parts:
        return None

    def rows(x: Tensor) -> Tensor:
        return torch.cat([sign * (piece.value(x).reshape(-1)[mask] - bound[mask]) for piece, mask, bound, sign in parts])

    return rows


def _several(constraints: Any) -> list[Any]:
    return list(constraints) if isinstance(constraints, (list, tuple)) else [constraints]


def _piece(one: Any) -> _Piece:
    from scipy.optimize import LinearConstraint, NonlinearConstraint

    if isinstance(one, LinearConstraint):
        matrix: Any = one.A
        A = torch.as_tensor(np.atleast_2d(matrix.toarray() if hasattr(matrix, "toarray") else matrix).astype(np.float64))
        return _Piece(lambda x: A.to(x) @ x, one.lb, one.ub)
    if isinstance(one, NonlinearConstraint):
        value = _numpy(one.fun, one.jac) if callable(one.jac) else one.fun
        return _Piece(value, one.lb, one.ub)  # pyright: ignore[reportArgumentType]
    if isinstance(one, dict) and one.get("type") in ("eq", "ineq") and callable(one.get("fun")):
        value = _numpy(one["fun"], one["jac"]) if callable(one.get("jac")) else one["fun"]
        return _Piece(value, 0.0, 0.0 if one["type"] == "eq" else np.inf)
    raise ProblemError(
        "constraints: expected LinearConstraint, NonlinearConstraint or a dict with type 'eq' or 'ineq' and fun, "
        f"got {type(one).__name__}"
    )


def _box(bounds: Any, n: int) -> Box:
    if hasattr(bounds, "lb"):
        low, high = (np.broadcast_to(np.asarray(side, dtype=np.float64), (n,)) for side in (bounds.lb, bounds.ub))
    else:
        pairs = list(bounds) if isinstance(bounds, Iterable) else []
        if len(pairs) != n or any(len(pair) != 2 for pair in pairs):
            raise ProblemError(f"bounds: expected Bounds or {n} pairs (low, high), got {bounds!r:.60}")
        low = np.array([-np.inf if pair[0] is None else pair[0] for pair in pairs], dtype=np.float64)
        high = np.array([np.inf if pair[1] is None else pair[1] for pair in pairs], dtype=np.float64)
    return Box(torch.as_tensor(low.copy()), torch.as_tensor(high.copy()))


class _Numpy(torch.autograd.Function):
    """A numpy function with its Jacobian inside a torch graph: first derivatives only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Callable[..., Any], jac: Callable[..., Any], scalar: bool) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        at = x.detach().cpu().numpy()
        ctx.jacobian = torch.as_tensor(np.atleast_2d(np.asarray(jac(at), dtype=np.float64))).to(x)
        out = torch.as_tensor(np.asarray(value(at), dtype=np.float64)).to(x)
        return out.reshape(()) if scalar else out.reshape(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (grad.reshape(1, -1) @ ctx.jacobian.reshape(grad.numel(), -1))[0], None, None, None


def _numpy(value: Callable[..., Any], jac: Any, scalar: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda x: _Numpy.apply(x, value, jac, scalar).reshape(() if scalar else (-1,))  # pyright: ignore[reportOptionalMemberAccess]
