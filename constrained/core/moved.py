"""Old names of modules that moved: imports of them, and pickles that hold them, find the new ones and warn."""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Mapping
from typing import Any


class Moved(types.ModuleType):
    """A module of before under its old name: its names are looked up where they are now."""

    def __init__(self, old: str, now: str, names: Mapping[str, str]):
        super().__init__(old, f"Moved to `{now}`.")
        vars(self)["_now"], vars(self)["_names"] = now, names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what import, inspect and pickle ask of any module
            raise AttributeError(name)
        return moved(self.__name__, name, self._names.get(name, self._now))


def moved(old: str, name: str, now: str) -> Any:
    """The object `name` of the module `now`, after a warning; `now` may end in another name: `module:name`."""
    module, _, renamed = now.partition(":")
    value = getattr(importlib.import_module(module), renamed or name)
    warnings.warn(f"{old}.{name} is now {module}.{renamed or name}", DeprecationWarning, stacklevel=3)
    return value


def forward(modules: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Let the old modules be imported. names: `old.module.Name` to the module that has it, where that is another."""
    for old, now in modules.items():
        own = {key.rpartition(".")[2]: module for key, module in names.items() if key.rpartition(".")[0] == old}
        module = sys.modules.setdefault(old, Moved(old, now, own))
        parent, _, name = old.rpartition(".")
        if parent in sys.modules:  # a room that is imported later has it by `import` alone
            vars(sys.modules[parent]).setdefault(
                name, module
            )  # for `import a.b` and then `a.b.c`; a public name of the package wins


def forward_names(module: str, names: Mapping[str, str]) -> None:
    """Let the old names of a module that stays be found: `{old name: "module" or "module:new name"}`. Its `__getattr__` is put
    there from here, so that type checkers, which would take any name after seeing one, go on to refuse misspelt names.
    """

    def find(name: str) -> Any:
        if name in names:
            return moved(module, name, names[name])
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    vars(sys.modules[module])["__getattr__"] = find
