"""Solutions that the zoo does not have: minimisers of penalised quadratics, published optima with their multipliers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev

from bilevel import BilevelProblem, Multipliers, Point
from problems.cutest import Definition


def minimiser(F: Callable[[Tensor, Tensor], Tensor], problem: BilevelProblem) -> tuple[Tensor, Tensor]:
    """Of a quadratic F(x, y): one linear solve."""
    n = len(problem.x)
    u = torch.cat([problem.x, problem.y])
    of_u = lambda u: F(u[:n], u[n:])  # noqa: E731
    u = u - torch.linalg.solve(hessian(of_u)(u), grad(of_u)(u))
    return u[:n], u[n:]


def value_penalty(gamma: float) -> Callable[[BilevelProblem], Point]:
    """The x of the minimiser of f + gamma (g - min over y of g), with the lower solution there; gamma = 1 / sigma."""

    def point(problem: BilevelProblem) -> Point:
        f, g, lower = problem.upper, problem.lower, problem.lower_solution
        assert lower is not None
        x, _ = minimiser(lambda x, y: f(x, y) + gamma * (g(x, y) - g(x, lower(x))), problem)
        return Point(x, lower(x))

    return point


def gradient_penalty(gamma: float) -> Callable[[BilevelProblem], Point]:
    """The minimiser (x, y) of f + gamma |g_y|^2 / 2."""

    def point(problem: BilevelProblem) -> Point:
        return Point(
            *minimiser(lambda x, y: problem.upper(x, y) + 0.5 * gamma * (grad(problem.lower, 1)(x, y) ** 2).sum(), problem)
        )

    return point


def truncated_series(terms: int, nu: float) -> Callable[[BilevelProblem], Point]:
    """Where f_x - g_xy v = 0 with v = nu sum of (I - nu g_yy)^q f_y, q = 0 .. terms, at the lower solution."""

    def point(problem: BilevelProblem) -> Point:
        f, g, lower = problem.upper, problem.lower, problem.lower_solution
        assert lower is not None
        g_xy, g_yy = (jacrev(grad(g, 1), i)(problem.x, problem.y) for i in (0, 1))

        def slope(x: Tensor) -> Tensor:
            f_x, s = grad(f, (0, 1))(x, lower(x))
            v = nu * s
            for _ in range(terms):
                s = s - nu * (g_yy @ s)
                v = v + nu * s
            return f_x - g_xy.T @ v

        x = problem.x - torch.linalg.solve(jacrev(slope)(problem.x), slope(problem.x))
        return Point(x, lower(x))

    return point


def kkt_points(one: Definition) -> tuple[Point, ...]:
    """The published solution and those with other signs that are as good, each with its multipliers: J'lam = -grad f."""
    assert one.solution is not None
    x = torch.tensor(one.solution, dtype=torch.float64)
    found = []
    for signs in itertools.product((1.0, -1.0), repeat=len(x)):
        z = x * torch.tensor(signs, dtype=torch.float64)
        if float(one.equality(z).norm()) <= 1e-9 and abs(float(one.objective(z)) - one.optimum) <= 1e-9:
            lam = torch.linalg.lstsq(jacrev(one.equality)(z).T, -grad(one.objective)(z)[:, None]).solution[:, 0]
            found.append(Point(z, multipliers=Multipliers(equality=lam)))
    return tuple(found)
