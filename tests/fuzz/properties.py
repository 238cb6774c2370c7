"""What is true of every run, whatever the problem, its functions and the options are."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from drawn_problems import Drawn, Hang, Own
from harness import finite, random_state_kept, same, values
from hostile import CLAIMABLE, Hostile

from bilevel import Auto, BilevelError, ProblemError, Result, Status, solve
from bilevel.extend import Solver
from constrained.core.vec import leaves_by_path

SLACK = 10.0  # of the tolerance, for rounding and for residuals that are summed in another way


@contextlib.contextmanager
def untouched(drawn: Drawn) -> Iterator[None]:
    """Nothing that the user gave has changed: variables, modules with their flags, global random state."""

    def looked() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in ("x", "y"):
            value = getattr(drawn.problem, name, None)
            if value is not None:
                found[name] = values(value)
            if isinstance(value, torch.nn.Module):
                found[f"{name} flags"] = [(p.requires_grad, p.grad is None, value.training) for p in value.parameters()]
        return found

    before, grad = looked(), torch.is_grad_enabled()
    fields = {f.name: getattr(drawn.problem, f.name) for f in dataclasses.fields(drawn.problem)}
    with random_state_kept():
        yield
    assert same(before, looked()), "the variables of the problem were written to"
    assert all(getattr(drawn.problem, name) is value for name, value in fields.items()), "a field of the problem changed"
    assert torch.is_grad_enabled() == grad, "the grad mode changed"


def run(drawn: Drawn, solver: Solver | None, hostile: Hostile | None = None, **options: Any) -> Result | BaseException:
    """A run with all that must hold of it; or the exception it ended in, where it may."""
    if hostile is not None:
        hostile.into(drawn.calls)
    kept = repr(solver), copy.deepcopy(solver)
    with untouched(drawn), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with ended():
                result = solve(drawn.problem, solver, **options)
        except (BilevelError, Own, KeyboardInterrupt) as error:
            result = error
    ways = {Own: "own exception", KeyboardInterrupt: "interrupt"}
    if isinstance(result, Result):
        looks_right(drawn, result, hostile)
    elif isinstance(result, BilevelError):
        assert str(result), "an error without a word"
        assert hostile is not None or not isinstance(result, ProblemError), f"a good problem was refused: {result}"
    else:
        assert hostile is not None
        assert hostile.way == ways[type(result)]
    assert (repr(solver), solver) == kept, "the solver changed"
    return result


def looks_right(drawn: Drawn, result: Result, hostile: Hostile | None) -> None:
    assert result.status.done
    assert finite(result), f"{result.status.name} at a point that is not finite"
    assert result.steps >= 0
    assert result.seconds >= 0
    assert result.message
    assert str(result).startswith("Result: ")
    carried(result)
    if result.status is Status.CONVERGED:
        solver = result.solver.current(result.state) if isinstance(result.solver, Auto) else result.solver
        assert solver.exact, "a surrogate's solver cannot be right"
        if hostile is None or not hostile.fired or (hostile.once and hostile.way in CLAIMABLE):
            within(drawn, result)
    for ask in (result.residuals, lambda: result.fun):
        with allowed(hostile):
            ask()


def within(drawn: Drawn, result: Result) -> None:
    tol = result.solver.tolerance
    dtype = torch.float64 if drawn.problem.variables()["x"].dtype == torch.float64 else torch.float32
    rounding = 1e3 * torch.finfo(dtype).eps * (drawn.size if "those of rounding" in result.message else 1.0)
    found = drawn.truth(result)
    bad = {name: value for name, value in found.items() if not value <= SLACK * tol + rounding}
    assert not bad, f"CONVERGED to {tol:.1e}, but {found}; the library says {result.message}"


def carried(result: Result) -> None:
    """A pickle of it holds the same answer."""
    again = pickle.loads(pickle.dumps(result))
    assert same((again.x, again.y), (result.x, result.y))
    assert (again.status, again.steps, again.message, str(again)) == (result.status, result.steps, result.message, str(result))
    assert leaves_by_path(again.state).keys() == leaves_by_path(result.state).keys()


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """It ends, in as many calls as small problems need."""
    try:
        yield
    except Hang as hang:  # no Exception, so that the library cannot catch it; hypothesis makes only those small
        raise AssertionError(f"it does not end: {hang}") from hang


@contextlib.contextmanager
def allowed(hostile: Hostile | None) -> Iterator[None]:
    """Exceptions of the library, and those of the user's functions."""
    try:
        yield
    except BilevelError:
        pass
    except (Own, KeyboardInterrupt):
        assert hostile is not None
