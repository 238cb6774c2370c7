"""SLSQP, TrustConstr and Ipopt: other people's solvers behind this library's interface, on its derivatives.

Problem
    min f(x) subject to c(x) = 0, h(x) <= 0, low <= x <= high.

Each runs as one step: what is checkpointed is the point it started from, what is counted is what it asked for, and the residuals
decide the verdict; its own message is kept as a note. Baselines, and a second opinion.

References
    Kraft: A software package for sequential quadratic programming, DFVLR-FB 88-28, 1988 (SLSQP). Conn, Gould and Toint:
    Trust-region methods, 2000, and Byrd, Hribar and Nocedal 1999 (trust-constr). Both through `scipy.optimize.minimize`. Waechter
    and Biegler, Math. Program. 106, 2006 (Ipopt, through the package cyipopt).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import kkt
from ..core.deadline import OutOfTime
from ..core.errors import BilevelError, Unsuitable, extra
from ..core.options import Positive, Steps
from ..core.problem import Point
from ..core.solver import Solver
from ..core.states import solver_state
from ..core.status import Feature, Status
from ..core.vec import Vec
from ..oracle import ConstrainedOracle


@solver_state("ReferenceState")
class ReferenceState:
    """Where the other solver ended, and what it said."""

    k: int
    x: Vec
    lam: Tensor | None
    mu: Tensor | None
    iterations: int
    said: str
    outcome: Status


class _Reference(Solver[ConstrainedOracle, ReferenceState]):
    """Runs another solver in one step."""

    supports: ClassVar[Feature] = Feature.EQUALITY | Feature.INEQUALITY | Feature.X_SET
    requires: ClassVar[Feature] = Feature(0)

    @property
    def max_steps(self) -> int | None:
        return 1

    def init(self, oracle: ConstrainedOracle, start: Point) -> ReferenceState:
        if not (oracle.X.whole or oracle.X.entrywise):
            raise Unsuitable(f"{type(self).__name__}: of sets it takes a Box, got {type(oracle.X).__name__}")
        return ReferenceState(k=0, x=start.x, lam=None, mu=None, iterations=0, said="", outcome=Status.RUNNING)

    def step(self, oracle: ConstrainedOracle, state: ReferenceState) -> ReferenceState:
        view = View(oracle, state.x)
        try:
            found, iterations, said = (view.x0, 0, "the bounds fix every entry") if view.fixed else self.run(view)
        except OutOfTime:
            x, said = view.vec(view.seen), "stopped at the limit of time"
            return replace(state, k=1, x=x, iterations=0, said=said, outcome=Status.MAX_SECONDS)
        except BilevelError:  # some are ValueErrors too
            raise
        except ValueError as error:  # scipy's linear algebra on NaN
            found, iterations, said = view.x0, 0, str(error)
        x = view.vec(found)
        tape, h = oracle.tape(x), torch.zeros(0) if oracle.h is None else oracle.h.value((x,))
        parts = (tape.value, tape.c, h, *x.leaves)
        if not all(bool(part.isfinite().all()) for part in parts) or not (iterations or view.fixed):
            return replace(state, k=1, iterations=iterations, said=said, outcome=Status.NONFINITE)
        return replace(state, k=1, x=x, iterations=iterations, said=said, outcome=Status.CONVERGED)

    def run(self, view: View) -> tuple[np.ndarray, int, str]:
        """x, iterations, message."""
        raise NotImplementedError

    def terminate(self, oracle: ConstrainedOracle, state: ReferenceState) -> Status:
        return state.outcome

    def answer(self, oracle: ConstrainedOracle, state: ReferenceState) -> Point:
        x = oracle.X.project(state.x)
        return Point(x, None, None if state.outcome == Status.NONFINITE else kkt.multipliers(oracle, x))

    def notes(self, state: ReferenceState) -> tuple[str, ...]:
        return (f"{type(self).__name__}: {state.said} ({state.iterations} iterations)",) if state.k else ()


class View:
    """The problem in numpy: flat x, and one tape for the values and derivatives asked for at one point."""

    def __init__(self, oracle: ConstrainedOracle, start: Vec):
        self.oracle, self.start = oracle, start
        self.x0 = start.ravel().double().cpu().numpy().copy()
        infinite = [oracle.X.project(start.map(lambda leaf, s=s: torch.full_like(leaf, s))) for s in (-np.inf, np.inf)]
        self.low, self.high = (bound.ravel().double().cpu().numpy() for bound in infinite)
        self.seen = self.x0  # where the last gradient was asked for: of these solvers, where they stand
        self._at: tuple[bytes, Any] | None = None

    def vec(self, x: np.ndarray) -> Vec:
        return self.start.unravel(torch.as_tensor(np.array(x)).to(self.start.ravel()))

    def tape(self, x: np.ndarray) -> Any:
        key = np.asarray(x).tobytes()
        if self._at is None or self._at[0] != key:
            self._at = (key, self.oracle.tape(self.vec(x)))
        return self._at[1]

    def f(self, x: np.ndarray) -> float:
        return float(self.tape(x).value)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self.seen = np.array(x)
        return self.tape(x).gradient.double().cpu().numpy()

    def c(self, x: np.ndarray) -> np.ndarray:
        return self.tape(x).c.double().cpu().numpy()

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        return self.tape(x).jacobian.double().cpu().numpy()

    def own_jacobian(self, x: np.ndarray) -> Any:
        """The same as scipy.sparse where the user gives it sparse."""
        J = self.tape(x).J
        return J.scipy() if J.sparse else self.jacobian(x)

    def h(self, x: np.ndarray) -> np.ndarray:
        assert self.oracle.h is not None
        return self.oracle.h.value((self.vec(x),)).cpu().numpy()

    def h_jacobian(self, x: np.ndarray) -> np.ndarray:
        return kkt.inequality_jacobian(self.oracle, self.vec(x)).double().cpu().numpy()

    def product(self, x: np.ndarray, lam: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(hess f + sum lam_i hess c_i) v; zero lam gives the objective's."""
        tape = self.tape(x)
        at = tape.lagrangian(torch.as_tensor(lam).to(tape.c))
        return at.product(torch.as_tensor(v).to(tape.x), torch.zeros_like(tape.c))[0].double().cpu().numpy()

    # Others' solvers fail on constraints without rows, and on variables that cannot move.
    @property
    def equalities(self) -> bool:
        c = self.oracle.c
        return c is not None and (c.m if c.m is not None else len(self.c(self.x0))) > 0  # a recording does not tell m

    @property
    def inequalities(self) -> bool:
        return self.oracle.h is not None and self.oracle.h.m != 0

    @property
    def fixed(self) -> bool:
        return bool((self.low == self.high).all())

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())


