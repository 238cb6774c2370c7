"""Variables as a user gives them: tensors, trees of tensors, nn.Modules; and functions of modules as functions of parameters."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .derivatives.function import Function
from .errors import NonFiniteStart, ProblemError
from .live import Live, LiveVec
from .shared_state import UNCOPIED
from .vec import Tree, Vec, leaves_by_path


def variable(value: Any, name: str) -> Vec:
    """The value as a Vec; of a module its trainable parameters, by name.

    Raises ProblemError: numbers, nothing that moves, BatchNorm in training.
    """
    vec = _read(value, name)
    if vec.size == 0:
        raise ProblemError(f"{name}: expected at least one number that moves, got {describe(vec)}")
    return vec


def _read(value: Any, name: str) -> Vec:
    if isinstance(value, Live):
        no_batch_norm(value.module, name)
        return value.vec()
    if isinstance(value, (list, tuple)) and any(isinstance(part, (int, float)) for part in value):
        raise ProblemError(
            f"{name}: expected a tensor, got a {type(value).__name__} of numbers: write torch.tensor({value!r:.40})"
        )
    if not isinstance(value, torch.nn.Module):
        return Vec.of(value, name)
    no_batch_norm(value, name)
    return Vec.of(parameters(value), name)


def no_batch_norm(module: torch.nn.Module, name: str) -> None:
    """Raise ProblemError for statistics that change with every call."""
    for path, part in module.named_modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.training and part.track_running_stats:
            raise ProblemError(
                f"{name}: {path or 'it'} is BatchNorm in train mode, which changes with every call: use .eval() or GroupNorm"
            )


def module_of(value: Any) -> torch.nn.Module | None:
    """The module behind a variable, where there is one."""
    return value.module if isinstance(value, Live) else value if isinstance(value, torch.nn.Module) else None


def checked_start(name: str, value: Tree, like: Vec) -> Vec:
    """A start for the variable `like`, or `like` itself where it is None. Raises ProblemError unless it fits and is finite."""
    module = module_of(value)
    vec = like if value is None else Vec.of(value if module is None else parameters(module), name)
    got = [(tuple(t.shape), t.dtype, t.device) for t in vec.leaves]
    want = [(tuple(t.shape), t.dtype, t.device) for t in like.leaves]
    if got != want or vec.spec != like.spec:
        raise ProblemError(f"{name}: expected {describe(like)}, got {describe(vec)}")
    if not bool(vec.finite()):
        raise NonFiniteStart(f"{name}: NaN or infinite at the start")
    if isinstance(like, LiveVec):
        if vec is not like:
            like.take(vec)
        return like
    return vec


def no_dropout(value: Any, name: str) -> None:
    """Without mini-batches a mask would be drawn once and optimised against."""
    module = module_of(value)
    for path, part in () if module is None else module.named_modules():
        active = isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0
        if part.training and (active or (isinstance(part, torch.nn.RNNBase) and part.dropout > 0)):
            raise ProblemError(
                f"{name}: {path or 'it'} is dropout in train mode without mini-batches: use .eval() or MiniBatches"
            )


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def module_with(module: torch.nn.Module, values: Any) -> torch.nn.Module:
    """A copy of a module whose parameters have the given values; those that are not among them stay."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name in values:
                parameter.copy_(values[name])
    return twin


def describe(vec: Vec) -> str:
    parts: Sequence[str] = [f"{path}{list(leaf.shape)} {leaf.dtype} {leaf.device}" for path, leaf in zip(vec.paths(), vec.leaves)]
    return "; ".join(parts) if len(parts) <= 4 else "; ".join(parts[:4]) + "; ..."


class Modules:
    """The user's modules, one entry a variable (None for a tree), as an oracle calls them: copies that share their parameters.

    `functional_call` writes into the module that it calls: into a copy of this oracle's, which no other thread calls. Buffers are
    its own too. Modules that cannot be copied are called themselves, by one thread at a time.
    """

    def __init__(self, *given: torch.nn.Module | None):
        self.given = given
        copies = _copies(given)
        self.called, self.lock = (given, UNCOPIED) if copies is None else (copies, contextlib.nullcontext())
        self.bundle = _Bundle(self.called)
        self.own = {id(p) for module in given if module is not None and copies is not None for p in module.parameters()}


def _copies(modules: Sequence[torch.nn.Module | None]) -> list[torch.nn.Module | None] | None:
    """Copies that share what is large: parameters, and tensors and arrays kept as attributes. None where they cannot be made."""
    parts = [part for module in modules if module is not None for part in module.modules()]
    shared: list[Any] = [p for part in parts for p in part._parameters.values() if p is not None]
    for part in parts:
        rest = {name: value for name, value in vars(part).items() if name not in ("_parameters", "_buffers", "_modules")}
        shared += [leaf for leaf in leaves_by_path(rest).values() if isinstance(leaf, (torch.Tensor, np.ndarray))]
    try:
        found = copy.deepcopy(list(modules), {id(one): one for one in shared})
    except Exception:  # locks, files, graphs, whatever a module holds
        return None
    kept = {id(part) for part in parts}
    return None if any(id(part) in kept for module in found if module is not None for part in module.modules()) else found


class _Bundle(torch.nn.Module):
    """Lets `functional_call` swap the parameters of modules while the user's function runs."""

    def __init__(self, modules: Sequence[torch.nn.Module | None]):
        super().__init__()
        for i, module in enumerate(modules):
            if module is not None:
                self.add_module(f"v{i}", module)

    def forward(self, function: Callable[..., Any], trees: Sequence[Tree], rest: Sequence[Any]) -> Any:
        own = dict(self.named_children())
        return function(*(own.get(f"v{i}", tree) for i, tree in enumerate(trees)), *rest)


def calling(name: str, function: Callable[..., Any], modules: Modules) -> Callable[..., Any]:
    """The user's function of modules as a function of their parameter dicts.

    Raises ProblemError where it uses the user's module and not the one that it is handed: its parameters do not move.
    """
    given = modules.given
    if all(module is None for module in given):
        return function
    own = function if isinstance(function, Function) else Function(function)
    n, looked = len(given), False

    def value(*args: Any) -> Any:
        nonlocal looked
        swap = {f"v{i}.{k}": v for i, module in enumerate(given) if module is not None for k, v in args[i].items()}
        with modules.lock:
            out = torch.func.functional_call(modules.bundle, swap, (own.value, args[:n], args[n:]))
        if not looked and isinstance(out, torch.Tensor) and out.requires_grad:
            looked = True
            if any(id(leaf) in modules.own for leaf in _roots(out)):
                raise ProblemError(
                    f"{name}: expected a function of the module that it is handed, got one that uses the module given to the "
                    "problem, whose parameters do not move: .detach() them where they are meant as constants"
                )
        return out

    return replace(own, value=value)


def _roots(out: torch.Tensor) -> Iterator[torch.Tensor]:
    """The leaves of its graph."""
    pending, seen = [out.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable  # pyright: ignore[reportAttributeAccessIssue]
        pending += [before for before, _ in node.next_functions]
