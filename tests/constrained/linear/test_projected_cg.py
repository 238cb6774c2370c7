"""ProjectedCG against numpy on KKT systems, and MINRES on what CG cannot do: preconditioners, restarts, bad scales."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from systems import Counted, array, indefinite, kkt, normal, pde, run, singular, symmetric

from constrained import ConstrainedProblem, SketchedNewton, Status, solve
from constrained.core.errors import Unsuitable
from constrained.core.vec import Vec
from constrained.linear import LinearStatus, Minres, System
from constrained.linear.minres import Sweep
from constrained.linear.projected_cg import ProjectedCG


# -- ProjectedCG ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("n", "m"), [(1, 0), (2, 1), (3, 3), (30, 0), (30, 10), (30, 30), (200, 60)])
@pytest.mark.parametrize("seed", range(3))
def test_kkt(n, m, seed):
    """m products for the constraints, then n - m steps and a few looks."""
    K, b = kkt(n, m, seed), normal(n + m, seed)
    found = run(ProjectedCG(), K, b, 1e-8 * np.linalg.norm(b), split=(n, m))
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.solve(K, b), rel=1e-5, abs=1e-6)
    assert found.products <= 1.3 * (n - m) + 8
    explicit = {"split": (n, m), "matrix": lambda: torch.tensor(K)}
    assert array(run(ProjectedCG(), K, b, 1e-8 * np.linalg.norm(b), **explicit)) == pytest.approx(array(found), abs=1e-5)


def test_the_constraints_cost_a_product_each_or_nothing():
    K = torch.tensor(kkt(20, 5))
    counted = Counted(K.numpy(), more={"split": (20, 5)})
    assert ProjectedCG().init(counted.system()).spent == counted.count == 5
    counted = Counted(K.numpy(), more={"split": (20, 5), "below": lambda: K[20:]})
    assert ProjectedCG().init(counted.system()).spent == counted.count == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m"), [(2, 1), (30, 10), (30, 0)])
def test_negative_curvature(n, m, seed):
    """p in the null space of G with p'B p < 0."""
    K, b = kkt(n, m, seed, shift=-5.0), normal(n + m, seed)
    found = run(ProjectedCG(), K, b, 1e-8, split=(n, m))
    assert found.reason is LinearStatus.NEGATIVE_CURVATURE
    d = found.direction.ravel().numpy()
    assert d @ K @ d < 0
    assert not d[n:].any()
    assert np.linalg.norm((K @ d)[n:]) <= 1e-10 * np.linalg.norm(d)


@pytest.mark.parametrize("seed", range(3))
def test_dependent_constraints(seed):
    """A row twice: solved where consistent, with the least-norm multipliers; else SINGULAR."""
    K = kkt(30, 10, seed)
    K[39], K[:, 39] = K[38], K[:, 38]
    b = K @ normal(40, seed)
    found = run(ProjectedCG(), K, b, 1e-8, split=(30, 10))
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.pinv(K, rcond=1e-10) @ b, abs=1e-6)
    assert run(ProjectedCG(), K, normal(40, seed), 1e-8, split=(30, 10)).reason is LinearStatus.SINGULAR


def test_a_residual_that_the_recurrence_does_not_see():
    """x = 1 twice as two rows and one unknown: r'P^-1 r = 0 to rounding, while the regularised rows leave a residual."""
    row = torch.tensor([1.6, -0.7], dtype=torch.float64)
    problem = ConstrainedProblem(
        objective=lambda x: 0.8 * x @ x - x.sum(), equality=lambda x: row * (x - 1), x=torch.zeros(1, dtype=torch.float64)
    )
    result = solve(problem, SketchedNewton(linear_solver=ProjectedCG()), max_steps=50)
    assert result.status is Status.CONVERGED
    assert float(result.x) == pytest.approx(1.0, abs=1e-8)


def test_singular_reduced_hessian():
    K = kkt(30, 5)
    K[:30, :30] = np.diag(np.r_[np.ones(15), np.zeros(15)])
    found = run(ProjectedCG(), K, K @ normal(35, 0), 1e-8, split=(30, 5))
    assert found.reason is LinearStatus.SOLVED
    assert run(ProjectedCG(), K, normal(35, 0), 1e-8, split=(30, 5)).reason is not LinearStatus.SOLVED


def test_regularised_constraints():
    """[[B, G'], [G, -C]] with C positive definite, also where the rows of G are dependent."""
    K = kkt(30, 10)
    K[39], K[:, 39] = K[38], K[:, 38]
    K[30:, 30:] = -np.diag(np.linspace(0.1, 1, 10))
    b = normal(40, 0)
    found = run(ProjectedCG(), K, b, 1e-8, split=(30, 10))
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.solve(K, b), abs=1e-6)


