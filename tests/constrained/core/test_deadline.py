"""Limits bind inside steps, minimisations and certificates. The clock of these tests goes on by a second with each call of a
user's function, so that nothing depends on the machine.
"""

from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from bilevel import MAID, VPBGD, BilevelProblem, BORep, Box, Implicit, Penalty, Status, iterate, solve
from bilevel.solvers import LVHBA
from constrained import SLSQP, AugmentedLagrangian, ConstrainedProblem, Ipopt, Pounce, SketchedNewton, TrustConstr, Uno
from constrained.core import deadline, running
from constrained.core.deadline import OutOfTime, look, within

F64 = torch.float64
A = torch.randn(30, 8, generator=torch.Generator().manual_seed(0), dtype=F64) * torch.logspace(0, 2, 8, dtype=F64)
b = A.sum(1)


class Clock:
    """Calls so far. interrupt: the call that is Ctrl-C."""

    def __init__(self, interrupt=None):
        self.calls, self.interrupt = 0, interrupt

    def counted(self, function):
        def call(*args):
            self.calls += 1
            if self.calls == self.interrupt:
                raise KeyboardInterrupt
            return function(*args)

        return call


def upper(x, w):
    return ((A[15:] @ w - b[15:]) ** 2).mean()


def lower(x, w):
    return ((A[:15] @ w - b[:15]) ** 2).mean() + (x.exp() * w**2).sum() + torch.cos(3 * w).sum()


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1 - x) ** 2).sum()


def two_levels(clock, **more):
    zeros = torch.zeros(8, dtype=F64)
    return BilevelProblem(upper=clock.counted(upper), lower=clock.counted(lower), x=zeros, y=zeros, **more)


def coupled(clock):
    return two_levels(clock, lower_inequality=lambda x, y: (y.sum() - x.sum() - 0.5).reshape(1))


def in_space(clock, **constraint):
    return ConstrainedProblem(objective=clock.counted(rosenbrock), x=torch.full((8,), -1.5, dtype=F64), **constraint)


def ball(clock):
    return in_space(clock, inequality=lambda x: (x**2).sum().reshape(1) - 1)


def sphere(clock):
    return in_space(clock, equality=lambda x: (x**2).sum() - 1)


CASES = [
    (two_levels, Penalty()),
    (two_levels, VPBGD()),
    (two_levels, BORep()),
    (two_levels, MAID()),
    (two_levels, Implicit()),
    (coupled, LVHBA()),
    (ball, AugmentedLagrangian()),
    (ball, SLSQP()),
    (ball, TrustConstr()),
    (sphere, SketchedNewton()),
    (ball, Ipopt()),
    (ball, Pounce()),
    (ball, Uno()),
]
PACKAGES = {"Ipopt": "cyipopt", "Pounce": "pounce", "Uno": "unopy"}


def case(make, solver):
    name = type(solver).__name__
    missing = name in PACKAGES and find_spec(PACKAGES[name]) is None
    return pytest.param(make, solver, id=name, marks=[pytest.mark.skip(f"{name}: not installed")] * missing)


each = pytest.mark.parametrize(("make", "solver"), [case(*pair) for pair in CASES])


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (deadline, running):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(clock.calls)))
    return clock


@each
@pytest.mark.parametrize("seconds", [0, 3, 20])
def test_max_seconds_binds_inside_a_step(make, solver, seconds, clock):
    problem = make(clock)
    problem.begin(problem.oracle(), None)
    looks = clock.calls  # what is asked at every start, whatever the limit
    result = solve(problem, solver, max_seconds=seconds, max_steps=1000)
    assert result.status is Status.MAX_SECONDS
    assert clock.calls <= 2 * looks + 1.5 * seconds + 10  # half for answer and certificate, and a call that begins in time each
    assert bool(torch.as_tensor(result.x).isfinite().all())
    assert result.notes is not None
    assert str(result)


@each
def test_ctrl_c_wherever_it_comes(make, solver):
    clock = Clock()
    problem = make(clock)
    problem.begin(problem.oracle(), None)
    looks = clock.calls
    for call in (1, 2, 3, 5, 8, 13, 34):
        clock = Clock(interrupt=looks + call)
        result = solve(make(clock), solver, max_steps=3)
        assert (result.status is Status.STOPPED) == (clock.calls >= looks + call)
        assert bool(torch.as_tensor(result.x).isfinite().all())


def test_an_answer_in_time_keeps_its_certificate(clock):
    problem = BilevelProblem(
        upper=clock.counted(lambda x, y: ((y - 2) ** 2).sum() + (x**2).sum()),
        lower=clock.counted(lambda x, y: ((y - x) ** 2).sum()),
        x=torch.ones(1, dtype=F64),
        y=torch.ones(1, dtype=F64),
    )
    assert solve(problem, Implicit(), max_seconds=10_000).status is Status.CONVERGED


def test_a_claim_without_time_for_its_certificate_is_none(clock):
    """The solver takes a few calls, the certificate is made to take all of them."""
    problem = two_levels(clock)

    def slow(x):
        clock.calls += 10**6
        return torch.zeros(8, dtype=F64)

    object.__setattr__(problem, "lower_solution", slow)
    result = solve(problem, Implicit(), max_seconds=10**5, tol=1e-3)
    assert result.status is Status.MAX_SECONDS
    assert "no time was left for the certificate" in result.message


def test_what_was_certified_is_what_is_reported(clock, monkeypatch):
    """The certificate takes all that is left: the answer is not made anew without time."""
    problem = two_levels(clock)
    certify, certified = BilevelProblem.certify, []

    def slow(self, point, **by):
        found = certify(self, point, **by)
        clock.calls += 10**6
        certified.append(point)
        return found

    monkeypatch.setattr(BilevelProblem, "certify", slow)
    monkeypatch.setattr(BilevelProblem, "progress", lambda *_, **__: {})
    result = solve(problem, Penalty(), tol=1e-3, max_seconds=10**6)
    assert result.status is Status.CONVERGED
    assert torch.equal(result.x, certified[-1].x)
    assert torch.equal(result.y, certified[-1].y)


def test_without_time_for_an_answer_it_is_where_the_candidate_of_an_auto_stands(clock):
    problem = two_levels(clock)
    events = iterate(problem, max_seconds=10**5)
    run = next(events)._run
    while run.k < 2:
        next(events)
    run.judging = 10**5  # nothing is left of the share
    at = run.answer()
    assert torch.equal(at.x.leaves[0], run.state.inner.x.leaves[0])
    assert float((at.x - run.start.x).norm()) > 0


def test_iterate_ends_with_max_seconds(clock):
    events = list(iterate(two_levels(clock), Penalty(), max_seconds=0))
    assert [event.status for event in events] == [Status.MAX_SECONDS]
    assert events[0].monitor == {}
    assert events[0].answer.x.tolist() == [0.0] * 8


def test_limits_within_limits(clock):
    with within(5), within(None), within(100):
        clock.calls = 5
        look()
        clock.calls = 6
        with pytest.raises(OutOfTime):
            look()
    look()


def test_a_bound_in_a_projection(clock):
    """Contradictory rows project for long: the limit stops that too."""
    from constrained.polyhedron import Polyhedron

    S = Polyhedron([[1.0, 1.0], [-1.0, -1.0]], [1.0, 1.0], inside=Box(0.0, 1.0))
    clock.calls = 10
    with within(-1), pytest.raises(OutOfTime):
        S.project(torch_vec())


def torch_vec():
    from constrained.core.vec import Vec

    return Vec.of(torch.tensor([3.0, 4.0], dtype=F64))
