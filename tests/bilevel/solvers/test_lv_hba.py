"""LVHBA, LVHBASingleLoop, v and the residuals of constrained lower levels, against closed forms, cvxpy and finite differences."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from bilevel import BilevelProblem, Box, Function, Multipliers, Point, Status, solve
from bilevel.lower.coupled_set import coupled, jacobian
from bilevel.lower.regularised_value import Saddle, lower_value, solve_constrained_lower
from bilevel.reformulations.lagrangian_gap import penalised_gap
from bilevel.solvers.lv_hba import LVHBA
from bilevel.solvers.lv_hba_single import LVHBASingleLoop
from constrained.core.errors import ProblemError, Unsuitable
from constrained.core.vec import Vec
from constrained.descent import LBFGS
from constrained.polyhedron import Polyhedron
from constrained.sets import Affine, Ball, Halfspace, Simplex
from constrained.sets.intersections import BoxHyperplane, CvxpySet
from problems.coupled import coupled_toy, llc, llsc

F64 = torch.float64
RNG = np.random.default_rng(3)
A, B, P = RNG.standard_normal((3, 4)), RNG.standard_normal((3, 2)), RNG.standard_normal((4, 2))
b, a = RNG.uniform(0.1, 0.5, 3), RNG.standard_normal(4)


def t(value):
    return torch.tensor(np.asarray(value), dtype=F64)


def problem(**changed):
    """g = |y - P x|^2 / 2 + sum y^4 / 4 with A y + B x <= b; f = |y - a|^2 / 2 + |x|^2 / 2."""
    parts = {
        "upper": lambda x, y: 0.5 * ((y - t(a)) ** 2).sum() + 0.5 * (x**2).sum(),
        "lower": lambda x, y: 0.5 * ((y - t(P) @ x) ** 2).sum() + 0.25 * (y**4).sum(),
        "lower_inequality": lambda x, y: t(A) @ y + t(B) @ x - t(b),
        "x": t(np.zeros(2)),
        "y": t(np.zeros(4)),
    }
    return BilevelProblem(**{**parts, **changed})


def lower_solution(x):
    """y, mu by cvxpy."""
    y = cp.Variable(4)
    rows = A @ y + B @ x <= b
    goal = cp.Minimize(0.5 * cp.sum_squares(y - P @ x) + 0.25 * cp.sum(cp.power(y, 4)))
    cp.Problem(goal, [rows]).solve(solver="CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    return y.value, rows.dual_value


def relative(found, known):
    return float((found - known).norm() / known.norm())


def at_stage_ends(instance, solver, **more):
    """(c, x, y, gradients, extrapolated (x, y)) where each c ended, and the result."""
    ends, before = [], []

    def look(event):
        s = event.state
        if before and s.c != before[0][0]:
            ends.append((*before[0], s.guess.leaves[0][: s.x.size + s.y.size].clone()))
        before[:] = [(s.c, s.x.tree().clone(), s.y.tree().clone(), event.calls.gradients)]

    return ends, solve(instance.problem, solver, callbacks=[look], **more)


# -- the paper's problems ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [50, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 200))])
def test_the_merely_convex_problem(n):
    instance = llc(n=n)
    ends, result = at_stage_ends(instance, LVHBA())
    (known,) = instance.solution
    assert result.status is Status.CONVERGED, result.message
    assert relative(result.x, known.x) <= 1e-6
    assert relative(result.y, known.y) <= 1e-6
    assert float(result.multipliers.lower["equality"]) == pytest.approx(-1, abs=1e-6)
    assert result.fun == pytest.approx(n / 20, abs=1e-4)
    c, x, _, gradients, guess = ends[3]
    assert c == 1000
    assert gradients <= 8000
    assert relative(x, known.x) <= 1e-3
    assert relative(guess[:n], known.x) <= 1e-4
    assert result.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100])
def test_the_strongly_convex_problem(n):
    instance = llsc(n=n)
    ends, result = at_stage_ends(instance, LVHBA())
    best = instance.solution[0]
    f_star = float(instance.problem.upper(best.x, best.y))
    assert result.status is Status.CONVERGED, result.message
    assert relative(result.x, best.x) <= 1e-3
    assert relative(result.y, best.y) <= 1e-3
    assert result.fun == pytest.approx(f_star, abs=1e-6)
    c, *_, gradients, guess = ends[1]
    assert (c, gradients <= 30_000) == (10, True)
    assert n != 100 or abs(float(instance.problem.upper(*guess.split((n, n)))) - f_star) <= 2e-2
    assert ends[2][3] <= 85_000
    assert abs(float(instance.problem.upper(*ends[2][4].split((n, n)))) - f_star) <= 1e-3


@pytest.mark.parametrize("start", [(0.0, 0.0), (5.0, -3.0)])
def test_the_coupled_inequality(start):
    result = solve(coupled_toy(start=start).problem, LVHBA())
    assert result.status is Status.CONVERGED, result.message
    assert result.calls.gradients <= 7000
    assert [float(result.x), float(result.y)] == pytest.approx([0.5, 0.5], abs=1e-6)
    assert float(result.multipliers.lower["inequality"]) == pytest.approx(0.5, abs=1e-5)


@pytest.mark.slow
def test_the_published_iteration():
    instance = llc()
    result = solve(instance.problem, LVHBASingleLoop(), max_steps=5500)
    assert result.status is Status.MAX_STEPS
    assert result.calls.gradients <= 100_000
    assert relative(result.x, instance.solution[0].x) <= 2e-2
    assert relative(result.y, instance.solution[0].y) <= 2e-2
    assert result.residuals()["lower"] <= 1e-7


def test_the_published_setting_does_not_converge():
    """The authors' numbers for this problem: the iterates grow or stay far away."""
    instance = llc()
    result = solve(instance.problem, LVHBASingleLoop.paper(), max_steps=1500)
    assert relative(result.x, instance.solution[0].x) > 0.1
    assert not result.success


