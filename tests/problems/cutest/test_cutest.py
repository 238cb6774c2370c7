"""The CUTEst problems: derivatives, published starts and values, known solutions, names and arguments."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from flat import Flat, central, newton, scipy_solution

from constrained.core.errors import OptionError
from constrained.core.problem import Multipliers, Point
from constrained.core.status import Feature
from problems.cutest import CUTEST, PAPER_47, WITHOUT, cutest

LONG = {"HS7", "MARATOS", "OSCIPANE"}  # runs of more than a second
EVERY = pytest.mark.parametrize("name", CUTEST)

# |(grad L, c)| at (x0, lam0) in the runs that the authors of arXiv 2305.18379 published.
PUBLISHED = {
    **{"HS6": 6.22254, "BT5": 19.3132, "BT9": 10.2470, "HS28": 7.48331, "BT10": 6.40312, "HIMMELBA": 12.3693, "BT12": 8.24498},
    **{"HS40": 1.08638, "BT3": 144.361, "BT6": 57.3472, "BT11": 12.1211, "HS7": 25.0328, "GENHS28": 39.9375, "HS51": 6.55744},
    **{"SINVALNE": 2.35619, "BOOTH": 8.60233, "HS52": 49.5580, "HS47": 40.4973, "WAYSEA1NE": 609.007, "HS48": 25.6125},
    **{"HS50": 1294.42, "RSNBRNE": 4.91935, "CUBENE": 27.3686, "HS77": 57.3472, "MWRIGHT": 151.137, "ZANGWIL3": 172.414},
    **{"TRIGON1NE": 1.72236, "HS78": 11.3227, "HS56": 1.73205, "HELIXNE": 50.0, "HS42": 7.54983, "HS79": 8.29837},
    **{"ORTHREGB": 261.001, "HS100LNP": 111.072, "GOTTFR": 2.40623, "HIMMELBE": 2.42190, "MOREBVNE": 0.126438},
    **{"WAYSEA2NE": 46.0143, "DENSCHNCNE": 29.8212, "DENSCHNFNE": 20.3961, "HIMMELBC": 10.2956, "PRICE4NE": 115.849},
    **{"INTEQNE": 0.251827, "BT2": 11001.8},
    "MANCINONE": 1050364,  # theirs is 1050339, with a start whose sums had only half of their terms
}

# f at the solutions of a direct solver's runs with the paper's method; 0 for the others.
TABLE = {
    **{"BT2": 0.0325682, "BT3": 4.0930233, "BT5": 961.71517, "BT6": 0.27704479, "BT9": -1, "BT10": -1, "BT11": 0.82489178},
    **{"BT12": 6.1881188, "GENHS28": 0.92717369, "HS7": -1.7320508, "HS40": -0.25, "HS42": 13.857864, "HS52": 5.3266476},
    **{"HS56": -3.456, "HS77": 0.24150513, "HS78": -2.9197004, "HS79": 0.078776821, "HS100LNP": 680.63006, "MWRIGHT": 24.97881},
}

# Where scipy's solvers end elsewhere from x0: a local minimum of f, or of |c|, or slow progress.
ELSEWHERE = ("BT7", "FREURONE", "HATFLDF", "HATFLDFLNE", "HIMMELBD", "OSCIPANE")
SQUARE_WITH_OBJECTIVE = ("BT10", "FLT", "HS8")
SLSQP_FAILS = ("FLT", "HS61")  # the Jacobian is singular at the start or at the solution


@cache
def made(name: str):
    return cutest(name=name)


def near(x: np.ndarray) -> np.ndarray:
    return x + 0.01 * np.cos(np.arange(len(x)))


# -- what they are ----------------------------------------------------------------------------------------------------------
def test_the_paper_and_thirty_more():
    assert len(set(PAPER_47)) == 47
    assert set(PAPER_47) - set(CUTEST) == set(WITHOUT)
    more = [name for name in CUTEST if name not in PAPER_47]
    assert len(more) == 30
    assert (more[0], more[-1]) == ("BT1", "POWELLSE")
    assert all(len(CUTEST[name].start) <= 20 for name in more)
    assert list(CUTEST) == sorted(CUTEST)


@EVERY
def test_instances_say_what_they_are(name):
    instance, definition = made(name), CUTEST[name]
    problem, x = instance.problem, instance.problem.x
    assert (instance.name, instance.optimum) == (name, definition.optimum)
    assert problem.features == Feature.EQUALITY
    assert definition.source in instance.source
    assert len(instance.source) > 20
    assert problem.objective(x).shape == ()
    assert problem.equality(x).shape == instance.start.multipliers.equality.shape
    assert problem.equality(x).dim() == 1
    assert 1 <= len(problem.equality(x)) <= len(x)
    assert bool(instance.solution) == (definition.solution is not None and definition.unique)
    square = len(problem.equality(x)) == len(x)
    assert (definition.f is None) == (square and name not in SQUARE_WITH_OBJECTIVE)


@EVERY
def test_objective_and_constraints_are_pure(name):
    instance = made(name)
    x = instance.problem.x.clone()
    first, again = instance.problem.equality(x), cutest(name=name).problem.equality(x)
    assert torch.equal(first, again)
    assert torch.equal(x, instance.problem.x)


# -- derivatives ------------------------------------------------------------------------------------------------------------
@EVERY
def test_derivatives_agree_with_central_differences(name):
    flat = Flat(made(name).problem)
    x = near(flat.x0)
    for value, derivative in ((flat.f, flat.g(x)[None]), (flat.c, flat.J(x))):
        size = 1e-6 * max(1.0, float(np.abs(derivative).max()), float(np.abs(value(x)).max()))
        np.testing.assert_allclose(derivative, central(value, x), rtol=1e-6, atol=size)


@EVERY
def test_the_library_agrees_with_differences_to_second_order(name):
    problem = made(name).problem
    report = problem.check(Point(torch.from_numpy(near(problem.x.numpy()))))
    assert report.ok, str(report)


# -- published figures ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_residual_at_the_start_is_the_published_one(name):
    instance = made(name)
    assert math.hypot(*instance.problem.residuals(instance.start).values()) == pytest.approx(PUBLISHED[name], rel=1e-5)


def test_every_problem_of_the_paper_has_its_published_residual():
    assert set(PUBLISHED) == set(PAPER_47) - set(WITHOUT)


@pytest.mark.parametrize("name", sorted(set(PAPER_47) - set(WITHOUT)))
def test_the_optimum_is_the_published_one(name):
    assert CUTEST[name].optimum == pytest.approx(TABLE.get(name, 0.0), rel=1e-7, abs=1e-7)


def test_multipliers_start_at_zero_but_for_one():
    starts = {name: made(name).start.multipliers.equality for name in CUTEST}
    assert [name for name, lam in starts.items() if bool(lam.any())] == ["GENHS28"]
    assert bool((starts["GENHS28"] == 1).all())


# -- solutions --------------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::UserWarning")  # trust-constr, of singular Jacobians
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG or i % 3 > 0)) for i, n in enumerate(CUTEST)]
)
def test_solvers_of_scipy_find_the_optimum_from_the_start(name):
    flat, definition = Flat(made(name).problem), CUTEST[name]
    method = "lm" if definition.f is None else "trust-constr" if name in SLSQP_FAILS else "SLSQP"
    x, residual = newton(flat, scipy_solution(flat, method))
    found = residual <= 1e-8 and abs(flat.f(x) - definition.optimum) <= 1e-9 * max(1, abs(definition.optimum))
    assert found == (name not in ELSEWHERE), (x, residual, flat.f(x))
    if name in ELSEWHERE:
        assert definition.solution is not None


@pytest.mark.parametrize("name", [name for name, definition in CUTEST.items() if definition.solution is not None])
def test_known_solutions_are_stationary_with_the_known_value(name):
    definition, problem = CUTEST[name], made(name).problem
    point = Point(torch.tensor(definition.solution, dtype=torch.float64))
    assert problem.fun(point) == pytest.approx(definition.optimum, rel=1e-12, abs=1e-12)
    assert max(problem.residuals(point).values()) <= 1e-11
    assert Flat(problem).kkt(point.x.numpy()) <= 1e-11


@EVERY
def test_the_start_is_not_a_solution(name):
    instance = made(name)
    assert math.hypot(*instance.problem.residuals(instance.start).values()) > 0.01
    assert not instance.solution or instance.error(instance.problem.x) > 1e-2


LOWER = {"HS47": -0.02671418, "BT5": 952.14249446, "MWRIGHT": 1.2883829}


@pytest.mark.parametrize("name", LOWER)
def test_notes_of_lower_values_are_right(name):
    """The points of the notes, refined by Newton's method."""
    starts = {
        "HS47": [0.677, 0.7261, 1.2155, 1.7513, 1.4771],
        "BT5": [0.332, 4.6777, -1.7347],
        "MWRIGHT": [0.8631, 1.5611, 1.7154, 2.2098, 2.3173],
    }
    flat = Flat(made(name).problem)
    x, residual = newton(flat, np.array(starts[name]))
    assert residual <= 1e-9
    assert flat.f(x) == pytest.approx(LOWER[name], rel=1e-6)
    assert flat.f(x) < CUTEST[name].optimum
    assert CUTEST[name].note


