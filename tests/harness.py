"""What the checks of conformance.py share: runs of a case, comparisons to the bit, problems altered in one respect."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from cases import Case
from torch import Tensor

from bilevel import BilevelProblem, Box, Function, Live, MiniBatches, Mixture, Result, solve
from bilevel.problem import CONSTRAINTS
from constrained.core.problem import Problem
from constrained.core.status import Feature
from constrained.core.variables import Modules, calling
from constrained.core.vec import Vec, leaves_by_path
from constrained.problem import ConstrainedProblem
from constrained.sets import ConvexSet
from problems.instance import Instance

CALLABLES = {BilevelProblem: ("upper", "lower", *CONSTRAINTS), ConstrainedProblem: ("objective", "equality", "inequality")}


def run(case: Case, problem: Problem | None = None, *, full: bool = False, **more: Any) -> Result:
    """A full run of a case, or one of a few steps."""
    steps = case.max_steps if full else case.few
    return solve(problem or case.instance().problem, case.solver, **{"max_steps": steps, "seed": case.seed, **more})


def same(a: Any, b: Any) -> bool:
    """Two trees are equal bit for bit."""
    one, other = leaves_by_path(a), leaves_by_path(b)
    if one.keys() != other.keys():
        return False

    def equal(u: Any, v: Any) -> bool:
        if isinstance(u, Tensor):
            return u.dtype == v.dtype and torch.equal(torch.nan_to_num(u), torch.nan_to_num(v))
        return type(u) is type(v) and (u == v or (isinstance(u, float) and math.isnan(u) and math.isnan(v)))

    return all(equal(u, other[path]) for path, u in one.items())


def outcome(result: Result) -> tuple[Any, ...]:
    return result.x, result.y, result.state, dataclasses.asdict(result.calls.total()), result.status.name


def finite(result: Result) -> bool:
    """Every entry of x and y is finite."""
    return all(bool(Vec.of(value).finite()) for value in (result.x, result.y) if value is not None)


def errors_of(instance: Instance, result: Result) -> dict[str, float]:
    """Distances of x, y and each multiplier from the nearest known solution, relative as in `Instance.error`; those known."""

    def error(found: Any, known: Any) -> float:
        return float((Vec.of(found) - Vec.of(known)).norm()) / max(float(Vec.of(known).norm()), instance.scale)

    if not instance.solution:
        return {}
    best = min(instance.solution, key=lambda point: error(result.x, point.x))
    known = {"x": (result.x, best.x), "y": (result.y, best.y)}
    if best.multipliers is not None:
        of = {f.name: getattr(best.multipliers, f.name) for f in dataclasses.fields(best.multipliers)}
        known |= {name: (getattr(result.multipliers, name), wanted) for name, wanted in of.items()}
    return {name: error(found, wanted) for name, (found, wanted) in known.items() if wanted is not None}


def wrapped(problem: Problem, wrap: Callable[[str, Callable], Callable], **more: Any) -> Any:
    """The problem with `wrap(name, function)` in place of each of its functions."""
    changed = {}
    for name in CALLABLES[type(problem)]:
        function = getattr(problem, name, None)
        if isinstance(function, Function):
            changed[name] = dataclasses.replace(function, value=wrap(name, function.value))
        elif isinstance(function, Mixture):
            changed[name] = mixed(function, wrap, more.get("x", problem.x), more.get("y", problem.y))  # pyright: ignore
        elif function is not None:
            changed[name] = wrap(name, function)
    return dataclasses.replace(problem, **{**changed, **more})  # pyright: ignore[reportArgumentType]


def mixed(mixture: Mixture, wrap: Callable[[str, Callable], Callable], x: Any, y: Any) -> Mixture:
    """A mixture whose losses and weights are wrapped as functions of (x, y), which the wraps are made for."""
    losses = wrap("lower", lambda x, y, *batch: mixture.losses(y, *batch))
    weights = wrap("weights", lambda x, y: mixture.weights(x))
    return Mixture(lambda y, *batch: losses(x, y, *batch), lambda x: weights(x, y))


def variables_in(state: Any, name: str = "") -> Iterator[tuple[str, Vec]]:
    """Every Vec of a state with the name of the field that holds it; of u = (x, y) in a field x the two under their names."""
    if isinstance(state, Vec):
        parts = state.tree() if isinstance(state.tree(), tuple) else ()
        if parts and all(isinstance(part, Vec) for part in parts):
            yield from zip(("x", "y") if name == "x" else (name, name), parts)
        else:
            yield name, state
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            yield from variables_in(getattr(state, field.name), field.name)
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from variables_in(part, name)


def values(variable: Any) -> dict[str, Tensor]:
    """Every tensor of a variable or module by name, copied."""
    if isinstance(variable, torch.nn.Module):
        return {name: t.detach().clone() for name, t in variable.state_dict().items()}
    return {path: leaf.clone() for path, leaf in leaves_by_path(Vec.of(variable)).items()}


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """The global generators of torch, numpy and Python stand where they stood."""
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2], random.getstate()  # noqa: NPY002
    yield
    assert torch.equal(before[0], torch.get_rng_state()), "torch's global generator was used"
    keys, place = np.random.get_state()[1:3]  # noqa: NPY002
    assert np.array_equal(before[1], keys), "numpy's global generator was used"
    assert before[2] == place, "numpy's global generator was used"
    assert before[3] == random.getstate(), "Python's global generator was used"


def modules(problem: Any) -> list[torch.nn.Module | None]:
    """One entry a variable: the module, or None."""
    values = (getattr(problem, name) for name in problem.oracle().variables)
    return [value if isinstance(value, torch.nn.Module) else None for value in values]


def trees_of(problem: Problem, function: Callable) -> Callable:
    """A function of the problem's modules as one of their parameter dicts; any other as it is."""
    return calling("the function", function, Modules(*modules(problem)))


