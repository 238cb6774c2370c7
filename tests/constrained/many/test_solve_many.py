"""Many starts, many problems: closed forms, published optima, each lane's residual, and what cannot go side by side."""

import math

import numpy as np
import pytest
import torch

import constrained
from constrained import Box, ConstrainedProblem, Function, InteriorPoint, Multipliers, Point, Status, solve, solve_many
from constrained.core.deadline import OutOfTime
from constrained.core.derivatives import lanes
from constrained.many import newton
from constrained.many import starts as starts_module
from constrained.many.newton import Factors
from problems.cutest import CUTEST, HS_INEQUALITY, cutest

F64 = torch.float64
DEFINITIONS = {**CUTEST, **HS_INEQUALITY}


def starts(problem, count, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moved = problem.x + spread * torch.randn(count, *problem.x.shape, generator=generator, dtype=F64)
    return torch.cat([problem.x[None], moved[1:]])


def side_by_side(found):
    return not any("one after another" in note for result in found for note in result.notes)


@pytest.mark.parametrize("name", ["HS6", "HS26", "HS39", "HS78", "HS71", "HS43", "HS35", "HS65", "HS113", "HS21"])
@pytest.mark.parametrize("way", [Factors.pivoted, Factors.spectral])
def test_published_optima(monkeypatch, name, way):
    monkeypatch.setattr(Factors, "of", way)
    instance = cutest(name=name)
    found = solve_many(instance.problem, starts(instance.problem, 6, 0.1))
    assert side_by_side(found)
    assert bool(found.success.all())
    optimum = DEFINITIONS[name].optimum
    assert found.fun.numpy() == pytest.approx(optimum, abs=1e-6 * (1 + abs(optimum)))
    for result in found:
        assert max(result.residuals().values()) <= 1e-8
        assert result.fun == pytest.approx(result.problem.fun(result.point), rel=1e-12)


@pytest.mark.parametrize("name", ["HS71", "HS39", "HS100", "HS80"])
def test_each_lane_goes_the_way_of_a_run_alone(name):
    problem = cutest(name=name).problem
    X = starts(problem, 8, 1.0)
    found, alone = solve_many(problem, X), [solve(problem, start=Point(x)) for x in X]
    assert found.statuses == tuple(one.status for one in alone)
    for many, one in zip(found, alone):
        assert torch.allclose(many.x, one.x, atol=1e-6)
        assert abs(many.steps - one.steps) <= 3


def test_bounds_equalities_and_multipliers():
    # min |x - p|^2 on the simplex: the projection, whose multiplier of the sum says how far entries were moved.
    def projection(p):
        return ConstrainedProblem(
            objective=lambda x: 0.5 * ((x - p) ** 2).sum(), equality=lambda x: x.sum() - 1, x=0 * p + 0.2, X=Box(low=0)
        )

    P = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = solve_many(projection, parameters=P)
    assert side_by_side(found)
    assert bool(found.success.all())
    for p, result in zip(P, found):
        exact = constrained.Simplex().project(constrained.Vec.of(p)).tree()
        assert torch.allclose(result.x, exact, atol=1e-7)
        moved = result.x > 1e-6
        assert torch.allclose(p[moved] - exact[moved], result.multipliers.equality.expand(int(moved.sum())), atol=1e-6)
        assert max(result.residuals().values()) <= 1e-8


def test_trees_with_parameters_of_their_own():
    def problem(p):
        return ConstrainedProblem(
            objective=lambda t: ((t["a"] - p["a"]) ** 2).sum() + t["b"] ** 2,
            inequality=lambda t: p["least"] - t["b"],
            x={"a": torch.ones(2, dtype=F64), "b": torch.ones((), dtype=F64)},
        )

    p = {"a": torch.arange(6, dtype=F64).reshape(3, 2), "least": torch.tensor([1.0, 2.0, 3.0], dtype=F64)}
    first = {"a": torch.zeros(3, 2, dtype=F64), "b": torch.zeros(3, dtype=F64)}
    for given in (None, first):
        found = solve_many(problem, given, parameters=p)
        assert side_by_side(found)
        assert torch.allclose(found.x["a"], p["a"], atol=1e-7)
        assert torch.allclose(found.x["b"], p["least"], atol=1e-7)
        assert torch.allclose(torch.stack([r.multipliers.inequality[0] for r in found]), 2 * p["least"], atol=1e-6)


@pytest.mark.parametrize(
    "given", [torch.randn(4, 3), np.random.default_rng(0).normal(size=(4, 3)), [torch.zeros(3), torch.ones(3)]]
)
def test_float32_arrays_and_lists(given):
    problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), equality=lambda x: x.sum() - 1, x=torch.zeros(3))
    found = solve_many(problem, given)
    assert len(found) == len(given)
    assert found.x.dtype == torch.float32
    assert torch.allclose(found.x, torch.full_like(found.x, 1 / 3), atol=1e-4)


