"""Kinks of Phi where y reaches a face of Y: a way down on the other side is found, and none is made up. Closed forms, scipy."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from bilevel import BilevelProblem, Box, Implicit, Point, solve

F64 = torch.float64


def problem(upper, x=0.5, n=1, value=(1.0, 1.0), unit=(1.0, 1.0)):
    """y(x) = x, kept in [0, 1]; f, g times `value`, in units of x and y. From x."""
    (a, b), (u, v) = value, unit
    start = torch.full((n,), float(x), dtype=F64)
    return BilevelProblem(
        upper=lambda x, y: a * upper(x / u, y / v),
        lower=lambda x, y: b * ((y / v - x / u) ** 2).sum(),
        x=start * u,
        y=start.clamp(0, 1) * v,
        Y=Box(0.0, v),
    )


def certified(one, x):
    return one.certify(Point(x, x.clamp(0, 1)))


def far(x, y):
    """Phi - x^2 / 10 = 4 for x < 0, (x - 2)^2 in [0, 1], 1 beyond: stationary from the left at 0, least at 1."""
    return ((y - 2) ** 2 + x**2 / 10).sum()


def left(x, y):
    """Phi = x for x < 0, x^2 in [0, 1]: stationary from the right at 0."""
    return (x - y + y**2).sum()


@pytest.mark.parametrize(("upper", "slope"), [(far, 4.0), (left, 1.0)])
@pytest.mark.parametrize("beside", [0.0, 1e-7, -1e-7])
def test_a_way_down_on_the_other_side(upper, slope, beside):
    found = certified(problem(upper), torch.tensor([beside], dtype=F64))
    assert found["kink"] == pytest.approx(slope, rel=1e-5)


def test_one_of_several_entries():
    """x_1 at the kink, x_2 far within, x_3 where the bound holds y_3 with g_y = 2."""
    x = torch.tensor([0.0, 0.5, -1.0], dtype=F64)
    assert certified(problem(lambda x, y: ((y - 2) ** 2)[0], n=3), x)["kink"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("upper", "x"),
    [
        (lambda x, y: (2 * y - x + x**2 / 2).sum(), 0.0),  # slopes -1 and 1: its minimum
        (lambda x, y: (x**2).sum(), 0.0),  # f does not see y
        (far, -1.0),  # g_y = 2 holds y
        (far, 0.5),
        (far, 1.0),
    ],
)
def test_none_where_there_is_none(upper, x):
    assert "kink" not in certified(problem(upper), torch.tensor([x], dtype=F64))


@pytest.mark.parametrize("value", [(1.0, 1.0), (1e-6, 1e6), (1e6, 1e-6)])
@pytest.mark.parametrize("unit", [(1.0, 1.0), (1e-4, 1e4), (1e4, 1e4)])
def test_it_is_no_end_in_any_unit(value, unit):
    one = problem(far, -3.0, value=value, unit=unit)
    # The slope is 4; of f_x and g_xy v one is 0, so that its share is 1.
    assert certified(one, torch.zeros(1, dtype=F64))["kink"] == pytest.approx(max(1.0, 4 * value[0] / unit[0]), rel=1e-5)
    stopped = solve(one, Implicit())
    assert not (stopped.success and float(stopped.x) / unit[0] < 0.5)


def test_the_default_goes_on():
    assert float(solve(problem(far, -3.0)).x) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_kinks_of_bounded_least_squares(seed):
    """y(x) = argmin |L (y - c x - d)| in [0, 1]^3 by scipy, its kinks by bisection, the slopes of Phi to both sides by
    differences: where one goes down it is told, where both go up no kink is.
    """
    rng = np.random.default_rng(seed)
    L, c, d = rng.normal(size=(3, 3)) + 2 * np.eye(3), rng.normal(size=3), 0.5 + 0.5 * rng.normal(size=3)
    Q, q = rng.normal(size=(2, 3)), rng.normal(size=2)
    tensors = [torch.from_numpy(part) for part in (L, c, d, Q, q)]

    def lower(x, y):
        L, c, d, *_ = tensors
        return 0.5 * ((L @ (y - c * x - d)) ** 2).sum()

    def upper(x, y):
        *_, Q, q = tensors
        return ((Q @ y - q) ** 2).sum() + 0.1 * (x**2).sum()

    def response(x):
        return lsq_linear(L, L @ (c * x + d), (0, 1), tol=1e-14).x

    def phi(x):
        return ((Q @ response(x) - q) ** 2).sum() + 0.1 * x**2

    def faces(x):
        y = response(x)
        return tuple((y < 1e-9).astype(int) - (y > 1 - 1e-9))

    start = {"x": torch.tensor([1.5], dtype=F64), "y": torch.full((3,), 0.5, dtype=F64)}
    one, grid, count = BilevelProblem(upper=upper, lower=lower, Y=Box(0.0, 1.0), **start), np.linspace(-2, 2, 41), 0
    for low, high in itertools.pairwise(grid):
        before = faces(low)
        if sum(a != b for a, b in zip(before, faces(high))) != 1:
            continue
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if faces(middle) == before else (low, middle)
        h, x = 2e-4, (low + high) / 2
        steepest = min(phi(x + h) - phi(x), phi(x - h) - phi(x)) / h
        found = one.certify(Point(torch.tensor([x], dtype=F64), torch.from_numpy(response(x))))
        if steepest < -0.05:
            assert max(found.get("kink", 0.0), found["upper"]) > 0.01
        if steepest > 0.02:
            assert "kink" not in found
        count += 1
    assert count > 0
