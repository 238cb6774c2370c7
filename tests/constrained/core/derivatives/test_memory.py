"""What a run remembers: each point costs one call of each function, and nothing else changes."""

import dataclasses

import pytest
import torch

import bilevel
import constrained
from bilevel import MAID, Implicit
from constrained.core.derivatives.memory import SMALL, Memory
from constrained.core.vec import Vec
from problems import lasso, pl_toy, quadratic, ridge_1
from problems.cutest import cutest

F64 = torch.float64


def counting(problem, *names):
    """The problem with its functions wrapped: calls by name, and the points that they were asked at."""
    calls, points = dict.fromkeys(names, 0), {name: set() for name in names}

    def wrapped(name):
        own = getattr(problem, name)

        def call(*args):
            calls[name] += 1
            points[name].add(b"".join(arg.detach().numpy().tobytes() for arg in args))
            return own(*args)

        return call

    return dataclasses.replace(problem, **{name: wrapped(name) for name in names}), calls, points


@pytest.mark.parametrize("name", ["HS6", "HS28", "BT4"])
@pytest.mark.parametrize("solver", [None, constrained.SketchedNewton(), constrained.AugmentedLagrangian()])
def test_one_call_a_point_with_one_level(name, solver):
    problem, calls, points = counting(cutest(name=name).problem, "objective", "equality")
    assert constrained.solve(problem, solver).success
    for part in calls:
        assert calls[part] == len(points[part]) + 1  # the answer, by the solver and by the certificate


@pytest.mark.parametrize(("make", "solver"), [(quadratic, None), (quadratic, MAID()), (pl_toy, None), (ridge_1, Implicit())])
def test_few_calls_a_point_with_two_levels(make, solver):
    problem, calls, points = counting(make().problem, "upper", "lower")
    bilevel.solve(problem, solver)
    assert sum(calls.values()) <= 1.1 * sum(map(len, points.values()))


def test_calls_tell_the_true_number():
    """With a solver given, so that none is chosen by trying."""
    problem, calls, _ = counting(lasso().problem, "upper", "lower")
    by = bilevel.solve(problem, Implicit()).calls.by
    assert {"check", "solve", "certificate"} <= by.keys()
    for name, seen in calls.items():
        assert sum(one[name].values + one[name].gradients for one in by.values() if name in one) == seen


def remembering():
    problem = quadratic().problem
    problem, calls, _ = counting(problem, "upper", "lower")
    oracle = problem.oracle().remember()
    return oracle, calls, oracle.variables["x"], oracle.variables["y"]


def test_value_gradient_and_products_from_one_call():
    oracle, calls, x, y = remembering()
    plain = remembering()[0].g.at(x, y)
    value, (g_x, g_y) = oracle.g.value((x, y)), oracle.g.grad(x.clone(), y)
    at = oracle.g.at(x, y.clone())
    assert calls == {"upper": 0, "lower": 1}
    assert torch.equal(value, plain.value)
    for found, true in ((g_x, plain.x), (g_y, plain.y), (at.x, plain.x), (at.y, plain.y), (at.yy(y), plain.yy(y))):
        assert torch.equal(found.ravel(), true.ravel())


def test_a_point_that_moved_in_place_is_another():
    oracle, calls, x, y = remembering()
    before = float(oracle.g.value((x, y)))
    y.add_(y.map(torch.ones_like))
    assert float(oracle.g.value((x, y))) != before
    assert calls["lower"] == 2


def test_a_step_knows_only_what_it_asked():
    oracle, calls, x, y = remembering()
    oracle.g.value((x, y))
    oracle.memory.step_begins(with_graphs=False)
    oracle.g.value((x, y))
    assert calls["lower"] == 2
    oracle.memory.step_begins(with_graphs=False)
    with oracle.calls.counting("certificate"):
        oracle.g.value((x, y))
    assert calls["lower"] == 2


def test_large_points_are_not_remembered():
    memory, large = Memory(remembering()[0].calls), Vec.of(torch.zeros(SMALL + 1, dtype=F64))
    assert memory.key("lower", (large,)) is None


def test_nothing_is_remembered_between_runs():
    """What a function holds may change meanwhile."""
    shift = torch.zeros(2, dtype=F64)
    problem = constrained.ConstrainedProblem(objective=lambda x: ((x - shift) ** 2).sum(), x=torch.ones(2, dtype=F64))
    assert constrained.solve(problem).success
    shift += 3.0
    torch.testing.assert_close(constrained.solve(problem).x, shift)


@pytest.mark.parametrize("two", [False, True])
def test_what_is_certified_is_asked_anew(two, monkeypatch):
    """Not what the solver saw there: a function may say something else the next time."""
    answer, seen = [], []

    def f(*args):
        seen.append(b"".join(arg.detach().numpy().tobytes() for arg in args))
        return sum(((arg - 1) ** 2).sum() for arg in args)

    x = torch.zeros(2, dtype=F64)
    kind = bilevel.BilevelProblem if two else constrained.ConstrainedProblem
    certify = kind.certify

    def watched(self, point, *, by=None):
        answer[:] = [point, len(seen)]
        return certify(self, point, by=by)

    monkeypatch.setattr(kind, "certify", watched)
    if two:
        problem = bilevel.BilevelProblem(upper=f, lower=lambda x, y: ((y - x) ** 2).sum(), x=x, y=x)
    else:
        problem = constrained.ConstrainedProblem(objective=f, x=x)
    assert bilevel.solve(problem).success
    point, before = answer
    at = b"".join(v.numpy().tobytes() for v in (point.x, point.y) if v is not None)
    assert at in seen[before:]


def test_a_resumed_run_counts_as_one_that_was_not_stopped_where_nothing_is_remembered(tmp_path):
    """A module in training mode may say something else the next time."""
    problem = constrained.ConstrainedProblem(
        objective=lambda m: ((m.weight - 1) ** 4).sum() + (m.bias**2).sum(), x=torch.nn.Linear(2, 1).double()
    )

    def save(event):
        if not event.status.done:
            event.save(tmp_path / str(event.k))

    whole = constrained.solve(problem, constrained.InteriorPoint(), callbacks=[save], max_steps=4)
    assert len(list(tmp_path.iterdir())) >= 3
    for path in tmp_path.iterdir():
        resumed = constrained.solve(problem, constrained.InteriorPoint(), resume=path, max_steps=4)
        assert resumed.calls.by["solve"] == whole.calls.by["solve"]
        assert torch.equal(resumed.x["weight"], whole.x["weight"])
