"""Every solver on every problem of wrong_answers.py: the right value, or a status that says why not, or one clear refusal.

`docs/explanation/wrong-answers.md` shows what they measure;
`python tests/bilevel/certificates/test_wrong_answers.py` writes its tables.
"""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wrong_answers import CASES, Case

import bilevel
from bilevel import (
    F2SA,
    GPBGD,
    LVHBA,
    MAID,
    SOBA,
    VPBGD,
    BilevelProblem,
    BORep,
    Box,
    GPBGDFixedStep,
    Implicit,
    KwonDoubleLoop,
    KwonSingleLoop,
    LVHBASingleLoop,
    Penalty,
    PenaltySGD,
    Status,
    StocBiO,
    VPBGDFixedStep,
    solve,
)
from constrained.core.errors import ProblemError, SolveFailed, Unsuitable
from constrained.core.solver import Solver
from constrained.core.status import Feature

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "wrong-answers.md"
STEPS, LOOPS, GRADIENTS = 300, 70, 1500  # limits of a run; LOOPS of a single loop
HANGS = 20_000  # evaluations of f and g after which a run has not kept to GRADIENTS, which are looked at after each step
FREE = {"default": None} | {type(s).__name__: s for s in (Implicit(), Penalty(), VPBGD(), GPBGD(), MAID(), LVHBA())}
LOOP = {
    type(s).__name__: s
    for s in (
        LVHBASingleLoop(),
        VPBGDFixedStep(),
        GPBGDFixedStep(),
        PenaltySGD(),
        KwonDoubleLoop(),
        KwonSingleLoop(),
        F2SA(),
        BORep(),
        StocBiO(),
        SOBA(),
    )
}
SOLVERS: dict[str, Solver | None] = {**FREE, **LOOP}
TRUE_ONLY = {"SINGULAR", "UNBOUNDED", "LOCALLY_INFEASIBLE", "DEGENERATE"}  # verdicts on the problem: false ones are defects
ALIKE = ({"STALLED", "PRECISION", "LINE_SEARCH", "limit"}, {"NONFINITE", "DIVERGED"})  # rounding decides which comes first
LONG = "one step of more than 20,000 evaluations: max_seconds and callbacks wait for it"
KNOWN: dict[str, dict[str, list[str]]] = {
    "exp below": {LONG: ["default", "Penalty"]},
    "exp above": {LONG: ["default", "Penalty"]},
}
DEFECTS = {(case, name): why for case, found in KNOWN.items() for why, names in found.items() for name in names}
SLOW = {
    "flat, f does not mind": {"default"},
    "flat, f falls": {"default", "Penalty", "VPBGD", "GPBGD", "LVHBA"},
    "quartic": {"default", "VPBGD", "LVHBA"},
    "upper linear": {"default", "Implicit", "Penalty", "VPBGD", "MAID", "LVHBA"},
    "upper concave": {"default", "Implicit", "GPBGD", "LVHBA"},
    "abs, away from it": {"default", "Implicit"},
    "abs, on it": {"default", "Implicit", "Penalty", "VPBGD", "GPBGD", "MAID", "LVHBA", "LVHBASingleLoop"},
    "abs, always on it": {"default", "Penalty", "VPBGD", "LVHBA"},
    "kink, from afar": {"default", "Implicit"},
    "jump": {"default", "Penalty"},
    "coupled": {"default", "LVHBA"},
    "log above": {"MAID"},
    "exp below": {"default", "Penalty", "VPBGD", "MAID", "LVHBA"},
    "exp above": {"default", "Penalty"},
    "scales": {"default", "VPBGD", "GPBGD", "LVHBA"},
    "in place, hidden": {"VPBGD", "MAID", "LVHBA", "LVHBASingleLoop"},
    "noise below": {"Penalty", "VPBGD", "MAID", "LVHBA", "LVHBASingleLoop"},
    "noise above": {"default", "Penalty", "MAID", "LVHBA"},
    "dropout": {"default", "LVHBA"},
}


class Hangs(Exception):
    """The user's functions were called too often."""


