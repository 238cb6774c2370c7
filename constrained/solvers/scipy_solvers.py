"""SLSQP and TrustConstr: the solvers of `scipy.optimize.minimize` behind this library's interface.

References
    Kraft: A software package for sequential quadratic programming, DFVLR-FB 88-28, 1988 (SLSQP). Conn, Gould and Toint:
    Trust-region methods, 2000, and Byrd, Hribar and Nocedal 1999 (trust-constr).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.options import Positive, Steps
from ..peers.reference import Found, Reference, View

Product = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class SLSQP(Reference):
    """Sequential least-squares quadratic programming of scipy (Kraft 1988), on this library's gradients. Dense; small problems.

    It gets f over the largest entry of its gradient at the start, where that is more than 1: its line search ends early where f
    and the multipliers are large. ftol: its own tolerance, on that; iterations: its limit.

    >>> import torch
    >>> from constrained import ConstrainedProblem, solve
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: x.sum() - 1, x=x)
    >>> solve(problem, SLSQP()).x.round(decimals=6)
    tensor([0.5000, 0.5000], dtype=torch.float64)

    Source: `scipy.optimize.minimize(method="SLSQP")`.
    """

    tol: Positive | None = None
    ftol: Positive = 1e-12
    iterations: Steps = 1000

    def run(self, view: View) -> Found:
        from scipy.optimize import Bounds, minimize

        moves = view.low < view.high  # the slopes of what cannot move would only spoil the scale of its least squares
        rows: list[dict[str, Any]] = []
        if view.equalities:
            rows.append({"type": "eq", "fun": view.c, "jac": lambda x: view.jacobian(x) * moves})
        if view.inequalities:
            rows.append({"type": "ineq", "fun": lambda x: -view.h(x), "jac": lambda x: -view.h_jacobian(x) * moves})
        size = float(np.abs(view.gradient(view.x0) * moves).max(initial=1.0))
        size = size if np.isfinite(size) else 1.0
        found = minimize(
            lambda x: view.f(x) / size,
            view.x0,
            jac=lambda x: view.gradient(x) * moves / size,
            method="SLSQP",
            bounds=Bounds(view.low, view.high) if view.bounded else None,  # pyright: ignore[reportArgumentType]
            constraints=rows,
            callback=lambda xk: view.tell(xk),
            options={"ftol": self.ftol, "maxiter": self.iterations},
        )
        # its multipliers are those of the last quadratic program, of the point before
        return Found(found.x, int(found.nit), str(found.message), bool(found.success))


@dataclass(frozen=True, kw_only=True)
class TrustConstr(Reference):
    """Trust-region interior point and Byrd-Omojokun SQP of scipy, with Hessian-vector products of f, c and h, or BFGS for
    all of them where one has none. Sparse Jacobians stay sparse where all are.

    gtol, xtol: its own tolerances; iterations: its limit. Left alone, scipy ends by gtol whatever the barrier parameter is, where
    the point may be far from a solution; here both have to be small.

    >>> import torch
    >>> from constrained import ConstrainedProblem, solve
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: x.sum() - 1, x=x)
    >>> solve(problem, TrustConstr()).x.round(decimals=6)
    tensor([0.5000, 0.5000], dtype=torch.float64)

    Source: `scipy.optimize.minimize(method="trust-constr")`.
    """

    tol: Positive | None = None
    gtol: Positive = 1e-9
    xtol: Positive = 1e-14
    iterations: Steps = 1000

    def run(self, view: View) -> Found:
        from scipy.optimize import BFGS, Bounds, NonlinearConstraint, minimize
        from scipy.sparse.linalg import LinearOperator

        n = len(view.x0)

        def of_f(x: np.ndarray, v: np.ndarray) -> np.ndarray:
            return view.product(x, np.zeros(len(view.c(x))), v)

        def curvature(product: Product) -> Callable[[np.ndarray, np.ndarray], Any]:
            def hess(x: np.ndarray, weights: np.ndarray) -> Any:
                return LinearOperator((n, n), matvec=lambda v: product(x, weights, v.ravel()))  # pyright: ignore[reportCallIssue]

            return hess

        sparse = view.sparse  # scipy wants all of the Jacobians sparse, or none
        rows: list[Any] = []
        if view.equalities:
            of_c = curvature(lambda x, lam, v: view.product(x, lam, v) - of_f(x, v))
            jac = view.own_jacobian if sparse else view.jacobian
            rows.append(NonlinearConstraint(view.c, 0, 0, jac=jac, hess=of_c if view.twice else BFGS()))  # pyright: ignore[reportArgumentType]
        if view.inequalities:
            jac = view.own_h_jacobian if sparse else view.h_jacobian
            of_h = curvature(view.h_product) if view.twice else BFGS()
            rows.append(NonlinearConstraint(view.h, -np.inf, 0, jac=jac, hess=of_h))  # pyright: ignore[reportArgumentType]
        barrier = view.inequalities or view.bounded

        def arrived(x: np.ndarray, state: Any) -> bool:
            view.tell(x, state)
            figures = state.optimality, state.constr_violation, state.barrier_parameter if barrier else 0.0
            return max(figures) <= self.gtol

        found = minimize(
            view.f,
            view.x0,
            jac=view.gradient,
            **({"hessp": of_f} if view.twice else {"hess": BFGS()}),
            method="trust-constr",
            bounds=Bounds(view.low, view.high) if view.bounded else None,  # pyright: ignore[reportArgumentType]
            constraints=rows,
            callback=arrived,
            options={
                "gtol": 0.0 if barrier else self.gtol,
                "xtol": self.xtol,
                "maxiter": self.iterations,
                "barrier_tol": self.gtol,
                "sparse_jacobian": sparse or None,
            },
        )
        # status 1: by gtol, 2: by xtol, 3: by `arrived`. Its multipliers are least-squares ones, like ours.
        said = "gtol and the barrier parameter are reached" if found.status == 3 else str(found.message)
        return Found(found.x, int(found.nit), said, found.status in (1, 2, 3))
