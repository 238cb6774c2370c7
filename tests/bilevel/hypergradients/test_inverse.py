"""Each way to differentiate the lower solution: against finite differences of the re-solved hyper-objective, numpy's linear
algebra, and in the cases where no hypergradient can be right.
"""

import numpy as np
import pytest
import torch
from lower_levels import NX, NY, PROBLEMS, SPECTRA, Quadratic, spectrum

import bilevel
from bilevel import BilevelProblem, Function, MiniBatches, Status, hypergradient
from bilevel.hypergradients.adjoint import LevelsAt, Wanted, differentiate
from bilevel.hypergradients.fixed_point import FixedPoint
from bilevel.hypergradients.stochastic_neumann import StochasticNeumann
from bilevel.hypergradients.unrolled import Unrolled
from bilevel.solvers.implicit import Implicit
from constrained.core.errors import OptionError, ProblemError, Unsuitable
from constrained.core.options import outside
from constrained.core.vec import Vec
from constrained.descent import LBFGS
from constrained.linear import CG, LinearStatus, Minres, System
from constrained.linear.diagonal import Diagonal
from constrained.linear.direct import Direct
from constrained.linear.neumann import Neumann

F64 = torch.float64
METHODS = {
    "cg": lambda map: CG(),
    "minres": lambda map: Minres(),
    "direct": lambda map: Direct(),
    "neumann": lambda map: Neumann(),
    "neumann, draws": lambda map: StochasticNeumann(),
    "fixed point": lambda map: FixedPoint(map=map),
    "fixed point, gmres": lambda map: FixedPoint(map=map, memory=8),
    "unrolled": lambda map: Unrolled(),
    "truncated": lambda map: Unrolled(keep=300),
}


def error(found, truth):
    return np.linalg.norm(np.asarray(found.value) - truth) / np.linalg.norm(truth)


def gradient_step(one, values):
    """y - H (y - M x - m) / |H|."""
    H, M, m = (torch.tensor(v) for v in (one.H, one.M, one.m))
    return lambda x, y: y - H @ (y - M @ x - m) / np.abs(values).max()


# -- right values -----------------------------------------------------------------------------------------------------------
def pairs():
    """Every problem with every third method, in turn; the others are slow."""
    turns = [(name, method, (i + j) % 3 > 0) for i, name in enumerate(PROBLEMS) for j, method in enumerate(METHODS)]
    return [pytest.param(name, method, marks=[pytest.mark.slow] * odd) for name, method, odd in turns]


@pytest.mark.parametrize(("name", "method"), pairs())
def test_finite_differences_of_the_hyperobjective(name, method):
    """On the whole space and on sets that bind, some with curvature."""
    one = PROBLEMS[name]
    assert one.binds == (one.where != "everywhere")
    found = hypergradient(one.problem, one.x, inverse=METHODS[method](one.map), tol=1e-8)
    assert found.status is Status.CONVERGED, found.message
    assert found.linear_residual <= 1e-7
    assert error(found, one.truth) <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["ball", *(pytest.param(s, marks=pytest.mark.slow) for s in ("logistic, exp ridge", "simplex"))])
def test_implicit_ends_at_a_point_where_the_hyperobjective_is_stationary(name, method):
    """The problem's own residuals say so, whose hypergradient is by CG."""
    one = PROBLEMS[name]
    result = bilevel.solve(one.problem, Implicit(inverse=METHODS[method](one.map)), tol=1e-6)
    assert result.status is Status.CONVERGED, result.message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["spread", "identity", "1e-3 I", "1e3 I"])
def test_closed_form(name, method):
    one = Quadratic(SPECTRA[name])
    found = one.at(inverse=METHODS[method](gradient_step(one, SPECTRA[name])))
    assert found.status is Status.CONVERGED, found.message
    assert error(found, one.truth()) <= 1e-8


@pytest.mark.parametrize("method", ["neumann", "neumann, draws", "truncated"])
def test_too_slow_a_series_says_so(method):
    """|g_yy| / mu = 10^4: thousands of terms do not reach 1e-10, and the status is no CONVERGED."""
    one = Quadratic(SPECTRA["ill-conditioned"])
    found = one.at(inverse=METHODS[method](None))
    assert found.status is Status.MAX_STEPS
    assert found.linear_residual > 1e-3
    assert "linear residual" in found.message