def test_bounds_that_differ_and_are_not_finite_alike():
    # Entries that X fixes, and one side bounded or both: of each lane its own problem.
    kinds = [Box(0, 1), Box(low=0.5), Box(low=[0.25, -math.inf], high=[0.25, 0.75]), Box()]
    chosen = iter(kinds * 2)

    def problem(p):  # bounds from outside, another at each call: no function of p
        return ConstrainedProblem(
            objective=lambda x: ((x - p) ** 2).sum(), x=torch.full((2,), 0.3, dtype=F64), X=next(chosen, Box())
        )

    P = torch.tensor([[2.0, -1.0]] * 4, dtype=F64)
    found = solve_many(problem, parameters=P)
    assert side_by_side(found)
    exact = torch.stack([X.project(constrained.Vec.of(p)).tree() for X, p in zip(kinds, P)])
    assert torch.allclose(found.x, exact, atol=1e-7)


def test_a_start_that_is_not_finite_ends_alone():
    problem = ConstrainedProblem(objective=lambda x: x[0] - x[0].log() + x[1] ** 2, x=torch.ones(2, dtype=F64))
    found = solve_many(problem, torch.tensor([[-1.0, 0.0], [1.0, 2.0], [3.0, 1.0]], dtype=F64))
    assert found.statuses == (Status.NONFINITE, Status.CONVERGED, Status.CONVERGED)
    assert found[0].x.tolist() == [-1.0, 0.0]
    assert torch.allclose(found.x[1:], torch.tensor([1.0, 0.0], dtype=F64), atol=1e-7)
    assert found.best().fun == pytest.approx(1.0)
    with pytest.raises(constrained.NonFiniteStart, match="objective"):
        solve_many(problem, torch.full((2, 2), -1.0, dtype=F64))


def test_true_verdicts():
    line = torch.ones(2, dtype=F64)
    unbounded = ConstrainedProblem(objective=lambda x: x[0] + x[1] ** 2, equality=lambda x: x[1:] - 2, x=line)
    infeasible = ConstrainedProblem(objective=lambda x: x[0], equality=lambda x: x[:1] ** 2 + 1, x=line)
    degenerate = cutest(name="HS13").problem  # no multipliers at its solution
    cases = {Status.UNBOUNDED: unbounded, Status.LOCALLY_INFEASIBLE: infeasible}
    for status, problem in cases.items():
        assert set(solve_many(problem, starts(problem, 3, 0.3)).statuses) == {status}
    assert Status.CONVERGED not in solve_many(degenerate, starts(degenerate, 2, 0.1)).statuses


def branch(x):
    return (x**2).sum() if float(x.detach()[0]) > -100 else x.sum()


@pytest.mark.parametrize(
    ("objective", "solver"),
    [
        (branch, None),
        (Function(lambda x: (x**2).sum(), gradient=lambda x: 2 * x), None),
        (Function.numpy(lambda x: (x**2).sum(), gradient=lambda x: 2 * x), None),
        (lambda x: (x**2).sum(), constrained.SketchedNewton()),
    ],
)
def test_what_cannot_go_side_by_side_is_solved_one_after_another(objective, solver):
    problem = ConstrainedProblem(objective=objective, equality=lambda x: x.sum() - 1, x=torch.zeros(3, dtype=F64))
    found = solve_many(problem, torch.randn(3, 3, dtype=F64), solver)
    assert not side_by_side(found)
    assert bool(found.success.all())
    assert torch.allclose(found.x, torch.full((3, 3), 1 / 3, dtype=F64), atol=1e-6)


