"""`minimize` in scipy's shapes: its functions, bounds, constraints, options in, this library's solvers and `Result` out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate

import numpy as np
import torch
from torch import Tensor

from .as_scipy.constraints import Rows, multipliers, pieces
from .as_scipy.differences import ACCURACY
from .as_scipy.functions import Objective, Setting, objective
from .as_scipy.kept import Kept
from .as_scipy.methods import Choice, Told, choose
from .as_scipy.result import MinimizeResult
from .core.derivatives.counts import Count
from .core.errors import ProblemError, shown
from .core.result import Result
from .core.run import default_solver, solve
from .core.solver import Solver
from .core.status import Status
from .peers.reference import Reference, watched
from .problem import ConstrainedProblem
from .sets import Box, Everywhere
from .solvers.augmented_lagrangian import AugmentedLagrangian
from .solvers.scipy_solvers import TrustConstr

BY_NAME = 1e-5  # residuals that SLSQP and trust-constr reach
# scipy's own words, to the letter: its users' programs match them, and so do 12 of its own tests.
UNFIT = "The number of bounds is not compatible with the length of `x0`."
CROSSED = "An upper bound is less than the corresponding lower bound."
STOPPED = "`callback` raised `StopIteration`"
KEPT = "keep_feasible=True of a constraint, without second derivatives: trust-constr took the place of AugmentedLagrangian."
DIFFERENCES = "derivatives of {names} are differences of values ({schemes}): with torch functions, or jac=, they would be exact."


def minimize(
    fun: Callable[Concatenate[Any, ...], Any],
    x0: Any,
    args: Any = (),
    method: str | None = None,
    jac: Callable[..., Any] | bool | str | None = None,
    hess: Any = None,
    hessp: Callable[..., Any] | None = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    options: dict[str, Any] | None = None,
    *,
    solver: Solver[Any, Any] | None = None,
    **settings: Any,
) -> MinimizeResult:
    """min fun(x, *args) subject to scipy's bounds and constraints: `scipy.optimize.minimize` with this library's solvers.

    fun: of a vector of float64, in numpy or torch. It is called with a tensor once, and differentiated by torch if a tensor comes
    back; else it gets arrays. jac: its gradient; True where fun returns both; "2-point", "3-point" (None for numpy functions) or
    "cs": differences, within bounds. hess: a matrix, dense or sparse, or a LinearOperator; by the same names differences of jac;
    BFGS() and SR1() are left to the solver. hessp: products hessp(x, p, *args). Functions get tensors where x0 is one and they
    take it.

    bounds: `scipy.optimize.Bounds` or pairs (low, high), None for a free side. With keep_feasible=True none of the functions is
    called outside: solvers here project on bounds; trust-constr does not, and its points are clipped first. constraints: one or
    several of `LinearConstraint`, `NonlinearConstraint` and dicts {"type", "fun", "jac", "args"}, with scipy's signs: fun(x) = 0
    for "eq", fun(x) >= 0 for "ineq". Rows with equal bounds are equalities. keep_feasible=True of the others: fun, jac and hess
    are not called where such a row is violated, for differences neither; x0 must satisfy it. Without second derivatives
    trust-constr solves then, with a note: AugmentedLagrangian comes from outside.

    method: None chooses by what the problem has; a solver by name, as "augmented-lagrangian", "SLSQP", "trust-constr"; for other
    names of scipy the library's choice, with a note. solver: one with options of its own. tol: on the residuals; None: 1e-8, with
    "3-point" 1e-6, with "2-point" and by "SLSQP" and "trust-constr" 1e-5. callback: callback(xk) or
    callback(intermediate_result=...), with trust-constr callback(xk, state); StopIteration, or True, stops. options: maxiter,
    disp, gtol; ftol of SLSQP, xtol of trust-constr; eps, finite_diff_rel_step, workers. settings: those of `solve`.

    The result's x is an array; a tensor where x0 is one. Its items are scipy's: `result["x"]`, `nit`, `nfev`, `jac`, ...

    Raises ProblemError for functions, shapes and constraints that do not fit and for an x0 that violates a row with
    keep_feasible=True; OptionError for methods and options that mean nothing here.

    >>> from scipy.optimize import LinearConstraint
    >>> found = minimize(lambda x: (x**2).sum(), [3.0, 1.0], constraints=LinearConstraint([[1.0, 1.0]], 1, 1))
    >>> found.status.name, found.x.round(decimals=6)
    ('CONVERGED', array([0.5, 0.5]))
    """
    x = _vector(x0)
    chosen = choose(method, solver, options)
    low, high, keep = _sides(bounds, len(x))
    at = Setting(x, isinstance(x0, Tensor), low, high, keep, chosen.relative, chosen.absolute, chosen.workers)
    args = args if isinstance(args, tuple) else (args,)
    given = pieces(constraints, at)
    kept = Kept.of(given, at.start)
    f = objective(fun, dataclasses.replace(at, allowed=kept), args, jac, hess, hessp)
    rows = Rows.equality(given), Rows.inequality(given)
    X = Everywhere() if bounds is None else Box(torch.as_tensor(low.copy()), torch.as_tensor(high.copy()))
    c, h = (one.function(torch.as_tensor(at.start).to(x)) for one in rows)
    problem = ConstrainedProblem(objective=f.function, x=x, equality=c, inequality=h, X=X)
    if kept is not None:
        chosen = _within(problem, chosen)
    told = None if callback is None else Told(callback, x if at.tensors else None, _value(problem, x), _two(chosen))
    schemes = {"fun": f.scheme} | {f"constraints[{i}]": piece.scheme for i, piece in enumerate(given)}
    schemes = {name: scheme for name, scheme in schemes.items() if scheme}
    result = _solved(problem, chosen, _tolerance(tol, chosen, x, schemes.values()), told, settings)
    return _as_scipys(result, f, rows, at, chosen, told, schemes)


def _within(problem: ConstrainedProblem, chosen: Choice) -> Choice:
    """A solver that comes from inside, where the choice is free."""
    if chosen.solver is not None:
        return chosen
    found = default_solver(problem)
    if isinstance(found, AugmentedLagrangian):
        return dataclasses.replace(chosen, solver=TrustConstr(), named=True, notes=(*chosen.notes, KEPT))
    return dataclasses.replace(chosen, solver=found)


def _two(chosen: Choice) -> bool:
    """scipy's trust-constr calls callback(xk, state)."""
    return type(chosen.solver).__name__ == "TrustConstr"