# -- another problem, where cvxpy knows the lower solution ------------------------------------------------------------------
def test_several_inequalities():
    """x is a local minimum of the hyper-objective of cvxpy's lower solutions."""
    result = solve(problem(), LVHBA())
    assert result.status is Status.CONVERGED, result.message
    x = result.x.numpy()
    y, mu = lower_solution(x)
    np.testing.assert_allclose(result.y.numpy(), y, atol=1e-5)
    np.testing.assert_allclose(result.multipliers.lower["inequality"].numpy(), mu, atol=1e-4)

    def phi(x):
        y, _ = lower_solution(x)
        return 0.5 * np.sum((y - a) ** 2) + 0.5 * np.sum(x**2)

    around = [phi(x + 1e-3 * np.array([np.cos(turn), np.sin(turn)])) for turn in np.linspace(0, 2 * np.pi, 16)]
    assert min(around) >= phi(x) - 1e-7, "a lower value next to x"  # x lies on a kink: a row is active with mu = 0
    assert max(abs(value) for value in result.residuals().values()) <= 1e-6


def test_sets_of_both_levels():
    result = solve(problem(X=Box(-0.05, 0.05), Y=Box(-0.3, 0.3)), LVHBA())
    assert result.status is Status.CONVERGED, result.message
    assert float(result.x.abs().max()) <= 0.05
    assert float(result.y.abs().max()) <= 0.3


@pytest.mark.parametrize("X", [Simplex(), Ball(0.8)])
def test_sets_in_float32(X):
    """X x R^4 is projected on in float64 within a polyhedron: in float32 its rows would look unreachable."""
    single = {name: torch.zeros(size) for name, size in (("x", 2), ("y", 4))}
    E, a = torch.as_tensor(A[:1]).float(), torch.ones(4)
    found = BilevelProblem(
        upper=lambda x, y: ((y - a) ** 2).sum() + (x**2).sum(),
        lower=lambda x, y: ((y - x.sum()) ** 2).sum(),
        lower_equality=lambda x, y: E @ y - x[:1] / 3,
        X=X,
        **single,
    )
    result = solve(found, LVHBA(), max_steps=2)
    assert float(X.distance(Vec.of(result.x))) <= 1e-6


def test_a_set_of_the_user():
    def build(v):
        return [A @ v["y"] + B @ v["x"] <= b]

    plain = solve(problem(), LVHBA(), tol=1e-4)
    given = solve(problem(), LVHBA(coupled=CvxpySet(build), largest=1e3), tol=1e-4, max_steps=60)
    torch.testing.assert_close(given.x, plain.x, atol=1e-2, rtol=0)


def test_curved_constraints():
    """|x|^2 + |y|^2 <= 1 with g = |y - 2x|^2 / 2, f = |x - p|^2 / 2, |p| small: y = 2x inside, x = p."""
    p = t([0.2, 0.1])
    disc = BilevelProblem(
        upper=lambda x, y: 0.5 * ((x - p) ** 2).sum(),
        lower=lambda x, y: 0.5 * ((y - 2 * x) ** 2).sum(),
        lower_inequality=lambda x, y: (x**2).sum() + (y**2).sum() - 1,
        x=t([0.0, 0.0]),
        y=t([0.0, 0.0]),
    )
    result = solve(disc, LVHBA(), tol=1e-5)
    assert result.status is Status.CONVERGED, result.message
    torch.testing.assert_close(result.x, p, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.y, 2 * p, atol=1e-5, rtol=0)