# -- cases where a wrong answer is near --------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_singular_consistent(rank, method):
    values = np.r_[np.linspace(1, 0.2, rank), np.zeros(NY - rank)]
    one = Quadratic(values, inside=True)
    found = one.at(inverse=METHODS[method](gradient_step(one, values)))
    assert found.status is Status.CONVERGED, found.message
    assert error(found, one.truth()) <= 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_singular_inconsistent(rank, method):
    """A status that says so, and the least-norm least-squares value."""
    values = np.r_[np.linspace(1, 0.2, rank), np.zeros(NY - rank)]
    one = Quadratic(values)
    found = one.at(inverse=METHODS[method](gradient_step(one, values)))
    assert found.status in ({Status.SINGULAR, Status.STALLED} if "gmres" in method else {Status.SINGULAR}), found.message
    inverse = np.linalg.pinv(one.H, rcond=1e-10)
    least = 0.2 * (one.x - one.b) + one.C @ one.y + one.M.T @ one.H @ inverse @ one.f_y()
    assert error(found, least) <= 1e-8
    outside_of_range = np.linalg.norm(one.f_y() - one.H @ inverse @ one.f_y()) / np.linalg.norm(one.f_y())
    assert found.linear_residual == pytest.approx(outside_of_range, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[-1.0] * NY, [1.0] * 8 + [-1e-3], [1.0] * 8 + [-0.5], list(np.linspace(-1, 1, NY))])
def test_indefinite(values, method):
    """A stationary point of g that is no minimiser. MINRES and a factorisation solve the system, which is no excuse."""
    one = Quadratic(np.array(values))
    found = one.at(inverse=METHODS[method](gradient_step(one, values)))
    assert found.status is Status.LOWER_UNSOLVED
    assert "negative curvature" in found.message


