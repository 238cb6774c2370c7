"""Constrained logistic regression: the formula, its data, files in LIBSVM's format, optima by other methods."""

import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
from flat import Flat, central, newton, scipy_solution
from scipy.linalg import null_space
from scipy.optimize import minimize

from constrained.core.errors import OptionError
from constrained.core.status import Feature
from problems.libsvm import read_libsvm
from problems.logistic import SHAPES, logistic

CASES = {
    "default": {},
    "plane": {"sphere": False},
    "ridge": {"ridge": 0.1, "equalities": 3},
    "breast-cancer": {"data": "breast-cancer"},
    "digits": {"data": "digits"},
    "ionosphere_scale": {"data": "ionosphere_scale"},
    "synthetic": {"data": "synthetic", "n": 14, "N": 25, "seed": 4},
}
EVERY = pytest.mark.parametrize("case", CASES)


@cache
def made(case: str):
    return logistic(**CASES[case])


def rows(text: str, tmp_path, name: str = "set.txt") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# -- the problem ------------------------------------------------------------------------------------------------------------
@EVERY
def test_derivatives_agree_with_central_differences(case):
    instance = made(case)
    flat = Flat(instance.problem)
    x = 0.3 * np.cos(np.arange(len(flat.x0)))
    np.testing.assert_allclose(flat.g(x)[None], central(flat.f, x), atol=1e-8)
    np.testing.assert_allclose(flat.J(x), central(flat.c, x), atol=1e-7)
    assert instance.problem.check().ok
    assert instance.problem.features == Feature.EQUALITY


@EVERY
def test_starts_are_ones_and_infeasible(case):
    instance = made(case)
    assert bool((instance.problem.x == 1).all())
    assert bool((instance.start.multipliers.equality == 1).all())
    assert instance.start.multipliers.equality.shape == instance.problem.equality(instance.problem.x).shape
    assert instance.problem.residuals(instance.start)["feasibility"] > 1
    assert math.isnan(instance.optimum)
    assert math.isnan(instance.error(instance.problem.x))
    assert (instance.name, len(instance.source) > 20) == ("logistic", True)


def test_values_are_those_of_the_formulas(tmp_path):
    path = rows("+1 1:2 2:-1\n-1 2:3\n+1 1:0.5 3:1\n-1 1:1\n", tmp_path)
    problem = logistic(path=path, equalities=1, ridge=0.5, seed=3).problem
    a, y = np.array([[2, -1, 0], [0, 3, 0], [0.5, 0, 1], [1, 0, 0]]), np.array([1, -1, 1, -1])
    x = np.array([0.3, -0.7, 1.1])
    wanted = np.log(1 + np.exp(-y * (a @ x))).mean() + 0.25 * (x @ x)
    assert float(problem.objective(torch.from_numpy(x))) == pytest.approx(wanted, rel=1e-14)
    c = problem.equality(torch.from_numpy(x))
    assert len(c) == 2
    assert float(c[1]) == pytest.approx(x @ x - 1, rel=1e-14)
    moved = problem.equality(torch.from_numpy(x + 1))[0] - c[0]
    assert float(moved) == pytest.approx(
        float(problem.equality(torch.ones(3).double())[0] - problem.equality(0 * c.new_ones(3))[0])
    )


def test_large_margins_neither_overflow_nor_lose_digits(tmp_path):
    problem = logistic(path=rows("1 1:1\n-1 2:1\n1 3:1\n", tmp_path), equalities=1).problem
    for size in (19.0, 21.0, 49.0, 51.0, 1e4):
        x = torch.tensor([size, -size, -size], dtype=torch.float64, requires_grad=True)
        value = problem.objective(x)
        wanted = (2 * np.log1p(np.exp(-size)) + np.logaddexp(0, size)) / 3
        assert float(value.detach()) == pytest.approx(wanted, rel=1e-15)
        (gradient,) = torch.autograd.grad(value, x)
        assert bool(gradient.isfinite().all())