class Through(ConvexSet):
    """A set of one structure as a set of another."""

    def __init__(self, inner: ConvexSet, back: Callable[[Vec], Vec], forth: Callable[[Vec], Vec]):
        super().__init__()
        self.inner, self.back, self.forth = inner, back, forth
        self.entrywise = inner.entrywise

    def project(self, v: Vec) -> Vec:
        return self.forth(self.inner.project(self.back(v)))


class Holder(torch.nn.Module):
    """Parameters of any shapes."""

    def __init__(self, leaves: list[Tensor]):
        super().__init__()
        self.held = torch.nn.ParameterList([torch.nn.Parameter(leaf.clone()) for leaf in leaves])


def restructured(problem: Any, kind: str) -> Any:
    """The same problem with each variable as one flat tensor, as a dict of its leaves, or as an nn.Module."""
    like = problem.oracle().variables

    def read(value: Any, wanted: Vec) -> Any:
        if kind == "tensor":
            return wanted.unravel(value).tree()
        return wanted.like(list(value.held) if kind == "module" else [part[0] for part in value["leaves"].values()]).tree()

    def vec(vec: Vec, wanted: Vec) -> Vec:
        if kind == "tensor":
            return wanted.unravel(vec.ravel())
        return wanted.like([leaf.reshape(ref.shape) for leaf, ref in zip(vec.leaves, wanted.leaves)])

    def write(vec: Vec) -> Any:
        if kind == "tensor":
            return vec.ravel().clone()
        if kind == "module":
            return Holder(vec.leaves)
        return {"leaves": {f"{i:03d}": (leaf.clone(),) for i, leaf in enumerate(vec.leaves)}}

    new = {name: write(value) for name, value in like.items()}
    shapes = {name: Vec.of(dict(v.named_parameters()) if kind == "module" else v).detach() for name, v in new.items()}

    def wrap(name: str, function: Callable) -> Callable:
        of_trees = trees_of(problem, function)

        def call(*args: Any) -> Any:
            trees = [read(value, wanted) for value, wanted in zip(args, like.values())]
            return of_trees(*trees, *args[len(like) :])

        return call

    sets = {}
    for name in like:
        inner = getattr(problem, name.upper())
        back, forth = (lambda v, n=name: vec(v, like[n])), (lambda v, n=name: vec(v, shapes[n]))
        sets[name.upper()] = inner if inner.whole else Through(inner, back, forth)
    known = {"lower_solution": None} if "y" in like else {}
    return wrapped(problem, wrap, **new, **sets, **known)


def with_feature(feature: Feature) -> BilevelProblem | ConstrainedProblem:
    """A small problem with one feature besides its lower level; of one level where bilevel problems have no such feature."""
    one = torch.ones(2, dtype=torch.float64)
    if feature in (Feature.EQUALITY, Feature.INEQUALITY):
        return ConstrainedProblem(objective=lambda x: (x**2).sum(), x=one, **{feature.name.lower(): lambda x: x[0] - 1})

    def upper(x: Tensor, y: Tensor, *batch: Tensor) -> Tensor:
        return ((y - 2) ** 2).sum() + (x**2).sum()

    def lower(x: Tensor, y: Tensor, *batch: Tensor) -> Tensor:
        return ((y - x) ** 2).sum()

    def constraint(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).sum()

    numpy = Function.numpy(lambda x, y: ((y - x) ** 2).sum(), gradient=lambda x, y: (2 * (x - y), 2 * (y - x)))
    parts: dict[Feature, dict[str, Any]] = {
        Feature.LOWER: {},
        Feature.SAMPLES: {"lower_data": MiniBatches(one, 1)},
        Feature.NO_HVP: {"lower": numpy},
        Feature.X_SET: {"X": Box(-9, 9)},
        Feature.Y_SET: {"Y": Box(-9, 9)},
        Feature.LOWER_EQUALITY: {"lower_equality": constraint},
        Feature.LOWER_INEQUALITY: {"lower_inequality": constraint},
        Feature.UPPER_EQUALITY: {"upper_equality": constraint},
        Feature.UPPER_INEQUALITY: {"upper_inequality": constraint},
        Feature.MIXTURE: {"lower": Mixture(lambda y: torch.stack([((y - 1) ** 2).sum(), ((y + 1) ** 2).sum()]))},
        Feature.LIVE: {
            "upper": lambda x, y: upper(x, y.weight[0]),
            "lower": lambda x, y: lower(x, y.weight[0]),
            "y": Live(torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)),
        },
    }
    return BilevelProblem(**{"upper": upper, "lower": lower, "x": one, "y": one, **parts[feature]})
