"""States: frozen dataclasses whose tensors can be found, under names of their own in checkpoints and pickles.

What a file holds is a name, never a module's path: code may move and files written before it did still load.
"""

# pyright: reportArgumentType=false
from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import importlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

from .errors import OptionError
from .status import Status
from .vec import register_node

T = TypeVar("T")
STATES: dict[str, type] = {}  # what a checkpoint may rebuild, by name
ENUMS: dict[str, type[enum.Enum]] = {"Status": Status}


@dataclass_transform(frozen_default=True)
def solver_state(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass of tensors, Vecs, numbers, enums and other states, known to pytree and to files as `name`.

    Raises OptionError where another class has the name. A class may have two static methods for files of older versions:
    `upgraded(fields)` brings their fields up to date, `successor(fields)` names the class that they make now.

    >>> @solver_state("Walk of the states module")
    ... class Walk:
    ...     k: int
    >>> rebuilt("Walk of the states module", {"k": 3})
    Walk(k=3)
    """
    if not isinstance(name, str) or not name:
        raise OptionError(f"solver_state: name: expected a word that files know the class by, got {name!r:.60}")

    def register(cls: type[T]) -> type[T]:
        cls = dataclasses.dataclass(frozen=True)(cls)
        _claim(STATES, name, cls)
        fields = [field.name for field in dataclasses.fields(cls)]
        register_node(cls, lambda value: ([getattr(value, f) for f in fields], None), lambda parts, _: cls(*parts), fields)
        cls.__reduce__ = lambda self: (unpickled, (name, {f: getattr(self, f) for f in fields}, cls.__module__))  # pyright: ignore
        cls.__setstate__ = _set_state  # pyright: ignore
        return cls

    return register


def changed(state: T, **fields: Any) -> T:
    """`dataclasses.replace` for states that change in every step: without `__init__`, a fifth of the time where fields are many.

    >>> @solver_state("Walk of changed")
    ... class Walk:
    ...     k: int
    >>> changed(Walk(3), k=4)
    Walk(k=4)
    """
    own = vars(state)
    if not fields.keys() <= own.keys():
        raise TypeError(f"{type(state).__name__}: has no field {', '.join(fields.keys() - own.keys())}")
    new = object.__new__(type(state))
    vars(new).update(own, **fields)
    return new


def named_by_module(cls: type[T]) -> type[T]:
    """`solver_state` as it was in 0.1.0: the class's name in files is its module and its own name."""
    return solver_state(f"{cls.__module__}.{cls.__qualname__}")(cls)


def state_enum(cls: type[T]) -> type[T]:
    """Let states hold members of an Enum; files know it by the class's name. Raises OptionError where another has the name."""
    _claim(ENUMS, cls.__name__, cls)
    return cls


def _claim(table: dict[str, Any], name: str, cls: type) -> None:
    """A cell of a notebook that is run again, or a module loaded again, defines the same class anew."""
    other = table.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        taken = f"{other.__module__}.{other.__qualname__}"
        raise OptionError(f"solver_state: name: expected one that no other class has, got {name!r}, which is {taken}")
    table[name] = cls


def name_of(cls: type) -> str | None:
    """The name that files know a state's class by."""
    return next((name for name, known in STATES.items() if known is cls), None)


def rebuilt(name: str, fields: Mapping[str, Any]) -> Any:
    """The state of a file. Raises KeyError where no class has the name. 0.1 wrote it behind its module: `a.module.Name`."""
    cls = _present(STATES[name if name in STATES else name.rpartition(".")[2]], fields)
    return cls(**fitted(cls, fields))


def _present(cls: Any, fields: Mapping[str, Any]) -> type:
    """The class itself, or the one that such fields make since an older version."""
    return (hasattr(cls, "successor") and cls.successor(fields)) or cls


def _set_state(self: Any, saved: Mapping[str, Any]) -> None:
    """What a pickle of 0.1.0 calls."""
    cls = _present(type(self), saved)
    object.__setattr__(self, "__class__", cls)
    vars(self).update(fitted(cls, saved))


def unpickled(name: str, fields: Mapping[str, Any], module: str) -> Any:
    """The state of a pickle, whose class is made known by its module; where that has moved, by its package."""
    if name not in STATES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    if name not in STATES:
        importlib.import_module(module.partition(".")[0])
    return rebuilt(name, fields)


def fitted(cls: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Saved fields as the class has them now. 0.1 wrote the names of an enum's members; `upgraded` knows what else changed."""
    found = dict(fields)
    if hasattr(cls, "upgraded") and set(found) != {field.name for field in dataclasses.fields(cls)}:
        found = cls.upgraded(found)
    kinds = typing.get_type_hints(cls) if any(_words(value) for value in found.values()) else {}
    return {name: _members(kinds[name], value) if _words(value) else value for name, value in found.items()}


def misfit(state: Any) -> str | None:
    """The first field of a state of these packages that is not of its annotation; of your own classes none is asked."""
    if type(state).__module__.partition(".")[0] not in ("constrained", "bilevel"):
        return None
    kinds = _kinds(type(state))
    return next((name for name, kind in kinds.items() if not _of_kind(getattr(state, name), kind)), None)


@functools.cache
def _kinds(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _of_kind(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; True of what cannot be told."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_of_kind(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(parts) == len(value) and all(map(_of_kind, value, parts))
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(_of_kind(part, parts[1]) for part in value.values())
    if kind in (int, float):
        whole = type(value) is int and abs(value) < 2**63
        return whole or (kind is float and isinstance(value, float))
    return isinstance(value, kind) if isinstance(kind, type) and origin is None and kind is not Any else True


def _words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple) and any(isinstance(part, str) for part in value))


def _members(kind: Any, value: Any) -> Any:
    """Names of an enum's members as the members, where the annotation `kind` asks for them."""
    if isinstance(value, tuple):
        return tuple(_members(typing.get_args(kind)[0], part) for part in value)
    return kind[value] if isinstance(kind, enum.EnumMeta) and isinstance(value, str) else value
