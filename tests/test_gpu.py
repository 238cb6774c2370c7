"""The same answers on a CUDA device: run with `pytest -m gpu` where there is one."""

from pathlib import Path

import pytest
import torch

import bilevel
from problems import hyper_cleaning, quadratic

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