def measured(case: Case, name: str) -> tuple[str, str]:
    """What happened in a word, and the message. Good words: right, local, limit, refused, names of statuses."""
    torch.manual_seed(0)  # for the cases that draw
    calls = [0]
    try:
        problem = case.problem()
    except ProblemError as error:
        return "refused", f"ProblemError: {error}"
    before = [torch.as_tensor(value).detach().clone() for value in (problem.x, problem.y)]

    def counted(function):
        def call(*args):
            calls[0] += 1
            if calls[0] > HANGS:
                raise Hangs
            return function(*args)

        return call

    problem = replace(problem, upper=counted(problem.upper), lower=counted(problem.lower))
    try:
        result = solve(
            problem,
            SOLVERS[name],
            max_steps=LOOPS if name in LOOP else STEPS,
            callbacks=[lambda event: event.calls.gradients > GRADIENTS],
        )
    except (ProblemError, Unsuitable) as error:
        return "refused", f"{type(error).__name__}: {error}"
    except Hangs:
        return "hangs", f"more than {HANGS} evaluations"
    except Exception as error:
        return "raises", f"{type(error).__name__}: {error}"
    same = [torch.equal(old.nan_to_num(), now.detach().nan_to_num()) for old, now in zip(before, (problem.x, problem.y))]
    if not case.writes and not all(same):
        return "writes", "the user's variables were changed"
    return word(case, result), result.message


def word(case: Case, result: bilevel.Result) -> str:
    status = result.status
    if not all(bool(value.isfinite().all()) and not value.requires_grad for value in (result.x, result.y)):
        return "not finite"
    if not result.message.startswith(status.value[:-1]):
        return "no message"
    if status is Status.CONVERGED:
        found = result.x, result.y
        return "right" if case.among(case.right, *found) else "local" if case.among(case.local, *found) else "wrong"
    if not status.budget:
        with pytest.raises(SolveFailed):
            result.raise_for_status()
    if status.name in TRUE_ONLY and status.name not in case.verdicts:
        return f"false {status.name}"
    return "limit" if status.budget else status.name


def good(found: str) -> bool:
    return found in {"right", "local", "limit", "refused", *(set(Status.__members__) - {"CONVERGED", "RUNNING"})}


def alike(found: str, cell: str) -> bool:
    """A cell "A or B" allows both: both are true, and rounding, which differs between processors, decides which comes first."""
    return any(found == word or any({found, word} <= group for group in ALIKE) for word in cell.split(" or "))


# -- the page ---------------------------------------------------------------------------------------------------------------
def table(names: list[str], cells: dict[tuple[str, str], str]) -> str:
    lines = ["| case | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {case.name} | " + " | ".join(cells[case.name, name] for name in names) + " |" for case in CASES]
    return "\n".join(lines)


def on_the_page() -> dict[tuple[str, str], str]:
    cells, names = {}, []
    for line in PAGE.read_text().splitlines():
        first, *rest = [cell.strip() for cell in line.split("|")[1:-1]] or [""]
        if first == "case":
            names = rest
        elif len(rest) == len(names) > 0 and not first.startswith("-"):
            cells |= {(first, name): cell for name, cell in zip(names, rest)}
    return cells


def write() -> None:
    """Measure everything, print where DEFECTS and SLOW differ, and write the tables of the page between its marks. A cell of
    several words that has what was found stays: another machine found the others.
    """
    cells, before = {}, on_the_page()
    for case in CASES:
        for name in SOLVERS:
            start = time.perf_counter()
            found, message = measured(case, name)
            seconds = time.perf_counter() - start
            if seconds > 1 and name not in SLOW.get(case.name, ()):
                print(f"SLOW: {(case.name, name)} {seconds:.1f} s")
            known = before.get((case.name, name), "")
            cells[case.name, name] = "defect" if not good(found) else known if found in known.split(" or ") else found
            if good(found) == ((case.name, name) in DEFECTS):
                print(f"DEFECTS: {(case.name, name)} {found}: {message}")
    text = PAGE.read_text()
    cases = "\n".join(f"- **{case.name}**: {case.says}." for case in CASES)
    for mark, block in (("cases", cases), ("free", table(list(FREE), cells)), ("loops", table(list(LOOP), cells))):
        wanted = f"<!-- {mark} -->\n\n{block}\n\n<!-- end -->"
        text = re.sub(rf"<!-- {mark} -->.*?<!-- end -->", lambda _, wanted=wanted: wanted, text, count=1, flags=re.DOTALL)
    PAGE.write_text(text)