def test_float32_and_multipliers_at_their_bound():
    result = solve(llc(n=10, dtype=torch.float32).problem, LVHBA())
    assert result.x.dtype == torch.float32
    assert relative(result.x, torch.full((10,), -0.3)) <= 5e-3
    bounded = solve(llc(n=10).problem, LVHBA(r=1.0), max_steps=30)
    assert "reached r = 1" in bounded.notes[0]
    assert not bounded.success


def test_a_start_with_the_multipliers():
    instance = llc(n=20)
    (known,) = instance.solution
    warm = solve(instance.problem, LVHBA(), start=Point(known.x, known.y, known.multipliers), max_steps=0)
    assert warm.state.z.tolist() == pytest.approx([-np.sqrt(60)])  # of the row of length sqrt(3n)


# -- v ----------------------------------------------------------------------------------------------------------------------
def setting(one):
    oracle = one.oracle()
    set = coupled(oracle, 1e3)
    x, y, z = t(RNG.standard_normal(2)), t(RNG.standard_normal(4)), t(np.abs(RNG.standard_normal(3)))

    def v(x, y, z):
        at = Vec.of(x), Vec.of(y), z
        return lower_value(oracle, set.rows, (0.7, 1.3), LBFGS(), at, Saddle(at[1], at[1], None), 1e-12, 1000)

    return oracle, set, (x, y, z), v


def test_v_against_cvxpy():
    """The saddle by duality: max over la >= 0 of la'c - |la - z|^2 / (2 gamma2) as a function of th."""
    _, set, (x, y, z), v = setting(problem())
    found = v(x, y, z)
    scale = set.rows.scale.numpy()
    th = cp.Variable(4)
    c = cp.multiply(scale, A @ th + B @ x.numpy() - b)
    proximal = cp.sum_squares(cp.pos(z.numpy() + 1.3 * c)) / 2.6 - np.sum(z.numpy() ** 2) / 2.6
    g = 0.5 * cp.sum_squares(th - P @ x.numpy()) + 0.25 * cp.sum(cp.power(th, 4))
    goal = cp.Problem(cp.Minimize(g + proximal + cp.sum_squares(th - y.numpy()) / 1.4))
    goal.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert found.lagrangian + found.rest == pytest.approx(goal.value, abs=1e-8)
    np.testing.assert_allclose(found.saddle.theta.tree().numpy(), th.value, atol=1e-5)


def test_gradients_of_v_and_of_the_penalised_gap():
    oracle, set, (x, y, z), v = setting(problem())
    w, h = torch.cat([x, y, z]), 1e-5

    def parts(w):
        return w[:2], w[2:6], w[6:]

    def value(w):
        found = v(*parts(w))
        return found.lagrangian + found.rest

    def phi(w):
        u, s, q = parts(w)
        at = Vec.of(u), Vec.of(s), q
        return penalised_gap(oracle, set.rows, (0.7, 1.3), LBFGS(), at, Saddle(at[1], at[1], None), 5.0, 1e-12, 1000)

    found, gap = v(x, y, z), phi(w)
    ours = torch.cat([found.x.ravel(), found.y.ravel(), found.z])
    also = torch.cat([gap.x.ravel(), gap.y.ravel(), gap.z])
    for i in range(9):
        e = torch.eye(9, dtype=F64)[i] * h
        assert float(ours[i]) == pytest.approx((value(w + e) - value(w - e)) / (2 * h), abs=1e-7)
        assert float(also[i]) == pytest.approx((phi(w + e).value - phi(w - e).value) / (2 * h), abs=1e-7)


def test_the_gap_vanishes_at_lower_solutions_only():
    oracle, set, (x, *_), v = setting(problem())
    y, mu = lower_solution(0.1 * x.numpy())
    z = t(mu) / set.rows.scale
    at = Vec.of(0.1 * x), Vec.of(t(y)), z
    assert float(oracle.g.value(at[:2])) - v(0.1 * x, t(y), z).lagrangian == pytest.approx(0, abs=1e-6)
    away = t(y) - 0.1
    found = v(0.1 * x, away, z)
    assert float(oracle.g.value((at[0], Vec.of(away)))) - found.lagrangian - found.rest > 1e-3


def test_lower_solutions_against_cvxpy():
    oracle, set, _, _ = setting(problem())
    for x in RNG.standard_normal((3, 2)) * 0.3:
        start = Vec.of(t(np.zeros(4)))
        found = solve_constrained_lower(oracle, set.rows, Vec.of(t(x)), start, torch.zeros(3, dtype=F64), 1e-9, method=LBFGS())
        y, mu = lower_solution(x)
        assert found.residual <= 1e-9
        np.testing.assert_allclose(found.y.tree().numpy(), y, atol=1e-6)
        np.testing.assert_allclose(set.rows.report(found.multipliers).lower["inequality"].numpy(), mu, atol=1e-5)