def test_mancino_and_the_integral_equation_by_their_sums():
    """The vectorised formulas against double loops."""
    n = 100
    x = near(np.array(CUTEST["MANCINONE"].start))
    found = made("MANCINONE").problem.equality(torch.from_numpy(x)).numpy()
    for i in (1, 2, 50, 100):
        total = 14 * n * x[i - 1] - (i - n / 2) ** 3
        for j in range(1, n + 1):
            v = math.sqrt(x[j - 1] ** 2 + i / j)
            total += (j != i) * v * (math.sin(math.log(v)) ** 5 + math.cos(math.log(v)) ** 5)
        assert found[i - 1] == pytest.approx(total, rel=1e-12)
    x = near(np.array(CUTEST["INTEQNE"].start))
    found, h = made("INTEQNE").problem.equality(torch.from_numpy(x)).numpy(), 1 / 11
    for i in range(1, 11):
        t = i * h
        left = sum(j * h * (x[j] + j * h + 1) ** 3 for j in range(1, i + 1))
        right = sum((1 - j * h) * (x[j] + j * h + 1) ** 3 for j in range(i + 1, 11))
        assert found[i] == pytest.approx(x[i] + h / 2 * ((1 - t) * left + t * right), rel=1e-12)


def test_the_heart_by_complex_numbers():
    a, b, c, d, t, u, v, w = x = near(np.array(CUTEST["HEART8"].start))
    powers = [(a + 1j * c) * (t + 1j * v) ** k + (b + 1j * d) * (u + 1j * w) ** k for k in range(4)]
    known = (-0.69, -0.044, -1.57, -1.31, -2.65, 2.0, -12.6, 9.48)
    wanted = np.array([part for power in powers for part in (power.real, power.imag)]) - known
    np.testing.assert_allclose(made("HEART8").problem.equality(torch.from_numpy(x)).numpy(), wanted, atol=1e-13)