def test_data_modules_and_families_with_data():
    batch, P = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64), torch.tensor([0.5, 2.0], dtype=F64)

    def problem(p):
        return ConstrainedProblem(
            objective=lambda x, rows: p * ((x - rows) ** 2).sum(),
            equality=lambda x: x[0] - p,
            x=torch.zeros(2, dtype=F64),
            data=constrained.FullBatch(batch),
        )

    found = solve_many(problem, parameters=P)
    assert side_by_side(found)
    assert torch.allclose(found.x, torch.stack([P, torch.full((2,), 3.0, dtype=F64)], 1), atol=1e-8)
    layer = torch.nn.Linear(2, 1, dtype=F64)

    def module(p):
        return ConstrainedProblem(objective=lambda net: ((net(batch) - p) ** 2).sum(), equality=lambda net: net.bias - p, x=layer)

    starts = {"weight": torch.randn(3, 1, 2, dtype=F64), "bias": torch.randn(3, 1, dtype=F64)}
    one, many = solve_many(module(1.0), starts), solve_many(module, parameters=P)
    assert side_by_side(one)
    assert not side_by_side(many)
    for found, biases in ((one, [1.0] * 3), (many, P.tolist())):
        assert bool(found.success.all())
        assert found.x["bias"][:, 0].tolist() == pytest.approx(biases, abs=1e-8)
        assert float(found.x["weight"].abs().max()) <= 1e-7


def test_bounds_that_fix_every_entry():
    problem = ConstrainedProblem(objective=lambda x: (x**2).sum(), x=torch.ones(2, dtype=F64), X=Box(1.0, 1.0))
    found = solve_many(problem, torch.zeros(2, 2, dtype=F64))
    assert not side_by_side(found)
    assert torch.equal(found.x, torch.ones(2, 2, dtype=F64))


def test_large_systems_are_solved_one_after_another_and_larger_ones_side_by_side(monkeypatch):
    x = torch.zeros(60, dtype=F64)
    problem = ConstrainedProblem(objective=lambda x: ((x - 2) ** 4).sum() - (x[1:] * x[:-1]).sum(), x=x, X=Box(-1, 1))
    X = torch.rand(3, 60, dtype=F64)
    one = solve_many(problem, X)  # beyond BATCHED unknowns: batched backwards
    assert side_by_side(one)
    monkeypatch.setattr(newton, "ROOM", 0)
    two = solve_many(problem, X)
    monkeypatch.setattr(starts_module, "ROOM", 0)
    three = solve_many(problem, X)
    assert not side_by_side(three)
    for found in (one, two, three):
        assert bool(found.success.all())
        assert torch.allclose(found.x, torch.ones_like(X), atol=1e-6)


def test_limits():
    problem = cutest(name="HS71").problem
    X = starts(problem, 4, 0.1)
    for steps in (0, 3):
        found = solve_many(problem, X, max_steps=steps)
        assert found.statuses == (Status.MAX_STEPS,) * 4
        assert [one.steps for one in found] == [steps] * 4
    late = solve_many(problem, X, max_seconds=0)
    assert late.statuses == (Status.MAX_SECONDS,) * 4
    assert torch.equal(late.x[0], problem.x)


@pytest.mark.parametrize("name", ["HS71", "HS39", "HS26"])
@pytest.mark.parametrize("calls", [3, 20, 60, 140])
@pytest.mark.parametrize("status", [Status.STOPPED, Status.MAX_SECONDS])
def test_wherever_a_run_is_broken_off_each_lane_has_an_answer(monkeypatch, name, calls, status):
    """By Ctrl-C, and by the clock, before the n-th call of the functions for all lanes."""
    problem, left, broken = cutest(name=name).problem, iter(range(calls)), []

    def look():
        if next(left, None) is None and not broken:
            broken.append(True)
            raise KeyboardInterrupt if status is Status.STOPPED else OutOfTime

    monkeypatch.setattr(lanes, "look", look)
    found = solve_many(problem, starts(problem, 12, 1.0), InteriorPoint())
    assert len(found) == 12
    assert set(found.statuses) <= {status, Status.CONVERGED}
    assert not broken or calls > 35 or status in found.statuses
    assert bool(found.x.isfinite().all())
    assert all(max(one.residuals().values()) <= 1e-8 for one in found if one.success)


def test_warm_starts_take_few_steps():
    problem = cutest(name="HS71").problem
    cold = solve_many(problem, starts(problem, 5, 0.5))
    warm = solve_many(problem, cold)
    points = solve_many(problem, [Point(one.x + 1e-3, None, one.multipliers) for one in cold])
    assert bool(warm.success.all())
    assert bool(points.success.all())
    assert max(one.steps for one in warm) <= 3 < min(one.steps for one in cold)
    assert max(one.steps for one in points) < min(one.steps for one in cold)
    other = [Point(one.x, None, Multipliers(equality=torch.ones(1, dtype=F64))) for one in cold]  # rows are missing
    assert bool(solve_many(problem, other).success.all())


