"""A user's program by public names alone, as a type checker sees it: tests/test_typed.py."""

# pyright: standard, reportUnnecessaryTypeIgnoreComment=error, reportUnknownMemberType=error, reportUnknownVariableType=error

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, assert_type

import torch
from torch import Tensor, nn

import bilevel
import constrained
from bilevel.extend import BilevelOracle, Feature, Point, Positive, Schedule, Solver, Status, Vec, at, solver_state
from constrained.extend import ConvexSet, Options


def bilevel_problem() -> bilevel.BilevelProblem:
    def upper(x: Tensor, y: Tensor) -> Tensor:
        return ((y - 2) ** 2).sum() + (x**2).sum()

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return ((y - x) ** 2).sum()

    one = torch.ones(2, dtype=torch.float64)
    return bilevel.BilevelProblem(upper=upper, lower=lower, x=one, y=one, X=bilevel.Box(-1.0, 3.0))


def sampled_problem(net: nn.Module, rows: Tensor) -> bilevel.BilevelProblem:
    def upper(x: dict[str, Tensor], net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean()

    def lower(x: dict[str, Tensor], net: nn.Module, batch: Tensor) -> Tensor:
        return net(batch).square().mean() + x["penalty"].exp() * sum(p.square().sum() for p in net.parameters())

    return bilevel.BilevelProblem(
        upper=upper,
        lower=lower,
        x={"penalty": torch.zeros(())},
        y=net,
        X=bilevel.Product({"penalty": bilevel.Box(-5.0, 2.0)}),
        upper_data=bilevel.MiniBatches(rows, size=5),
        lower_data=bilevel.FullBatch(rows),
    )


def constrained_problem() -> constrained.ConstrainedProblem:
    def objective(x: Tensor) -> Tensor:
        return ((x - 1) ** 2).sum()

    def equality(x: Tensor) -> Tensor:
        return x.sum() - 1

    return constrained.ConstrainedProblem(objective=objective, equality=equality, x=torch.zeros(3, dtype=torch.float64))


def solved(folder: Path) -> dict[str, float]:
    problem = bilevel_problem()
    history = bilevel.History()

    def good(event: bilevel.Event) -> bool:
        return event.residuals()["upper"] < 1e-3

    result = bilevel.solve(
        problem,
        bilevel.Penalty(),
        tol=1e-4,
        max_steps=50,
        callbacks=[history, bilevel.StopWhen(good), bilevel.Checkpoint(folder / "run.pt", every=10)],
    )
    print(len(history.rows), result.status.name)
    result = bilevel.solve(problem, bilevel.Auto(candidates=(bilevel.Implicit(), bilevel.Penalty())))
    assert_type(result, bilevel.Result)
    assert_type(result.status, bilevel.Status)
    assert_type(result.steps, int)
    found = assert_type(result.residuals(), dict[str, float])
    if not result.status.ok:
        print(result.message, found)
    for event in bilevel.iterate(problem, bilevel.Implicit(inverse=bilevel.CG()), max_steps=3):
        assert_type(event, bilevel.Event)
        print(event.k, event.status.name, event.calls.gradients, event.answer.x)
    gradient = assert_type(bilevel.hypergradient(problem, torch.ones(2, dtype=torch.float64)), bilevel.Hypergradient)
    print(gradient.value, gradient.status.name, bilevel.recommend(problem).reasons, problem.check().ok)
    print(assert_type(problem.diagnose().findings, tuple[str, ...]))
    return found


def stochastic() -> bilevel.Result:
    problem = sampled_problem(nn.Linear(3, 1), torch.randn(20, 3))
    outer = bilevel.TorchOptimizer(torch.optim.Adam, lr=bilevel.Power(0.1, 0.5))
    result = bilevel.solve(problem, bilevel.PenaltySGD(sigma=1.0, outer=outer), max_steps=20, seed=1)
    print(assert_type(result.module(), nn.Module))
    return result


def by_constraints() -> constrained.Result:
    accuracy = constrained.EstimatedAccuracy()
    result = constrained.solve(constrained_problem(), constrained.SketchedNewton(accuracy=accuracy))
    print(result.multipliers, constrained.minimize(lambda x: (x**2).sum(), [1.0, 2.0], bounds=[(0.5, None), (None, None)]).x)
    return result


def wrong() -> None:
    """What a type checker refuses: each comment would be an error if the line were none."""
    bilevel.Penalty(sigma="large")  # pyright: ignore[reportArgumentType]
    bilevel.Penalty(sgima=1.0)  # pyright: ignore[reportCallIssue]
    bilevel.LVHBA(tol=[])  # pyright: ignore[reportArgumentType]
    constrained.SketchedNewton(linear_solver=bilevel.LBFGS())  # pyright: ignore[reportArgumentType]
    bilevel.solve(bilevel_problem(), max_steps="all")  # pyright: ignore[reportArgumentType]
    print(bilevel.solve(bilevel_problem()).stepz)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    print(bilevel.NoSuchSolver)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    print(constrained.Paper)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    State(0)  # pyright: ignore[reportCallIssue]
    at("fast", 3)  # pyright: ignore[reportArgumentType]


def refused() -> list[str]:
    """Exceptions are names of both packages, and the built-in ones that a caller would expect."""
    words: list[str] = []
    try:
        bilevel.Penalty(sigma=-1.0)
    except bilevel.OptionError as error:
        words.append(str(error))
    try:
        constrained.solve(constrained_problem(), bilevel.Penalty())
    except (constrained.Unsuitable, bilevel.ProblemError) as error:
        words.append(str(error))
    try:
        bilevel.solve(bilevel_problem(), max_steps=1).raise_for_status()
    except bilevel.SolveFailed as error:
        words.append(error.result.message)
    except bilevel.BilevelError as error:
        words.append(str(error))
    return words


@solver_state("State of the typed program")
class State:
    k: int
    x: Vec
    y: Vec
    moved: float


@dataclass(frozen=True, kw_only=True)
class Alternating(Solver[BilevelOracle, State]):
    """y descends on g, x on f: wrong wherever f depends on x through y, and says so by its residuals."""

    supports: ClassVar[Feature] = Feature.LOWER | Feature.X_SET | Feature.Y_SET
    requires: ClassVar[Feature] = Feature.LOWER

    tol: Positive | None = None
    step_size: Positive | Schedule = 0.1

    def init(self, oracle: BilevelOracle, start: Point) -> State:
        assert start.y is not None
        return State(0, start.x, start.y, float("inf"))

    def step(self, oracle: BilevelOracle, state: State) -> State:
        size = at(self.step_size, state.k)
        y = oracle.Y.project(state.y - oracle.g.grad_y(state.x, state.y) * size)
        x = oracle.X.project(state.x - oracle.f.grad_x(state.x, y) * size)
        return State(state.k + 1, x, y, float((y - state.y).norm()) + float((x - state.x).norm()))

    def terminate(self, oracle: BilevelOracle, state: State) -> Status:
        return Status.CONVERGED if state.moved <= 0.01 * self.tolerance else Status.RUNNING

    def answer(self, oracle: BilevelOracle, state: State) -> Point:
        return Point(state.x, state.y)


class AtLeast(ConvexSet):
    """Entries of at least `low`."""

    def __init__(self, low: float):
        super().__init__()
        self.low = low

    def project(self, v: Vec) -> Vec:
        return v.map(lambda leaf: leaf.clamp(min=self.low))


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    sigma: Positive = 1.0


def main(folder: Path) -> None:
    print(solved(folder), stochastic().status, by_constraints().status, refused(), Settings(sigma=2.0).sigma)
    result = bilevel.solve(bilevel_problem(), Alternating(step_size=0.2), max_steps=500)
    print(result.status.name, result.state.moved, AtLeast(0.5).distance(Vec.of(result.x)))


if __name__ == "__main__":
    main(Path("."))