@pytest.mark.parametrize("method", METHODS)
def test_unsolved_lower_level(method):
    """A given y that is no minimiser is refused; Unrolled takes it as the start of its own steps."""
    one = Quadratic(SPECTRA["spread"])
    inverse = METHODS[method](gradient_step(one, SPECTRA["spread"]))
    found = hypergradient(one.problem, torch.tensor(one.x), torch.tensor(one.y + 0.1), inverse=inverse)
    if isinstance(inverse, Unrolled):
        assert found.status is Status.CONVERGED, found.message
        assert error(found, one.truth()) <= 1e-8
    else:
        assert found.status is Status.LOWER_UNSOLVED
        assert found.lower_residual == pytest.approx(np.linalg.norm(one.H @ np.full(NY, 0.1)), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_a_product(method):
    low = Function(
        lambda x, y: 0.5 * ((y - x) ** 2).sum(),
        gradient=lambda x, y: (x - y, y - x),
        hvp=lambda x, y, v: v * float("nan"),
        jvp=lambda x, y, v: -v,
    )
    one = BilevelProblem(upper=lambda x, y: ((y - 1) ** 2).sum(), lower=low, x=torch.zeros(2), y=torch.zeros(2))
    inverse = METHODS[method](lambda x, y: y - 0.5 * (y - x) * float("nan"))
    assert hypergradient(one, torch.zeros(2), torch.zeros(2), inverse=inverse).status is Status.NONFINITE


# -- the fixed point's own map ---------------------------------------------------------------------------------------------
def test_a_map_with_another_fixed_point():
    one = Quadratic(SPECTRA["spread"])
    step = gradient_step(one, SPECTRA["spread"])
    found = one.at(inverse=FixedPoint(map=lambda x, y: step(x, y) + 1e-3))
    assert found.status is Status.LOWER_UNSOLVED
    assert "no fixed point" in found.message


def test_a_map_that_repels_but_is_no_sign_of_a_saddle():
    """Too long a step: eigenvalues of T_y below -1. The fixed point is a minimiser, and the value is right."""
    one = Quadratic(SPECTRA["spread"])
    step = gradient_step(one, SPECTRA["spread"])
    found = one.at(inverse=FixedPoint(map=lambda x, y: y + 5 * (step(x, y) - y)))
    assert found.status is Status.CONVERGED, found.message
    assert error(found, one.truth()) <= 1e-8


def test_a_map_of_another_shape_is_refused():
    one = Quadratic(SPECTRA["spread"])
    with pytest.raises(ProblemError, match="FixedPoint: map: expected shapes"):
        one.at(inverse=FixedPoint(map=lambda x, y: y[:3]))


def test_a_map_with_a_gradient_inside():
    """torch.autograd.grad within T, with its graph."""
    one = PROBLEMS["logistic, exp ridge"]

    def step(x, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.clone().requires_grad_()
            (slope,) = torch.autograd.grad(one.lower(x, y), y, create_graph=True)
            return y - 0.1 * slope

    found = hypergradient(one.problem, one.x, inverse=FixedPoint(map=step), tol=1e-8)
    assert found.status is Status.CONVERGED, found.message
    assert error(found, one.truth) <= 1e-6


# -- unrolled steps --------------------------------------------------------------------------------------------------------
def test_truncation_leaves_the_residual_it_reports():
    """At the solution the residual of k steps is |(I - eta H)^k f_y| / |f_y|, for the eta that two of them imply."""
    one = Quadratic(np.array([1.0] * 4 + [0.5] * 5))
    residuals = [one.at(inverse=Unrolled(keep=k)).linear_residual for k in (2, 4, 8)]
    values, vectors = np.linalg.eigh(one.H)
    share = vectors.T @ one.f_y() / np.linalg.norm(one.f_y())
    for k, got in zip((2, 4, 8), residuals):  # eta is 1 / |H| to the accuracy of the power method
        assert got == pytest.approx(np.linalg.norm((1 - values / values.max()) ** k * share), rel=0.1)
    assert one.at(inverse=Unrolled(keep=4)).status is Status.MAX_STEPS


def test_few_unrolled_steps_leave_the_lower_level_unsolved():
    one = Quadratic(SPECTRA["spread"])
    found = hypergradient(one.problem, torch.tensor(one.x), inverse=Unrolled(steps=5))
    assert found.status is Status.LOWER_UNSOLVED


# -- the series as a linear solver -----------------------------------------------------------------------------------------
def solved(A, b, solver=None, tol=1e-10, start=None):
    A = torch.tensor(A)
    system = System(lambda v: v.map(lambda t: A @ t), len(b))
    start = None if start is None else Vec.of(torch.tensor(start))
    solver = solver or Neumann()
    return solver.solve(solver.init(system), Vec.of(torch.tensor(b)), tol=tol, start=start)


@pytest.mark.parametrize("start", [None, np.ones(NY)])
@pytest.mark.parametrize("eta", [None, 0.5, 100.0])
def test_neumann_against_numpy(eta, start):
    """Also from a given start, and for a step that is far too long."""
    A, _ = spectrum(np.linspace(2, 0.1, NY))
    b = np.random.default_rng(0).normal(size=NY)
    found = solved(A, b, Neumann(eta=eta), start=start)
    assert found.reason is LinearStatus.SOLVED
    np.testing.assert_allclose(found.x.ravel().numpy(), np.linalg.solve(A, b), rtol=0, atol=1e-8)
    assert found.residual == pytest.approx(np.linalg.norm(b - A @ found.x.ravel().numpy()), abs=1e-14)


def test_neumann_is_the_series():
    A, _ = spectrum(np.linspace(2, 0.1, NY))
    b = np.random.default_rng(0).normal(size=NY)
    found = solved(A, b, Neumann(terms=7, eta=0.3))
    series = 0.3 * sum(np.linalg.matrix_power(np.eye(NY) - 0.3 * A, k) @ b for k in range(7))
    assert found.reason is LinearStatus.MAX_STEPS
    assert found.products == 8  # one for the residual
    np.testing.assert_allclose(found.x.ravel().numpy(), series, rtol=1e-12)


def test_neumann_of_nothing():
    assert solved(np.zeros((3, 3)), np.ones(3)).reason is LinearStatus.LEAST_SQUARES
    assert float(solved(np.zeros((3, 3)), np.ones(3)).x.norm()) == 0.0
    assert solved(np.eye(3), np.zeros(3)).reason is LinearStatus.SOLVED


# -- draws -----------------------------------------------------------------------------------------------------------------
class Regression:
    """g = mean over rows of (a_i'y - b_i - (M x)_i)^2 / 2 + |y|^2 / 4, f = |y - 1|^2 / 2, batches of 8 of 32 rows."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.A, self.M, self.b, self.x = (
            rng.normal(size=(32, 3)),
            rng.normal(size=(32, 2)),
            rng.normal(size=32),
            rng.normal(size=2),
        )
        self.H = self.A.T @ self.A / 32 + 0.5 * np.eye(3)
        rows = tuple(torch.tensor(part) for part in (self.A, self.M, self.b))

        def lower(x, y, batch):
            A, M, b = batch
            return 0.5 * ((A @ y - b - M @ x) ** 2).mean() + 0.25 * (y**2).sum()

        self.problem = BilevelProblem(
            upper=lambda x, y: 0.5 * ((y - 1) ** 2).sum(),
            lower=lower,
            x=torch.zeros(2, dtype=F64),
            y=torch.zeros(3, dtype=F64),
            lower_data=MiniBatches(rows, 8, shuffle="replacement"),
        )
        self.y = np.linalg.solve(self.H, self.A.T @ (self.b + self.M @ self.x) / 32)

    def at(self, **options):
        return hypergradient(self.problem, torch.tensor(self.x), torch.tensor(self.y), **options)


@pytest.mark.parametrize("terms", [3, 20])
def test_mean_over_draws_is_the_truncated_series(terms):
    """With the bias of so many terms, which for 3 is far larger than the error of the mean."""
    one, eta = Regression(), 0.1
    values = np.stack([one.at(inverse=StochasticNeumann(terms=terms, eta=eta), seed=s).value.numpy() for s in range(200)])
    series = eta * sum(np.linalg.matrix_power(np.eye(3) - eta * one.H, k) for k in range(terms))
    wanted = one.M.T @ one.A @ series @ (one.y - 1) / 32  # -g_xy v
    whole = one.M.T @ one.A @ np.linalg.solve(one.H, one.y - 1) / 32
    mean, spread = values.mean(0), values.std(0) / 200**0.5
    assert (np.abs(mean - wanted) <= 4 * spread).all()
    assert terms > 3 or (np.abs(whole - wanted) > 8 * spread).any()


def test_draws_are_seeded_and_the_residual_is_on_all_of_the_data():
    one = Regression()
    first, again, other = (one.at(inverse=StochasticNeumann(), seed=s) for s in (0, 0, 1))
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)
    assert first.status is Status.MAX_STEPS
    assert 1e-4 < first.linear_residual < 1
    assert first.lower_residual <= 1e-10


def test_only_draws_take_mini_batches():
    for inverse in (None, CG(), Neumann(), Unrolled()):
        with pytest.raises(Unsuitable, match="mini-batches"):
            Regression().at(inverse=inverse)


# -- warm starts and options ------------------------------------------------------------------------------------------------
def test_what_is_carried_from_one_x_to_the_next_halves_the_products():
    """20 steps of a descent on the hyper-objective, at equal accuracy: from the last v, on the diagonal learnt so far."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(200, 60, generator=generator, dtype=F64) * torch.logspace(0, -1, 60, dtype=F64)
    s = torch.randn(200, generator=generator, dtype=F64).sign()
    loss = torch.nn.functional.softplus
    problem = BilevelProblem(
        upper=lambda x, y: loss(-s[100:] * (A[100:] @ y)).mean() + 1e-3 * (x**2).sum(),
        lower=lambda x, y: loss(-s[:100] * (A[:100] @ y)).mean() + 0.5 * ((x - 4).exp() * y**2).sum(),
        x=torch.zeros(60, dtype=F64),
        y=torch.zeros(60, dtype=F64),
    )
    places = []
    for event in bilevel.iterate(problem, Implicit(outer=LBFGS()), tol=1e-12, max_steps=19):
        places.append((LevelsAt.of(problem.oracle(), event.state.x, event.state.response.y), event.state.outer.residual))
    assert len(places) == 20

    def products(carry):
        v, diagonal, total = None, None, 0
        for here, residual in places:
            diagonal = diagonal.faded() if carry and diagonal is not None else Diagonal.blank(here.y)
            tol = 1e-3 * min(1.0, residual)
            found = differentiate(CG(), here, Wanted(tol, tol), start=v if carry else None, diagonal=diagonal)
            assert found.residual <= 2 * tol
            v, total = found.v, total + found.products
        return total

    cold, warm = products(False), products(True)
    print(f"products of 20 solves: cold {cold}, warm {warm}")
    assert warm <= 0.5 * cold


@pytest.mark.parametrize("cls", [Neumann, StochasticNeumann, FixedPoint, Unrolled])
def test_options_out_of_range(cls):
    needed = {"map": lambda x, y: y} if cls is FixedPoint else {}
    for name, value in outside(cls):
        with pytest.raises(OptionError, match=name):
            cls(**{**needed, name: value})


def test_what_is_no_inverse_is_refused():
    one = Quadratic(np.ones(NY))
    for bad in ("cg", CG, 3):
        with pytest.raises(OptionError, match="inverse: expected"):
            hypergradient(one.problem, torch.zeros(NX, dtype=F64), inverse=bad)
