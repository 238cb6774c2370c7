"""Small constrained problems on which a solver may give a wrong answer in silence: the right value, or a word that says why not.

`docs/explanation/wrong-answers.md` shows what they measure; `python tests/constrained/test_constrained_wrong_answers.py` writes
its table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from constrained import (
    AugmentedLagrangian,
    Box,
    ConstrainedProblem,
    Function,
    NewtonCG,
    ProblemError,
    Status,
    Unsuitable,
    Vec,
    solve,
)

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "wrong-answers.md"
SOLVERS = {
    "default": None,
    "AugmentedLagrangian": AugmentedLagrangian(),
    "with NewtonCG": AugmentedLagrangian(inner=NewtonCG()),
}


def real(*entries):
    return torch.tensor(entries, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """right: the solutions; verdict: a status that is true of the problem; refused: what the exception says where every solver
    must refuse.
    """

    name: str
    says: str
    problem: Callable[[], ConstrainedProblem]
    right: tuple[tuple[float, float], ...] = ()
    near: float = 1e-4  # of an answer to a right one
    verdict: str = ""
    refused: str = ""


def near(x):
    return (x[0] - 5) ** 2 + (x[1] - 1) ** 2


def ramp(x):
    return torch.relu(x[0] - 3) + x[1] - 1


def root(x):
    return 1 - (x[0] * x[1]).sqrt()


class Doubled(torch.autograd.Function):
    """x^2 with twice its derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, v):
        return 4 * ctx.saved_tensors[0] * v


def problem(f, start, **more):
    return lambda: ConstrainedProblem(objective=f, x=real(*start), **more)


CASES = [
    Case(
        name="hidden variable",
        says="f = (x0 - 5)^2 + (x1 - 1)^2, relu(x0 - 3) + x1 <= 1, from 0: the constraint has no derivative in x0 there or near",
        problem=problem(near, (0, 0), inequality=ramp),
        right=((4, 0),),
    ),
    Case(
        name="hidden variable, equality",
        says="the same with relu(x0 - 3) + x1 = 1",
        problem=problem(near, (0, 0), equality=ramp),
        right=((4, 0),),
    ),
    Case(
        name="root of a product",
        says="f = x0^2 + x1^2, sqrt(x0 x1) >= 1, from (3, 2): NaN where x0 x1 < 0",
        problem=problem(lambda x: (x**2).sum(0), (3, 2), inequality=root),
        right=((1, 1), (-1, -1)),
    ),
    Case(
        name="root of a product, from outside",
        says="the same from (.1, .2)",
        problem=problem(lambda x: (x**2).sum(0), (0.1, 0.2), inequality=root),
        right=((1, 1), (-1, -1)),
    ),
    Case(
        name="beyond a gap",
        says="f = x0 + x1 with the same constraint: (1, 1) is a local solution, and f falls without end where both are negative",
        problem=problem(lambda x: x.sum(0), (3, 2), inequality=root),
        right=((1, 1),),
        verdict="UNBOUNDED",
    ),
    Case(
        name="root of nothing",
        says="sqrt(x0 x1) >= 1 from (0, 1), where the derivative of the root is infinite",
        problem=problem(lambda x: x.sum(0), (0, 1), inequality=root),
        refused="infinite",
    ),
    Case(
        name="root in a box",
        says="f = 4 x0 + x1, sqrt(x0 x1) >= 1, 0.1 <= x <= 4, from (3, 2)",
        problem=problem(lambda x: 4 * x[0] + x[1], (3, 2), inequality=root, X=Box(0.1, 4.0)),
        right=((0.5, 2),),
    ),
    Case(
        name="wrong gradient",
        says="f = x0^2 + x1^2 - 2 x0 with twice the derivative of the squares, x0 + x1 >= 2",
        problem=problem(lambda x: Doubled.apply(x).sum() - 2 * x[0], (3, 0), inequality=lambda x: 2 - x.sum()),
        refused="objective",
    ),
    Case(
        name="wrong Jacobian",
        says="f = |x - 3|^2, |x|^2 <= 2 with half of its Jacobian",
        problem=problem(
            lambda x: ((x - 3) ** 2).sum(),
            (0.5, 0.2),
            inequality=Function(lambda x: (x**2).sum() - 2, jacobian=lambda x: x[None]),
        ),
        refused="inequality",
    ),
    Case(
        name="a millionth",
        says="f = 1e-6 |x - 1|^2, x0 + x1 <= 1, from (3, -4)",
        problem=problem(lambda x: 1e-6 * ((x - 1) ** 2).sum(0), (3, -4), inequality=lambda x: x.sum(0) - 1),
        right=((0.5, 0.5),),
        near=1e-3,  # f is within 1e-7 of the possible improvement there
    ),
]


def measured(case, name):
    """What happened in a word, and the message."""
    try:
        result = solve(case.problem(), SOLVERS[name], max_steps=300)
    except (ProblemError, Unsuitable) as error:
        return "refused", str(error)
    if result.status is not Status.CONVERGED:
        return "limit" if result.status.budget else result.status.name, result.message
    right = any(bool((result.x - real(*one)).abs().max() <= case.near) for one in case.right)
    return "right" if right else "wrong", f"{result.message} {result.x}"


# -- the page ---------------------------------------------------------------------------------------------------------------
def write():
    cells = {(case.name, name): measured(case, name)[0] for case in CASES for name in SOLVERS}
    lines = [f"- **{case.name}**: {case.says}." for case in CASES]
    lines += ["", "| constrained | " + " | ".join(SOLVERS) + " |", "|---" * (len(SOLVERS) + 1) + "|"]
    lines += [f"| {case.name} | " + " | ".join(cells[case.name, name] for name in SOLVERS) + " |" for case in CASES]
    block = "<!-- constrained -->\n\n" + "\n".join(lines) + "\n\n<!-- end -->"
    PAGE.write_text(re.sub(r"<!-- constrained -->.*?<!-- end -->", lambda _: block, PAGE.read_text(), count=1, flags=re.DOTALL))


def row(case):
    """The line of the page."""
    found = re.search(rf"^\| {re.escape(case.name)} \| (.*) \|$", PAGE.read_text().split("<!-- constrained -->")[1], re.MULTILINE)
    return dict(zip(SOLVERS, found[1].split(" | "), strict=True))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_answer_is_right_or_the_run_says_why(case, name):
    found, message = measured(case, name)
    assert found in ({"refused"} if case.refused else {"right", case.verdict}), f"{found}: {message}"
    assert case.refused in message
    assert found == row(case)[name], "write the page anew"


def test_the_page_has_every_case():
    assert all(f"- **{case.name}**: {case.says}." in PAGE.read_text() and set(row(case)) == set(SOLVERS) for case in CASES)


@pytest.mark.parametrize("case", [case for case in CASES if case.right and not case.verdict], ids=lambda case: case.name)
def test_the_truth_by_a_grid(case):
    """The least f over the feasible points of a grid with steps of 1/200."""
    one, axis = case.problem(), torch.linspace(-2, 5, 1401, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"))
    fits = one.equality(x).abs() <= 1e-9 if one.inequality is None else one.inequality(x) <= 1e-9
    inside = (one.X.project(Vec.of(x)) - Vec.of(x)).ravel().reshape(2, 1401, 1401)
    f = torch.where(fits & (inside == 0).all(0), one.objective(x), torch.inf)
    found = x.reshape(2, -1)[:, int(f.argmin())]
    assert min(float((found - real(*right)).abs().max()) for right in case.right) <= 0.05


if __name__ == "__main__":
    write()
