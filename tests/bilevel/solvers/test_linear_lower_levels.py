"""Lower levels linear in y: y jumps from vertex to vertex. Answers are solutions or no claims, after few calls."""

import pytest
import torch

from bilevel import BilevelProblem, Box, Simplex, Status, solve

F64 = torch.float64
TRUTH = torch.tensor([-0.1, -0.2, 0.6], dtype=F64)


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


def solved(upper, lower, x, y, X, Y):
    """The answer, and the calls of both functions."""
    f, g = Counted(upper), Counted(lower)
    vectors = {"x": torch.tensor(x, dtype=F64), "y": torch.tensor(y, dtype=F64)}
    return solve(BilevelProblem(upper=f, lower=g, X=X, Y=Y, **vectors)), f.calls + g.calls


@pytest.mark.parametrize("Y", [Simplex(), Box(0.0, 1.0)], ids=["simplex", "box"])
@pytest.mark.parametrize("weight", [0.0, 1e-3, 1.0])
def test_a_linear_lower_level(weight, Y):
    """max x'y below: a claim is a best vertex at x, with weight also a stationary x within that vertex's cone."""
    found, calls = solved(
        lambda x, y: -(y * TRUTH).sum() + weight * (x**2).sum(),
        lambda x, y: -(x * y).sum(),
        [0.1, 0.3, -0.2],
        [1 / 3] * 3,
        Box(-1.0, 1.0),
        Y,
    )
    x, y = found.x, found.y
    best = float(x.max()) if isinstance(Y, Simplex) else float(x.clamp(min=0).sum())
    assert calls <= 2000
    assert found.status is Status.CONVERGED
    assert float(x @ y) >= best - 1e-6
    assert 2 * weight * float(x.norm()) <= 1e-5


def test_a_price_below_a_rival():
    """A client takes the cheaper of the price p and 0.7, so income is p up to 0.7 and nothing beyond: no smooth maximum."""
    found, calls = solved(lambda p, y: -p * y[0], lambda p, y: p * y[0] + 0.7 * y[1], 0.2, [0.5, 0.5], Box(0.0, 2.0), Simplex())
    assert calls <= 5000
    assert not found.status.ok
    assert float(found.x) == pytest.approx(0.7, abs=1e-6)
    assert found.fun == pytest.approx(-0.7, abs=1e-6)


@pytest.mark.parametrize("slope", [1e-5, 1.0])
def test_a_lower_level_of_any_slope_goes_to_its_bound(slope):
    """y = -100 for each x > 0, so x = 1/2."""
    found, calls = solved(
        lambda x, y: (x - 0.5) ** 2 + y, lambda x, y: slope * x * y, 1.0, 0.3, Box(0.1, 1.0), Box(-100.0, 100.0)
    )
    assert found.status is Status.CONVERGED
    assert (float(found.x), float(found.y)) == pytest.approx((0.5, -100.0), abs=1e-6)
    assert calls <= 400