@dataclass(frozen=True, kw_only=True)
class SLSQP(_Reference):
    """Sequential least-squares quadratic programming of scipy (Kraft 1988), on this library's gradients. Dense; small problems.

    ftol: its own tolerance, on the objective; iterations: its limit.

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

    def run(self, view: View) -> tuple[np.ndarray, int, str]:
        from scipy.optimize import Bounds, minimize

        rows: list[dict[str, Any]] = []
        if view.equalities:
            rows.append({"type": "eq", "fun": view.c, "jac": view.jacobian})
        if view.inequalities:
            rows.append({"type": "ineq", "fun": lambda x: -view.h(x), "jac": lambda x: -view.h_jacobian(x)})
        found = minimize(
            view.f,
            view.x0,
            jac=view.gradient,
            method="SLSQP",
            bounds=Bounds(view.low, view.high) if view.bounded else None,  # pyright: ignore[reportArgumentType]
            constraints=rows,
            options={"ftol": self.ftol, "maxiter": self.iterations},
        )
        return found.x, int(found.nit), str(found.message)


@dataclass(frozen=True, kw_only=True)
class TrustConstr(_Reference):
    """Trust-region interior point and Byrd-Omojokun SQP of scipy, with Hessian-vector products where no inequality is nonlinear.
    A sparse Jacobian of the equalities stays sparse.

    gtol, xtol: its own tolerances; iterations: its limit. Inequalities get a BFGS approximation of their curvature.

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

    def run(self, view: View) -> tuple[np.ndarray, int, str]:
        from scipy.optimize import BFGS, Bounds, NonlinearConstraint, minimize
        from scipy.sparse.linalg import LinearOperator

        n = len(view.x0)
        rows: list[Any] = []
        if view.equalities:

            def curvature(x: np.ndarray, lam: np.ndarray) -> Any:
                none = np.zeros_like(lam)

                def times(v: np.ndarray) -> np.ndarray:
                    return view.product(x, lam, v.ravel()) - view.product(x, none, v.ravel())

                return LinearOperator((n, n), matvec=times)  # pyright: ignore[reportCallIssue]

            rows.append(NonlinearConstraint(view.c, 0, 0, jac=view.own_jacobian, hess=curvature))  # pyright: ignore[reportArgumentType]
        if view.inequalities:
            rows.append(NonlinearConstraint(view.h, -np.inf, 0, jac=view.h_jacobian, hess=BFGS()))  # pyright: ignore[reportArgumentType]
        found = minimize(
            view.f,
            view.x0,
            jac=view.gradient,
            hessp=lambda x, v: view.product(x, np.zeros(len(view.c(x))), v),
            method="trust-constr",
            bounds=Bounds(view.low, view.high) if view.bounded else None,  # pyright: ignore[reportArgumentType]
            constraints=rows,
            options={
                "gtol": self.gtol,
                "xtol": self.xtol,
                "maxiter": self.iterations,
                "barrier_tol": self.gtol,
                "sparse_jacobian": view.tape(view.x0).J.sparse or None,  # scipy wants all of them sparse, or none
            },
        )
        return found.x, int(found.nit), str(found.message)


@dataclass(frozen=True, kw_only=True)
class Ipopt(_Reference):
    """The interior-point filter method of Waechter and Biegler through the package cyipopt, with a limited-memory Hessian.

    accuracy: its own tolerance, on its scaled problem; iterations: its limit. Raises MissingExtra where cyipopt is not installed.

    Source: https://github.com/mechmotum/cyipopt; Waechter and Biegler 2006.
    """

    tol: Positive | None = None
    accuracy: Positive = 1e-10
    iterations: Steps = 1000

    def run(self, view: View) -> tuple[np.ndarray, int, str]:
        cyipopt = extra("cyipopt", "ipopt")
        rows: list[dict[str, Any]] = []
        if view.equalities:
            rows.append({"type": "eq", "fun": view.c, "jac": view.jacobian})
        if view.inequalities:
            rows.append({"type": "ineq", "fun": lambda x: -view.h(x), "jac": lambda x: -view.h_jacobian(x)})
        found = cyipopt.minimize_ipopt(
            view.f,
            view.x0,
            jac=view.gradient,
            bounds=list(zip(view.low, view.high)) if view.bounded else None,
            constraints=rows,
            options={"tol": self.accuracy, "maxiter": self.iterations, "print_level": 0, "sb": "yes"},
        )
        return found.x, int(found.nit), str(found.message)
