"""Hock and Schittkowski with inequalities or bounds: derivatives, published solutions, the conditions of Kuhn and Tucker."""

from functools import cache

import numpy as np
import pytest
import torch
from flat import central
from scipy.optimize import lsq_linear, minimize

from constrained.core.problem import Point
from constrained.core.status import Feature
from problems.cutest import CUTEST, HS_INEQUALITY, cutest

LONG = {"HS13", "HS116"}  # runs of more than a second
EVERY = pytest.mark.parametrize("name", HS_INEQUALITY)

# f* of the book, problems with numbers up to 119.
BOOK = {
    **{"HS1": 0, "HS2": 0.0504261879, "HS3": 0, "HS4": 2.666666667, "HS5": -1.913222955, "HS10": -1, "HS11": -8.498464223},
    **{"HS12": -30, "HS13": 1, "HS14": 1.393464981, "HS15": 306.5, "HS16": 0.25, "HS17": 1, "HS18": 5, "HS19": -6961.81381},
    **{"HS20": 38.198730, "HS21": -99.96, "HS22": 1, "HS23": 2, "HS24": -1, "HS25": 0, "HS29": -22.62741700, "HS30": 1},
    **{"HS31": 6, "HS32": 1, "HS33": -4.585786438, "HS34": -0.83403245, "HS35": 0.1111111111, "HS36": -3300, "HS37": -3456},
    **{"HS38": 0, "HS41": 1.925925926, "HS43": -44, "HS44": -15, "HS45": 1, "HS53": 4.093023256, "HS54": -0.9080747576},
    **{"HS55": 6.333333333, "HS57": 0.02845966972, "HS60": 0.03256820025, "HS62": -26272.51448, "HS63": 961.7151721},
    **{"HS64": 6299.842428, "HS65": 0.9535288567, "HS66": 0.5181632741, "HS68": -0.920425026, "HS69": -956.71288},
    **{"HS71": 17.0140173, "HS72": 727.67937, "HS73": 29.894378, "HS76": -4.681818181, "HS80": 0.0539498478},
    **{"HS81": 0.0539498478, "HS83": -30665.53867, "HS86": -32.34867897, "HS93": 135.075961, "HS95": 0.01561952524},
    **{"HS96": 0.01561952524, "HS97": 3.1358091, "HS98": 3.1358091, "HS100": 680.6300573, "HS101": 1809.76476},
    **{"HS102": 911.880571, "HS103": 543.667958, "HS104": 3.9511634396, "HS107": 5055.011803, "HS108": -0.8660254038},
    **{"HS110": -45.77846971, "HS111": -47.76109026, "HS113": 24.3062091, "HS114": -1768.80696, "HS117": 32.348679},
    **{"HS118": 664.8204500, "HS119": 244.899698},
}
ABOVE = {"HS105": 1138.416240, "HS106": 7049.330923, "HS112": -47.707579, "HS116": 97.588409}  # of the book, not minimal
# Where SLSQP ends elsewhere from the start: at local minima, saddles, or where the violation is stationary.
ELSEWHERE = ("HS2", "HS16", "HS20", "HS25", "HS33", "HS54", "HS55", "HS88", "HS90", "HS92", "HS97")
FLAT = ("HS25", "HS54")  # f hardly changes near the start; sizes of x from 1e-3 to 1e8
UNQUALIFIED = ("HS13",)  # no multipliers exist at its solution


@cache
def made(name: str):
    return cutest(name=name)