def test_planes_meet_the_sphere():
    for seed in range(30):
        problem = logistic(data="synthetic", n=13, N=5, seed=seed).problem
        A = torch.autograd.functional.jacobian(problem.equality, problem.x).numpy()[:-1]
        b = A.sum(1) - problem.equality(problem.x).numpy()[:-1]
        assert np.linalg.norm(np.linalg.lstsq(A, b)[0]) < 1


def test_planes_that_never_meet_it_are_refused(monkeypatch):
    monkeypatch.setattr(sys.modules[logistic.__module__], "DRAWS", 1)
    with pytest.raises(OptionError, match="miss the unit sphere"):
        for seed in range(50):
            logistic(data="synthetic", n=12, N=5, seed=seed)


# -- data -------------------------------------------------------------------------------------------------------------------
def test_seeds_draw_planes_and_rows():
    one, same, other = (logistic(seed=seed).problem for seed in (1, 1, 2))
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)
    assert torch.equal(one.objective(x), same.objective(x))
    assert torch.equal(one.equality(x), same.equality(x))
    assert not torch.equal(one.objective(x), other.objective(x))
    assert not torch.equal(one.equality(x), other.equality(x))
    fixed = [logistic(data="digits", seed=seed).problem for seed in (1, 2)]
    x = torch.linspace(-1, 1, 64, dtype=torch.float64)
    assert torch.equal(fixed[0].objective(x), fixed[1].objective(x))
    assert not torch.equal(fixed[0].equality(x), fixed[1].equality(x))
    more = logistic(data="synthetic", n=60, N=30, seed=1).problem
    assert torch.equal(more.equality(torch.ones(60).double()), one.equality(torch.ones(60).double())), "the rows moved the plane"


@pytest.mark.parametrize("name", ["ionosphere_scale", "sonar_scale", "splice_scale", "phishing"])
def test_shapes_are_the_published_ones(name):
    instance = logistic(data=name)
    n, N = SHAPES[name]
    assert len(instance.problem.x) == n
    assert f"{N} rows with {n} features" in instance.source
    assert "drawn" in instance.source


def test_names_and_sizes_of_the_published_sets():
    wanted = {
        "a9a": 123,
        "ionosphere_scale": 34,
        "mushrooms": 112,
        "phishing": 68,
        "sonar_scale": 60,
        "splice_scale": 60,
        "w8a": 300,
    }
    assert {name: n for name, (n, _) in SHAPES.items()} == wanted


def test_drawn_labels_follow_the_model():
    """A fit without constraints but two recovers more than chance: the labels depend on the rows."""
    flat = Flat(logistic(data="synthetic", n=5, N=4000, equalities=1, sphere=False).problem)
    best = minimize(flat.f, flat.x0, jac=flat.g, method="BFGS").fun
    assert 0.1 < best < 0.6 < math.log(2)


# -- optima -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["plane", "digits"])
def test_on_a_plane_the_optimum_is_that_without_constraints_in_its_coordinates(case):
    problem = logistic(**{**CASES[case], "sphere": False, "ridge": 0.01}).problem
    flat = Flat(problem)
    x, residual = newton(flat, scipy_solution(flat))
    assert residual <= 1e-9
    A = flat.J(flat.x0)
    x0, Z = np.linalg.lstsq(A, A @ flat.x0 - flat.c(flat.x0))[0], null_space(A)
    free = minimize(
        lambda u: flat.f(x0 + Z @ u),
        np.zeros(Z.shape[1]),
        jac=lambda u: Z.T @ flat.g(x0 + Z @ u),
        method="BFGS",
        options={"gtol": 1e-8},
    )
    assert flat.f(x) == pytest.approx(free.fun, rel=1e-10)


