"""Recorded programs against the tape and torch.func; what cannot be recorded; solves by either."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bilevel import Box, FullBatch, Function, MiniBatches
from constrained import SLSQP, AugmentedLagrangian, ConstrainedProblem, SketchedNewton, solve
from constrained.core.derivatives.graph import BATCHED
from constrained.core.derivatives.tape import Tape
from constrained.core.vec import Vec
from constrained.oracle import ConstrainedOracle
from problems.cutest import CUTEST, cutest

F64 = torch.float64
NAMES = ("HS6", "HS7", "HS40", "HS78", "HS100LNP", "BT5", "BT10", "BT11")
X = torch.tensor([0.8, 1.1, -0.6], dtype=F64)
MASK = torch.tensor([True, False, True])


def replaying(problem: ConstrainedProblem) -> ConstrainedProblem:
    """The problem with programs in place of tapes."""
    record, oracle = problem.oracle().recorded(), problem.oracle
    assert record.reason == ""

    def twin(seed: int = 0) -> ConstrainedOracle:
        found = oracle(seed)
        found.replay = record
        return found

    copy = replace(problem)
    object.__setattr__(copy, "oracle", twin)
    return copy


def near(x: Vec, generator: torch.Generator) -> Vec:
    return x.map(lambda t: t + 0.1 * (1 + t.norm()) * torch.randn(t.shape, generator=generator, dtype=F64).to(t))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * max(1.0, float(b.norm())), check_dtype=True)


def same_numbers(one: Tape, two: Tape, lam: Tensor, generator: torch.Generator) -> None:
    """Every number that a solver may ask for, in the order of a trial that is accepted."""
    close(one.value, two.value)
    close(one.c, two.c)
    close(one.gradient_of_lagrangian(lam), two.gradient_of_lagrangian(lam))
    at, other = one.lagrangian(lam), two.lagrangian(lam)
    assert (one.m, len(one.x)) == (two.m, len(two.x))
    close(at.gradient, other.gradient)
    close(at.hessian, other.hessian)
    close(one.gradient, two.gradient)
    close(one.jacobian, two.jacobian)
    close(one.vjp(lam), two.vjp(lam))
    U, V = (torch.randn(3, k, generator=generator, dtype=F64).to(lam) for k in (len(one.x), len(lam)))
    for mine, theirs in zip((*at.products(U, V), *at.product(U[0], V[0])), (*other.products(U, V), *other.product(U[0], V[0]))):
        close(mine, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_replay_is_the_tape(name):
    problem, generator = cutest(name=name).problem, torch.Generator().manual_seed(0)
    eager, replayed = problem.oracle(), replaying(problem).oracle()
    for _ in range(5):
        x = near(eager.variables["x"], generator)
        lam = torch.randn(eager.tape(x).m, generator=generator, dtype=F64)
        replayed.tape(x)
        same_numbers(replayed.tape(x), eager.tape(x), lam, generator)
    assert replayed.calls.by["solve"] == eager.calls.by["solve"]


def test_replay_is_torch_func():
    one = CUTEST["HS78"]
    tape = replaying(cutest(name="HS78").problem).oracle().tape(Vec.of(torch.tensor(one.start, dtype=F64) + 0.1))
    lam = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    x = tape.x
    at = tape.lagrangian(lam)
    close(tape.value, one.objective(x))
    close(tape.c, one.equality(x))
    close(tape.gradient, torch.func.grad(one.objective)(x))
    close(tape.jacobian, torch.func.jacrev(one.equality)(x))
    close(at.hessian, torch.func.hessian(lambda t: one.objective(t) + lam @ one.equality(t))(x))


def test_first_order_alone_and_numbers_of_the_callers_own():
    oracle = replaying(cutest(name="HS40").problem).oracle()
    tape = oracle.tape(oracle.variables["x"])
    J = tape.jacobian.clone()
    tape.jacobian.zero_()
    assert torch.equal(oracle.tape(oracle.variables["x"]).jacobian, J)
    w = J.clone().requires_grad_(True)
    (oracle.tape(oracle.variables["x"]).jacobian * w).sum().backward()  # no inference tensors
    assert torch.equal(w.grad, J)


RECORDED: dict[str, dict[str, Any]] = {
    "no constraint": {"objective": lambda x: (x**4).sum()},
    "linear": {"objective": lambda x: x.sum(), "equality": lambda x: x[0] - 1},
    "constant constraint": {"objective": lambda x: (x**2).sum(), "equality": lambda x: torch.ones(2, dtype=F64)},
    "where": {"objective": lambda x: torch.where(x > 0, x**2, x.sin()).sum()},
    "prod": {"objective": lambda x: x.prod(), "equality": lambda x: x @ x - 1},
    "integer index": {"objective": lambda x: (x[[0, 2]] ** 3).sum()},
    "constant mask": {"objective": lambda x: (x[MASK] ** 3).sum()},
    "a Function of autodiff": {"objective": Function(lambda x: (x**3).sum())},
    "dict": {
        "objective": lambda t: (t["a"] ** 2).sum() * t["b"] ** 3,
        "x": {"a": X, "b": X[0]},
        "equality": lambda t: t["a"] - t["b"],
    },
    "float32": {"objective": lambda x: (x**4).sum(), "x": X.float(), "equality": lambda x: x.exp().sum() - 1},
    "full batch": {"objective": lambda x, rows: ((rows @ x) ** 4).mean(), "data": FullBatch(torch.eye(3, dtype=F64) + 1)},
    "module": {
        "objective": lambda m: (m(torch.eye(3, dtype=F64)).tanh() ** 2).mean(),
        "equality": lambda m: m.weight.sum() - 1,
        "x": nn.Linear(3, 2, dtype=F64).eval(),
    },
}


@pytest.mark.parametrize("kind", RECORDED)
def test_what_is_recorded(kind):
    problem, generator = ConstrainedProblem(**{"x": X, **RECORDED[kind]}), torch.Generator().manual_seed(0)
    eager, replayed = problem.oracle(), replaying(problem).oracle()
    x = near(eager.variables["x"], generator)
    one, two = replayed.tape(x), eager.tape(x)
    lam = torch.randn(two.m, generator=generator, dtype=F64).to(two.c)
    if kind == "float32":
        torch.testing.assert_close(one.lagrangian(lam).hessian, two.lagrangian(lam).hessian)
        assert one.jacobian.dtype == torch.float32
        return
    same_numbers(one, two, lam, generator)
    assert replayed.calls.as_dict() == eager.calls.as_dict()


def counter() -> Callable[[Tensor], Tensor]:
    calls: list[int] = []

    def f(x: Tensor) -> Tensor:
        calls.append(1)
        return len(calls) * (x**2).sum()

    return f


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "branch": ({"objective": lambda x: (x**2).sum() if x[0] > 0 else x.sum()}, "recording raised"),
    "branch of a constraint": ({"objective": torch.sum, "equality": lambda x: x[:1] if x[1] > 5 else x[:2]}, "recording raised"),
    "number": ({"objective": lambda x: (x**2).sum() * x.tolist()[0]}, "reads a number"),
    "numpy": ({"objective": lambda x: (x**2).sum() * float(x.detach().numpy()[0])}, "recording raised"),
    "shape": ({"objective": lambda x: (x[x > 0] ** 2).sum()}, "a shape that depends on numbers"),
    "random": ({"objective": lambda x: (x * torch.rand(3, dtype=F64)).sum()}, "draws random numbers"),
    "state": ({"objective": counter()}, "differ from the tape's"),
    "own gradient": ({"objective": Function(lambda x: (x**2).sum(), gradient=lambda x: 2 * x)}, "derivatives of its own"),
    "own Jacobian": (
        {"objective": torch.sum, "equality": Function(lambda x: x, vjp=lambda x, w: w, hvp=lambda x, w, v: 0 * v)},
        "derivatives of its own",
    ),
    "mini-batches": (
        {"objective": lambda x, rows: (rows @ x).sum(), "data": MiniBatches(torch.ones(8, 3, dtype=F64), 2)},
        "mini-batches",
    ),
    "large": ({"objective": torch.sum, "x": torch.ones(BATCHED + 1, dtype=F64)}, "51 unknowns"),
    "not finite": ({"objective": lambda x: x.log().sum()}, "differ from the tape's by nan"),
    "an error of the user's": ({"objective": lambda x: x[9]}, "IndexError"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_recorded_stays_on_the_tape(kind):
    given, reason = REFUSED[kind]
    oracle = ConstrainedProblem(**{"x": X, **given}).oracle()
    oracle.replay = oracle.recorded()
    assert reason in oracle.replay.reason
    if kind == "own gradient":
        tape = oracle.tape(Vec.of(X))
        assert type(tape) is Tape
        assert torch.equal(tape.gradient, 2 * X)


@pytest.mark.parametrize("solver", [SketchedNewton(), SLSQP()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["HS6", "HS40", "HS78"])
def test_a_solve_takes_the_same_steps(name, solver):
    problem = cutest(name=name).problem
    eager, replayed = solve(problem, solver), solve(replaying(problem), solver)
    assert replayed.status is eager.status
    assert replayed.steps == eager.steps
    assert replayed.calls.by["solve"] == eager.calls.by["solve"]
    torch.testing.assert_close(replayed.x, eager.x, rtol=1e-12, atol=1e-12)


def test_inequalities_and_sets_stay_with_the_oracle():
    problem = ConstrainedProblem(
        objective=lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equality=lambda x: (x**2).sum() - 40,
        inequality=lambda x: 25 - x.prod(),
        x=torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=F64),
        X=Box(1.0, 5.0),
    )
    result = solve(replaying(problem), AugmentedLagrangian(), tol=1e-6)
    assert result.success
    assert result.fun == pytest.approx(17.0140173, abs=1e-5)  # Hock and Schittkowski, problem 71


def test_a_replayed_solve_repeats_bit_for_bit():
    problem = replaying(cutest(name="HS78").problem)
    one, two = solve(problem, SketchedNewton()), solve(problem, SketchedNewton())
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.multipliers.equality, two.multipliers.equality)