# -- the coupled set --------------------------------------------------------------------------------------------------------
def test_which_set_is_read_off():
    def kind(**changed):
        return type(coupled(problem(**changed).oracle(), 1e3).C).__name__

    def row(x, y):
        return x.sum() + 2 * y.sum() - 1

    assert kind() == Polyhedron.__name__
    assert kind(lower_inequality=row) == Halfspace.__name__
    assert kind(lower_inequality=None, lower_equality=row) == Affine.__name__
    assert kind(lower_inequality=None, lower_equality=row, X=Box(0.0, 1.0)) == BoxHyperplane.__name__
    assert kind(lower_inequality=row, X=Ball(1.0)) == Polyhedron.__name__
    assert kind(lower_inequality=lambda x, y: (y**2).sum() - 1) == "Curved"


def test_points_of_the_set_satisfy_everything():
    for one in (problem(), problem(X=Box(-0.1, 0.1)), problem(lower_equality=lambda x, y: y[0] - x[0], X=Ball(0.5))):
        oracle = one.oracle()
        set = coupled(oracle, 1e3)
        for u in t(RNG.standard_normal((4, 6))):
            x, y = set.pair.split(set.C.project(Vec.of(u)).leaves[0])
            assert float(oracle.constraints["lower_inequality"].value((x, y)).max()) <= 1e-9
            assert float(oracle.X.distance(x)) <= 1e-9


def test_the_jacobian():
    oracle = problem().oracle()
    J = jacobian(oracle.constraints["lower_inequality"], Vec.of(t(np.ones(2))), Vec.of(t(np.ones(4))))
    np.testing.assert_allclose(J.toarray(), np.c_[B, A], atol=1e-15)


# -- residuals --------------------------------------------------------------------------------------------------------------
def kkt_point(x):
    y, mu = lower_solution(x)
    return Point(t(x), t(y), Multipliers(lower={"inequality": t(mu)}))


@pytest.mark.parametrize("given", [True, False])
def test_lower_and_upper_residuals(given):
    """`upper` against central differences of cvxpy's hyper-objective, with the solver's multipliers or the best ones."""
    x, h = np.array([0.2, -0.1]), 1e-4
    at = kkt_point(x)
    found = problem().residuals(at if given else Point(at.x, at.y))

    def phi(x):
        y, _ = lower_solution(x)
        return 0.5 * np.sum((y - a) ** 2) + 0.5 * np.sum(x**2)

    slope = [(phi(x + h * e) - phi(x - h * e)) / (2 * h) for e in np.eye(2)]
    assert found["lower"] <= 1e-6
    assert found["upper"] == pytest.approx(np.linalg.norm(slope), rel=1e-4)
    assert found["constraints"] <= 1e-9


def test_a_point_that_is_no_lower_solution():
    at = kkt_point(np.array([0.2, -0.1]))
    assert problem().residuals(Point(at.x, at.y - 0.1))["lower"] > 1e-2
    wrong = Multipliers(lower={"inequality": at.multipliers.lower["inequality"] + 1.0})
    assert problem().residuals(Point(at.x, at.y, wrong))["lower"] > 0.1
    assert problem().certify(Point(at.x, at.y))["lower_gap"] <= 1e-8
    assert problem().certify(Point(at.x, at.y - 0.1))["lower_gap"] > 1e-3


def test_optimism_of_the_merely_convex_problem():
    """y2 may be any point with the right sum: the solution's is the one that f prefers."""
    (known,) = llc(n=4).solution
    shifted = known.y + t([0, 0, 0, 0, 0.1, -0.1, 0, 0])
    at_best, away = (llc(n=4).problem.residuals(Point(known.x, y)) for y in (known.y, shifted))
    assert max(at_best.values()) <= 1e-9
    assert away["lower"] <= 1e-9
    assert away["optimism"] == pytest.approx(0.1 * np.sqrt(2), rel=1e-6)


def test_without_second_derivatives_it_says_so():
    own = Function.numpy(lambda x, y: A @ y + B @ x - b, vjp=lambda x, y, w: (B.T @ w, A.T @ w))
    with pytest.raises(Unsuitable, match="second derivatives"):
        problem(lower_inequality=own).residuals(Point(t(np.zeros(2)), t(np.zeros(4))))


def test_lower_constraints_that_nothing_satisfies_are_named():
    problem = BilevelProblem(
        upper=lambda x, y: ((y - 1) ** 2).sum() + x**2,
        lower=lambda x, y: ((y - x) ** 2).sum(),
        x=torch.tensor(0.3, dtype=torch.float64),
        y=torch.zeros(2, dtype=torch.float64),
        lower_inequality=lambda x, y: torch.stack([y.sum() - 1, 3 - y.sum()]),
    )
    with pytest.raises(ProblemError, match="lower_inequality: expected constraints that some x of X and y of Y satisfy"):
        solve(problem)
