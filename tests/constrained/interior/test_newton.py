"""Newton's step against the whole system with slacks and multipliers of bounds, solved by numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from constrained import Box, ConstrainedProblem
from constrained.interior.iterate import Iterate
from constrained.interior.newton import Newton, least_squares
from constrained.interior.program import DAMPED, Program
from constrained.interior.start import first_multipliers

F64 = torch.float64
MU = 0.05


def iterate():
    """3 unknowns, one free, one equality, two inequalities, at a point inside."""
    inf = float("inf")
    X = Box(torch.tensor([0.0, -inf, -1.0], dtype=F64), torch.tensor([inf, inf, 2.0], dtype=F64))
    problem = ConstrainedProblem(
        objective=lambda x: (x**4).sum() + x[0] * x[1] + 3 * x[2],
        equality=lambda x: x[0] * x[2] - 1,
        inequality=lambda x: torch.stack([(x**2).sum() - 3, x[1] - x[0]]),
        x=torch.tensor([0.5, 0.2, 0.7], dtype=F64),
        X=X,
    )
    oracle = problem.oracle()
    program = replace(Program.of(oracle, oracle.variables["x"]), sigma=0.7, rows=np.array([1.0, 0.5, 2.0]))
    at = program.at(program.flat(oracle.variables["x"]), np.array([0.4, 0.9]))
    return Iterate(at, np.array([0.3, 0.6, -0.2]), np.array([0.2, 0, 0.5]), np.array([0, 0, 0.8]), np.array([1.5, 0.3]))


def conditions(it, mu):
    """F(x, s, lam, zl1, zl3, zu3, zs), whose zero the barrier problem's solution is."""
    low, high = np.array([0, 2]), np.array([2])
    return np.concatenate(
        [
            it.dual,
            it.dual_slack,
            it.at.C,
            (it.zl * it.dl)[low] - mu,
            (it.zu * it.du)[high] - mu,
            it.zs * it.at.s - mu,
        ]
    )


def moved(it, v):
    """The iterate with one more of every unknown of `conditions`."""
    zl, zu = it.zl.copy(), it.zu.copy()
    zl[[0, 2]] += v[8:10]
    zu[2] += v[10]
    at = it.at.program.at(it.at.x + v[:3], it.at.s + v[3:5])
    return Iterate(at, it.lam + v[5:8], zl, zu, it.zs + v[11:])


def test_the_step_is_newtons_for_the_whole_system():
    it, h = iterate(), 1e-6
    columns = [(conditions(moved(it, h * e), MU) - conditions(moved(it, -h * e), MU)) / (2 * h) for e in np.eye(13)]
    damping = np.concatenate([*it.at.damping, np.zeros(8)])
    truth = np.linalg.solve(np.stack(columns, 1), -conditions(it, MU) - MU * damping)
    assert damping[:5].tolist() == [DAMPED, 0, 0, DAMPED, DAMPED]  # x1 and s have one bound
    newton = Newton.at(it, MU, 0.0)
    assert newton.factors.dw == newton.factors.dc == 0.0
    step = newton.step()
    dzl, dzu, dzs = newton.bounds(step)
    found = np.concatenate([step.dx, step.ds, step.dlam, dzl[[0, 2]], dzu[[2]], dzs])
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-8)
    assert dzl[1] == dzu[0] == dzu[1] == 0


def test_the_slope_is_that_of_the_barrier_function():
    it, h = iterate(), 1e-6
    newton = Newton.at(it, MU, 0.0)
    step = newton.step()

    def phi(t):
        at = it.at.program.at(it.at.x + t * step.dx, it.at.s + t * step.ds)
        return Iterate(at, it.lam, it.zl, it.zu, it.zs).phi(MU)

    assert newton.slope(step) == pytest.approx((phi(h) - phi(-h)) / (2 * h), rel=1e-6)


def test_the_residual_is_the_problems_own():
    it = iterate()
    lam = it.at.program.rows * it.lam / 0.7
    lam[1:] = lam[1:].clip(0)
    x = torch.tensor(it.at.x)
    found = it.at.program.oracle
    grad = 4 * it.at.x**3 + np.array([it.at.x[1], it.at.x[0], 3])
    J = np.array([[x[2], 0, x[0]], [2 * x[0], 2 * x[1], 2 * x[2]], [-1, 1, 0]])
    step = it.at.x - grad - J.T @ lam
    station = it.at.x - step.clip([0, -np.inf, -1], [np.inf, np.inf, 2])
    h = found.h.value((found.variables["x"],)).numpy()
    parts = [*station, float(x[0] * x[2] - 1), *np.maximum(h, 0), *np.minimum(lam[1:], np.maximum(-h, 0))]
    assert it.residual == pytest.approx(np.linalg.norm(parts), rel=1e-12)


def test_least_squares_multipliers():
    it = iterate()
    rows = np.array([[0, 1.0, 0], [0, 0, 1.0]])
    truth = np.linalg.lstsq(np.concatenate([it.at.J.T, rows]), np.concatenate([-(it.at.g - it.zl + it.zu), it.zs]), rcond=None)[0]
    np.testing.assert_allclose(least_squares(it), truth, rtol=1e-10)
    assert np.array_equal(first_multipliers(it).lam, least_squares(it))


def test_without_a_barrier_dependent_rows_are_regularised_all_the_same():
    """mu is 1e-17 then, and its fourth root no measure of anything: multipliers grew to 1e10."""
    x = torch.tensor([1.0, 2.0], dtype=F64)
    twice = ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: torch.stack([x.sum(), 2 * x.sum()]) - 1, x=x)
    oracle = twice.oracle()
    program = Program.of(oracle, oracle.variables["x"])
    none = np.zeros(2)
    it = Iterate(program.at(program.flat(oracle.variables["x"]), np.zeros(0)), none, none, none, np.zeros(0))
    assert Newton.at(it, 1e-17, 0.0).factors.dc == 1e-8