@pytest.mark.parametrize("case", ["default", "breast-cancer", "ionosphere_scale", "synthetic"])
def test_on_the_sphere_two_methods_agree(case):
    flat = Flat(made(case).problem)
    one, residual = newton(flat, scipy_solution(flat))
    other, also = newton(flat, scipy_solution(flat, "trust-constr"))
    assert max(residual, also) <= 1e-9
    assert flat.f(one) == pytest.approx(flat.f(other), rel=1e-10)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-9)


# -- files ------------------------------------------------------------------------------------------------------------------
def test_files_are_read(tmp_path):
    path = rows("# a comment\n\n 2 1:1e-3\t3:-4.5  # more\n1\n+2 2:7\n", tmp_path)
    a, y = read_libsvm(path)
    np.testing.assert_array_equal(a, [[0.001, 0, -4.5], [0, 0, 0], [0, 7, 0]])
    np.testing.assert_array_equal(y, [1, -1, 1])
    assert read_libsvm(path, 5)[0].shape == (3, 5)
    crlf = tmp_path / "crlf.txt"
    crlf.write_bytes(b"+1 1:1\r\n-1 2:2\r\n")
    np.testing.assert_array_equal(read_libsvm(crlf)[0], [[1, 0], [0, 2]])


def test_a_file_makes_a_problem(tmp_path):
    generator = np.random.default_rng(0)
    lines = [f"{label} " + " ".join(f"{i}:{generator.normal():.6f}" for i in range(1, 16)) for label in (1, -1) * 20]
    path = rows("\n".join(lines), tmp_path)
    problem = logistic(path=path, equalities=4).problem
    assert len(problem.x) == 15
    assert len(logistic(path=path, equalities=4, n=18).problem.x) == 18
    assert "40 rows with 15 features" in logistic(path=path).source
    assert path in logistic(path=path).source
    assert problem.check().ok


BAD = {
    "one 1:2\n-1 1:1\n": ("1", "a label", "'one'"),
    "1,2 1:2\n-1 1:1\n": ("1", "a label", "'1,2'"),
    "nan 1:2\n-1 1:1\n": ("1", "a label", "'nan'"),
    "1 1:2\n-1 1\n": ("2", "index:value", "'1'"),
    "1 1:2\n\n# no\n-1 qid:3 1:1\n": ("4", "index:value", "'qid:3'"),
    "1 1:2\n-1 -1:1\n": ("2", "index:value", "'-1:1'"),
    "1 1:2\n-1 1.5:1\n": ("2", "index:value", "'1.5:1'"),
    "1 1:2\n-1 1:x\n": ("2", "a finite number", "'1:x'"),
    "1 1:inf\n-1 1:1\n": ("1", "a finite number", "'1:inf'"),
    "1 1:\n-1 1:1\n": ("1", "a finite number", "'1:'"),
    "1 0:2\n-1 1:1\n": ("1", "ascending indices from 1", "'0:2'"),
    "1 1:2\n-1 2:1 2:3\n": ("2", "ascending indices from 1", "'2:3'"),
    "1 1:2\n-1 3:1 2:3\n": ("2", "ascending indices from 1", "'2:3'"),
    f"1 1:2\n-1 {'9' * 5000}:3\n": ("2", "index:value", "'999"),
    f"1 1:2\n-1 1:{'9' * 5000}\n": ("2", "a finite number", "'1:999"),
    f"{'9' * 5000} 1:2\n-1 1:1\n": ("1", "a label", "'999"),
}


@pytest.mark.parametrize("features", [1.5, 0, -1, True, "3", 10**5000], ids=lambda features: type(features).__name__)
def test_features_that_are_no_number_of_columns_are_refused(features, tmp_path):
    with pytest.raises(OptionError, match="features"):
        read_libsvm(rows("1 1:1\n0 1:2\n", tmp_path), features)


