"""The same answers on a CUDA device: run with `pytest -m gpu` where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bilevel
import constrained
from problems import cutest, hyper_cleaning, logistic, logistic_penalties, poisson_control, quadratic

ROOT = Path(__file__).parents[1]
BLOCKS = (bilevel.AllBlocks(), bilevel.LISA(layers=1))
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


@pytest.mark.parametrize(("size", "kind"), [("1.3B", "all"), ("7B", "lisa")])
def test_large_decoders_fit_and_step_as_reported(size, kind, tmp_path: Path):
    """One GPU of 140 GB: a step of ScaleBiO fits, and its peak is the report's within 10 %. Ratios are printed."""
    command = [
        sys.executable,
        "benchmarks/gpu.py",
        "--sizes",
        size,
        "--kinds",
        "plain",
        kind,
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    row = json.loads((tmp_path / "out.json").read_text())["training"][1]
    assert row["kind"] == kind
    assert row.get("fits", True)
    assert abs(row["peak"] / row["report"] - 1) <= 0.1


def test_lisa_needs_less_memory_than_all_blocks():
    from problems import ZOO

    make = ZOO["reweighting-lm"]
    reports = [bilevel.memory(make(device="cuda").problem, bilevel.ScaleBiO(blocks=blocks)) for blocks in BLOCKS]
    assert reports[1].total < reports[0].total


def test_bf16_learns_the_weights_of_float32():
    from problems import ZOO

    make = ZOO["reweighting-lm"]
    weights = []
    for precision in (None, torch.bfloat16):
        instance = make(device="cuda", precision=precision)
        weights.append(bilevel.solve(instance.problem, bilevel.ScaleBiO(), max_steps=300).state.weights.cpu())
    assert float((weights[0] - weights[1]).abs().max()) <= 0.05


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path):
    problem, solver = quadratic(device="cuda", noise=0.01).problem, bilevel.PenaltySGD(gamma=0.5)
    whole = bilevel.solve(problem, solver, max_steps=40)
    bilevel.solve(problem, solver, max_steps=20, callbacks=[bilevel.Checkpoint(tmp_path / "run.pt")])
    again = bilevel.solve(
        problem, solver, max_steps=40, callbacks=[bilevel.Checkpoint(tmp_path / "other.pt")], resume=tmp_path / "run.pt"
    )
    assert torch.equal(whole.x, again.x)


@pytest.mark.parametrize("name", ["HS71", "HS39", "HS78"])
def test_many_starts_side_by_side(name):
    instance = cutest(name=name, device="cuda")
    X = instance.problem.x + 0.1 * torch.randn(64, len(instance.problem.x), dtype=torch.float64).cuda()
    found = constrained.solve_many(instance.problem, X)
    assert found.x.is_cuda
    assert bool(found.success.all())
    assert not any(result.notes for result in found)
    host = constrained.solve_many(cutest(name=name).problem, X.cpu())
    assert torch.allclose(found.x.cpu(), host.x, atol=1e-6)
    assert max(float(one.max()) for one in found.residuals().values()) <= 1e-8
