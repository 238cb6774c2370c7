"""Uno: Fletcher and Leyffer's filter SQP method as the package unopy has it.

References
    Vanaret and Leyffer: Implementing a unified solver for nonlinearly constrained optimization, 2024 (Uno). Fletcher and Leyffer:
    Nonlinear programming without a penalty function, Math. Program. 91, 2002 (filterSQP).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..core.errors import extra
from ..core.options import Positive, Steps
from ..core.status import Feature
from ..peers.reference import Found, Reference, View
from ..peers.stacked import Stacked


@dataclass(frozen=True, kw_only=True)
class Uno(Reference):
    """Filter SQP with a trust region (Fletcher and Leyffer 2002) of the package unopy, its preset `filtersqp`.

    With exact second derivatives of f, c and h; where a function has none, a limited-memory approximation. Sparse matrices of a
    `Function` stay sparse.

    accuracy: its own tolerances; iterations: its limit. A limit of time and Ctrl-C act where it asks for a value, not inside its
    quadratic programs, which are long for thousands of unknowns. Raises MissingExtra where unopy is not installed.

    >>> import torch
    >>> from constrained import ConstrainedProblem, solve
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> problem = ConstrainedProblem(objective=lambda x: ((x - 1) ** 2).sum(), inequality=lambda x: x.sum() - 1, x=x)
    >>> result = solve(problem, Uno())
    >>> result.x.round(decimals=6), result.multipliers.inequality.round(decimals=6)
    (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    Source: https://github.com/cvanaret/Uno.
    """

    supports: ClassVar[Feature] = Reference.supports | Feature.NO_HVP

    tol: Positive | None = None
    accuracy: Positive = 1e-10
    iterations: Steps = 1000

    def run(self, view: View) -> Found:
        module = extra("unopy", "uno")
        return Stacked(view).solved(lambda stacked: self._solved(module, stacked))

    def _solved(self, module: Any, stacked: Stacked) -> Found:
        solver = module.UnoSolver()
        solver.set_preset("filtersqp")
        own = {"primal_tolerance": self.accuracy, "dual_tolerance": self.accuracy, "max_iterations": self.iterations}
        for name, value in {**own, "print_solution": False, "logger": "SILENT"}.items():
            solver.set_option(name, value)
        solver.set_termination_callback(lambda *iterate: stacked.failure is not None)
        found = solver.optimize(self._model(module, stacked))
        lam, mu = stacked.split(np.array(found.constraint_dual_solution, dtype=float))
        multipliers = (lam if stacked.equalities else None, mu.clip(0) if stacked.inequalities else None)
        ends = (found.optimization_status, found.solution_status)
        solved = ends == (module.OptimizationStatus.SUCCESS, module.SolutionStatus.FEASIBLE_KKT_POINT)
        said = ", ".join(str(end).rpartition(".")[2] for end in ends)
        return Found(np.array(found.primal_solution), int(found.number_iterations), said, solved, *multipliers)

    def _model(self, module: Any, stacked: Stacked) -> Any:
        view = stacked.view

        def into(function: Any) -> Any:
            """The function with its result written to the last argument."""

            def call(*args: Any) -> None:
                args[-1][:] = function(*args[:-1])

            return call

        model = module.Model(module.PROBLEM_NONLINEAR, stacked.n, view.low, view.high, module.ZERO_BASED_INDEXING)
        model.set_objective(module.MINIMIZE, stacked.objective, into(stacked.gradient))
        if stacked.m:
            places = stacked.jacobianstructure()
            J = into(stacked.jacobian)
            model.set_constraints(stacked.m, into(stacked.constraints), stacked.bottom, stacked.top, len(places[0]), *places, J)
        if view.twice:
            places = stacked.hessianstructure()
            H = into(lambda x, sigma, weights: stacked.hessian(x, weights, sigma))
            model.set_lagrangian_hessian(len(places[0]), module.LOWER_TRIANGLE, *places, H)
        model.set_lagrangian_sign_convention(module.MULTIPLIER_POSITIVE)
        model.set_initial_primal_iterate(view.x0)
        return model
