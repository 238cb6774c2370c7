"""Problems that once fooled the solver or its checks: small objectives, starts that solve the lower level, zero starts."""

import pytest
import torch

import bilevel
from constrained.core.errors import CheckpointError, ProblemError


def upper(x, y):
    return ((y - 1) ** 2).sum() + 0.1 * (x**2).sum()


def lower(x, y):
    return ((y - x) ** 2).sum() + 0.5 * (y**2).sum()


SOLUTION = (2 / 3) / (4 / 9 + 0.1)  # y = 2x/3, so (2x/3 - 1) 2/3 + 0.1 x = 0


def problem(**changes):
    zero = torch.zeros(3, dtype=torch.float64)
    return bilevel.BilevelProblem(**{"upper": upper, "lower": lower, "x": zero, "y": zero, **changes})


@pytest.mark.parametrize("scale", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
def test_a_small_upper_objective_from_a_start_that_solves_the_lower_level(scale):
    result = bilevel.solve(problem(upper=lambda x, y: scale * upper(x, y)), tol=min(1e-6, 1e-4 * scale))
    assert result.status is bilevel.Status.CONVERGED
    assert torch.allclose(result.x, torch.full((3,), SOLUTION, dtype=torch.float64), rtol=1e-3)


def test_an_absolute_tolerance_is_not_enough_at_the_start():
    result = bilevel.solve(problem(upper=lambda x, y: 1e-8 * upper(x, y)))
    assert result.status.name == "CONVERGED"
    assert torch.allclose(result.x, torch.full((3,), SOLUTION, dtype=torch.float64), rtol=1e-3)
    assert not bilevel.solve(problem()).notes


def test_check_sees_a_wrong_gradient_that_vanishes_at_the_start():
    f = bilevel.Function(upper, gradient=lambda x, y: (0.2 * x, 2 * (y - 1)))
    g = bilevel.Function(lower, gradient=lambda x, y: (2 * (x - y), -7 * (2 * (y - x) + y)))
    assert problem(upper=f, lower=g).check().bad == ("lower: d/dy",)


@pytest.mark.parametrize(
    "change",
    [{"lower": lambda x, y: ((y - 5 * x) ** 2).sum()}, {"upper": lambda x, y: 2 * upper(x, y)}, {"X": bilevel.Box(0, 0.5)}],
)
def test_a_checkpoint_of_another_problem_of_the_same_shape_is_refused(tmp_path, change):
    path = tmp_path / "run.pt"
    bilevel.solve(problem(X=bilevel.Box(0, 1)), max_steps=2, callbacks=[bilevel.Checkpoint(path)])
    with pytest.raises(CheckpointError, match="values at the start"):
        bilevel.solve(problem(**{"X": bilevel.Box(0, 1), **change}), resume=path)


def test_dropout_needs_mini_batches():
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout()).double()
    one = torch.ones(4, 3, dtype=torch.float64)
    parts = {"upper": lambda x, n: (n(one) - 1).pow(2).sum() + x.pow(2).sum(), "lower": lambda x, n: (n(one) - x).pow(2).sum()}
    with pytest.raises(ProblemError, match=r"y: 1 is dropout in train mode without mini-batches: use \.eval\(\)"):
        bilevel.solve(problem(y=net, **parts))
    assert bilevel.solve(problem(y=net.eval(), **parts)).x.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": [0.0, 0.0]}, ["x", "tensor", "list of numbers"]),
        ({"upper_data": bilevel.FullBatch(torch.zeros(3))}, ["upper", "TypeError", "x, y and a batch"]),
        ({"x": torch.zeros(4, dtype=torch.float64)}, ["lower", "RuntimeError", "size of tensor"]),
    ],
)
def test_what_a_users_function_raises_names_the_level(changes, words):
    with pytest.raises(ProblemError) as caught:
        bilevel.solve(problem(**changes))
    assert all(word in str(caught.value) for word in words)


def test_a_kink_of_the_hyper_objective_is_no_convergence():
    """The best x is where Y becomes active: Phi has a kink there, and no residual vanishes."""
    one = torch.zeros((), dtype=torch.float64)
    kinked = bilevel.BilevelProblem(
        upper=lambda x, y: 0.5 * x**2 - 2 * y, lower=lambda x, y: (y - x) ** 2, x=one, y=one, Y=bilevel.Box(-10.0, 1.0)
    )
    result = bilevel.solve(kinked)
    assert abs(float(result.x) - 1) <= 1e-4
    assert not result.success
    assert any("kink" in note for note in result.notes)


@pytest.mark.parametrize("solver", [bilevel.Penalty(), bilevel.PenaltySGD()])
@pytest.mark.parametrize("limit", range(1, 12))
def test_nan_after_any_number_of_calls_is_nonfinite_and_never_an_answer(solver, limit):
    calls = [0]

    def breaks(x, y):
        calls[0] += 1
        return lower(x, y) * (1.0 if calls[0] <= limit + 2 else float("nan"))

    result = bilevel.solve(problem(lower=breaks), solver, max_steps=30)
    assert result.status is bilevel.Status.NONFINITE
    assert result.x.isfinite().all()
    assert result.y.isfinite().all()


@pytest.mark.parametrize("none", [lambda x, y: x.new_zeros(0), lambda x, y: y[:0]], ids=["new", "a slice"])
def test_constraints_without_rows_are_as_none(none):
    for names in (["lower_inequality"], ["lower_equality"], ["lower_equality", "lower_inequality"]):
        one = problem(**dict.fromkeys(names, none))
        result = bilevel.solve(one, bilevel.LVHBA())
        assert result.status is bilevel.Status.CONVERGED
        assert torch.allclose(result.x, torch.full((3,), SOLUTION, dtype=torch.float64), rtol=1e-3)
        assert max(result.certify().values()) <= 1e-6
    above = problem(upper_inequality=none, upper_equality=none)
    assert above.check().ok
    assert above.residuals(bilevel.Point(result.x, result.y))["constraints"] == 0


@pytest.mark.parametrize("at", [2, 4, 7])
def test_another_number_of_rows_at_a_later_call_is_refused_by_name(at):
    calls = [0]

    def rows(x, y):
        calls[0] += 1
        return torch.stack([y.sum() - x.sum() - 1, -y.sum() - 9])[: 1 if calls[0] == at else 2]

    with pytest.raises(ProblemError, match=r"lower_inequality: expected . rows, .* got "):
        bilevel.solve(problem(lower_inequality=rows), bilevel.LVHBA(), max_steps=3)


@pytest.mark.parametrize("solver", [None, bilevel.Penalty(), bilevel.Implicit(), bilevel.VPBGD()])
def test_boxes_that_fix_every_entry_are_solved(solver):
    result = bilevel.solve(problem(X=bilevel.Box(0.3, 0.3), Y=bilevel.Box(0.2, 0.2)), solver)
    assert result.status is bilevel.Status.CONVERGED
    assert (result.x.tolist(), result.y.tolist()) == ([0.3] * 3, [0.2] * 3)
