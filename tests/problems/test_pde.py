"""Control of Poisson's equation: stencil, published figures, exact solution, preconditioner."""

import math

import numpy as np
import pytest
import torch
from flat import Flat, central
from scipy.fft import dstn
from scipy.sparse.linalg import LinearOperator, minres

from constrained.core.errors import OptionError
from constrained.core.problem import Point
from constrained.core.status import Feature
from constrained.core.vec import Vec
from problems.pde import WEIGHT, eigenvalues, laplacian, poisson_control, sine_transform

SIZES = pytest.mark.parametrize("N", [1, 2, 3, 8, 20])
PUBLISHED = [-0.4134, -0.5619, -0.4160, -0.5606, -0.7644, -0.5640, -0.4140, -0.5627, -0.4166]  # W* for N = 3, by columns


def kkt_matrix(N: int) -> np.ndarray:
    flat = Flat(poisson_control(N=N).problem)
    H, J = flat.H(flat.x0, np.zeros(N * N)), flat.J(flat.x0)
    return np.block([[H, J.T], [J, np.zeros((N * N, N * N))]])


def flat(apply):
    """A map of Vecs as one of tensors."""
    return lambda v: apply(Vec.of(v)).leaves[0]


def preconditioner_matrix(N: int) -> np.ndarray:
    """M^-1."""
    apply = flat(poisson_control(N=N).preconditioner)
    return torch.stack([apply(row) for row in torch.eye(3 * N * N, dtype=torch.float64)]).numpy()


# -- the problem ------------------------------------------------------------------------------------------------------------
def test_the_laplacian_is_the_five_point_stencil():
    w = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, h = laplacian(w), 2 / 5
    for i in range(4):
        for j in range(4):
            near = sum(float(w[a, b]) for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) if 0 <= a < 4 and 0 <= b < 4)
            assert float(found[i, j]) == pytest.approx((near - 4 * float(w[i, j])) / h**2, rel=1e-13)


def test_the_laplacian_converges_with_order_two():
    """On w = sin(pi x/2) sin(pi y/2), of which it is -pi^2/2 times."""
    errors = []
    for N in (15, 31):
        grid = 2 / (N + 1) * torch.arange(1, N + 1, dtype=torch.float64)
        w = torch.sin(math.pi * grid / 2)[:, None] * torch.sin(math.pi * grid / 2)
        errors.append(float((laplacian(w) + math.pi**2 / 2 * w).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


@SIZES
def test_sizes_names_and_features(N):
    instance = poisson_control(N=N)
    problem = instance.problem
    assert {name: tuple(grid.shape) for name, grid in problem.x.items()} == {"state": (N, N), "source": (N, N)}
    assert problem.equality(problem.x).shape == (N * N,)
    assert problem.features == Feature.EQUALITY
    assert instance.name == "poisson-control"
    assert len(instance.source) > 20


def test_derivatives_agree_with_central_differences():
    flat = Flat(poisson_control(N=4).problem)
    x = flat.x0 + np.cos(np.arange(len(flat.x0)))
    np.testing.assert_allclose(flat.g(x)[None], central(flat.f, x), atol=1e-8)
    np.testing.assert_allclose(flat.J(x), central(flat.c, x), atol=1e-7)
    assert poisson_control(N=4).problem.check().ok


# -- solutions --------------------------------------------------------------------------------------------------------------
def test_the_published_figures_for_three_points():
    instance = poisson_control()
    (best,) = instance.solution
    assert instance.optimum == pytest.approx(9.6444421, abs=5e-8)
    assert float(instance.problem.fun(best)) == pytest.approx(instance.optimum, rel=1e-14)
    np.testing.assert_allclose(best.x["state"].T.ravel().numpy(), PUBLISHED, atol=5.1e-5)
    assert math.hypot(*instance.problem.residuals(instance.start).values()) == pytest.approx(19.1867, abs=1e-4)


@SIZES
def test_the_exact_solution_has_no_residual(N):
    instance = poisson_control(N=N)
    (best,) = instance.solution
    assert max(instance.problem.residuals(best).values()) <= 1e-11
    assert max(instance.problem.residuals(Point(best.x)).values()) <= 1e-10  # with least-squares multipliers
    assert instance.error(best.x) == 0.0
    assert instance.error(instance.problem.x) > 0.1
    assert max(instance.problem.residuals(instance.start).values()) > 1


@pytest.mark.parametrize("N", [1, 3, 8])
def test_the_exact_solution_is_that_of_the_kkt_system(N):
    instance = poisson_control(N=N)
    flat, (best,) = Flat(instance.problem), instance.solution
    zero = np.zeros(2 * N * N)
    z = np.linalg.solve(kkt_matrix(N), -np.concatenate([flat.g(zero), flat.c(zero)]))
    wanted = torch.cat([best.x["state"].ravel(), best.x["source"].ravel(), best.multipliers.equality]).numpy()
    np.testing.assert_allclose(z, wanted, atol=1e-11)


def test_a_large_grid_is_solved_at_once():
    instance = poisson_control(N=500)
    assert max(instance.problem.residuals(instance.solution[0]).values()) <= 1e-8


# -- the sine transform -----------------------------------------------------------------------------------------------------
@SIZES
def test_the_sine_transform_is_that_of_scipy_and_its_own_inverse(N):
    grid = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(N))
    found = sine_transform(grid)
    np.testing.assert_allclose(found.numpy(), dstn(grid.numpy(), type=1) / (2 * (N + 1)), atol=1e-13)
    torch.testing.assert_close(sine_transform(found), grid, rtol=0, atol=1e-13)


@SIZES
def test_the_eigenvalues_are_those_of_the_laplacian(N):
    grid = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(N))
    t = eigenvalues(N, torch.float64, torch.device("cpu"))
    wanted = sine_transform(laplacian(grid))
    torch.testing.assert_close(t * sine_transform(grid), wanted, rtol=0, atol=1e-12 * float(t.abs().max()))


