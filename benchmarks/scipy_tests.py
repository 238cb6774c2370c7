"""scipy's own tests of constrained minimisation, run on `constrained.minimize` in place of `scipy.optimize.minimize`.

    PYTHONPATH=. python benchmarks/scipy_tests.py            all of them, and what differs from DIFFERENCES
    PYTHONPATH=. python benchmarks/scipy_tests.py -k slsqp   arguments of pytest

Of `test_optimize.py` those tests that have bounds or constraints, or methods that take them. `fmin_slsqp` is `minimize` too.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import scipy.optimize

from constrained import minimize

MODULES = ("test_minimize_constrained", "test_slsqp", "test_optimize")
CHOSEN = re.compile(  # of test_optimize.py
    r"slsqp|SLSQP|trust.constr|constraint|equal_bounds|bounds_equal|test_minimize_automethod|TestLBFGSBBounds::test_minimize"
    r"|test_minimize_invalid_bounds|test_minimize_with_scalar|test_sparse_hessian|test_result_x_shape|TestOptimizeResultAttributes"
    r"|test_x_overwritten|test_finite_differences|test_ndim_error|test_minimize_coerce_args"
)
STATUS = "status is a Status here, not scipy's integer"
DIFFERENCES = {  # pattern of a test's name -> why it fails here
    r"test_list_of_problems\[.*prob4\]|TestTrustRegionConstr::test_args": "its constraint's jac is twice the derivative: refused",
    r"test_no_increase\[slsqp\]": "its jac is wrong on purpose: refused",
    r"test_issue_15093": "trust-constr stops at 0.0009 instead of 0: success is the residuals' here, and they are large",
    r"test_gh20665": "more equalities than unknowns, but consistent: solved here; there an error of the factorization",
    r"test_nested_minimization": "asks for a minimiser that is 0 to the last bit: here 1e-15",
    r"test_finite_differences_hess": "scipy's methods that cannot do without hess= are the library's choice here, which can",
    r"test_respect_maxiter\[SLSQP\]|test_callback_stopiteration\[\d-trust-constr\]": STATUS,
    r"test_raise_exception|test_ndim_error": "our own wording of what is wrong with hess= and x0",
    r"test_nan_values": "NaN at the start is a ProblemError here, before a run, not a result without success",
    r"test_all_bounds_equal": "the message is the residuals' here, and fun was called to check it, not once",
}


def fmin_slsqp(func: Callable[..., Any], x0: Any, **given: Any) -> Any:
    """scipy's older face of the same, on `minimize`."""
    args, rows = given.get("args", ()), []
    for kind, each, whole, slope in (
        ("eq", "eqcons", "f_eqcons", "fprime_eqcons"),
        ("ineq", "ieqcons", "f_ieqcons", "fprime_ieqcons"),
    ):
        rows += [{"type": kind, "fun": one, "args": args} for one in given.get(each, ())]
        if given.get(whole):
            rows.append({"type": kind, "fun": given[whole], "jac": given.get(slope), "args": args})
    found = minimize(func, x0, args, "SLSQP", given.get("fprime"), bounds=given.get("bounds"), constraints=rows)
    return (found.x, found.fun, found.nit, int(not found.success), found.message) if given.get("full_output") else found.x


class Optimize(types.ModuleType):
    """scipy.optimize with another `minimize`: the library itself calls the one of scipy."""

    minimize = staticmethod(minimize)

    def __getattr__(self, name: str) -> Any:
        return getattr(scipy.optimize, name)


class Plugin:
    """Puts `minimize` into scipy's modules of tests, and keeps what came out."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.passed: list[str] = []

    @staticmethod
    def name(nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        return f"{path.rpartition('/')[2].removesuffix('.py')}::{test}"

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [
            item for item in items if "test_optimize.py" not in item.nodeid or CHOSEN.search(item.nodeid.partition("::")[2])
        ]
        for module in {item.module for item in items}:
            for name, ours in (("minimize", minimize), ("fmin_slsqp", fmin_slsqp), ("optimize", Optimize("optimize"))):
                if hasattr(module, name):
                    setattr(module, name, ours)

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = self.name(report.nodeid)
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = (crash.message if crash else str(report.longrepr)).splitlines()[0][:150]
        elif report.when == "call" and report.passed:
            self.passed.append(name)


def reason(name: str) -> str:
    return next((why for pattern, why in DIFFERENCES.items() if re.search(pattern, name)), "")


def main(arguments: list[str]) -> int:
    plugin = Plugin()
    modules = [f"scipy.optimize.tests.{name}" for name in MODULES]
    options = ["-q", "--no-header", "--tb=short" if "-v" in arguments else "--tb=no", "-p", "no:cacheprovider", "-c", "/dev/null"]
    pytest.main([*options, "--no-summary", *arguments, "--pyargs", *modules], plugins=[plugin])
    unknown = {name: words for name, words in plugin.failed.items() if not reason(name)}
    gone = [pattern for pattern in DIFFERENCES if not any(re.search(pattern, name) for name in plugin.failed)]
    for name, words in plugin.failed.items():
        print(f"{name}\n    {reason(name) or 'NEW: ' + words}")
    total = len(plugin.failed) + len(plugin.passed)
    for module in MODULES:
        good = sum(name.startswith(f"{module}::") for name in plugin.passed)
        bad = sum(name.startswith(f"{module}::") for name in plugin.failed)
        print(f"{module}: {good} of {good + bad} pass")
    print(f"scipy {scipy.__version__}: {len(plugin.passed)} of {total} pass, {len(plugin.failed)} differ, {len(unknown)} newly")
    print("\n".join(f"no longer differs: {pattern}" for pattern in gone))
    return int(bool(unknown))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
