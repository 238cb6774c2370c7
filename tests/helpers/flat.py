"""A constrained problem as numpy functions of a flat x, independent of the library's oracle; KKT residuals; Newton's method."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import least_squares, minimize

from constrained.core.vec import Vec
from constrained.problem import ConstrainedProblem


class Flat:
    """f, its gradient g, c, its Jacobian J, and H, the Hessian of f + lam'c."""

    def __init__(self, problem: ConstrainedProblem):
        like = Vec.of(problem.x)
        self.x0 = like.ravel().numpy()
        self._f = lambda x: problem.objective(like.unravel(x).tree())
        self._c = lambda x: problem.equality(like.unravel(x).tree())

    def f(self, x: np.ndarray) -> float:
        return float(self._f(torch.from_numpy(x)))

    def g(self, x: np.ndarray) -> np.ndarray:
        return torch.autograd.functional.jacobian(self._f, torch.from_numpy(x)).numpy()

    def c(self, x: np.ndarray) -> np.ndarray:
        return self._c(torch.from_numpy(x)).numpy()

    def J(self, x: np.ndarray) -> np.ndarray:
        return torch.autograd.functional.jacobian(self._c, torch.from_numpy(x)).numpy()

    def H(self, x: np.ndarray, lam: np.ndarray) -> np.ndarray:
        weights = torch.from_numpy(lam)
        return torch.autograd.functional.hessian(lambda x: self._f(x) + self._c(x) @ weights, torch.from_numpy(x)).numpy()

    def multipliers(self, x: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(self.J(x).T, -self.g(x), rcond=1e-12)[0]

    def kkt(self, x: np.ndarray, lam: np.ndarray | None = None) -> float:
        """|(grad f + J'lam, c)|, by default with least-squares multipliers."""
        lam = self.multipliers(x) if lam is None else lam
        return float(np.hypot(np.linalg.norm(self.g(x) + self.J(x).T @ lam), np.linalg.norm(self.c(x))))


def central(function: Callable, x: np.ndarray) -> np.ndarray:
    """Central differences of a function, one row an output."""
    columns = []
    for i in range(len(x)):
        h = 6e-6 * max(1.0, abs(x[i]))
        ends = [np.atleast_1d(function(np.concatenate([x[:i], [x[i] + t], x[i + 1 :]]))) for t in (h, -h)]
        columns.append((ends[0] - ends[1]) / (2 * h))
    return np.stack(columns, 1)


def scipy_solution(flat: Flat, method: str = "SLSQP", steps: int = 1000) -> np.ndarray:
    """From x0 by a solver of scipy: 'lm' for equations, else SLSQP or trust-constr."""
    if method == "lm":
        return least_squares(flat.c, flat.x0, flat.J, method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    constraints = {"type": "eq", "fun": flat.c, "jac": flat.J}
    options = {"maxiter": steps} | ({"ftol": 1e-14} if method == "SLSQP" else {})
    return minimize(flat.f, flat.x0, jac=flat.g, constraints=constraints, method=method, options=options).x


def newton(flat: Flat, x: np.ndarray, steps: int = 20) -> tuple[np.ndarray, float]:
    """The best point of Newton's method on the KKT conditions from x, with minimum-norm steps, and its residual."""
    lam, (n, best) = flat.multipliers(x), (len(x), (x, flat.kkt(x)))
    for _ in range(steps):
        J = flat.J(x)
        K = np.block([[flat.H(x, lam), J.T], [J, np.zeros((len(J), len(J)))]])
        step = np.linalg.lstsq(K, -np.concatenate([flat.g(x) + J.T @ lam, flat.c(x)]), rcond=1e-12)[0]
        x, lam = x + step[:n], lam + step[n:]
        residual = flat.kkt(x, lam)
        if not residual < best[1]:
            break
        best = (x, residual)
    return best
