"""Every check of conformance.py on every case of cases.py."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from cases import CASES
from conformance import (
    CHECKS,
    a_stop_is_honoured,
    an_ignored_argument_has_gradient_zero,
    calls_are_counted,
    dtype_and_device_are_kept,
    iterates_stay_in_the_sets,
    nan_ends_a_run,
    problem_and_start_are_untouched,
    resume_is_exact,
    same_seed_same_bits,
    states_are_plain,
    structure_does_not_matter,
    the_answer_is_right,
    unsuitable_problems_are_refused,
    works_under_no_grad,
)
from conftest import FAMILIES, QUICK

# What hardly depends on the problem: by default on one or two cases of each solver, on the others with `slow`.
OF_THE_SOLVER = (
    *(nan_ends_a_run, an_ignored_argument_has_gradient_zero, structure_does_not_matter, iterates_stay_in_the_sets),
    *(problem_and_start_are_untouched, works_under_no_grad, calls_are_counted, states_are_plain, unsuitable_problems_are_refused),
    *(dtype_and_device_are_kept, a_stop_is_honoured),
)
OF_BATCHES = (resume_is_exact, same_seed_same_bits)  # and of modules, besides
FIRST = {type(case.solver): case.name for case in reversed(CASES) if not case.slow}
FIRST |= {type(case.solver): case.name for case in CASES if case.name in FAMILIES}  # a case of each solver


def marks(case, check):
    missing = bool(case.needs) and find_spec(case.needs) is None
    again = check in OF_THE_SOLVER or (check in OF_BATCHES and "module" not in case.name)
    again = again or (check is the_answer_is_right and case.name.endswith("-clipped"))
    again = again and case.name not in (*FAMILIES, *FIRST.values())
    noisy = case.name.endswith("-noisy")  # the same solver has batches of a module
    again = again or (noisy and check in (*OF_BATCHES, the_answer_is_right))
    return [pytest.mark.slow] * (case.slow or again) + [pytest.mark.skip(f"{case.needs} is not installed")] * missing


PAIRS = [
    pytest.param(check, case, id=f"{case.name}-{check.__name__}", marks=marks(case, check))
    for case in CASES
    for check in CHECKS
    if not case.slow or check is the_answer_is_right
]


@pytest.mark.parametrize(("check", "case"), PAIRS)
def test_conformance(check, case):
    check(case)


def test_the_checks_say_what_they_check():
    assert all((check.__doc__ or "").strip().endswith(".") and "\n" not in check.__doc__ for check in CHECKS)


def test_quick_cases_exist():
    assert set(FAMILIES) <= {case.name for case in CASES if not case.slow}
    assert all((Path(__file__).parent / file).exists() for file in QUICK)


def test_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_solver_is_in_the_table():
    import bilevel
    import constrained
    from constrained.core.solver import Solver

    public = {value for module in (bilevel, constrained) for value in vars(module).values() if isinstance(value, type)}
    assert {cls for cls in public if issubclass(cls, Solver) and cls is not Solver} == {type(case.solver) for case in CASES}
