"""VPBGD and GPBGD as they are accepted: the right x, status CONVERGED, within a number of gradients; and the trap of GPBGD."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from bilevel import BilevelProblem, Box, Function, Point, Status, solve
from bilevel.solvers.pbgd import GPBGD, VPBGD
from bilevel.solvers.pbgd_fixed import GPBGDFixedStep, VPBGDFixedStep
from constrained.core.vec import Vec
from problems.quadratic import quadratic
from problems.toy import PL_MINIMA, pl_toy

F64 = torch.float64
# solver, instance's options, tol, relative x error, gradients (and products, for GPBGD)
ACCEPTANCE = {
    "V, cond 10, loose": (VPBGD, {}, 1e-3, 1e-3, 7_000),
    "V, cond 10": (VPBGD, {}, 1e-5, 1e-4, 15_000),
    "G, cond 10": (GPBGD, {}, 1e-5, 1e-5, 8_000),
    "V, rank 12 flat": (VPBGD, {"rank": 12, "flat": True}, 1e-5, 1e-5, 13_000),
    "V, rank 12": (VPBGD, {"rank": 12}, 1e-5, 1e-5, 20_000),
    "G, rank 12": (GPBGD, {"rank": 12}, 1e-5, 1e-5, 8_000),
    "V, cond 10, default": (VPBGD, {}, None, 1e-6, 15_000),
    "G, cond 10, default": (GPBGD, {}, None, 1e-6, 8_000),
}
AGAIN = ("V, cond 10", "G, cond 10", "V, rank 12")  # by tolerances or ranks between two that are asked for too


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in AGAIN)) for n in ACCEPTANCE])
def test_quadratics(name):
    solver, options, tol, error, budget = ACCEPTANCE[name]
    instance = quadratic(**options)
    result = solve(instance.problem, solver(), tol=tol)
    best = instance.solution[0]
    assert result.status is Status.CONVERGED, result
    assert float((result.x - best.x).norm() / best.x.norm()) <= error
    assert result.calls.gradients + result.calls.hvps <= budget
    assert all(value <= result.solver.tol for value in result.certify().values()), result.certify()


@pytest.mark.slow
@pytest.mark.parametrize("solver", [VPBGD, GPBGD])
@pytest.mark.parametrize("ny", [50, 200])
def test_larger_quadratics_with_defaults(solver, ny):
    instance = quadratic(nx=50, ny=ny)
    result = solve(instance.problem, solver())
    best = instance.solution[0]
    assert result.status is Status.CONVERGED, result
    assert instance.error(result.x) <= 1e-3
    assert abs(result.fun - float(instance.problem.upper(best.x, best.y))) <= 1e-4


@pytest.mark.parametrize("solver", [VPBGD(gamma=1e300), GPBGD(gamma=1e300)])
def test_squares_of_large_numbers_do_not_raise(solver):
    """Python's `**` raises OverflowError where a product is infinite."""
    assert solve(quadratic(nx=2, ny=2).problem, solver, max_steps=2).status.done


@pytest.mark.parametrize("seed", range(6))
def test_pl_toy_from_random_starts(seed):
    result = solve(pl_toy(seed=seed).problem, VPBGD(), tol=1e-5)
    assert result.status is Status.CONVERGED, result
    assert min(abs(float(result.x) - x) for x in PL_MINIMA) <= 1e-5
    assert result.calls.gradients <= 600


@pytest.mark.parametrize("seed", range(12))
def test_g_is_right_on_the_pl_toy_or_says_that_it_is_stuck(seed):
    """g_yy = 2 + 2 x cos 2 (x + y) vanishes on curves: |g_y|^2 has minima there that solve no lower level."""
    result = solve(pl_toy(seed=seed).problem, GPBGD(), tol=1e-5)
    if result.status is Status.CONVERGED:
        assert min(abs(float(result.x) - x) for x in PL_MINIMA) <= 1e-5
    else:
        assert result.status is Status.LOWER_UNSOLVED, result
        assert result.residuals()["lower"] > 0.1


