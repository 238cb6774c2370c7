"""What `minimize` returns: a `Result` that answers to the names of scipy's `OptimizeResult` too."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.result import Result
from ..core.variables import checked_start

NAMES = ("x", "fun", "jac", "success", "status", "message", "nit", "niter", "nfev", "njev", "nhev", "v")
NAMES = (*NAMES, "optimality", "constr_violation", "multipliers", "notes")


@dataclass(frozen=True, eq=False, repr=False)
class MinimizeResult(Result):
    """A `Result`, whose parts are items too: `result["x"]`, `result.keys()`, `result.get(name)`, `name in result`.

    x: an array, a tensor where x0 was one. status: a `Status`, where scipy has integers. nit: steps, of SLSQP and trust-constr
    theirs. nfev, njev, nhev: calls of fun, jac, and hess or hessp, those of differences, checks and certificates included; of
    autodiff its gradients and products. v: one array a constraint as it was given, with grad f + sum_i J_i'v_i = 0 but for
    bounds: > 0 where its upper bound is active, < 0 where its lower one is. `multipliers` are those of the rows c = 0, h <= 0.
    """

    nit: int = 0
    nfev: int = 0
    njev: int = 0
    nhev: int = 0
    v: tuple[np.ndarray, ...] = ()
    unknown: tuple[bool, ...] = ()  # entries of the gradient that no difference tells

    @functools.cached_property
    def jac(self) -> Any:
        """The gradient of fun at x. NaN where bounds fix the entry and a derivative is made of differences, as scipy has it."""
        oracle: Any = self._problem().oracle()
        found = oracle.tape(checked_start("x", self.x, oracle.variables["x"])).gradient
        if any(self.unknown):
            found = found.clone()
            found[np.array(self.unknown)] = np.nan
        return found.cpu().numpy().copy() if isinstance(self.x, np.ndarray) else found

    @property
    def niter(self) -> int:
        """nit, by its other name."""
        return self.nit

    @functools.cached_property
    def optimality(self) -> float:
        """The residual `stationarity`."""
        return self._residuals["stationarity"]

    @functools.cached_property
    def constr_violation(self) -> float:
        """The residual `feasibility`."""
        return self._residuals["feasibility"]

    @functools.cached_property
    def _residuals(self) -> dict[str, float]:
        return self.residuals()

    # -- as a mapping -----------------------------------------------------------------------------------------------------
    def keys(self) -> tuple[str, ...]:
        return NAMES

    def __getitem__(self, name: str) -> Any:
        if name not in NAMES:
            raise KeyError(name)
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in NAMES else default

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, self[name]) for name in NAMES)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __contains__(self, name: object) -> bool:
        return name in NAMES