# -- arguments --------------------------------------------------------------------------------------------------------------
@EVERY
def test_dtype_and_device_are_those_asked_for(name):
    narrow = cutest(name=name, dtype=torch.float32)
    tensors = [narrow.problem.x, narrow.start.multipliers.equality, *(point.x for point in narrow.solution)]
    tensors += [narrow.problem.objective(narrow.problem.x), narrow.problem.equality(narrow.problem.x)]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    wide = made(name).problem
    torch.testing.assert_close(tensors[-1].double(), wide.equality(wide.x), rtol=1e-3, atol=1e-3)
    far = cutest(name=name, device="meta")
    tensors = [far.problem.x, far.start.multipliers.equality, *(point.x for point in far.solution)]
    tensors += [far.problem.objective(far.problem.x), far.problem.equality(far.problem.x)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"name": "HS0"}, {"name": "hs6"}, {"name": 6}, {"name": None}, {"name": []}, {"name": "BA-L1"}, {"name": "BA-L1SP"}),
        *({"seed": -1}, {"seed": 1.5}, {"seed": "0"}, {"dtype": torch.int64}, {"dtype": "float32"}, {"device": "nowhere"}),
    ],
    ids=str,
)
def test_bad_arguments_raise_one_error_of_the_library(wrong):
    with pytest.raises(OptionError) as caught:
        cutest(**wrong)
    assert next(iter(wrong)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_paper_without_definition_says_why():
    with pytest.raises(OptionError, match="bundle adjustment"):
        cutest(name="BA-L1")


def test_residuals_take_the_multipliers_of_the_point():
    instance = made("GENHS28")
    given = instance.problem.residuals(Point(instance.problem.x, multipliers=Multipliers(equality=torch.zeros(8).double())))
    assert given["stationarity"] != instance.problem.residuals(instance.start)["stationarity"]