def trap(start: float) -> BilevelProblem:
    """f = sin^2(y - 2 pi / 3), g = y^2 + 2 sin^2 y: at y = 2 pi / 3 f_y = g_yy = 0, and g_y = 4 pi / 3 - sqrt 3 = 2.457."""
    return BilevelProblem(
        upper=lambda x, y: (torch.sin(y - 2 * math.pi / 3) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y: (y**2 + 2 * torch.sin(y) ** 2).sum(),
        x=vector(0.5),
        y=vector(start),
    )


@pytest.mark.parametrize("start", [2 * math.pi / 3, 2.0, pytest.param(2.5, marks=pytest.mark.slow)])
def test_the_trap(start):
    """V leaves it for the only lower solution, y = 0. G stays, and says so."""
    left = solve(trap(start), VPBGD())
    assert left.status is Status.CONVERGED, left
    assert float(left.y.abs()) <= 1e-6
    stuck = solve(trap(start), GPBGD())
    assert stuck.status is Status.LOWER_UNSOLVED, stuck
    assert float(stuck.y) == pytest.approx(2 * math.pi / 3, abs=1e-6)
    assert stuck.certify()["lower"] == pytest.approx(4 * math.pi / 3 - math.sqrt(3), abs=1e-5)
    assert stuck.certify()["lower_gap"] > 1
    literal = solve(trap(start), GPBGDFixedStep(alpha=1e-3, gamma=10.0), max_steps=500)
    assert not literal.success
    assert literal.residuals()["lower"] > 2


def test_sets_on_both_levels():
    """y = clip(x, 0, 1), f = (y - 2)^2 + (x - 1/2)^2 / 10 on x in [-1, 0.8]: the bound x = 0.8 is the answer."""
    one = BilevelProblem(
        upper=lambda x, y: ((y - 2) ** 2).sum() + 0.1 * ((x - 0.5) ** 2).sum(),
        lower=lambda x, y: ((y - x) ** 2).sum(),
        x=vector(0, 0.5),
        y=vector(0, 0),
        X=Box(-1, 0.8),
        Y=Box(0, 1),
    )
    result = solve(one, VPBGD(), tol=1e-5)
    assert result.success, result
    assert result.x.numpy() == pytest.approx([0.8, 0.8], abs=1e-5)
    assert result.y.numpy() == pytest.approx([0.8, 0.8], abs=1e-5)


def test_optimistic_lower_solution():
    """S(x) = {y_1 = x_1} leaves y_2 free; f decides: y_2 = 3, x_1 = 1/2."""
    one = BilevelProblem(
        upper=lambda x, y: (y[0] - 1) ** 2 + (x**2).sum() + (y[1] - 3) ** 2,
        lower=lambda x, y: (y[0] - x[0]) ** 2,
        x=vector(0),
        y=vector(0, 0),
    )
    for solver in (VPBGD(), GPBGD()):
        result = solve(one, solver, tol=1e-5)
        assert result.success, result
        assert float(result.x) == pytest.approx(0.5, abs=1e-4)
        assert result.y.numpy() == pytest.approx([0.5, 3], abs=1e-3)


def llsc(start: float) -> tuple[BilevelProblem, torch.Tensor, float]:
    """F = sin(c'x + d'y) + log(|x + y|^2 + 1), y nearest to x on H x + A y = 0, B x = 0; n = 100, A, H 90 x 100, B of rank 45.

    The equalities eliminated: x = U u, y = -A^+ H x + N w, U and N orthonormal bases of null(B) and null(A). With y = M x at the
    lower solution, q = U'(c + M'd) and S = U'(I + M)'(I + M) U, F is least at u = S^-1 q s / kappa, kappa = q'S^-1 q, s the least
    point of sin s + log(1 + s^2 / kappa). Returned: the problem from x = start (1, ..., 1) projected, u, and F there.
    """
    rng = np.random.default_rng(0)
    A, H, B = (rng.standard_normal((rows, 100)) / 10 for rows in (90, 90, 45))
    A, H = A + 2 * np.eye(90, 100), H + np.eye(90, 100)
    c, d = rng.standard_normal(100) / 10, rng.standard_normal(100) / 10
    U, N = (np.linalg.svd(K)[2][len(K) :].T for K in (B, A))
    y0 = -np.linalg.pinv(A) @ H
    M = y0 + N @ N.T  # argmin over w of |x - y0 x - N w|, y0 x being orthogonal to N
    q, S = U.T @ (c + M.T @ d), U.T @ (np.eye(100) + M).T @ (np.eye(100) + M) @ U
    kappa = q @ np.linalg.solve(S, q)
    best = minimize_scalar(
        lambda s: math.sin(s) + math.log(1 + s**2 / kappa), bounds=(-3, 0), method="bounded", options={"xatol": 1e-12}
    )
    Ut, Nt, yt, ct, dt = (torch.from_numpy(t) for t in (U, N, y0, c, d))

    def both(u: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return Ut @ u, yt @ Ut @ u + Nt @ w

    def upper(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x, y = both(u, w)
        return torch.sin(ct @ x + dt @ y) + torch.log(((x + y) ** 2).sum() + 1)

    def lower(u: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        x, y = both(u, w)
        return 0.5 * ((x - y) ** 2).sum()

    u, w = start * Ut.T @ torch.ones(100, dtype=F64), torch.zeros(10, dtype=F64)
    solution = torch.from_numpy(np.linalg.solve(S, q) * best.x / kappa)
    return BilevelProblem(upper=upper, lower=lower, x=u, y=w), solution, best.fun


def test_llsc_with_the_equalities_eliminated():
    problem, u, value = llsc(0.1)
    result = solve(problem, VPBGD(), tol=3e-5)  # at 1e-5 rounding decides whether it arrives, or ends by PRECISION at 3e-5
    assert result.status is Status.CONVERGED, result
    assert result.fun == pytest.approx(value, abs=1e-6)
    assert float((result.x - u).norm() / u.norm()) <= 1e-4
    assert result.calls.gradients <= 25_000


def test_numpy_functions_without_second_derivatives():
    """min (y - 1)^2 + x^2 / 2 with y = 2 x: x = 4 / 9; nothing but gradients from numpy."""
    up = Function.numpy(lambda x, y: ((y - 1) ** 2 + x**2 / 2).sum(), gradient=lambda x, y: (x, 2 * (y - 1)))
    low = Function.numpy(lambda x, y: ((y - 2 * x) ** 2).sum(), gradient=lambda x, y: (-4 * (y - 2 * x), 2 * (y - 2 * x)))
    result = solve(BilevelProblem(upper=up, lower=low, x=np.zeros(2), y=np.zeros(2)), VPBGD(), tol=1e-4)
    assert result.success, result
    assert result.x.numpy() == pytest.approx([4 / 9, 4 / 9], abs=1e-4)


@pytest.mark.parametrize("solver", [VPBGD(), GPBGD()])
def test_levels_without_a_minimum_are_never_converged(solver):
    lower = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2 + x**2).sum(), lower=lambda x, y: (x * y).sum(), x=vector(1), y=vector(0)
    )
    upper = BilevelProblem(upper=lambda x, y: (y + x).sum(), lower=lambda x, y: ((y - x) ** 2).sum(), x=vector(0), y=vector(0))
    for one in (lower, upper):
        result = solve(one, solver, max_steps=200)
        assert result.status.done
        assert not result.success, result


# -- the published forms ----------------------------------------------------------------------------------------------------
def test_fixed_steps_follow_the_formulas():
    """One step of each on a problem of two numbers, by hand: f = (y - 1)^2 / 2 + x^2, g = (y - 2 x)^2 / 2."""
    one = BilevelProblem(
        upper=lambda x, y: (0.5 * (y - 1) ** 2 + x**2).sum(),
        lower=lambda x, y: 0.5 * ((y - 2 * x) ** 2).sum(),
        x=vector(1),
        y=vector(3),
    )
    alpha, gamma, beta, x, y, z = 0.01, 10.0, 0.1, 1.0, 3.0, 3.0
    z -= beta * (z - 2 * x)
    h_x, h_y = 2 * x + gamma * (-2 * (y - 2 * x) + 2 * (z - 2 * x)), y - 1 + gamma * (y - 2 * x)
    result = solve(one, VPBGDFixedStep(alpha=alpha, gamma=gamma, beta=beta), max_steps=1)
    assert [float(v.leaves[0]) for v in (result.state.x, result.state.y, result.state.z)] == pytest.approx(
        [x - alpha * h_x, y - alpha * h_y, z]
    )
    h_x, h_y = 2 * x + gamma * -2 * (y - 2 * x), y - 1 + gamma * (y - 2 * x)
    result = solve(one, GPBGDFixedStep(alpha=alpha, gamma=gamma), max_steps=1)
    assert [float(v.leaves[0]) for v in (result.state.x, result.state.y)] == pytest.approx([x - alpha * h_x, y - alpha * h_y])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_fixed_steps_on_the_pl_toy(seed):
    """gamma = 100 comes to rest within 5e-3 of a minimum, and is not called CONVERGED there."""
    result = solve(pl_toy(seed=seed).problem, VPBGDFixedStep(gamma=100.0, alpha=1e-3))
    assert result.status is Status.STALLED, result
    assert min(abs(float(result.x) - x) for x in PL_MINIMA) <= 5e-3
    assert result.steps <= 10_000


def test_the_bias_of_a_fixed_gamma():
    """f = y, g = y^2: F is minimal at y = -1 / (2 gamma) for V; the answer's z solves the lower level."""
    one = BilevelProblem(upper=lambda x, y: y.sum() + (x**2).sum(), lower=lambda x, y: (y**2).sum(), x=vector(1), y=vector(1))
    result = solve(one, VPBGDFixedStep(gamma=5.0, alpha=0.05, beta=0.4))
    assert float(result.state.y.leaves[0]) == pytest.approx(-0.1, abs=1e-6)
    assert float(result.y) == pytest.approx(0, abs=1e-6)


def test_too_long_steps_are_called_diverged():
    result = solve(quadratic().problem, VPBGDFixedStep(gamma=1000.0, alpha=1.0), max_steps=2000)
    assert result.status in (Status.DIVERGED, Status.NONFINITE)


def test_start_is_used():
    result = solve(pl_toy().problem, VPBGD(), start=Point(torch.tensor(2.8, dtype=F64), torch.tensor(-2.8, dtype=F64)))
    assert float(Vec.of(result.x).leaves[0]) == pytest.approx(PL_MINIMA[2], abs=1e-6)