class Numpy:
    """f, c, h and their derivatives on numpy vectors, bounds."""

    def __init__(self, name: str):
        definition, n = HS_INEQUALITY[name], len(HS_INEQUALITY[name].start)
        self.name = name
        self.low, self.high = map(np.array, definition.bounds())
        self.x0 = np.clip(np.array(definition.start, dtype=float), self.low, self.high)
        parts = (definition.objective, definition.equality, definition.inequality)
        self.f, self.c, self.h = (lambda x, part=part: part(torch.from_numpy(x)).numpy() for part in parts)
        self.g, self.J, self.A = (
            lambda x, part=part: torch.func.jacrev(part)(torch.from_numpy(x)).numpy().reshape(-1, n) for part in parts
        )

    def inside(self, margin: float = 0.0) -> np.ndarray:
        """A point near x0; for FLAT problems nearer to the solution."""
        x = self.x0 if self.name not in FLAT else 0.1 * self.x0 + 0.9 * np.array(HS_INEQUALITY[self.name].solution)
        x = x + 0.01 * (1 + np.abs(x)) * np.cos(np.arange(len(x)))
        return np.clip(x, self.low + margin, np.maximum(self.low + margin, self.high - margin))

    def violation(self, x: np.ndarray) -> float:
        return max(0.0, *np.abs(self.c(x)), *self.h(x), *(self.low - x), *(x - self.high))

    def stationarity(self, x: np.ndarray) -> float:
        """The least |grad f + J'lam + A'mu - below + above|, relative to |grad f|, with multipliers >= 0 of what is active."""
        A, E, size = self.A(x), np.eye(len(x)), 1e-7 * (1 + np.abs(x))
        active = A[self.h(x) >= -1e-7 * (1 + np.linalg.norm(A, axis=1) * np.linalg.norm(x))]
        rows = np.vstack([self.J(x), active, -E[x <= self.low + size], E[x >= self.high - size]])
        g = self.g(x)[0]
        if not len(rows):
            return float(np.linalg.norm(g))
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        free = len(self.c(x))
        lower = np.where(np.arange(len(rows)) < free, -np.inf, 0)
        w = lsq_linear(rows.T, -g, (lower, np.inf), method="bvls", tol=1e-15).x
        return float(np.linalg.norm(g + rows.T @ w) / max(1.0, np.linalg.norm(g)))


# -- what they are ----------------------------------------------------------------------------------------------------------
def test_the_tables_have_no_name_in_common():
    assert not set(CUTEST) & set(HS_INEQUALITY)
    assert set(HS_INEQUALITY) == {*BOOK, *ABOVE, *(f"HS{k}" for k in range(88, 93))} | {
        *("HS3MOD", "HS21MOD", "HS35I", "HS35MOD", "HS44NEW", "HS76I", "HS268")
    }


@EVERY
def test_instances_say_what_they_are(name):
    instance, definition = made(name), HS_INEQUALITY[name]
    problem, low, high = instance.problem, *definition.bounds()
    bounded = bool(np.isfinite([low, high]).any())
    wanted = {Feature.X_SET: bounded, Feature.EQUALITY: definition.c, Feature.INEQUALITY: definition.h}
    assert problem.features == Feature(sum(feature.value for feature, there in wanted.items() if there))
    assert problem.features & (Feature.X_SET | Feature.INEQUALITY)
    assert (instance.name, instance.optimum) == (name, definition.optimum)
    assert definition.source in instance.source
    assert len(low) == len(high) == len(definition.start) <= 20
    far = problem.X.project(problem.oracle().variables["x"].map(lambda x: torch.full_like(x, 1e9))).leaves[0]
    torch.testing.assert_close(far, torch.tensor(high).double().clamp(max=1e9))
    for function, start in zip((problem.equality, problem.inequality), (instance.start.multipliers.equality, None)):
        assert function is None or function(problem.x).ndim == 1
        assert start is None or not start.any()
    assert bool(instance.solution) == (definition.solution is not None and definition.unique)


# -- derivatives ------------------------------------------------------------------------------------------------------------
@EVERY
def test_derivatives_agree_with_central_differences(name):
    at = Numpy(name)
    x = at.inside(margin=1e-3)
    for value, derivative in zip((at.f, at.c, at.h), (at.g(x), at.J(x), at.A(x))):
        if len(derivative):
            size = 1e-6 * max(1.0, float(np.abs(derivative).max()), float(np.abs(value(x)).max()))
            np.testing.assert_allclose(derivative, central(value, x), rtol=1e-6, atol=size)


