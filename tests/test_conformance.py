"""Every check of conformance.py on every case of cases.py."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from cases import CASES
from conformance import CHECKS, the_answer_is_right
from conftest import FAMILIES, QUICK


def marks(case):
    missing = bool(case.needs) and find_spec(case.needs) is None
    return [pytest.mark.slow] * case.slow + [pytest.mark.skip(f"{case.needs} is not installed")] * missing


PAIRS = [
    pytest.param(check, case, id=f"{case.name}-{check.__name__}", marks=marks(case))
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