# -- the tests --------------------------------------------------------------------------------------------------------------
def pairs():
    """By default each case has one loop in three, in turn, and every second of FREE beside `default`; the rest is slow."""
    found = []
    for i, case in enumerate(CASES):
        others = {name for j, name in enumerate(LOOP) if (i + j) % 3} | {name for j, name in enumerate(FREE) if j and (i + j) % 2}
        for name in SOLVERS:
            marks = [pytest.mark.slow] if name in SLOW.get(case.name, ()) or name in others else []
            if (case.name, name) in DEFECTS:
                marks.append(pytest.mark.xfail(strict=True, raises=AssertionError, reason=DEFECTS[case.name, name]))
            found.append(pytest.param(case, name, id=f"{case.name}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("case", "name"), pairs())
def test_the_answer_is_right_or_the_run_says_why(case, name):
    found, message = measured(case, name)
    assert good(found), f"{found}: {message}"
    if case.refused:
        assert found == "refused"
        assert case.refused in message
    if found == "refused" and message.startswith("Unsuitable"):  # it names what is lacking and a solver that fits
        fits = re.search(r"does not handle .*; (\w+) does\.", message)
        assert fits, message
        assert not getattr(bilevel, fits[1]).lacks(case.problem().features), message
    assert alike(found, on_the_page()[case.name, name]), f"{found}: {message} Write the page anew."


def test_the_page_has_every_case_and_solver():
    cells = on_the_page()
    assert set(cells) == {(case.name, name) for case in CASES for name in SOLVERS}
    assert {pair for pair, cell in cells.items() if cell == "defect"} == set(DEFECTS)
    assert all(f"- **{case.name}**: {case.says}." in PAGE.read_text() for case in CASES)


def test_every_solver_is_here():
    public = {value for value in vars(bilevel).values() if isinstance(value, type) and issubclass(value, Solver)}
    public = {solver for solver in public if Feature.MIXTURE not in solver.requires}  # of which no case is one
    unlisted = {bilevel.Auto, bilevel.PenaltyDescent}  # the default, and psi at one sigma, which solves another problem
    assert public - {type(solver) for solver in SOLVERS.values()} == unlisted


@pytest.mark.parametrize("case", [case for case in CASES if case.grid], ids=lambda case: case.name)
def test_the_truth_by_a_grid(case):
    """The least f over the grid's (x, y) whose g is least over y, to the width of the grid."""
    lo, hi, low, high = case.grid
    problem = case.problem()
    xs, ys = (torch.linspace(a, b, n, dtype=torch.float64) for a, b, n in ((lo, hi, 1201), (low, high, 4801)))
    x, y = torch.meshgrid(xs, ys, indexing="ij")
    g, f = problem.lower(x, y), problem.upper(x, y)
    f = torch.where(g <= g.min(1, keepdim=True).values + 1e-12, f, torch.inf)
    at = divmod(int(f.argmin()), len(ys))
    found = torch.stack([xs[at[0]], ys[at[1]]])
    wanted = torch.tensor(case.right, dtype=torch.float64)
    assert float((wanted - found).abs().amax(1).min()) <= 2 * (hi - lo) / 1200


@pytest.mark.parametrize(
    "name", ["detached", "item", "detached in part", "in place, hidden", "noise below", "noise above", "dropout"]
)
def test_the_derivative_check_sees_what_a_solver_cannot(name):
    torch.manual_seed(0)
    (case,) = [case for case in CASES if case.name == name]
    assert case.problem().check().bad


def test_a_sum_of_sets_and_constraints_is_refused_by_name():
    """What no solver handles is refused with that said."""
    one = torch.ones((), dtype=torch.float64)
    none = BilevelProblem(upper=lambda x, y: y, lower=lambda x, y: (y - x) ** 2, x=one, y=one, upper_inequality=lambda x, y: y)
    for solver in SOLVERS.values():
        with pytest.raises(Unsuitable, match="upper_inequality"):
            solve(replace(none, X=Box(0.0, 2.0)), solver, max_steps=1)


if __name__ == "__main__":
    write()
