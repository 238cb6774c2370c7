"""The method of multipliers on mini-batches against solutions on all of the data, known in closed form or from cvxpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bilevel import Box, MiniBatches, Status
from constrained import AugmentedLagrangian, AugmentedLagrangianSGD, ConstrainedProblem, SketchedNewton, solve
from constrained.core.errors import OptionError, Unsuitable

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


A, C = normal(2000, 10), normal(3, 10, seed=1)
W = normal(10, seed=2)
B = A @ W + 0.5 * normal(2000, seed=3)


def regression(scale: float = 1.0, low: float | None = None, inequality: bool = False) -> ConstrainedProblem:
    """scale/2 mean (a'x - b)^2 on 2,000 rows in batches of 32, under C x = C max(W, low), x >= low."""
    d = C @ (W if low is None else W.clamp(min=low))
    return ConstrainedProblem(
        objective=lambda x, batch: 0.5 * scale * ((batch[0] @ x - batch[1]) ** 2).mean(),
        equality=lambda x: C @ x - d,
        x=torch.zeros(10, dtype=F64),
        data=MiniBatches((A, B), 32),
        **({} if low is None else {"inequality": lambda x: low - x} if inequality else {"X": Box(low)}),
    )


def quadratic_program(low: float) -> Tensor:
    cvxpy = pytest.importorskip("cvxpy")
    x, d = cvxpy.Variable(10), C @ W.clamp(min=low)
    rows = [C.numpy() @ x == d.numpy(), x >= low]
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(A.numpy() @ x - B.numpy())), rows).solve(solver="CLARABEL")
    return torch.tensor(x.value)


@pytest.mark.parametrize("scale", [100.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (1.0, 0.01))])
def test_regression_under_equalities(scale):
    """The KKT system in closed form, whatever the units of the objective: the step is measured."""
    K = torch.cat([torch.cat([A.T @ A / 2000, C.T], 1), torch.cat([C, torch.zeros(3, 3, dtype=F64)], 1)])
    truth = torch.linalg.solve(K, torch.cat([A.T @ B / 2000, C @ W]))
    result = solve(regression(scale), max_steps=4000)
    assert isinstance(result.solver, AugmentedLagrangianSGD)
    assert float((result.x - truth[:10]).norm()) <= 5e-3 * float(truth[:10].norm())
    assert result.residuals()["feasibility"] <= 5e-3
    assert result.status is Status.MAX_STEPS
    torch.testing.assert_close(result.multipliers.equality, scale * truth[10:], rtol=0, atol=0.02 * scale)


@pytest.mark.slow
def test_regression_in_a_box():
    result = solve(regression(low=0.0), AugmentedLagrangianSGD(), max_steps=8000)
    truth = quadratic_program(0.0)
    assert float((result.x - truth).norm()) <= 1e-2 * float(truth.norm())
    assert result.residuals()["feasibility"] <= 1e-3
    assert bool((result.x >= 0).all())


@pytest.mark.slow
def test_regression_under_inequalities():
    """The same bounds as inequalities have multipliers, and take longer to be known."""
    result = solve(regression(low=0.0, inequality=True), AugmentedLagrangianSGD(), max_steps=12_000)
    truth = quadratic_program(0.0)
    assert float((result.x - truth).norm()) <= 1e-2 * float(truth.norm())
    assert result.residuals()["feasibility"] <= 1e-3
    assert bool((result.multipliers.inequality >= 0).all())


def test_logistic_regression_in_a_ball():
    """|x|^2 <= 1 as a curved inequality, against the deterministic method on all rows and scipy."""
    optimize = pytest.importorskip("scipy.optimize")
    rows = normal(1000, 6, seed=4)
    labels = (rows @ normal(6, seed=5) + normal(1000, seed=6) > 0).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    problem = ConstrainedProblem(
        objective=lambda x, batch: loss(batch[0] @ x, batch[1]),
        inequality=lambda x: (x**2).sum() - 1,
        x=torch.zeros(6, dtype=F64),
        data=MiniBatches((rows, labels), 32),
    )
    result = solve(problem, AugmentedLagrangianSGD(), max_steps=4000)
    signs, X = 2 * labels.numpy() - 1, rows.numpy()
    ball = {"type": "ineq", "fun": lambda x: 1 - x @ x, "jac": lambda x: -2 * x}
    truth = optimize.minimize(
        lambda x: np.logaddexp(0, -signs * (X @ x)).mean(), np.zeros(6), constraints=ball, options={"ftol": 1e-14}
    ).x
    assert np.linalg.norm(result.x.numpy() - truth) <= 1e-2
    assert max(result.residuals().values()) <= 1e-2
    assert result.residuals()["feasibility"] <= 1e-3
    assert float(result.multipliers.inequality) > 0


def test_a_linear_objective():
    """Its curvature is 0, and the step comes from the penalty: the cheapest vertex of a simplex."""
    cost = torch.tensor([3.0, 1.0, 2.0], dtype=F64)
    noise = normal(64, 3)
    problem = ConstrainedProblem(
        objective=lambda x, batch: x @ (cost + batch.mean(0)),
        equality=lambda x: x.sum() - 1,
        x=torch.zeros(3, dtype=F64),
        X=Box(0.0, 1.0),
        data=MiniBatches(noise - noise.mean(0), 8),
    )
    result = solve(problem, AugmentedLagrangianSGD(), max_steps=4000)
    torch.testing.assert_close(result.x, torch.tensor([0.0, 1.0, 0.0], dtype=F64), rtol=0, atol=1e-2)


@pytest.mark.slow
def test_more_steps_are_more_accurate():
    truth = solve(regression(low=0.0).full_batch(), AugmentedLagrangian(), tol=1e-8).x
    errors = [float((solve(regression(low=0.0), max_steps=n).x - truth).norm()) for n in (500, 4000)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] <= 2e-2 * float(truth.norm())


def test_the_others_name_it():
    for solver in (SketchedNewton(), AugmentedLagrangian()):
        with pytest.raises(Unsuitable, match="mini-batches; AugmentedLagrangianSGD does"):
            solve(regression(), solver)
    with pytest.raises(OptionError, match="max_steps"):
        solve(regression())


def test_a_run_that_grows_is_diverged():
    """-|x|^2 has no minimum."""
    problem = ConstrainedProblem(
        objective=lambda x, batch: -(x**2).sum() + batch.mean(),
        equality=lambda x: x[0] - x[1],
        x=torch.ones(2, dtype=F64),
        data=MiniBatches(normal(64, 1), 8),
    )
    assert solve(problem, max_steps=20_000).status is Status.DIVERGED


@pytest.mark.parametrize("first", [5, 8, 12, 20])
def test_a_constraint_that_overflows_before_the_first_step(first):
    """Its curvature is infinite: the penalty is no ratio to it, which would be 0."""
    calls = 0

    def inequality(x):
        nonlocal calls
        calls += 1
        return x[0] - (math.inf if calls > first else 0.0)

    noise = normal(8, 1)
    problem = ConstrainedProblem(
        objective=lambda x, batch: (x**2).sum() + batch.mean(),
        inequality=inequality,
        x=torch.ones(2, dtype=F64),
        data=MiniBatches(noise - noise.mean(), 4),
    )
    assert solve(problem, max_steps=2).status in (Status.NONFINITE, Status.MAX_STEPS)