def test_scaled_rows_of_the_constraints():
    K = kkt(30, 10)
    D = np.r_[np.ones(30), np.logspace(-5, 5, 10)]
    K = D[:, None] * K * D
    b = normal(40, 0)
    found = run(ProjectedCG(), K, b, 1e-6, split=(30, 10))
    assert found.reason is LinearStatus.SOLVED


def test_constraint_preconditioner():
    """M = B is exact: one application. M = diag(B) is better than M = I where B is badly scaled."""
    K, b = kkt(60, 10), normal(70, 0)
    K[:60, :60] += np.diag(np.logspace(0, 5, 60))
    P = np.block([[np.diag(np.diag(K)[:60]), K[:60, 60:]], [K[60:, :60], np.zeros((10, 10))]])

    def by(matrix):
        inverse = torch.tensor(np.linalg.inv(matrix))
        return ProjectedCG(preconditioner=lambda v: v.map(lambda t: inverse @ t))

    plain, diagonal, exact = (run(method, K, b, 1e-8, split=(60, 10)) for method in (ProjectedCG(), by(P), by(K)))
    assert {plain.reason, diagonal.reason, exact.reason} == {LinearStatus.SOLVED}
    assert exact.products <= 3
    assert diagonal.products < 0.6 * plain.products


def test_start_and_limit():
    K, b = kkt(30, 10), normal(40, 0)
    truth = np.linalg.solve(K, b)
    near = run(ProjectedCG(), K, b, 1e-6, split=(30, 10), start=truth + 1e-5 * normal(40, 1))
    assert near.reason is LinearStatus.SOLVED
    assert near.products < run(ProjectedCG(), K, b, 1e-6, split=(30, 10)).products
    few = run(ProjectedCG(max_steps=3), K, b, 1e-10, split=(30, 10))
    assert few.reason is LinearStatus.MAX_STEPS
    assert few.products <= 3 + 3


def test_no_split_is_refused():
    with pytest.raises(Unsuitable, match="use Minres"):
        ProjectedCG().init(System(lambda v: v, 3))


def test_float32():
    K, b = kkt(30, 10), normal(40, 0)
    found = run(ProjectedCG(), K, b, 1e-3, torch.float32, split=(30, 10))
    assert found.reason is LinearStatus.SOLVED
    assert array(found) == pytest.approx(np.linalg.solve(K, b), abs=1e-1)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("method", [ProjectedCG(), Minres()])
def test_not_finite(after, method):
    K, calls = torch.tensor(kkt(30, 10)), []

    def product(v):
        calls.append(1)
        return v.map(lambda t: t @ K * (np.nan if len(calls) > after else 1.0))

    system = System(product, 40, split=(30, 10), below=lambda: K[30:])
    found = method.solve(method.init(system), Vec.of(torch.tensor(normal(40, 0))), tol=1e-10)
    assert found.reason is LinearStatus.NONFINITE
    assert bool(found.x.finite())


# -- MINRES -----------------------------------------------------------------------------------------------------------------
def inverse_of(M):
    return lambda v: v.map(lambda t: torch.tensor(M, dtype=t.dtype) @ t)


@pytest.mark.parametrize("where", ["option", "system"])
@pytest.mark.parametrize("seed", range(3))
def test_preconditioned_minres(where, seed):
    """|K|^-1 takes three steps, eigenvalues 1 and -1; a diagonal fewer than none."""
    K, b = indefinite(60, seed, condition=1e3), normal(60, seed)
    values, V = np.linalg.eigh(K)
    absolute = inverse_of(V @ np.diag(1 / abs(values)) @ V.T)
    method, more = (Minres(preconditioner=absolute), {}) if where == "option" else (Minres(), {"inverse": absolute})
    found = run(method, K, b, 1e-8, **more)
    assert found.reason is LinearStatus.SOLVED
    assert found.products <= 4
    assert array(found) == pytest.approx(np.linalg.solve(K, b), rel=1e-5, abs=1e-5)


def test_a_preconditioner_that_is_not_positive_definite():
    with pytest.raises(Unsuitable, match="not positive definite"):
        run(Minres(preconditioner=lambda v: -v), indefinite(5), normal(5, 0))


