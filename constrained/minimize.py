"""`minimize` in scipy's shapes: its bounds and constraints in, this library's solvers and `Result` out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core.derivatives.constraint import Constraint
from .core.derivatives.counts import Calls
from .core.derivatives.function import Function
from .core.errors import ProblemError, shown
from .core.result import Result
from .core.run import solve
from .core.solver import Solver
from .core.vec import Vec
from .problem import ConstrainedProblem
from .sets import Box, Everywhere


def minimize(
    fun: Callable[[Any], Any],
    x0: Any,
    *,
    jac: Callable[[Any], Any] | bool | None = None,
    bounds: Any = None,
    constraints: Any = (),
    solver: Solver[Any, Any] | None = None,
    tol: float | None = None,
    **options: Any,
) -> Result:
    """min fun(x) subject to scipy's bounds and constraints.

    fun: of a 1-D float64 tensor, differentiated by torch; or, where `jac` is given, a numpy function with its gradient; with
    jac=True it returns both. Numpy functions have no second derivatives: a solver is chosen that needs none. bounds:
    `scipy.optimize.Bounds` or pairs (low, high), None for a free side. constraints: one or several of `LinearConstraint`,
    `NonlinearConstraint` (torch functions, or numpy ones with a callable `jac`) and dicts {"type": "eq" | "ineq", "fun", "jac"},
    with scipy's signs: an "ineq" is fun(x) >= 0. Rows with equal bounds are equalities. solver: None chooses by what the problem
    has. options: those of `solve` (max_steps, max_seconds, callbacks, ...).

    Raises ProblemError for shapes that do not fit, for numpy functions without derivatives, and for keep_feasible=True, which
    the solvers here do not honour.

    >>> from scipy.optimize import LinearConstraint
    >>> found = minimize(lambda x: (x**2).sum(), [3.0, 1.0], constraints=LinearConstraint([[1.0, 1.0]], 1, 1))
    >>> found.status.name, found.x.round(decimals=6)
    ('CONVERGED', tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    x = _vector(x0)
    pieces = [_piece(one) for one in _several(constraints)]
    for piece in pieces:
        piece.look(x)
    equality, inequality = _rows(pieces, lambda p: p.equal), _rows(pieces, lambda p: ~p.equal)
    if jac is None and not isinstance(_called(fun, x), Tensor):
        raise ProblemError("fun: expected a torch function, or jac= with a numpy one")
    if jac is not None and jac is not True and not callable(jac):
        raise ProblemError(f"jac: expected a function, or True where fun returns its gradient too, got {jac!r:.60}")
    value, gradient = _split(fun) if jac is True else (fun, jac)
    objective = fun if gradient is None else Function.numpy(value, gradient=gradient)
    X = Everywhere() if bounds is None else _box(bounds, len(x))
    problem = ConstrainedProblem(objective=objective, x=x, equality=equality, inequality=inequality, X=X)
    return solve(problem, solver, tol=tol, **options)


def _vector(x0: Any) -> Tensor:
    try:
        x = x0 if isinstance(x0, Tensor) else torch.as_tensor(np.array(x0, dtype=np.float64))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ProblemError(f"x0: expected a vector of numbers, got {shown(x0)}") from None
    if x.ndim != 1 or not len(x) or not x.is_floating_point():
        raise ProblemError(f"x0: expected a vector of floating-point numbers, got shape {tuple(x.shape)} of {x.dtype}")
    return x


@dataclass
class _Piece:
    """low <= value(x) <= high, row by row. jacobian: of a tensor, where the user gives it."""

    value: Callable[[Tensor], Tensor]
    low: Any
    high: Any
    jacobian: Callable[[Tensor], Any] | None = None
    equal: Any = None

    def look(self, x: Tensor) -> None:
        """Bounds as vectors of the value's length."""
        value = _called(self.value, x)
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

    def slopes(self, x: Tensor) -> Tensor:
        """The Jacobian, one row a component."""
        if self.jacobian is None:
            at = Vec.of(x)
            return Constraint("constraints", self.value, Calls()).rows((at,), torch.eye(len(self.low), dtype=x.dtype))[0]
        found = self.jacobian(x)
        found = found.toarray() if hasattr(found, "toarray") else found
        return torch.as_tensor(found).to(x).reshape(-1, len(x))


def _rows(pieces: list[_Piece], chosen: Callable[[_Piece], Tensor]) -> Callable[[Tensor], Tensor] | Function | None:
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

    if all(piece.jacobian is None for piece, *_ in parts):
        return rows
    return Function(
        rows, jacobian=lambda x: torch.cat([sign * piece.slopes(x)[mask] for piece, mask, _, sign in parts]), torch=False
    )


def _several(constraints: Any) -> list[Any]:
    return list(constraints) if isinstance(constraints, (list, tuple)) else [constraints]


def _piece(one: Any) -> _Piece:
    from scipy.optimize import LinearConstraint, NonlinearConstraint

    if np.any(getattr(one, "keep_feasible", False)):
        raise ProblemError("constraints: keep_feasible=True: not honoured by the solvers here; use bounds or a set X= for that")
    if isinstance(one, LinearConstraint):
        matrix: Any = one.A
        A = torch.as_tensor(np.atleast_2d(matrix.toarray() if hasattr(matrix, "toarray") else matrix).astype(np.float64))
        return _Piece(lambda x: A.to(x) @ x, one.lb, one.ub)
    if isinstance(one, NonlinearConstraint):
        return _nonlinear(one.fun, one.jac, one.lb, one.ub)
    if isinstance(one, dict) and one.get("type") in ("eq", "ineq") and callable(one.get("fun")):
        return _nonlinear(one["fun"], one.get("jac"), 0.0, 0.0 if one["type"] == "eq" else np.inf)
    raise ProblemError(
        "constraints: expected LinearConstraint, NonlinearConstraint or a dict with type 'eq' or 'ineq' and fun, "
        f"got {type(one).__name__}"
    )


def _nonlinear(fun: Any, jac: Any, low: Any, high: Any) -> _Piece:
    if not callable(jac):
        return _Piece(fun, low, high)

    def value(x: Tensor) -> Tensor:
        return torch.as_tensor(np.asarray(fun(x.detach().cpu().numpy()), dtype=np.float64)).to(x).reshape(-1)

    return _Piece(value, low, high, lambda x: jac(x.detach().cpu().numpy()))


def _called(function: Callable[..., Any], x: Tensor) -> Any:
    """What a user's function returns, called as the solvers do."""
    with torch.enable_grad():
        found = function(x.detach().clone().requires_grad_())
    return found.detach() if isinstance(found, Tensor) else found


def _split(both: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Value and gradient of a function that returns both, called once a point."""
    last: list[Any] = [None, None]

    def at(x: np.ndarray) -> Any:
        key = x.tobytes()
        if last[0] != key:
            last[:] = key, both(x)
        return last[1]

    return lambda x: at(x)[0], lambda x: at(x)[1]


def _box(bounds: Any, n: int) -> Box:
    try:
        if hasattr(bounds, "lb"):
            low, high = (np.broadcast_to(np.asarray(side, dtype=np.float64), (n,)) for side in (bounds.lb, bounds.ub))
        else:
            pairs = [(low, high) for low, high in bounds]
            low = np.array([-np.inf if pair[0] is None else pair[0] for pair in pairs], dtype=np.float64)
            high = np.array([np.inf if pair[1] is None else pair[1] for pair in pairs], dtype=np.float64)
        if low.shape != (n,) or high.shape != (n,):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ProblemError(f"bounds: expected Bounds or {n} pairs (low, high), got {shown(bounds)}") from None
    return Box(torch.as_tensor(low.copy()), torch.as_tensor(high.copy()))
