"""The bounds w and omega against closed forms, where they are sharp; the constants against derivatives; lower points."""

import numpy as np
import pytest
import torch

from bilevel import BilevelProblem, Status
from bilevel.hypergradients.error_bounds import FADE, Constants, constants_at, inexact_gradient, lower_point
from constrained.core.vec import Vec
from constrained.descent import LBFGS

F64 = torch.float64
NX, NY = 3, 6


@pytest.fixture
def normal():
    rng = np.random.default_rng(0)
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape))


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


def near(problem, x: torch.Tensor, y: torch.Tensor, eps: float, constants: Constants | None = None):
    """The lower point at x from y, with the oracle that found it."""
    oracle, known = problem.oracle(), constants or Constants.blank(Vec.of(y), None)
    how = {"method": LBFGS(), "memory": None, "max_steps": 1000, "first": True}
    return oracle, lower_point(oracle, Vec.of(x), Vec.of(y), known, eps, **how)


class Quadratic:
    """g = y'Hy / 2 - x'My,  f = |y - a|^2 / 2 + x'Cy: y(x) = H^-1 M'x, grad Phi = Cy + M H^-1 (y - a + C'x), rates zero."""

    def __init__(self, normal):
        A = normal(NY, NY)
        self.H, self.a = A @ A.T + 0.1 * torch.eye(NY, dtype=F64), normal(NY)
        self.M, self.C, self.x = normal(NX, NY), normal(NX, NY), normal(NX)
        self.problem = BilevelProblem(upper=self.f, lower=self.g, x=self.x, y=torch.zeros(NY, dtype=F64))
        self.y = torch.linalg.solve(self.H, self.M.T @ self.x)
        self.gradient = self.C @ self.y + self.M @ torch.linalg.solve(self.H, self.y - self.a + self.C.T @ self.x)
        self.mu = float(torch.linalg.eigvalsh(self.H)[0])
        B, f_xy = (float(torch.linalg.matrix_norm(matrix, 2)) for matrix in (self.M, self.C))
        self.constants = Constants(self.mu, (), (B, 1.0, f_xy), (0.0, 0.0))

    def f(self, x, y):
        return 0.5 * ((y - self.a) ** 2).sum() + x @ self.C @ y

    def g(self, x, y):
        return 0.5 * y @ self.H @ y - x @ self.M @ y


def test_the_width_of_a_huge_error_is_no_exception():
    """Python's `**` raises OverflowError where a product is infinite."""
    one = Constants(1.0, (), (1.0, 1.0, 1.0), (0.0, 0.0))
    assert one.width(Vec.of(vector(1.0)), 1e300) == float("inf")


# -- the bounds -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_the_bounds_hold_on_a_quadratic(size, normal):
    """With the true constants, at y and v that are wrong by `size` in any direction."""
    one = Quadratic(normal)
    for _ in range(50):
        y = one.y + size * normal(NY)
        f_y = y - one.a + one.C.T @ one.x
        v = torch.linalg.solve(one.H, f_y) + size * normal(NY)
        d = one.C @ y + one.M @ v
        error, residual = float((one.H @ (y - one.y)).norm()) / one.mu, float((f_y - one.H @ v).norm())
        width, omega = one.constants.width(Vec.of(f_y), error), one.constants.omega(Vec.of(v), error, residual)
        assert abs(float(one.f(one.x, y) - one.f(one.x, one.y))) <= width
        assert float((d - one.gradient).norm()) <= omega


def test_the_bounds_are_sharp():
    """g = (y - x)^2, f = y^2 / 2 + x y, all numbers, at x = 1: f_y = y + 1, d = y + 2 v, Phi = 3/2, grad Phi = 3.

    At y = 1 + e and 2 v = f_y + r all parts of the error have one sign, d = 3 + 2 e + r; at y = 1 - e, Phi - f = 2 e - e^2 / 2.
    """
    constants, e, r = Constants(2.0, (), (2.0, 1.0, 1.0), (0.0, 0.0)), 0.1, 0.03
    assert constants.omega(Vec.of(vector((2 + e + r) / 2)), e, r) == pytest.approx(2 * e + r, rel=1e-12)
    assert constants.width(Vec.of(vector(2 - e)), e) == pytest.approx(2 * e - e**2 / 2, rel=1e-12)