@pytest.mark.parametrize("seed", range(3))
def test_preconditioned_singular(seed):
    """Consistent: a solution. Inconsistent: the least-squares one, found without the preconditioner."""
    K = singular(30, 20, seed)
    M = symmetric(np.linspace(1, 3, 30), seed + 5)
    b = K @ normal(30, seed)
    assert run(Minres(), K, b, 1e-8, inverse=inverse_of(M)).reason is LinearStatus.SOLVED
    b = normal(30, seed)
    found = run(Minres(), K, b, 1e-8, inverse=inverse_of(M))
    assert found.reason is LinearStatus.LEAST_SQUARES
    assert array(found) == pytest.approx(np.linalg.pinv(K, rcond=1e-10) @ b, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tol", [1e-6, 1e-9, 1e-11])
def test_what_the_recurrence_calls_solved_is_solved(seed, tol):
    """Condition 3e4: the recurrence drifts from the truth; a start on the true residual puts it right."""
    K, b = kkt(30, 10, seed, scales=1), normal(40, seed)
    found = run(Minres(), K, b, tol * np.linalg.norm(b))
    x = np.linalg.solve(K, b)
    reachable = 10 * 2.3e-16 * np.linalg.norm(K, 2) * np.linalg.norm(x) < tol * np.linalg.norm(b)
    assert found.reason is LinearStatus.SOLVED or not reachable


def test_restarts_gain_digits():
    """One sweep alone stops at a true residual far above what the recurrence claims."""
    K, b = symmetric(np.logspace(0, -6, 60) * np.where(np.arange(60) % 2, 1, -1)), normal(60, 0)
    counted = Counted(K)
    sweep = Sweep(counted.product, None, Vec.of(torch.tensor(b)))
    tol = 1e-8
    while sweep.norm > tol and sweep.reason is None and sweep.steps < 5000:
        sweep.step()
    once = np.linalg.norm(b - K @ sweep.x.tree().numpy())
    assert once > 5 * sweep.norm
    assert run(Minres(max_steps=20_000), K, b, tol).reason is LinearStatus.SOLVED


def test_minres_start_and_estimates():
    K, b = indefinite(60, condition=1e2), normal(60, 0)
    truth = np.linalg.solve(K, b)
    assert run(Minres(), K, b, 1e-8, start=truth).products <= 1
    far, near = (run(Minres(), K, b, 1e-6, start=s) for s in (None, truth + 1e-5 * normal(60, 1)))
    assert near.products < far.products
    values = abs(np.linalg.eigvalsh(K))
    assert 0.9 <= far.smallest / values.min() <= 3
    assert 0.4 <= far.largest / values.max() <= 1.01


def test_preconditioned_pde():
    K, b, inverse = pde(8)
    assert run(Minres(), K, b, 1e-8 * np.linalg.norm(b), inverse=inverse).products <= 5


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_steps_are_those_of_conjugate_gradients_in_the_null_space(size):
    """Whatever the size of B beside M = I: scipy's CG on Z'B Z takes as many."""
    K = kkt(60, 10)
    K[:60, :60] *= size
    b = np.r_[size * normal(60, 0), np.zeros(10)]
    Z = np.linalg.svd(K[60:, :60])[2][10:].T
    count = []
    scipy.sparse.linalg.cg(Z.T @ K[:60, :60] @ Z, Z.T @ b[:60], rtol=5e-7, atol=0, callback=count.append)
    found = run(ProjectedCG(), K, b, 1e-6 * np.linalg.norm(Z.T @ b[:60]), split=(60, 10))
    assert found.reason is LinearStatus.SOLVED
    assert abs(found.products - len(count)) <= 3
    b = np.r_[size * normal(60, 0), normal(10, 1)]
    x = np.linalg.lstsq(K[60:, :60], b[60:])[0]
    rest = Z.T @ (b[:60] - K[:60, :60] @ x)
    count = []
    scipy.sparse.linalg.cg(Z.T @ K[:60, :60] @ Z, rest, rtol=0, atol=5e-7 * np.linalg.norm(b), callback=count.append)
    found = run(ProjectedCG(), K, b, 1e-6 * np.linalg.norm(b), split=(60, 10))
    assert abs(found.products - len(count)) <= 4


def test_a_watched_solve_ends_when_told():
    """Asked after each step, with what is left falling to the tolerance; told to stop, it says so with what it has."""
    K, b = kkt(60, 10), normal(70, 0)
    counted, seen = Counted(K, more={"split": (60, 10)}), []
    prepared, rhs = ProjectedCG().init(counted.system()), Vec.of(torch.tensor(b))
    whole = ProjectedCG().watched(prepared, rhs, tol=1e-8, start=None, go_on=lambda *now: seen.append(now) or True)
    assert whole.reason is LinearStatus.SOLVED
    assert [steps for steps, _ in seen] == list(range(1, len(seen) + 1))
    assert 1e-8 < seen[-1][1] < seen[0][1]
    found = ProjectedCG().watched(prepared, rhs, tol=1e-8, start=None, go_on=lambda steps, left: steps < 3)
    assert found.reason is LinearStatus.MAX_STEPS
    assert found.residual == pytest.approx(np.linalg.norm(b - K @ array(found)))
    assert found.products <= 5
