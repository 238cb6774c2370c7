"""The same answers on a CUDA device: run with `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch

import bilevel
import constrained
from problems import cutest, hyper_cleaning, logistic, logistic_penalties, poisson_control, quadratic

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("arguments", [{}, {"rank": 12}, {"rank": 12, "flat": True}])
def test_penalty_finds_the_closed_form(arguments):
    instance = quadratic(device="cuda", **arguments)
    result = bilevel.solve(instance.problem, tol=1e-3 if arguments == {"rank": 12} else 1e-5)
    assert result.status is bilevel.Status.CONVERGED
    assert result.x.is_cuda
    assert instance.error(result.x) <= 1e-3


def test_hypergradient_equals_the_one_on_the_host():
    found = [
        bilevel.hypergradient(quadratic(device=d).problem, torch.ones(10, dtype=torch.float64, device=d)) for d in ("cpu", "cuda")
    ]
    assert all(one.status is bilevel.Status.CONVERGED for one in found)
    assert torch.allclose(found[0].value, found[1].value.cpu(), rtol=1e-8)


def test_implicit_differentiation_takes_the_same_path():
    ends = [bilevel.solve(logistic_penalties(device=d).problem, bilevel.Implicit(), tol=1e-4) for d in ("cpu", "cuda")]
    assert all(end.status is bilevel.Status.CONVERGED for end in ends)
    assert ends[1].x.is_cuda
    assert ends[0].fun == pytest.approx(ends[1].fun, rel=1e-4)


NEWTON = {
    "HS78": (lambda d: cutest(name="HS78", device=d), constrained.SketchedNewton()),
    "HS40, sketches": (
        lambda d: cutest(name="HS40", device=d),
        constrained.SketchedNewton(linear_solver=constrained.Sketch()),
    ),
    "poisson": (lambda d: poisson_control(N=16, device=d), constrained.SketchedNewton()),
    "logistic": (lambda d: logistic(data="synthetic", n=400, N=800, sphere=False, device=d), constrained.SketchedNewton()),
}


@pytest.mark.parametrize("name", NEWTON)
def test_newton_agrees_with_the_host(name):
    """The same optimum and multipliers, within the tolerance of the residuals."""
    make, solver = NEWTON[name]
    found = [constrained.solve(make(d).problem, solver, start=make(d).start) for d in ("cpu", "cuda")]
    assert all(one.status is bilevel.Status.CONVERGED for one in found)
    here, there = (constrained.Vec.of(one.x).ravel().cpu() for one in found)
    assert torch.allclose(here, there, rtol=1e-6, atol=1e-7)
    assert torch.allclose(found[0].multipliers.equality, found[1].multipliers.equality.cpu(), rtol=1e-5, atol=1e-6)


def test_mini_batches_are_the_same_rows_on_every_device():
    results = [
        bilevel.solve(hyper_cleaning(device=d).problem, bilevel.PenaltySGD(sigma=10.0, gamma=1.0), max_steps=20)
        for d in ("cpu", "cuda")
    ]
    assert torch.allclose(results[0].y["weight"], results[1].y["weight"].cpu(), rtol=1e-6, atol=1e-9)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path):
    problem, solver = quadratic(device="cuda", noise=0.01).problem, bilevel.PenaltySGD(gamma=0.5)
    whole = bilevel.solve(problem, solver, max_steps=40)
    bilevel.solve(problem, solver, max_steps=20, callbacks=[bilevel.Checkpoint(tmp_path / "run.pt")])
    again = bilevel.solve(
        problem, solver, max_steps=40, callbacks=[bilevel.Checkpoint(tmp_path / "other.pt")], resume=tmp_path / "run.pt"
    )
    assert torch.equal(whole.x, again.x)
