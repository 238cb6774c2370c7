"""Kinks of Phi where y reaches a face of Y: a way down on the other side is found, and none is made up. Closed forms."""

import pytest
import torch

from bilevel import BilevelProblem, Box, Implicit, Point, solve

F64 = torch.float64
UNIT = Box(0.0, 1.0)


def problem(upper, x, n=1):
    """y(x) = x, kept in [0, 1]."""
    start = torch.full((n,), float(x), dtype=F64)
    return BilevelProblem(upper=upper, lower=lambda x, y: ((y - x) ** 2).sum(), x=start, y=start.clamp(0, 1), Y=UNIT)


def far(x, y):
    """Phi - x^2 / 10 = 4 for x < 0, (x - 2)^2 in [0, 1], 1 beyond: stationary from the left at 0, least at 1."""
    return ((y - 2) ** 2 + x**2 / 10).sum()


def left(x, y):
    """Phi = x for x < 0, x^2 in [0, 1]: stationary from the right at 0."""
    return (x - y + y**2).sum()


@pytest.mark.parametrize(("upper", "slope"), [(far, 4.0), (left, 1.0)])
@pytest.mark.parametrize("beside", [0.0, 1e-7, -1e-7])
def test_a_way_down_on_the_other_side(upper, slope, beside):
    x = torch.tensor([beside], dtype=F64)
    found = problem(upper, beside).certify(Point(x, x.clamp(0, 1)))
    assert max(found["kink"], found["upper"]) == pytest.approx(slope, rel=1e-5)


def test_one_of_several_entries():
    """x_1 at the kink, x_2 far within, x_3 where the bound holds y_3 with g_y = 2."""
    x = torch.tensor([0.0, 0.5, -1.0], dtype=F64)
    assert problem(lambda x, y: ((y - 2) ** 2)[0], 0.0, 3).certify(Point(x, x.clamp(0, 1)))["kink"] == pytest.approx(4.0)


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
    point = torch.tensor([x], dtype=F64)
    assert "kink" not in problem(upper, x).certify(Point(point, point.clamp(0, 1)))


def test_it_is_no_end():
    assert not solve(problem(far, -3.0), Implicit()).success
    assert float(solve(problem(far, -3.0)).x) == pytest.approx(1.0, abs=1e-5)
