"""recommend: what solve takes, in words; Pounce is named where it is installed, the problem sparse and torch does no work."""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from scipy.sparse import eye_array

from bilevel import recommend
from constrained import Ball, ConstrainedProblem, Function, MiniBatches, solve

X = torch.ones(3, dtype=torch.float64)


def square(x):
    return (x**2).sum()


def numpy_function(sparse):
    H = 2 * eye_array(3, format="csr")
    return Function.numpy(lambda x: x @ x, gradient=lambda x: 2 * x, hessian=lambda x: H if sparse else H.toarray())


@pytest.fixture(params=["hidden", "there"])
def pounce(request, monkeypatch):
    """Whether find_spec sees a module of that name."""
    if request.param == "hidden":
        monkeypatch.setitem(sys.modules, "pounce", None)
    else:
        module = types.ModuleType("pounce")
        module.__spec__ = ModuleSpec("pounce", None)
        monkeypatch.setitem(sys.modules, "pounce", module)
    return request.param == "there"


def test_pounce_is_named_where_it_is_installed_and_quicker(pounce):
    def named(objective):
        reasons = recommend(ConstrainedProblem(objective=objective, x=X)).reasons
        return any("Pounce()" in reason for reason in reasons)

    assert named(numpy_function(sparse=True)) == pounce
    assert not named(numpy_function(sparse=False))
    assert not named(square)
    assert not named(Function(square, hessian=lambda x: 2 * eye_array(3, format="csr")))  # its values are torch's


@pytest.mark.parametrize(
    ("given", "solver"),
    [
        ({"inequality": lambda x: 1 - x.sum()}, "InteriorPoint"),
        ({"equality": lambda x: x[:1] - 1, "x": torch.ones(400, dtype=torch.float64)}, "SketchedNewton"),
        ({"X": Ball(1.0)}, "AugmentedLagrangian"),
        (
            {"objective": lambda x, batch: ((batch[0] @ x) ** 2).mean(), "data": MiniBatches((X[None],), 1)},
            "AugmentedLagrangianSGD",
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_it_is_what_solve_takes_with_a_reason(given, solver):
    problem = ConstrainedProblem(**{"objective": square, "x": X, **given})
    found = recommend(problem)
    assert type(found.solver).__name__ == solver
    assert found.reasons[0].endswith(".")
    assert type(solve(problem, max_steps=2).solver) is type(found.solver)