# -- the preconditioner -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("N", [1, 4, 7])
def test_the_preconditioner_is_the_inverse_block_diagonal(N):
    K, found = kkt_matrix(N), preconditioner_matrix(N)
    n = 2 * N * N
    B, G = K[:n, :n], K[n:, :n]
    M = np.zeros_like(K)
    M[:n, :n], M[n:, n:] = B, G @ np.linalg.inv(B) @ G.T
    np.testing.assert_allclose(found, np.linalg.inv(M), atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-14)
    assert np.linalg.eigvalsh(found).min() > 0


def test_three_eigenvalues_are_left():
    """|lambda - nearest of 1 and (1 +- sqrt 5)/2| for M^-1 K: those of an SPD block-diagonal preconditioner with exact blocks."""
    found = np.linalg.eigvals(preconditioner_matrix(4) @ kkt_matrix(4))
    three = np.array([1.0, (1 + math.sqrt(5)) / 2, (1 - math.sqrt(5)) / 2])
    assert np.abs(found.imag).max() <= 1e-9
    assert np.abs(found.real[:, None] - three).min(1).max() <= 1e-9
    plain = np.linalg.eigvalsh(kkt_matrix(4))
    assert np.abs(plain).max() / np.abs(plain).min() > 100


def test_minres_needs_four_products_with_it():
    N = 20
    instance = poisson_control(N=N)
    problem, size = instance.problem, 3 * N * N
    oracle = problem.oracle()
    tape = oracle.tape(oracle.variables["x"], oracle.f.draw(0))
    at = tape.lagrangian(instance.start.multipliers.equality)
    b, products = -torch.cat([at.gradient, tape.c]), []

    def product(v: np.ndarray) -> np.ndarray:
        products.append(1)
        v = torch.from_numpy(np.ascontiguousarray(v))
        return torch.cat(at.product(v[: 2 * N * N], v[2 * N * N :])).numpy()

    K = LinearOperator((size, size), matvec=product)
    inverse = flat(instance.preconditioner)

    def preconditioned(v: np.ndarray) -> np.ndarray:
        return inverse(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64))).numpy()

    M = LinearOperator((size, size), matvec=preconditioned, dtype=np.float64)
    z, _ = minres(K, b.numpy(), M=M, rtol=1e-10)
    assert len(products) <= 8
    assert np.linalg.norm(product(z) - b.numpy()) <= 1e-8 * float(b.norm())


# -- arguments --------------------------------------------------------------------------------------------------------------
def test_dtype_and_device_are_those_asked_for():
    narrow, wide = poisson_control(N=5, dtype=torch.float32), poisson_control(N=5)
    for one, dtype in ((narrow, torch.float32), (wide, torch.float64)):
        (best,) = one.solution
        tensors = [*one.problem.x.values(), *best.x.values(), best.multipliers.equality, one.start.multipliers.equality]
        tensors.append(flat(one.preconditioner)(torch.ones(75, dtype=dtype)))
        assert {tensor.dtype for tensor in tensors} == {dtype}
    torch.testing.assert_close(narrow.solution[0].x["state"].double(), wide.solution[0].x["state"], rtol=1e-5, atol=1e-5)
    far = poisson_control(device="meta")
    assert {grid.device.type for grid in (*far.problem.x.values(), *far.solution[0].x.values())} == {"meta"}
    assert math.isnan(far.optimum)


@pytest.mark.parametrize(
    "wrong",
    [{"N": 0}, {"N": 2.5}, {"N": "3"}, {"N": True}, {"seed": -1}, {"seed": "0"}, {"dtype": torch.int64}, {"device": "nowhere"}],
    ids=str,
)
def test_bad_arguments_raise_one_error_of_the_library(wrong):
    with pytest.raises(OptionError) as caught:
        poisson_control(**wrong)
    assert next(iter(wrong)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_weight_is_the_published_one():
    x = {"state": torch.zeros(3, 3, dtype=torch.float64), "source": torch.ones(3, 3, dtype=torch.float64)}
    f = poisson_control().problem.objective
    with_source, without = float(f(x)), float(f({**x, "source": 0 * x["source"]}))
    assert with_source - without == pytest.approx(9 * 0.1 / 2)
    assert WEIGHT == 0.1
