"""The problems of MAID's paper: derivatives, the closed form, and the learned total variation against scipy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bilevel import Point, solve
from bilevel.solvers.implicit import Implicit
from constrained.core.errors import OptionError
from problems.images import denoising, least_squares

MAKERS = {
    "least squares": lambda: least_squares(n=60, m=6),
    "least squares, cond 5": lambda: least_squares(n=60, m=6, cond=5.0),
    "signal": lambda: denoising(dims=1, size=40),
    "image": lambda: denoising(dims=2, size=8),
}


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_agree_with_finite_differences(name):
    instance = MAKERS[name]()
    report = instance.problem.check()
    assert report.ok, str(report)
    assert "2308.10098" in instance.source


@pytest.mark.parametrize("cond", [None, 1.0, 5.0])
def test_least_squares_is_solved_by_its_solution(cond):
    instance = least_squares(n=60, m=6, cond=cond)
    point = instance.solution[0]
    found = instance.problem.residuals(point)
    assert found["lower"] <= 1e-10
    assert found["upper"] <= 1e-10
    assert instance.error(instance.problem.x) > 1e-2
    for seed in range(3):  # it is the least of all, not only stationary
        x = point.x + 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = instance.problem.upper(x, instance.problem.lower_solution(x))
        assert float(other) > instance.problem.fun(point)


def test_the_condition_is_the_one_asked_for():
    problem = least_squares(n=60, m=6, cond=5.0).problem
    H = torch.autograd.functional.hessian(lambda y: problem.lower(problem.x, y), problem.y)
    values = torch.linalg.eigvalsh(H)
    assert float(values[-1]) == pytest.approx(1.0)
    assert float(values[-1] / values[0]) == pytest.approx(25.0)


def test_a_denoised_signal_against_scipy():
    """Both levels by scipy alone: BFGS with the gradient inside, Nelder-Mead outside."""
    instance = denoising(dims=1, size=24)
    problem = instance.problem
    b = problem.y.numpy()

    def lower(y, x):
        d = np.append(np.diff(y), 0.0)
        root = np.sqrt(d**2 + np.exp(2 * x[1]))
        pull = d / root
        return 0.5 * np.sum((y - b) ** 2) + np.exp(x[0]) * root.sum(), y - b + np.exp(x[0]) * (np.append(0.0, pull[:-1]) - pull)

    def upper(x):
        y = minimize(lower, b, args=(x,), jac=True, method="BFGS", options={"gtol": 1e-9}).x
        return float(problem.upper(torch.from_numpy(x), torch.from_numpy(y)))

    best = minimize(upper, problem.x.numpy(), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-12, "maxiter": 400})
    result = solve(problem, Implicit(), tol=1e-6)
    assert result.success, result
    assert result.x.numpy() == pytest.approx(best.x, abs=1e-3)
    assert result.fun == pytest.approx(best.fun, abs=1e-8)


@pytest.mark.parametrize(("dims", "size"), [(1, 64), pytest.param(2, 16, marks=pytest.mark.slow)])
def test_denoising_helps_and_is_drawn(dims, size, tmp_path):
    instance = denoising(dims=dims, size=size)
    result = solve(instance.problem, Implicit(), tol=1e-4)
    assert result.success, result
    denoised, noisy = instance.study.rows(result)
    assert denoised.psnr > noisy.psnr + 1
    assert result.fun == pytest.approx(denoised.rmse**2 / 0.02, rel=1e-9)
    instance.study.draw(result, tmp_path)
    assert (tmp_path / "denoising.png").read_bytes()[:4] == b"\x89PNG"
    means = instance.study.summary([[denoised, noisy]] * 2)
    assert means["noisy"]["psnr"] == pytest.approx(noisy.psnr)
    assert instance.study.tables([[denoised, noisy]])[0].row_count == 2


@pytest.mark.parametrize("dims", [1, 2])
def test_equal_seeds_draw_equal_pictures(dims):
    one, same, other = (denoising(dims=dims, size=16, seed=seed).problem.y for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    clean = denoising(dims=dims, size=16).study.clean
    assert clean.min() >= 0
    assert clean.max() <= 1


@pytest.mark.parametrize(
    ("maker", "arguments"),
    [
        (least_squares, {"n": 0}),
        (least_squares, {"n": 5, "m": 6}),
        (least_squares, {"cond": 0.5}),
        (least_squares, {"seed": -1}),
        (denoising, {"dims": 3}),
        (denoising, {"size": 3}),
        (denoising, {"noise": 0.0}),
        (denoising, {"dtype": torch.int64}),
    ],
)
def test_arguments_out_of_range_are_refused(maker, arguments):
    with pytest.raises(OptionError, match=next(iter(arguments))):
        maker(**arguments)


def test_dtype_is_kept():
    for instance in (least_squares(n=20, m=3, dtype=torch.float32), denoising(size=8, dtype=torch.float32)):
        problem = instance.problem
        assert problem.x.dtype == problem.y.dtype == problem.upper(problem.x, problem.y).dtype == torch.float32
        for point in instance.solution:
            assert isinstance(point, Point)
            assert point.x.dtype == point.y.dtype == torch.float32