def test_counts_and_numbers_of_all():
    problem = cutest(name="HS71").problem
    found = solve_many(problem, starts(problem, 3, 0.1), tol=1e-6)
    assert len(found) == len(list(found)) == 3
    assert found[0].calls.hessians >= found[0].steps > 0
    assert found[0].solver == InteriorPoint(tol=1e-6)
    assert set(found.residuals()) == {"stationarity", "feasibility", "complementarity"}
    assert max(float(one.max()) for one in found.residuals().values()) <= 1e-6
    assert found.best() is found[int(found.fun.argmin())]
    assert repr(found).startswith("Results: 3 CONVERGED; ")
    assert found[1:] == (found[1], found[2])


def nearest(p):
    return ConstrainedProblem(objective=lambda x: ((x - p) ** 2).sum(), x=0 * p)


ONE = ConstrainedProblem(objective=lambda x: (x**2).sum(), x=torch.zeros(2, dtype=F64))
OK = torch.ones(3, 2, dtype=F64)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((ONE,), {}, r"starts: expected .* got None"),
        ((ONE, []), {}, "starts: expected .* got "),
        ((ONE, "ab"), {}, "starts: expected .* got 'ab'"),
        ((ONE, [1, 2]), {}, r"starts\[0\]: expected"),
        ((ONE, torch.ones(2, dtype=F64)), {}, r"starts\[0\]: expected \[2\]"),
        ((ONE, torch.ones(0, 2, dtype=F64)), {}, "starts: expected .* length >= 1"),
        ((ONE, torch.ones(3, 3, dtype=F64)), {}, r"starts\[0\]: expected \[2\] .* got \[3\]"),
        ((ONE, torch.ones(3, 2)), {}, r"starts\[0\]: expected .*float64 .* got .*float32"),
        ((ONE, torch.tensor([[0.0, 0.0], [math.nan, 0.0]], dtype=F64)), {}, r"starts\[1\]: NaN"),
        ((ONE, OK.to("meta")), {}, r"starts\[0\]: expected .* got .*meta"),
        ((ONE, [OK[0], {"a": OK[0]}]), {}, r"starts\[1\]: expected"),
        ((ONE, OK), {"parameters": OK}, "parameters: expected None"),
        ((3, OK), {}, "problem: expected a ConstrainedProblem .* got 3"),
        ((nearest,), {}, "parameters: expected .* got None"),
        ((nearest, OK), {"parameters": OK[:2]}, "starts: expected one for each of 2"),
        ((nearest,), {"parameters": {"a": OK, "b": OK[:2]}}, "parameters: expected leaves with one leading axis"),
        ((lambda p: p,), {"parameters": OK}, "problem: expected a function that returns a ConstrainedProblem"),
        ((ONE, OK, InteriorPoint), {}, "solver: expected a Solver"),
        ((ONE, OK), {"tol": -1.0}, "tol: "),
        ((ONE, OK), {"max_steps": -1}, "max_steps: "),
        ((ONE, OK), {"max_seconds": "a"}, "max_seconds: "),
    ],
)
def test_bad_arguments_are_named(arguments, options, words):
    with pytest.raises((constrained.ProblemError, constrained.OptionError), match=words):
        solve_many(*arguments, **options)


def test_a_lost_derivative_is_refused():
    lost = ConstrainedProblem(objective=lambda x: (x**2).sum() + (3 * x.detach()).sin().sum(), x=torch.ones(2, dtype=F64))
    with pytest.raises(constrained.ProblemError, match="derivatives"):
        solve_many(lost, OK)


def test_it_tells_what_solve_tells():
    """Multipliers of bounds, saddles, solutions without multipliers."""
    x = torch.tensor([[0.3, 0.2], [0.4, 0.9]], dtype=F64)
    boxed = ConstrainedProblem(objective=lambda x: (x**2).sum() + x[1], x=x[0], X=Box(0.1, 1.0))
    for one, many in zip((solve(boxed, start=Point(start)) for start in x), solve_many(boxed, x)):
        torch.testing.assert_close(many.multipliers.low, one.multipliers.low, rtol=0, atol=1e-6)
        assert not many.multipliers.high.any()
    saddle = ConstrainedProblem(objective=lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4, x=x[0])
    told = solve_many(saddle, torch.tensor([[1.0, 0.0], [1.0, 0.5]], dtype=F64))
    assert [any("no minimum" in note for note in result.notes) for result in told] == [True, False]
    without = ConstrainedProblem(objective=lambda x: x, equality=lambda x: x**2, x=torch.ones((), dtype=F64))
    assert set(solve_many(without, torch.tensor([1.0, 2.0], dtype=F64)).statuses) == {Status.DEGENERATE}
