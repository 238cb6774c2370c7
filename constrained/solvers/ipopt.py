"""Ipopt: the interior-point filter method of Waechter and Biegler through the package cyipopt.

Reference
    Waechter and Biegler: On the implementation of an interior-point filter line-search algorithm for large-scale nonlinear
    programming, Math. Program. 106, 2006.
"""

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
class Ipopt(Reference):
    """The interior-point filter method of Waechter and Biegler (2006) through the package cyipopt, which needs Ipopt itself.

    With exact second derivatives of f, c and h; where a function has none, a limited-memory approximation. Sparse matrices of a
    `Function` stay sparse. Bounds are kept to the last digit (`bound_relax_factor=0`).

    accuracy: its own tolerance, on its scaled problem; iterations: its limit. Raises MissingExtra where cyipopt is not installed.

    >>> import torch
    >>> from constrained import ConstrainedProblem, solve
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> problem = ConstrainedProblem(objective=lambda x: ((x - 1) ** 2).sum(), inequality=lambda x: x.sum() - 1, x=x)
    >>> result = solve(problem, Ipopt())
    >>> result.x.round(decimals=6), result.multipliers.inequality.round(decimals=6)
    (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    Source: https://github.com/mechmotum/cyipopt; Waechter and Biegler 2006.
    """

    supports: ClassVar[Feature] = Reference.supports | Feature.NO_HVP
    package: ClassVar[tuple[str, str]] = ("cyipopt", "ipopt")
    options: ClassVar[dict[str, Any]] = {"sb": "yes"}

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
        multipliers = (lam if stacked.equalities else None, mu.clip(0) if stacked.inequalities else None)
        return Found(np.asarray(x), stacked.iterations, said, info["status"] in (0, 1), *multipliers)
