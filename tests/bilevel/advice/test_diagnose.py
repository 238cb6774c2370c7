"""`problem.diagnose()` against closed forms: spectra, nullities, faces, couplings, minima; and the page."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bilevel import Ball, BilevelProblem, Box, Function, MiniBatches, Point, Simplex, Stream, hypergradient
from bilevel.hypergradients.adjoint import adjoint
from constrained.core.errors import NonFiniteStart, ProblemError
from constrained.core.vec import Vec
from constrained.linear.spectrum import lanczos
from problems import quadratic

F64 = torch.float64


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


def upper(x, y):
    return ((y - 1) ** 2).sum() + (x**2).sum()


def lower(x, y):
    return 0.5 * ((y - x) ** 2).sum()


def problem(**changed):
    return BilevelProblem(**{"upper": upper, "lower": lower, "x": vector(0.3, -0.2), "y": vector(0, 0), **changed})


def said(found, *words):
    """Some finding holds every word."""
    return any(all(word in finding for word in words) for finding in found.findings)


# -- spectra ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cond", [10.0, 1000.0])
def test_spectrum_of_a_quadratic(cond):
    """Eigenvalues 1 .. 1/cond, all positive: one solution; conjugate gradients take about as many products as is said."""
    one = quadratic(cond=cond, seed=3).problem
    found = one.diagnose()
    c, low = found.curvature, found.lower
    assert (c.smallest, c.largest, c.condition) == pytest.approx((1 / cond, 1.0, cond), rel=1e-8)
    assert (c.nullity, c.negative, c.lanczos, c.size) == (0, 0, None, 20)
    assert low.solved
    assert (low.elsewhere, low.others, low.below, low.convex) == (4, 0, 0.0, None)
    assert low.formula < 1e-12
    assert found.findings == ()
    assert found.derivatives.ok
    assert f"condition {cond:.2g}" in found.solvers["Implicit"]
    oracle = one.oracle()
    x, y = oracle.variables["x"], oracle.variables["y"].like([low.y])
    assert low.y.numpy() == pytest.approx(one.lower_solution(x.tree()).numpy(), abs=2e-8 * cond)
    f_y = oracle.f.grad(x, y)[1]
    spent = adjoint(oracle.g.at(x, y), f_y, 1e-6 * float(f_y.norm())).products
    assert 0.5 * spent <= c.products <= 2 * spent
    assert found.cost.gradients + found.cost.hvps < 800


@pytest.mark.parametrize("flat", [False, True])
def test_nullity(flat):
    """Rank 12 of 20; with `flat` f_y has no part in the null space, and a hypergradient exists."""
    one = quadratic(cond=10.0, rank=12, flat=flat).problem
    found = one.diagnose()
    c = found.curvature
    eigenvalues = np.logspace(0, -1, 20)[:12]
    assert (c.nullity, c.negative, c.size) == (8, 0, 20)
    assert c.condition == pytest.approx(1 / eigenvalues[-1], rel=1e-8)
    assert found.lower.others == found.lower.elsewhere == 4
    assert found.lower.convex is None
    assert said(found, "Several lower solutions")
    assert said(found, "singular", "8 of 20")
    status = hypergradient(one, one.x).status.name
    assert (status == "SINGULAR") == ("SINGULAR" in found.solvers["Implicit"]) == (not flat)
    assert c.outside < 1e-12 if flat else c.outside > 0.1
    assert "f prefers" in found.solvers["Penalty"]


def test_large_lower_levels_are_estimated():
    """400 eigenvalues in [1, 100]: extremes from inside the spectrum, near its ends, which stand apart."""
    h = torch.cat([vector(1.0), torch.linspace(10, 50, 398, dtype=F64), vector(100.0)])
    one = problem(lower=lambda x, y: 0.5 * (h * (y - x.sum()) ** 2).sum(), y=torch.zeros(400, dtype=F64))
    c = one.diagnose().curvature
    assert c.lanczos == 50
    assert (c.smallest, c.largest, c.condition) == pytest.approx((1.0, 100.0, 100.0), rel=1e-6)
    assert c.smallest * (1 + 1e-12) >= 1.0
    assert "Lanczos" in str(one.diagnose())


def test_lanczos_is_orthonormal_and_ends_where_the_space_does():
    h = torch.logspace(0, -8, 60, dtype=F64)
    small, Q, _ = lanczos(lambda v: v.map(lambda t: h * t), Vec.of(torch.ones(60, dtype=F64)), 60)
    assert (Q.T @ Q - torch.eye(Q.shape[1], dtype=F64)).norm() < 1e-12
    assert (Q.T @ (h[:, None] * Q) - small).norm() < 1e-12
    two, _, _ = lanczos(lambda v: v.map(lambda t: t * vector(1, 1, 4, 4)), Vec.of(torch.ones(4, dtype=F64)), 4)
    assert torch.linalg.eigvalsh(two).tolist() == pytest.approx([1, 4], abs=1e-14)


# -- several solutions ------------------------------------------------------------------------------------------------------
def test_nonconvex_lower_level():
    """g = y^4/4 - y^2/2 + 3y/10: minima at two of the roots of y^3 - y + 3/10. From the higher one the lower is found."""
    roots = np.sort(np.roots([1, 0, -1, 0.3]).real)

    def value(y):
        return y**4 / 4 - y**2 / 2 + 0.3 * y

    one = problem(lower=lambda x, y: value(y).sum() + 0 * x.sum(), x=vector(1), y=vector(1))
    found = one.diagnose()
    assert float(found.lower.y) == pytest.approx(roots[2], abs=1e-7)
    assert found.lower.convex is False
    assert found.lower.below == pytest.approx(value(roots[2]) - value(roots[0]), abs=1e-9)
    assert found.curvature.smallest == pytest.approx(3 * roots[2] ** 2 - 1, abs=1e-6)
    assert said(found, "not convex", "below")
    assert "local" in found.solvers["Penalty"]


def test_saddle():
    """y = 0 is stationary for (y1^2 - y2^2) / 2, with one negative eigenvalue."""
    found = problem(lower=lambda x, y: 0.5 * (y[0] ** 2 - y[1] ** 2) + 0 * x.sum()).diagnose()
    assert (found.curvature.smallest, found.curvature.largest) == pytest.approx((-1, 1))
    assert found.curvature.negative == 1
    assert said(found, "negative eigenvalue")
    assert found.solvers["Implicit"].startswith("doubtful")


def test_unbounded_lower_level():
    found = problem(lower=lambda x, y: (x * y).sum()).diagnose()
    assert not found.lower.solved
    assert said(found, "not solved")


# -- sets and constraints ---------------------------------------------------------------------------------------------------
def test_faces_of_boxes():
    """y = P(t) on [0, 1]^5 : entries 0 and 2 are held, entry 3 is 1e-4 inside; g_yy = diag(1..5) on entries 1, 3 and 4."""
    t, h = vector(-0.5, 0.3, 2, 1e-4, 0.7), vector(1, 2, 3, 4, 5)
    one = problem(
        lower=lambda x, y: 0.5 * (h * (y - t - x.sum()) ** 2).sum(),
        x=vector(0, 0),
        y=torch.full((5,), 0.5, dtype=F64),
        Y=Box(0, 1),
        X=Box(0, 1),
    )
    found = one.diagnose()
    assert (found.faces["y"].held, found.faces["y"].near, found.faces["y"].entries) == (2, 1, 5)
    assert found.faces["x"].near == 2
    assert (found.curvature.smallest, found.curvature.largest, found.curvature.size) == pytest.approx((2, 5, 3))
    assert said(found, "1 entries of y(x)", "kinks")
    assert "kink" in found.solvers["Implicit"]
    assert "2 of 5 entries of y(x) held by Y, 1 near" in str(found)


def test_faces_of_other_sets():
    """A ball pushed at by y - g_y = 3 e: T g_yy T + C has the eigenvalue 1 + (3 - 1). A simplex holds its zero entries."""
    e = vector(0.6, 0.8, 0.0)
    ball = problem(lower=lambda x, y: 0.5 * ((y - 3 * e) ** 2).sum() + 0 * x.sum(), y=0 * e, Y=Ball(1.0)).diagnose()
    assert (ball.curvature.smallest, ball.curvature.largest, ball.curvature.size) == pytest.approx((3, 3, 2), abs=1e-6)
    assert (ball.faces["y"].held, ball.faces["y"].near) == (0, 0)
    t = vector(0.6, 0.4, -1.0)
    simplex = problem(lower=lambda x, y: 0.5 * ((y - t) ** 2).sum() + 0 * x.sum(), y=e * 0 + 1 / 3, Y=Simplex()).diagnose()
    assert (simplex.faces["y"].held, simplex.faces["y"].near, simplex.curvature.size) == (1, 0, 1)


def test_a_vertex():
    """Every entry is held: nothing moves, and nothing divides by zero."""
    found = problem(lower=lambda x, y: 0.5 * ((y - x - 5) ** 2).sum(), Y=Box(0, 1)).diagnose()
    assert found.faces["y"].held == 2
    assert found.curvature is None
    assert "does not move" in found.solvers["Implicit"]
    assert str(found)


def test_linear_lower_level():
    """g = y1 on [0, 1]^2: y1 is held, y2 is free and has no curvature."""
    found = problem(lower=lambda x, y: y[0] + 0 * x.sum(), y=vector(0.5, 0.5), Y=Box(0, 1)).diagnose()
    assert (found.curvature.size, found.curvature.nullity, found.curvature.condition) == (1, 1, math.inf)
    assert said(found, "no curvature")
    assert str(found)


def test_constraints():
    found = problem(
        lower_inequality=lambda x, y: torch.stack([y[0] - 5, y[1], y[0] + 1]), upper_equality=lambda x, y: x.sum() - 0.1
    ).diagnose()
    assert found.lower is None
    assert dict(found.constraints) == {"lower_inequality": (1, 1), "upper_equality": (0, 0)}
    assert said(found, "lower_inequality", "violated: 1")
    assert said(found, "has constraints")
    assert found.solvers["Implicit"] == "refused, lower_inequality constraints, upper_equality constraints"


# -- coupling, scales, derivatives ------------------------------------------------------------------------------------------
def test_x_that_does_not_influence_y():
    found = problem(lower=lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum()).diagnose()
    assert found.coupling == found.nearby == 0.0
    assert said(found, "does not influence y")
    ridge = problem(lower=lambda x, y: (x.exp() * y**2).sum()).diagnose()  # g_xy = 2 exp(x) y, and y(x) = 0
    assert ridge.coupling == 0.0 < ridge.nearby
    assert said(ridge, "to first order")


def test_coupling_is_the_norm_of_the_mixed_block():
    """g_xy = -c I in two dimensions: the estimate is exact, by products and by differences."""
    c = 3.0
    by_products = problem(lower=lambda x, y: 0.5 * c * ((y - x) ** 2).sum())
    value = Function.numpy(lambda x, y: 0.5 * c * ((y - x) ** 2).sum(), gradient=lambda x, y: (c * (x - y), c * (y - x)))
    by_differences = problem(lower=value)
    for one, accuracy in ((by_products, 1e-12), (by_differences, 1e-6)):
        assert one.diagnose().coupling == pytest.approx(c * math.sqrt(2), rel=accuracy)
    found = by_differences.diagnose()
    assert found.curvature is None
    assert found.solvers["Implicit"] == "refused, functions without second derivatives"
    assert "no second derivatives" in str(found)


def test_scales():
    found = problem(upper=lambda x, y: 1e8 * upper(x, y)).diagnose()
    assert found.scales["|f_y|"] == pytest.approx(1e8 * math.sqrt(8))
    assert found.scales["max |x|"] == 0.3
    assert said(found, "differ by")
    assert said(problem(upper=lambda x, y: 1e-9 * upper(x, y)).diagnose(), "f is flat")
    assert said(problem(y=vector(0.3, -0.2)).diagnose(), "|g_y| is below tol")


def test_wrong_derivatives():
    wrong = Function(lower, gradient=lambda x, y: (x - y, 1.01 * (y - x)))
    found = problem(lower=wrong).diagnose()
    assert found.derivatives.bad == ("lower: d/dy",)
    assert said(found, "Derivatives are off: lower: d/dy.")
    assert "OFF" in str(found)
    assert said(problem(lower_solution=lambda x: x + 1).diagnose(), "lower_solution(x) is no solution")


@pytest.mark.parametrize("name", ["upper", "lower"])
def test_not_finite_at_the_start(name):
    found = problem(**{name: lambda x, y: lower(x, y) * math.nan}).diagnose()
    assert said(found, f"{name}: ", "NaN or infinite")
    assert found.lower is None
    assert found.solvers["Penalty"].startswith("doubtful")
    assert str(found)
    with pytest.raises(NonFiniteStart, match="x: "):
        problem().diagnose(Point(vector(0, math.nan)))


def test_not_finite_or_raising_elsewhere():
    """log y with its minimum outside of its domain; a function that raises away from the start."""
    assert said(problem(lower=lambda x, y: y.log().sum() + 0 * x.sum(), y=vector(1, 1)).diagnose(), "not solved")

    def picky(x, y):
        if float(y.detach().norm()) > 1:
            raise ValueError("too far")
        return lower(x - 5, y)

    assert said(problem(lower=picky).diagnose(), "ValueError", "too far")
    with pytest.raises(ProblemError):
        problem(lower=lambda x, y: y - x).diagnose()


# -- data and modules -------------------------------------------------------------------------------------------------------
def test_mini_batches_and_streams():
    data = torch.arange(8.0, dtype=F64)

    def fit(x, y, b):
        return 0.5 * ((y - x - b.mean()) ** 2).sum()

    found = problem(lower=fit, lower_data=MiniBatches(data, 2)).diagnose()
    assert found.lower.y.numpy() == pytest.approx([3.8, 3.3], abs=1e-7)
    assert found.solvers["Implicit"] == "refused, mini-batches"
    assert "max_steps" in found.solvers["PenaltySGD"]
    first = problem(lower=fit, lower_data=Stream([data[:2], data[2:4]])).diagnose()
    assert first.lower.y.numpy() == pytest.approx([0.8, 0.3], abs=1e-7)
    assert said(first, "lower_data is a stream", "first batch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_module_variable(dtype):
    """Ridge regression: g_yy = 2 (A'A / n + exp(x) I) has known eigenvalues."""
    torch.manual_seed(0)
    net, A = nn.Linear(3, 1, bias=False).to(dtype), torch.randn(20, 3, dtype=dtype)
    b = A.sum(1, keepdim=True)
    one = BilevelProblem(
        upper=lambda x, net: ((net(A) - 1) ** 2).mean(),
        lower=lambda x, net: ((net(A) - b) ** 2).mean() + x.exp().sum() * (net.weight**2).sum(),
        x=torch.zeros(1, dtype=dtype),
        y=net,
    )
    before = net.weight.detach().clone()
    found = one.diagnose()
    eigenvalues = torch.linalg.eigvalsh(2 * (A.T @ A / 20 + torch.eye(3, dtype=dtype)))
    assert (found.curvature.smallest, found.curvature.largest) == pytest.approx(eigenvalues[[0, -1]].tolist(), rel=1e-5)
    assert set(found.lower.y) == {"weight"}
    assert torch.equal(net.weight, before)
    assert found.findings == ()


def test_the_page():
    """Every part has its line; what `solve` takes and why is what `recommend` says; nothing global is touched."""
    before = torch.random.get_rng_state()
    found = quadratic(seed=1).problem.diagnose()
    assert torch.equal(torch.random.get_rng_state(), before)
    page = str(found)
    labels = ["Problem", "Derivatives", "At the start", "At y(x)", "Findings", "solve() takes", "Solvers", "This page took"]
    assert [line[:15].strip() for line in page.splitlines() if line[:15].strip()] == labels
    assert all(reason in page for reason in found.recommended.reasons)
    assert {"Implicit", "Penalty", "PenaltySGD", "F2SA"} <= set(found.solvers)
    assert "Auto" not in found.solvers
    assert str(quadratic(seed=1).problem.diagnose()) == page