def test_a_gradient_with_its_bound(normal):
    """All constants estimated, at four accuracies: d is as near the truth as omega says."""
    one, omegas, zero = Quadratic(normal), [], torch.zeros(NY, dtype=F64)
    for eps in (1e-1, 1e-3, 1e-6, 1e-9):
        oracle, at = near(one.problem, one.x, zero, eps)
        constants = constants_at(oracle, at, Vec.of(zero), 100)
        assert constants.mu == pytest.approx(one.mu, rel=1e-8)
        for estimate, norm in zip(constants.norms, one.constants.norms, strict=True):
            assert 0.9 * norm <= estimate <= norm * (1 + 1e-12)  # from below
        found = inexact_gradient(at, constants, eps, start=at.y.zeros())
        assert not isinstance(found, Status)
        assert found.residual <= eps
        assert float((found.d.tree() - one.gradient).norm()) <= found.omega
        omegas.append(found.omega)
    assert omegas[-1] <= 1e-5 * omegas[0]


# -- the constants ----------------------------------------------------------------------------------------------------------
def test_the_rates_of_a_curved_lower_level():
    """g = y^4 / 4 + y^2 / 2 - x y - x^2 y^2 / 2, numbers: from y0 to y, g_yy changes by 3 (y^2 - y0^2), g_xy by 2 x (y - y0)."""
    x, start = vector(0.5), vector(2.0)
    problem = BilevelProblem(
        upper=lambda x, y: (y**2).sum(),
        lower=lambda x, y: (y**4 / 4 + y**2 / 2 - x * y - x**2 * y**2 / 2).sum(),
        x=x,
        y=start,
    )
    oracle, at = near(problem, x, start, 1e-6)
    y, v = float(at.y.tree()), Vec.of(vector(-7.0))
    assert y**3 + 0.75 * y == pytest.approx(0.5, abs=1e-5)
    found = constants_at(oracle, at, v, 1)
    assert found.rates == pytest.approx((2 * 0.5, 3 * (2.0 + y)), rel=1e-9)
    assert found.mu == pytest.approx(3 * y**2 + 0.75, rel=1e-9)
    oracle, here = near(problem, x, at.y.tree(), 1e-6, found)
    assert constants_at(oracle, here, v, 1).rates == pytest.approx([FADE * rate for rate in found.rates])  # y did not move


# -- lower points -----------------------------------------------------------------------------------------------------------
def test_a_lower_point_is_as_near_as_was_asked_where_mu_was_thought_larger():
    """At the start mu is taken for 1, and is 1e-3: the first y would be a thousand times too far."""
    H, b, x = vector(1e-3, 1e-2, 0.1), vector(1.0, 1.0, 1.0), vector(1.0)

    def lower(x, y):
        return 0.5 * y @ (H * y) - x[0] * (b @ y)

    _, at = near(BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=lower, x=x, y=b), x, b, 1e-2)
    assert at.failed is Status.RUNNING
    assert at.constants.mu == pytest.approx(1e-3, rel=1e-9)
    assert float((at.y.tree() - b / H).norm()) <= at.error * (1 + 1e-9)
    assert at.error <= 1.1e-2


@pytest.mark.parametrize(("curvature", "status"), [(0.0, Status.SINGULAR), (-1.0, Status.LOWER_UNSOLVED)])
def test_a_lower_level_that_is_not_strongly_convex(curvature, status):
    """Along one axis, where the start is stationary."""
    H, x, y = vector(1.0, curvature), vector(1.0), vector(1.0, 0.0)

    def lower(x, y):
        return 0.5 * y @ (H * y) + 0 * x.sum()

    _, at = near(BilevelProblem(upper=lambda x, y: (y**2).sum(), lower=lower, x=x, y=y), x, y, 1e-3)
    assert at.failed is status
