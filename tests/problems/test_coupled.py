"""The instances with coupled lower constraints: derivatives, closed forms, data."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from bilevel import Feature, Implicit, Point, solve
from constrained.core.errors import OptionError
from problems.coupled import CONDITION, FAMILY, KAPPA, SHAPES, coupled_toy, llc, llsc, reduced_minima, svm_weights

CASES = {
    "llc": lambda: llc(n=7),
    "llsc": lambda: llsc(n=20),
    "llsc, other data": lambda: llsc(n=40, seed=5),
    "toy": coupled_toy,
    "fourclass": lambda: svm_weights(data="fourclass", train=20, validate=10),
    "diabetes": lambda: svm_weights(train=20, validate=10, seed=3),
    "gisette": lambda: svm_weights(data="gisette", features=40, train=20, validate=10, corrupted=0.4),
    "breast-cancer": lambda: svm_weights(data="breast-cancer", train=20, validate=10),
}
EVERY = pytest.mark.parametrize("case", CASES)
SOLVED = pytest.mark.parametrize("case", ["llc", "llsc", "llsc, other data", "toy"])


@EVERY
def test_derivatives_and_descriptions(case):
    instance = CASES[case]()
    report = instance.problem.check()
    assert report.ok, str(report)
    assert instance.name in FAMILY
    assert len(instance.source) > 20
    assert instance.features & (Feature.LOWER_EQUALITY | Feature.LOWER_INEQUALITY)


@SOLVED
def test_solutions_satisfy_the_conditions_of_both_levels(case):
    instance = CASES[case]()
    for point in instance.solution:
        found = instance.problem.residuals(point)
        assert found["lower"] <= 1e-10
        assert found["upper"] <= 1e-8
        assert found["constraints"] <= 1e-10
        assert found.get("optimism", 0.0) <= 1e-9
    assert instance.error(instance.problem.x) > 1e-2


def test_the_strongly_convex_problem_is_conditioned_as_it_says():
    for n, seed in ((20, 0), (100, 0), (60, 7)):
        instance = llsc(n=n, seed=seed)
        problem, eye = instance.problem, torch.eye(n, dtype=torch.float64)
        M = torch.stack([problem.lower_solution(row) for row in eye], 1)
        Q = problem.X._on(problem.oracle().variables["x"])[0]
        U = torch.linalg.svd(Q, full_matrices=True)[2][len(Q) :].T
        both = (eye + M) @ U
        assert float(torch.linalg.cond(both.T @ both)) == pytest.approx(CONDITION, rel=1e-6)
        assert len(U.T) == 11 * n // 20
        best = instance.solution[0]
        s = float(reduced_minima(KAPPA)[0])
        assert float(problem.upper(best.x, best.y)) == pytest.approx(np.sin(s) + np.log1p(s**2 / KAPPA), abs=1e-10)


def test_lower_solutions_of_the_strongly_convex_problem_against_cvxpy():
    problem = llsc(n=20).problem
    x = problem.X.project(problem.oracle().variables["x"]).tree()
    zero = torch.zeros(20, dtype=torch.float64)
    eye = torch.eye(20, dtype=torch.float64)
    H = torch.stack([problem.lower_equality(row, zero) for row in eye], 1).numpy()
    A = torch.stack([problem.lower_equality(zero, row) for row in eye], 1).numpy()
    y = cp.Variable(20)
    cp.Problem(cp.Minimize(cp.sum_squares(y - x.numpy())), [H @ x.numpy() + A @ y == 0]).solve(solver="CLARABEL")
    np.testing.assert_allclose(problem.lower_solution(x).numpy(), y.value, atol=1e-6)


def test_the_reduced_minima_are_those_of_a_fine_grid():
    def value(s):
        return np.sin(s) + np.log1p(s**2 / KAPPA)

    grid = np.linspace(-8, 8, 20_001)
    inner = np.flatnonzero((value(grid)[1:-1] < value(grid)[:-2]) & (value(grid)[1:-1] < value(grid)[2:])) + 1
    found = [minimize_scalar(value, bounds=(grid[i - 1], grid[i + 1]), method="bounded", options={"xatol": 1e-12}) for i in inner]
    np.testing.assert_allclose(reduced_minima(KAPPA), [one.x for one in sorted(found, key=lambda one: one.fun)], atol=1e-7)
    # The value published for the authors' data, whose kappa is 6.0487.
    assert reduced_minima(6.048709783775)[0] == pytest.approx(-1.2380875039, abs=1e-9)


def test_the_toy_is_minimal_at_its_solution():
    problem = coupled_toy().problem
    grid = torch.linspace(-1, 2, 3001, dtype=torch.float64)[:, None]
    values = torch.stack([problem.upper(x, problem.lower_solution(x)) for x in grid])
    assert float(grid[values.argmin()]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("data", [*SHAPES, "breast-cancer"])
def test_svm_data(data):
    small = {"features": 30} if data == "gisette" else {}
    one, twin, other = (svm_weights(data=data, train=30, validate=9, seed=seed, **small).problem for seed in (0, 0, 1))
    assert torch.equal(one.x, twin.x)
    assert not torch.equal(one.x, other.x)
    assert one.x.shape == one.y["xi"].shape == (30,)
    assert float(one.x.min()) >= -6
    assert float(one.x.max()) <= -5
    assert len(one.y["w"]) == {"fourclass": 2, "diabetes": 8, "gisette": 30, "breast-cancer": 30}[data]
    margins = one.lower_inequality(one.x, {**one.y, "w": 0 * one.y["w"]})
    torch.testing.assert_close(margins, 0 * margins)  # 1 - xi at w = 0, b = 0


def test_corrupted_labels():
    clean, noisy = (svm_weights(train=200, validate=5, corrupted=rate).problem for rate in (0.0, 0.4))
    y = {**clean.y, "xi": torch.ones_like(clean.x)}
    ours, theirs = clean.lower_inequality(clean.x, y), noisy.lower_inequality(noisy.x, y)
    flipped = (ours + theirs).abs() <= 1e-12  # -t m and t m
    assert 0.3 <= float(flipped.double().mean()) <= 0.5
    assert torch.equal(ours[~flipped], theirs[~flipped])


def test_the_lower_level_of_the_svm_against_cvxpy():
    from bilevel.lower.coupled_set import coupled
    from bilevel.lower.regularised_value import solve_constrained_lower
    from constrained.core.vec import Vec
    from constrained.descent import LBFGS

    problem = svm_weights(train=25, validate=5).problem
    oracle = problem.oracle()
    x, start = Vec.of(problem.x + 5.0), oracle.variables["y"]
    rows = coupled(oracle, 1e6).rows
    found = solve_constrained_lower(oracle, rows, x, start, torch.zeros(25, dtype=torch.float64), 1e-8, method=LBFGS())
    assert found.residual <= 1e-8
    w, b, xi = cp.Variable(8), cp.Variable(), cp.Variable(25)
    zero = {"w": 0 * problem.y["w"], "b": problem.y["b"], "xi": 0 * problem.x}
    Z = np.stack(
        [(1 - problem.lower_inequality(problem.x, {**zero, "w": e})).numpy() for e in torch.eye(8, dtype=torch.float64)], 1
    )
    t = (1 - problem.lower_inequality(problem.x, {**zero, "b": torch.ones(1, dtype=torch.float64)})).numpy()
    goal = cp.sum_squares(w) + cp.sum(cp.multiply(np.exp(x.tree().numpy()), xi**2))
    cp.Problem(cp.Minimize(goal / 2), [1 - xi - Z @ w - t * b <= 0]).solve(solver="CLARABEL")
    np.testing.assert_allclose(found.y.tree()["w"].numpy(), w.value, atol=1e-4)
    assert problem.residuals(Point(x.tree(), found.y.tree(), rows.report(found.multipliers)))["lower"] <= 1e-6


@pytest.mark.parametrize("data", ["fourclass", pytest.param("diabetes", marks=pytest.mark.slow)])
def test_the_svm_with_its_margins_as_a_set(data):
    """The same lower solution as with the margins as a function, and weights that halve the loss at least, up to a kink."""
    rows, polyhedron = (svm_weights(data=data, train=30, validate=15, as_set=flag).problem for flag in (False, True))
    y = polyhedron.response(polyhedron.x)
    assert float(rows.lower_inequality(rows.x, y).max()) <= 1e-12
    found = rows.residuals(Point(rows.x, y))  # with least-squares multipliers
    assert found["lower"] <= 1e-6, found
    result = solve(polyhedron, Implicit(), max_steps=20)
    assert result.residuals()["lower"] <= 1e-6
    assert result.fun <= 0.5 * polyhedron.fun(Point(polyhedron.x, y))


WRONG = [
    *((llc, {"n": 0}), (llc, {"n": 2.5}), (llc, {"dtype": torch.int64}), (llsc, {"n": 25}), (llsc, {"seed": -1})),
    *((svm_weights, {"data": "iris"}), (svm_weights, {"train": 1}), (svm_weights, {"corrupted": 1.0})),
    *(
        (svm_weights, {"data": "breast-cancer", "train": 600}),
        (svm_weights, {"features": 0}),
        (coupled_toy, {"device": "nowhere"}),
    ),
]


@pytest.mark.parametrize(("maker", "wrong"), WRONG, ids=lambda value: str(getattr(value, "__name__", value)))
def test_bad_arguments_are_refused(maker, wrong):
    with pytest.raises(OptionError) as caught:
        maker(**wrong)
    assert any(name in str(caught.value) for name in wrong)