def test_leading_zeros_of_an_index_and_odd_paths(tmp_path):
    assert read_libsvm(rows(f"1 {'0' * 5000}2:1\n0 1:2\n", tmp_path))[0].tolist() == [[0, 1], [2, 0]]
    for path in ("", "a\0b", "x" * 5000, 3, None):
        with pytest.raises(OptionError):
            read_libsvm(path)


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_a_line_that_is_wrong_is_named(text, tmp_path):
    path = rows(text, tmp_path)
    line, *words = BAD[text]
    with pytest.raises(OptionError) as caught:
        read_libsvm(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: expected ")
    assert "\n" not in message
    assert len(message) < len(path) + 200
    assert all(word in message for word in words)


def test_numbers_that_no_array_has(tmp_path):
    with pytest.raises(OptionError, match="expected index:value"):
        read_libsvm(rows("1 " + "9" * 5000 + ":1\n0 1:1\n", tmp_path))
    path = rows("1 1:1\n0 1:2\n", tmp_path)
    for features in (1.5, 0, "2", True):
        with pytest.raises(OptionError, match="features"):
            read_libsvm(path, features=features)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 rows of 0"),
        ("# only\n", "0 rows of 0"),
        ("1 1:1\n1 2:1\n", "2 rows of 1"),
        ("1 1:1\n2 2:1\n3 1:1\n", "3 rows of 3"),
        ("1\n-1\n", "got none"),
        ("1 1:1\n-1 2000000000:1\n", "too many for a dense array"),
    ],
)
def test_a_file_that_is_no_set_of_two_classes_is_refused(text, words, tmp_path):
    path = rows(text, tmp_path)
    with pytest.raises(OptionError, match=words) as caught:
        read_libsvm(path)
    assert path in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(OptionError, match=r"nowhere.txt: cannot be read: No such file"):
        read_libsvm(tmp_path / "nowhere.txt")
    with pytest.raises(OptionError, match=r"cannot be read: Is a directory"):
        read_libsvm(tmp_path)
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    with pytest.raises(OptionError, match=r"binary: expected a text file"):
        read_libsvm(tmp_path / "binary")
    with pytest.raises(OptionError, match=r"expected indices in 1\.\.2, got 3"):
        logistic(path=rows("1 1:1\n-1 3:1\n", tmp_path), n=2)


# -- arguments --------------------------------------------------------------------------------------------------------------
def test_dtype_and_device_are_those_asked_for():
    for dtype in (torch.float32, torch.float64):
        instance = logistic(dtype=dtype)
        x = instance.problem.x
        tensors = [x, instance.start.multipliers.equality, instance.problem.objective(x), instance.problem.equality(x)]
        assert {tensor.dtype for tensor in tensors} == {dtype}
    far = logistic(device="meta").problem
    assert {tensor.device.type for tensor in (far.x, far.objective(far.x), far.equality(far.x))} == {"meta"}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"data": "iris"}, {"data": None}, {"data": []}, {"n": 5}, {"N": 5}, {"path": 7}, {"path": "/nowhere/set.txt"}),
        *({"data": "synthetic"}, {"data": "synthetic", "n": 20}, {"data": "synthetic", "n": 1, "N": 3}),
        *({"data": "synthetic", "n": 20, "N": 0}, {"data": "digits", "n": 64}, {"path": "x", "N": 3}, {"path": "x", "n": 0}),
        *({"equalities": 0}, {"equalities": 59}, {"equalities": 2.0}, {"sphere": 1}, {"sphere": "no"}, {"ridge": -1}),
        *({"ridge": float("nan")}, {"seed": -1}, {"seed": "0"}, {"dtype": torch.int64}, {"device": "nowhere"}),
    ],
    ids=str,
)
def test_bad_arguments_raise_one_error_of_the_library(wrong):
    with pytest.raises(OptionError) as caught:
        logistic(**wrong)
    message = str(caught.value)
    assert "\n" not in message
    assert any(argument in message for argument in wrong) or "nowhere" in message or "(N=" in message or "(n=" in message