def _vector(x0: Any) -> Tensor:
    try:
        if x0 is None or (isinstance(x0, Tensor) and (x0.is_meta or x0.layout != torch.strided)):
            raise TypeError
        x = x0 if isinstance(x0, Tensor) else torch.as_tensor(np.array(x0, dtype=np.float64))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ProblemError(f"x0: expected a vector of numbers, got {shown(x0)}") from None
    x = x.reshape(1) if x.ndim == 0 and x.is_floating_point() else x
    if x.ndim != 1 or not len(x) or not x.is_floating_point():
        raise ProblemError(f"x0: expected a vector of floating-point numbers, got shape {tuple(x.shape)} of {x.dtype}")
    return x


def _sides(bounds: Any, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, high, and where they hold for every evaluation."""
    if bounds is None:
        return np.full(n, -np.inf), np.full(n, np.inf), np.zeros(n, dtype=bool)
    try:
        if hasattr(bounds, "lb"):
            low, high = (np.broadcast_to(np.asarray(side, dtype=np.float64), (n,)) for side in (bounds.lb, bounds.ub))
        else:
            pairs = [(low, high) for low, high in bounds]
            low = np.array([-np.inf if pair[0] is None else np.asarray(pair[0], dtype=np.float64).item() for pair in pairs])
            high = np.array([np.inf if pair[1] is None else np.asarray(pair[1], dtype=np.float64).item() for pair in pairs])
        if low.shape != (n,) or high.shape != (n,):
            raise ValueError
        keep = np.broadcast_to(np.asarray(getattr(bounds, "keep_feasible", False), dtype=bool), (n,))
    except (TypeError, ValueError, OverflowError):
        fit = f" {UNFIT}" if hasattr(bounds, "lb") else ""
        raise ProblemError(
            f"bounds: expected Bounds or {n} pairs (low, high), one an entry of x0, got {shown(bounds)}.{fit}"
        ) from None
    holds = (low <= high) & (low < np.inf) & (high > -np.inf)  # a number
    if not holds.all():
        i = int(np.argmin(holds))
        got = f"{low[i]:g} and {high[i]:g} in entry {i}"
        raise ProblemError(f"bounds: expected a Box, low <= high with a number between in every entry, got {got}. {CROSSED}")
    return low, high, keep


def _tolerance(tol: float | None, chosen: Choice, x: Tensor, schemes: Iterable[str]) -> float | None:
    """What was asked for; where nothing was, what differences can reach, and the library's own where there are none."""
    tol = chosen.tol if tol is None else tol
    own = chosen.solver is not None and chosen.solver.tol is not None
    if tol is not None or own or x.dtype != torch.float64:
        return tol
    reached = [ACCURACY[scheme] for scheme in schemes] + [BY_NAME] * (chosen.named and isinstance(chosen.solver, Reference))
    return max(reached, default=None)


def _value(problem: ConstrainedProblem, x: Tensor) -> Callable[[np.ndarray], float]:
    """fun as callbacks are told it."""

    def value(at: np.ndarray) -> float:
        with torch.no_grad():
            return float(problem.objective(torch.as_tensor(at).to(x)))

    return value


def _solved(
    problem: ConstrainedProblem, chosen: Choice, tol: float | None, told: Told | None, settings: dict[str, Any]
) -> Result:
    settings = chosen.settings | settings
    if told is None:
        return solve(problem, chosen.solver, tol=tol, **settings)
    if isinstance(chosen.solver, Reference):
        steps = iter(range(1, 10**9))
        with watched(lambda at, state: told(at, next(steps), state)):
            return solve(problem, chosen.solver, tol=tol, **settings)
    settings["callbacks"] = [*settings.get("callbacks", ()), told.event]
    return solve(problem, chosen.solver, tol=tol, **settings)


def _as_scipys(
    result: Result, f: Objective, rows: Sequence[Rows], at: Setting, chosen: Choice, told: Told | None, schemes: dict[str, str]
) -> MinimizeResult:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    x, multiplied = result.x, multipliers(rows[0], rows[1], result.multipliers)
    assert isinstance(x, Tensor)
    notes = chosen.notes
    if schemes:
        names, used = ", ".join(schemes), ", ".join(dict.fromkeys(schemes.values()))
        notes += (DIFFERENCES.format(names=names, schemes=used),)
    stopped = told is not None and told.stop and result.status is Status.STOPPED
    total = functools.reduce(Count.__add__, (by.get("objective", Count()) for by in result.calls.by.values()), Count())
    return MinimizeResult(
        **fields
        | {
            "x": x if at.tensors else x.numpy(),
            "message": f"{STOPPED}. {result.message}" if stopped else result.message,
            "notes": (*notes, *result.notes),
        },
        nit=getattr(result.state, "iterations", result.steps),
        nfev=f.values.calls,
        njev=total.gradients if f.slopes is None else f.slopes(),
        nhev=total.hvps + total.hessians if f.bends is None else f.bends(),
        v=tuple(multiplied),
        unknown=tuple(bool(same) for same in at.low == at.high) if schemes else (),
    )
