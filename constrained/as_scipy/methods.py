"""scipy's names for methods, options and callbacks, and what they are here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .. import solvers
from ..core.errors import OptionError, shown
from ..core.event import Event
from ..core.solver import Solver
from ..peers.reference import Reference
from ..solvers.scipy_solvers import SLSQP, TrustConstr

OWN = {name.lower(): getattr(solvers, name) for name in solvers.__all__}
DESCENT = ("CG", "BFGS", "Newton-CG", "L-BFGS-B", "TNC", "dogleg", "trust-ncg", "trust-krylov", "trust-exact")
DERIVATIVE_FREE = ("Nelder-Mead", "Powell", "COBYLA", "COBYQA")
OPTIONS = ("maxiter", "disp", "gtol", "ftol (SLSQP)", "xtol (trust-constr)", "eps", "finite_diff_rel_step", "workers")


@dataclass
class Choice:
    """What method= and options= come to: a solver, or None for the library's choice; arguments of `solve`; sentences about them;
    the steps of differences, and what calls a function at their points.
    """

    solver: Solver[Any, Any] | None
    named: bool = False  # by method=
    tol: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    relative: Any = None
    absolute: Any = None
    workers: Callable[..., Any] = map


def choose(method: Any, solver: Solver[Any, Any] | None, options: Any) -> Choice:
    """Raises OptionError for a name or an option that means nothing here."""
    if method is not None and solver is not None:
        raise OptionError(f"method: expected method= or solver=, got both: {shown(method)} and {shown(solver)}")
    found = Choice(solver) if method is None else _named(method)
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"options: expected a dict, got {shown(options)}")
    for name, value in (options or {}).items():
        _option(found, name, value)
    return found


def _named(method: Any) -> Choice:
    if not isinstance(method, str):
        raise OptionError(f"method: expected a name, got {shown(method)}; a solver is given as solver=")
    plain = method.lower().replace("-", "").replace("_", "").replace(" ", "")
    if plain in OWN:
        return Choice(SLSQP(ftol=1e-14) if OWN[plain] is SLSQP else OWN[plain](), named=True)  # it ends early where f is large
    known = {name.lower().replace("-", ""): name for name in (*DESCENT, *DERIVATIVE_FREE)}
    if plain not in known:
        names = ", ".join([*(cls.__name__ for cls in OWN.values()), *known.values()])
        raise OptionError(f"method: expected None or one of {names}, got {shown(method)}")
    but = ", which takes derivatives or differences" if known[plain] in DERIVATIVE_FREE else ""
    return Choice(None, notes=(f"method: {known[plain]} is scipy's: the library's own choice took its place{but}.",))


def _option(found: Choice, name: str, value: Any) -> None:
    solver = found.solver
    if name == "maxiter":
        steps = _limit(value)
        if isinstance(solver, Reference) and steps is not None:
            found.solver = replace(cast("Any", solver), iterations=steps)
        elif not isinstance(solver, Reference):
            found.settings["max_steps"] = steps
    elif name == "disp":
        found.settings["progress"] = bool(value)
    elif name == "gtol":
        found.tol = value
        if isinstance(solver, TrustConstr):
            found.solver = replace(cast("Any", solver), gtol=value)
    elif name == "ftol" and isinstance(solver, SLSQP):
        found.solver = replace(cast("Any", solver), ftol=value)
    elif name == "xtol" and isinstance(solver, TrustConstr):
        found.solver = replace(cast("Any", solver), xtol=value)
    elif name == "eps":
        found.absolute = value
    elif name == "finite_diff_rel_step":
        found.relative = value
    elif name == "workers" and (callable(value) or value is None):
        found.workers = map if value is None else value
    else:
        raise OptionError(
            f"options: expected some of {', '.join(OPTIONS)}, got {name!r} for {_who(solver)}; workers is a function like map"
        )


def _who(solver: Solver[Any, Any] | None) -> str:
    return "the library's choice" if solver is None else type(solver).__name__


def _limit(value: Any) -> int | None:
    """A number of steps; scipy takes numbers with a fraction, and infinity."""
    if value is None:
        return None
    try:
        return None if value == math.inf else math.ceil(value)
    except (TypeError, ValueError):
        raise OptionError(f"options: maxiter: expected a number, got {shown(value)}") from None


# -- callbacks ------------------------------------------------------------------------------------------------------------------
class Told:
    """A user's callback in the form that it has, after every step: callback(xk), callback(intermediate_result=...) or, with
    trust-constr, callback(xk, state). StopIteration, or True, stops the run.
    """

    def __init__(self, callback: Callable[..., Any], like: Tensor | None, fun: Callable[[np.ndarray], float], two: bool):
        if not callable(callback):
            raise OptionError(f"callback: expected a function, got {shown(callback)}")
        self.callback, self.like, self.fun = callback, like, fun
        self.stop = False  # by StopIteration
        try:
            signature = inspect.signature(callback)
        except (TypeError, ValueError):  # of some built-ins
            self.form = "x"
        else:
            whole = set(signature.parameters) == {"intermediate_result"}
            self.form = "whole" if whole else "state" if _fits(signature, 2) and (two or not _fits(signature, 1)) else "x"

    def __call__(self, x: np.ndarray, steps: int, state: Any = None) -> bool:
        from scipy.optimize import OptimizeResult

        at = x.copy() if self.like is None else torch.as_tensor(x.copy()).to(self.like)
        try:
            if self.form == "x":
                return bool(self.callback(at))
            if state is None:
                state = OptimizeResult(x=at, fun=self.fun(x), nit=steps, niter=steps)
            state = OptimizeResult(state) if self.form == "state" else OptimizeResult(x=at, fun=self.fun(x), nit=steps)
            return bool(self.callback(at, state) if self.form == "state" else self.callback(intermediate_result=state))
        except StopIteration:
            self.stop = True
            return True

    def event(self, event: Event) -> bool:
        """As a callback of `solve`, for solvers that take their steps in it."""
        x = event.answer.x if event.k else None
        return x is not None and self(x.detach().cpu().double().numpy(), event.k)  # pyright: ignore[reportAttributeAccessIssue]


def _fits(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
