"""What Ipopt and its twins share: the interface of cyipopt's Problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.errors import extra
from ..core.options import Positive, Steps
from ..core.status import Feature
from .reference import Found, Reference, View
from .stacked import Stacked


@dataclass(frozen=True, kw_only=True)
class IpoptInterface(Reference):
    """package: what to import, and the extra that brings it; options: those beside the ones that all get."""

    supports: ClassVar[Feature] = Reference.supports | Feature.NO_HVP
    package: ClassVar[tuple[str, str]]
    options: ClassVar[dict[str, Any]] = {}

    tol: Positive | None = None
    accuracy: Positive = 1e-10
    iterations: Steps = 1000

    def run(self, view: View) -> Found:
        module = extra(*self.package)
        return Stacked(view).solved(lambda stacked: self._solved(module, stacked))

    def _solved(self, module: Any, stacked: Stacked) -> Found:
        view = stacked.view
        problem = module.Problem(
            n=stacked.n,
            m=stacked.m,
            problem_obj=stacked,
            lb=view.low,
            ub=view.high,
            cl=stacked.bottom,
            cu=stacked.top,
        )
        second = {} if view.twice else {"hessian_approximation": "limited-memory"}
        own = {"tol": self.accuracy, "max_iter": self.iterations, "bound_relax_factor": 0.0, "print_level": 0}
        for name, value in {**own, **self.options, **second}.items():
            problem.add_option(name, value)
        x, info = problem.solve(view.x0.copy())
        said = info["status_msg"]
        said = said.decode() if isinstance(said, bytes) else str(said)
        lam, mu = stacked.split(np.asarray(info["mult_g"], dtype=float))
        multipliers = {"lam": lam if stacked.equalities else None, "mu": mu.clip(0) if stacked.inequalities else None}
        low, high = (np.asarray(info[name], dtype=float) for name in ("mult_x_L", "mult_x_U"))
        return Found(np.asarray(x), stacked.iterations, said, info["status"] in (0, 1), **multipliers, low=low, high=high)
