"""Options drawn from the annotations of their classes: what each may be, and what it must refuse."""

from __future__ import annotations

import math
import typing
from importlib.util import find_spec
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import bilevel
import constrained
from bilevel.blocks import BlockSchedule
from bilevel.extend import AdjointMethod, ConvexSet, LinearSolver, Method, Optimizer, Schedule, Solver
from bilevel.extend import Options as Base
from constrained.core import options
from constrained.newton.accuracy import Accuracy

PACKAGES = {"Ipopt": "cyipopt", "Pounce": "pounce", "Uno": "unopy"}  # of other people, not installed everywhere
SOLVERS: dict[str, type[Solver]] = {
    name: getattr(package, name)
    for package in (constrained, bilevel)
    for name in package.solvers.__all__
    if name not in PACKAGES or find_spec(PACKAGES[name])
}
KINDS: dict[Any, tuple[type, ...]] = {
    Schedule: (constrained.Power, constrained.Cosine),
    Method: (bilevel.LBFGS, bilevel.SPG, bilevel.NewtonCG, bilevel.ProjectedLBFGS, bilevel.FaceLBFGS),
    LinearSolver: (
        *(bilevel.CG, bilevel.Minres, bilevel.Direct, bilevel.Neumann, bilevel.ProjectedCG),
        *(constrained.AutoLinear, constrained.Sketch, constrained.Gaussian, constrained.Kaczmarz),
    ),
    AdjointMethod: (bilevel.StochasticNeumann, bilevel.Unrolled),
    Optimizer: (bilevel.SGD, bilevel.AdamW, bilevel.ScalarAdam),
    BlockSchedule: (bilevel.AllBlocks, bilevel.LISA, bilevel.Cyclic),
    Accuracy: (constrained.EstimatedAccuracy, constrained.PaperAccuracy),
}
FEW = {"max_outer": 30, "max_inner": 200, "iterations": 50, "epochs": 4, "max_iterations": 200, "max_products": 200}
STEPS_BY_NUMBER = ("inner", "batches")  # real numbers that count steps: a large one is many calls, as asked for
USUAL = (1e-3, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0, 2.0, 10.0, 1e3)
EXTREME = (1e-300, 1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30, 1e300)


def number(name: str, allowed: options.Range) -> SearchStrategy[Any]:
    if allowed.whole:
        return st.integers(int(allowed.low), min(allowed.high, FEW.get(name, 5)))
    if name in STEPS_BY_NUMBER:
        return st.sampled_from([0.5, 1.0, 2.0, 3.7])
    usual, extreme = ([value for value in values if allowed.holds(value)] for values in (USUAL, EXTREME))
    return st.sampled_from(usual) | st.sampled_from(usual) | st.sampled_from(extreme)


def values(name: str, allowed: Any) -> SearchStrategy[Any]:
    """What one alternative of an annotation allows."""
    if isinstance(allowed, options.Range):
        return number(name, allowed)
    if allowed in KINDS:
        if allowed is Schedule and name in STEPS_BY_NUMBER:
            return st.builds(constrained.Power, st.sampled_from([1.0, 3.0]), st.just(0.5))
        return st.sampled_from(KINDS[allowed]).flatmap(made)
    if allowed is bool:
        return st.booleans()
    if allowed is float:
        return st.sampled_from([-1.0, -0.5, 0.0, 0.5, 2.0])
    if allowed is int:
        return st.integers(-2, 5)
    if allowed is str:
        return st.just("h")
    if typing.get_origin(allowed) is typing.Literal:
        return st.sampled_from(typing.get_args(allowed))
    if typing.get_origin(allowed) is tuple:
        return st.tuples(*(any_of(name, part) for part in typing.get_args(allowed)))
    return st.none()  # None itself; and what no table knows, with `allows`


def any_of(name: str, hint: Any) -> SearchStrategy[Any]:
    return st.one_of(*(values(name, part) for part in options.alternatives(hint)))


def allows(alternatives: tuple[Any, ...]) -> list[Any]:
    """The alternatives that something can be drawn for."""
    unknown = (ConvexSet,)
    return [a for a in alternatives if a not in unknown and not (isinstance(a, type) and issubclass(a, Base) and a not in KINDS)]


def fields(cls: type) -> dict[str, SearchStrategy[Any]]:
    found = {}
    for name, alternatives in options.ranges(cls).items():
        if name != "tol" and (known := allows(alternatives)):
            found[name] = st.one_of(*(values(name, alternative) for alternative in known))
    return found


@st.composite
def made(draw: st.DrawFn, cls: type) -> Any:
    """An object of the class with a few of its options drawn, the others at their defaults or, where they count, small."""
    strategies = fields(cls)
    chosen = draw(st.sets(st.sampled_from(sorted(strategies)), max_size=3)) if strategies else set()
    needed = {name for name in strategies if name in FEW} if draw(st.booleans()) else set()
    needed |= set(strategies) if issubclass(cls, Schedule) else set()
    try:
        return cls(**{name: draw(strategies[name]) for name in sorted(chosen | needed)})
    except bilevel.OptionError:  # two options that exclude each other
        return cls()


solver_classes = st.sampled_from(sorted(SOLVERS))
refused = solver_classes.flatmap(
    lambda name: st.tuples(st.just(SOLVERS[name]), st.sampled_from(list(options.outside(SOLVERS[name]))))
)
run_options_refused = st.sampled_from(
    [
        *({"seed": value} for value in (-1, 0.5, None, "a", True, math.nan)),
        *({"max_steps": value} for value in (-1, 1.5, "a", math.inf)),
        *({"max_seconds": value} for value in (-1.0, math.nan, "a")),
        *({"check_every": value} for value in (0, -1, 0.5, None)),
        *({"tol": value} for value in (-1.0, math.nan, math.inf, "a", 0.0, 1e-300)),
        *({"callbacks": value} for value in (3, [3], None, [int])),
        *({"start": value} for value in (3, "x", {})),
        *({"solver": value} for value in (3, "penalty", bilevel.Penalty)),
        *({"resume": value} for value in (3, "/nowhere/at/all")),
    ]
)
