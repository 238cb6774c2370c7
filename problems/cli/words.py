"""What the words of the command line mean: names to objects, texts to values. Nothing here is evaluated."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

import bilevel
import bilevel.solvers
import constrained
import constrained.solvers
from constrained.core.choice import default_solver
from constrained.core.errors import OptionError
from constrained.core.options import Options
from constrained.core.solver import Solver
from constrained.core.status import Feature

from ..instance import Instance, Recommended
from ..texts.sources import SNLI, Chains, Glosses, Reviews, Sentiment140


def kebab(name: str) -> str:
    """A class's name as a word of the command line: SketchedNewton as sketched-newton, ScaleBiO as scale-bio."""
    return re.sub(r"(?<=[a-z])(?=[A-Z]{2}|[A-Z][a-z0-9])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _classes(*packages: ModuleType) -> list[type]:
    public = [getattr(package, name) for package in packages for name in package.__all__]
    return [one for one in public if isinstance(one, type)]


AUTO = "auto"  # the solver that `solve(problem)` chooses
SOLVERS: dict[str, type[Solver]] = {kebab(one.__name__): one for one in _classes(bilevel.solvers, constrained.solvers)}
SOLVERS_BY_LETTERS = {name.replace("-", ""): one for name, one in SOLVERS.items()}
TEXTS = (Chains, Glosses, Reviews, Sentiment140, SNLI)
PARTS = [
    one
    for one in _classes(bilevel, constrained)
    if issubclass(one, Options) and not issubclass(one, Solver) and not one.__subclasses__()
]
OBJECTS: dict[str, Callable[..., Any]] = {kebab(one.__name__): one for one in (*PARTS, *TEXTS)}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def value(text: str) -> Any:
    """A Python literal, an object of the library by its kebab-case name (`scalar-adam(lr=0.5)`), else the text itself."""
    named = re.fullmatch(r"([a-z][a-z0-9-]*)(?:\((.*)\))?", text.strip())
    if named and named[1] in OBJECTS:
        return _call(named[1], named[2] or "", text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all of these come from literal_eval
        return text


def _call(name: str, arguments: str, text: str) -> Any:
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        if not isinstance(call, ast.Call) or any(k.arg is None for k in call.keywords):
            raise TypeError("not a plain call")
        args = [ast.literal_eval(a) for a in call.args]
        kwargs = {str(k.arg): value(ast.unparse(k.value)) for k in call.keywords}
        return OBJECTS[name](*args, **kwargs)
    except OptionError:  # of the object itself, or of one inside it: says more than the sentence below
        raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as cause:
        raise OptionError(f"{text!r}: expected NAME or NAME(option=value, ...), with literal values") from cause


def pairs(words: list[str], flag: str) -> dict[str, Any]:
    """['a=1', 'b=x'] as a dict. Raises OptionError for a word without '='."""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise OptionError(f"{flag} {word}: expected name=value")
        found[name.replace("-", "_")] = value(text)
    return found


def make(factory: Callable[..., Instance], name: str, arguments: dict[str, Any]) -> Instance:
    """The instance with the given arguments. Raises OptionError for one that the factory does not take."""
    known = list(inspect.signature(factory).parameters)
    for argument in arguments:
        if argument not in known:
            raise OptionError(f"--with {argument}: {name} has no such argument; it has {', '.join(known)}")
    return factory(**arguments)


def choose(instance: Instance, name: str | None, options: dict[str, Any]) -> Recommended:
    """The solver asked for with the instance's recommended options, then the caller's; without a name the first recommended."""
    if name is None:
        found = next(iter(instance.recommended.values()), None) or Recommended(default_solver(instance.problem))
    elif name == AUTO:
        found = Recommended(default_solver(instance.problem))
    else:
        cls = SOLVERS_BY_LETTERS.get(name.replace("-", ""))  # lv-hba is lvhba
        if cls is None:
            raise OptionError(f"--solver {name}: expected one of {', '.join((AUTO, *SOLVERS))}")
        found = instance.recommended.get(cls) or Recommended(cls())
    try:
        solver: Solver = replace(found.solver, **options) if options else found.solver  # pyright: ignore[reportArgumentType]
    except TypeError:  # dataclasses.replace names an unknown option in its own words
        solver = type(found.solver)(**options)
    return replace(found, solver=solver)


def deterministic(instance: Instance, solver: Solver) -> Instance:
    """The instance with all data as one batch, where the solver does not take mini-batches."""
    if Feature.SAMPLES in solver.lacks(instance.features):
        return replace(instance, problem=instance.problem.full_batch())  # pyright: ignore[reportAttributeAccessIssue]
    return instance