@pytest.mark.parametrize("name", [name for name in HS_INEQUALITY if name not in FLAT])
def test_the_library_agrees_with_differences_to_second_order(name):
    report = made(name).problem.check(Point(torch.from_numpy(Numpy(name).inside())))
    assert report.ok, str(report)


# -- solutions --------------------------------------------------------------------------------------------------------------
@EVERY
def test_the_optimum_is_that_of_the_book(name):
    if name in BOOK:
        assert HS_INEQUALITY[name].optimum == pytest.approx(BOOK[name], rel=4e-8 if name != "HS72" else 2e-8, abs=1e-7)
    if name in ABOVE:
        assert HS_INEQUALITY[name].optimum < ABOVE[name]
        assert HS_INEQUALITY[name].note


@EVERY
def test_known_solutions_satisfy_the_conditions_of_kuhn_and_tucker(name):
    at, definition = Numpy(name), HS_INEQUALITY[name]
    x = np.array(definition.solution, dtype=float)
    scale = max(1.0, *np.abs(np.vstack([at.J(x), at.A(x)])).sum(1)) if definition.c or definition.h else 1.0
    assert at.f(x) == pytest.approx(definition.optimum, rel=1e-11, abs=1e-11)
    assert at.violation(x) <= 1e-11 * scale * np.abs(x).max()
    assert (at.stationarity(x) <= 1e-8) == (name not in UNQUALIFIED)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG or i % 3 > 0)) for i, n in enumerate(HS_INEQUALITY)]
)
def test_slsqp_finds_the_optimum_from_the_start(name):
    at, definition = Numpy(name), HS_INEQUALITY[name]
    rows = [{"type": "eq", "fun": at.c, "jac": at.J}] if definition.c else []
    rows += [{"type": "ineq", "fun": lambda x: -at.h(x), "jac": lambda x: -at.A(x)}] if definition.h else []
    found = minimize(
        lambda x: float(at.f(x)),
        at.x0,
        jac=lambda x: at.g(x)[0],
        bounds=list(zip(at.low, at.high)),
        constraints=rows,
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-14},
    ).x
    arrived = at.violation(found) <= 1e-4 and at.f(found) == pytest.approx(definition.optimum, rel=3e-4, abs=1e-5)
    assert arrived or name in ELSEWHERE, (found, at.f(found), at.violation(found))


@EVERY
def test_the_start_is_not_a_solution(name):
    at = Numpy(name)
    assert at.violation(at.x0) > 1e-3 or at.stationarity(at.x0) > 1e-3 or name in (*FLAT, "HS55")


# -- arguments --------------------------------------------------------------------------------------------------------------
@EVERY
def test_dtype_is_that_asked_for(name):
    problem = cutest(name=name, dtype=torch.float32).problem
    rows = [part(problem.x) for part in (problem.objective, problem.equality, problem.inequality) if part]
    assert {tensor.dtype for tensor in (problem.x, *rows)} == {torch.float32}


# -- notes ------------------------------------------------------------------------------------------------------------------
NOTED = {  # other stationary points
    "HS2": ((-1.221026242107, 1.5), 4.941229318),
    "HS15": ((-0.7921232205055, -1.262429851964), 360.37976717),
    "HS33": ((0, 0, 2), -4),
    "HS44": ((3, 0, 4, 0), -13),
    "HS55": ((1, 5 / 3, 1 / 3, 0, 1 / 3, 5 / 3), 20 / 3),
}


@pytest.mark.parametrize("name", NOTED)
def test_notes_of_other_stationary_points_are_right(name):
    (x, value), at = NOTED[name], Numpy(name)
    x = np.array(x, dtype=float)
    assert at.f(x) == pytest.approx(value, rel=1e-8)
    assert at.f(x) > HS_INEQUALITY[name].optimum
    assert at.violation(x) <= 1e-8
    assert at.stationarity(x) <= 1e-7
    assert HS_INEQUALITY[name].note
