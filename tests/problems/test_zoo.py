"""Every bilevel instance of the zoo: derivatives, sources, known solutions, and that each argument means what it says."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from constrained.core.errors import BilevelError
from constrained.core.problem import Point
from constrained.core.solver import Solver
from constrained.core.status import Feature
from constrained.core.vec import Vec
from constrained.sets import Box
from problems import LV_HBA, ZOO, Instance, pl_toy, quadratic
from problems.toy import PL_MINIMA

APART = (  # tested in files of their own
    *("cutest", "discs", "logistic", "obstacle", "optimal-control", "poisson-control", "portfolio"),
    *("reweighting-lm", "reweighting-text", "spring", "trap", *LV_HBA),
)
BILEVEL = [name for name in ZOO if name not in APART]
CASES = {
    **{name: (name, {}) for name in BILEVEL},
    "quadratic, singular and flat": ("quadratic", {"rank": 12, "flat": True, "noise": 0.01}),
    "quadratic, singular": ("quadratic", {"rank": 12}),
    "exponential, ill-conditioned": ("exponential", {"n": 3, "size": 0.5, "cond": 20.0}),
    "quadratic, cond 1000": ("quadratic", {"cond": 1000.0, "seed": 3}),
    "hyper-cleaning, mlp": ("hyper-cleaning", {"model": "mlp"}),
    "logistic-penalties, own": ("logistic-penalties", {"own": True, "seed": 1}),
    "logistic-penalties, per class": ("logistic-penalties", {"per": "class", "own": True}),
    "pl-toy, random start": ("pl-toy", {"seed": 5}),
    "ridge-1, other data": ("ridge-1", {"seed": 7}),
    "ridge-50, other data": ("ridge-50", {"seed": 7}),
    "lasso, other data": ("lasso", {"seed": 2}),  # the optima of most others are kinks
    "elastic-net, other data": ("elastic-net", {"seed": 5}),
}
EVERY = pytest.mark.parametrize("case", CASES)
UNKNOWN = (  # no solution known to more digits than solvers give
    *("denoising", "hyper-cleaning", "hyper-representation", "logistic-penalties", "recurrent-regulariser", "text-cleaning"),
    *("reweighting-logistic", "reweighting-noise"),
)
SOLVED = pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items() if name not in UNKNOWN])
DEFAULTS = pytest.mark.parametrize("name", BILEVEL)


@cache
def made(case: str) -> Instance:
    name, arguments = CASES[case]
    return ZOO[name](**arguments)


def full(instance: Instance):
    """The problem without mini-batches."""
    return instance.problem.full_batch() if Feature.SAMPLES in instance.features else instance.problem


# -- every instance ---------------------------------------------------------------------------------------------------------
@EVERY
def test_derivatives_agree_with_finite_differences(case):
    report = full(made(case)).check()
    assert report.ok, str(report)
    assert len(report.findings) >= 6


@EVERY
def test_instances_say_what_they_are(case):
    instance = made(case)
    assert instance.name == CASES[case][0]
    assert len(instance.source) > 20
    assert Feature.LOWER in instance.features
    for cls, one in instance.recommended.items():
        assert isinstance(one.solver, cls)
        assert isinstance(one.solver, Solver)
    assert bool(instance.solution) == (instance.name not in UNKNOWN)


@SOLVED
def test_known_solutions_are_stationary(case):
    instance = made(case)
    for point in instance.solution:
        found = full(instance).residuals(point)
        assert found["lower"] <= 1e-9
        assert found["upper"] <= 1e-8
        assert found.get("constraints", 0.0) == 0.0
        assert found.get("optimism", 0.0) <= 1e-9
        assert instance.error(point.x) == 0.0


@SOLVED
def test_the_start_is_not_a_solution(case):
    """At a solved lower level where there is a formula: at w = 0 every penalty of a ridge looks stationary."""
    instance = made(case)
    x, y, formula = instance.problem.x, instance.problem.y, instance.problem.lower_solution
    assert instance.error(x) > 1e-2
    assert full(instance).residuals(Point(x, formula(x) if formula else y))["upper"] > 1e-2


@EVERY
def test_equal_arguments_make_equal_problems(case):
    name, arguments = CASES[case]
    one, other = made(case).problem.oracle(), ZOO[name](**arguments).problem.oracle()
    for level, twin in ((one.f, other.f), (one.g, other.g)):
        point = [one.variables["x"], one.variables["y"].map(lambda leaf: leaf + 0.1)]
        assert torch.equal(level.value(point, level.draw(3)), twin.value(point, twin.draw(3)))


@DEFAULTS
def test_the_seed_matters(name):
    def at(seed: int) -> Tensor:
        problem = ZOO[name](seed=seed).problem
        oracle = problem.oracle()
        point = [oracle.variables["x"], oracle.variables["y"].map(lambda leaf: leaf + 0.1)]
        return oracle.g.gradient(point, oracle.g.draw(0), (1,))[1][0].ravel()

    assert not torch.equal(at(1), at(2))


@DEFAULTS
def test_dtype_is_that_of_variables_data_and_solution(name):
    for dtype in (torch.float32, torch.float64):
        instance = ZOO[name](dtype=dtype) if dtype is torch.float32 else made(name)
        oracle = instance.problem.oracle()
        for vec in [*oracle.variables.values(), *(Vec.of(tree) for p in instance.solution for tree in (p.x, p.y))]:
            assert {leaf.dtype for leaf in vec.leaves} == {dtype}
        point = [oracle.variables["x"], oracle.variables["y"]]
        for level in (oracle.f, oracle.g):
            _, grads = level.gradient(point, level.draw(0), (0, 1))
            assert {leaf.dtype for grad in grads for leaf in grad.leaves} == {dtype}


def test_dtype_is_that_of_the_noise():
    for dtype in (torch.float32, torch.float64):
        problem = quadratic(noise=0.1, dtype=dtype).problem
        assert problem.upper_data.draw(0, 0, 0).dtype == dtype
        assert problem.upper_data.full().draw(0, 0, 0).dtype == dtype


def test_float32_is_the_rounded_float64():
    wide, narrow = quadratic(), quadratic(dtype=torch.float32)
    torch.testing.assert_close(narrow.solution[0].x, wide.solution[0].x.float(), rtol=0, atol=0)
    x, y = torch.ones(10), torch.ones(20)
    for name in ("upper", "lower"):
        ours = getattr(narrow.problem, name)(x, y)
        torch.testing.assert_close(ours.double(), getattr(wide.problem, name)(x.double(), y.double()), rtol=1e-5, atol=0)


@DEFAULTS
def test_device_is_that_of_variables_data_and_solution(name, monkeypatch):
    """The meta device is another device on every machine, but holds no numbers: a box cannot compare its bounds there."""
    monkeypatch.setattr(Box, "check", lambda box, variable, name: None)
    instance = ZOO[name](device="meta")
    vecs = [*instance.problem.oracle().variables.values()]
    vecs += [Vec.of(tree) for point in instance.solution for tree in (point.x, point.y)]
    assert {leaf.device.type for vec in vecs for leaf in vec.leaves} == {"meta"}
    assert ZOO[name](device=torch.device("cpu")).problem.oracle().variables["x"].device.type == "cpu"


# -- the quadratics ---------------------------------------------------------------------------------------------------------
# arguments -> x*, f*, |y*|, and f and g at x = linspace(-1, 1), y_i = cos(i), all by the generator that the budgets are for.
WELL = [
    *(-0.13919294926833695, 1.2491174622715386, 0.1564327959600023, -0.7705321453859293, 0.09182558284662551),
    *(-0.3718374793532089, 0.2072405530583255, 0.8436503387803781, 0.9181870317616481, -0.4486542486801518),
]
FLAT = [
    *(1.1984757733605893, 0.17342054120912642, 0.05967890918229071, 0.9295936220038008, 0.47425088450835257),
    *(-0.19601558117866194, -2.117920680058555, 2.2606906834769793, 1.0006103997257454, -0.032730682528086245),
]
SINGULAR = [
    *(0.6558016291185108, 0.4189065123132303, 0.058910337485999414, 0.970255041951018, 0.45006954416489664),
    *(-0.09938195190699065, -2.033535553186978, 1.9370138838739197, 0.8996822586556847, 0.07587409605610791),
]
GENERATED = [
    ({"cond": 10.0}, WELL, 16.25626907424711, 3.0654811099095123, 16.082467001631336, 8.578269725023386),
    ({"cond": 1000.0}, WELL, 16.25626907424711, 3.0654811099095123, 16.082467001631336, 4.178334544098734),
    ({"rank": 12, "flat": True}, FLAT, 9.357310312410545, 6.910871479993725, 7.68784933857512, 7.229999347966479),
    ({"rank": 12}, SINGULAR, 7.968882203916466, 3.7197866288791586, 16.082467001631336, 7.229999347966479),
]


@pytest.mark.parametrize(("arguments", "x_star", "f_star", "size", "f", "g"), GENERATED, ids=lambda value: str(value)[:24])
def test_the_quadratic_is_the_generated_one(arguments, x_star, f_star, size, f, g):
    instance = quadratic(seed=0, **arguments)
    problem, (best,) = instance.problem, instance.solution
    torch.testing.assert_close(best.x, torch.tensor(x_star, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(problem.upper(best.x, best.y)) == pytest.approx(f_star, abs=1e-12)
    assert float(best.y.norm()) == pytest.approx(size, abs=1e-12)
    x, y = torch.linspace(-1, 1, 10, dtype=torch.float64), torch.cos(torch.arange(20, dtype=torch.float64))
    assert float(problem.upper(x, y)) == pytest.approx(f, abs=1e-12)
    assert float(problem.lower(x, y)) == pytest.approx(g, abs=1e-12)
    assert float(problem.x.norm()) == float(problem.y.norm()) == 0.0


@pytest.mark.parametrize("arguments", [one[0] for one in GENERATED], ids=str)
def test_the_lower_hessian_has_the_rank_and_condition_asked_for(arguments):
    problem = quadratic(**arguments).problem
    H = torch.autograd.functional.hessian(lambda y: problem.lower(problem.x, y), problem.y)
    eigenvalues = torch.linalg.eigvalsh(H).flip(0)
    rank, cond = arguments.get("rank", 20), arguments.get("cond", 10.0)
    wanted = torch.logspace(0, -np.log10(cond), 20, dtype=torch.float64)
    wanted[rank:] = 0
    torch.testing.assert_close(eigenvalues, wanted, rtol=0, atol=1e-13)


def test_lower_solution_is_the_minimiser_where_there_is_one():
    problem = quadratic(nx=3, ny=4).problem
    x = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert problem.residuals(Point(x, problem.lower_solution(x)))["lower"] <= 1e-14
    assert quadratic(rank=12).problem.lower_solution is None


def test_noise_is_zero_in_the_mean():
    noisy, plain = quadratic(noise=0.3), quadratic()
    assert Feature.SAMPLES in noisy.features
    assert Feature.SAMPLES not in plain.features
    generator = torch.Generator().manual_seed(1)
    point = [Vec.of(torch.randn(n, dtype=torch.float64, generator=generator)) for n in (10, 20)]
    mean, exact = noisy.problem.full_batch(), plain.problem
    assert Feature.SAMPLES not in mean.features
    for level, other in zip((mean.oracle().f, mean.oracle().g), (exact.oracle().f, exact.oracle().g)):
        value, grads = level.gradient(point, level.draw(0), (0, 1))
        wanted, others = other.gradient(point, other.draw(0), (0, 1))
        assert torch.equal(value, wanted)
        assert all(torch.equal(a.ravel(), b.ravel()) for a, b in zip(grads, others))
    assert torch.equal(noisy.solution[0].x, plain.solution[0].x)


def test_noise_has_the_deviation_asked_for_and_is_drawn_by_seed_stream_and_step():
    noisy, plain = quadratic(noise=0.3).problem.oracle(7), quadratic().problem.oracle(7)
    point = [noisy.variables["x"], noisy.variables["y"]]

    def errors(level, exact) -> Tensor:
        wanted = torch.cat([grad.ravel() for grad in exact.gradient(point, None, (0, 1))[1]])
        grads = (level.gradient(point, level.draw(n), (0, 1))[1] for n in range(400))
        return torch.stack([torch.cat([grad.ravel() for grad in found]) - wanted for found in grads])

    xi, zeta = errors(noisy.f, plain.f), errors(noisy.g, plain.g)
    for found in (xi, zeta):  # 12,000 numbers: standard errors 0.0027 and 0.0019
        assert abs(float(found.mean())) <= 0.0137
        assert abs(float(found.std()) - 0.3) <= 0.0097
    assert abs(float((xi * zeta).mean())) <= 0.0041  # xi and zeta are independent: standard error 0.0008
    sampler = quadratic(noise=0.3).problem.upper_data
    draws = {tuple(sampler.draw(*key).tolist()) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]}
    assert len(draws) == 4


# -- the toy ----------------------------------------------------------------------------------------------------------------
def test_the_minima_of_the_toy_are_those_of_a_fine_grid():
    problem = pl_toy().problem

    def phi(x: float | np.ndarray) -> np.ndarray:
        t = torch.as_tensor(x, dtype=torch.float64)
        return problem.upper(t, -t).numpy()

    grid = np.linspace(0, 3, 30_001)
    values = phi(grid)
    inner = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])) + 1
    found = []
    for i in inner:
        best = minimize_scalar(phi, bounds=(grid[i - 1], grid[i + 1]), method="bounded", options={"xatol": 1e-12})
        found.append((float(best.fun), float(best.x)))
    assert len(found) == 3
    np.testing.assert_allclose([x for _, x in sorted(found)], PL_MINIMA, rtol=0, atol=1e-7)
    assert float(phi(PL_MINIMA[0])) == pytest.approx(0.1999108877, abs=1e-10)
    assert values[0] > min(values)
    assert values[-1] > float(phi(PL_MINIMA[2])), "the right end is no minimum"
    assert [float(point.x) for point in pl_toy().solution] == list(PL_MINIMA)


def test_the_lower_solutions_of_the_toy_are_minus_x():
    problem = pl_toy().problem
    y = torch.linspace(-6, 9, 15_001, dtype=torch.float64)
    for x in (0.0, 0.7, 3.0):
        values = problem.lower(torch.tensor(x, dtype=torch.float64), y)
        assert float(y[values.argmin()]) == pytest.approx(-x, abs=1e-3)
        assert float(values.min()) >= 0
        assert float(problem.lower_solution(torch.tensor(x))) == pytest.approx(-x)


def test_starts_of_the_toy_cover_their_ranges():
    starts = np.array([[float(problem.x), float(problem.y)] for problem in (pl_toy(seed=s).problem for s in range(200))])
    assert starts.min(0) == pytest.approx([0, -5], abs=0.4)
    assert starts.max(0) == pytest.approx([3, 8.5], abs=0.4)
    assert (float(pl_toy().problem.x), float(pl_toy().problem.y)) == (1.5, 0.0)


# -- what is refused --------------------------------------------------------------------------------------------------------
WRONG = {
    "quadratic": [
        *({"nx": 0}, {"nx": 2.5}, {"nx": "3"}, {"nx": True}, {"ny": 0}, {"ny": None}, {"cond": 0.5}, {"cond": float("nan")}),
        *({"cond": float("inf")}, {"cond": "10"}, {"rank": 0}, {"rank": 21}, {"rank": 1.5}, {"rank": "12"}, {"noise": -0.1}),
        *({"noise": float("nan")}, {"noise": float("inf")}, {"noise": "loud"}, {"flat": "maybe"}, {"seed": -1}, {"seed": 1.5}),
        *({"seed": "0"}, {"dtype": torch.int64}, {"dtype": "float32"}, {"device": "nowhere"}, {"device": 1.5}),
    ],
    "pl-toy": [{"seed": -1}, {"seed": "0"}, {"seed": 1.5}, {"dtype": torch.int64}, {"dtype": "float32"}, {"device": "nowhere"}],
    "hyper-cleaning": [
        *({"model": "cnn"}, {"model": []}, {"model": None}, {"clean": 9}, {"clean": 301}, {"clean": "all"}, {"rate": 1.0}),
        *({"rate": -0.1}, {"rate": "half"}, {"noise": "loud"}, {"noise": 0.1}, {"noise": []}, {"batch": 0}, {"batch": 2.5}),
        *({"seed": -1}, {"seed": "0"}, {"dtype": torch.int64}, {"dtype": "float32"}, {"device": "nowhere"}),
    ],
}
WRONG["ridge-1"] = WRONG["ridge-50"] = WRONG["lasso"] = WRONG["elastic-net"] = [
    *({"seed": -1}, {"seed": 2**32 - 1}, {"seed": 1.5}, {"seed": "0"}, {"seed": None}, {"seed": True}),
    *({"dtype": torch.int64}, {"dtype": "float32"}, {"device": "nowhere"}, {"device": 1.5}),
]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [pytest.param(name, wrong, id=f"{name} {wrong}") for name, every in WRONG.items() for wrong in every],
)
def test_bad_arguments_raise_one_error_of_the_library(name, wrong):
    with pytest.raises(BilevelError) as caught:
        ZOO[name](**wrong)
    (argument,), message = wrong, str(caught.value)
    assert argument in message or argument == "batch", message
    assert "\n" not in message
