"""Counting: how often each function of a problem was called, and what for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields

from ..deadline import look


@dataclass
class Count:
    """How often one function was called.

    `gradients`: backward passes, one whether it gave one argument's gradient or all; `rows`: data rows in these (0 without
    data); `tokens`: entries of these rows where they are integers, as token ids are; `hvps`: products with a block d2/dy2, of
    constrained problems with the KKT matrix; `jvps`: with a mixed block d2/dxdy; `vjps`: J'v of constraints; `jacobians`,
    `hessians`: whole matrices; `values`: evaluations (of bilevel problems: without a derivative, whose gradients each evaluate
    once).
    """

    values: int = 0
    gradients: int = 0
    rows: int = 0
    tokens: int = 0
    hvps: int = 0
    jvps: int = 0
    vjps: int = 0
    jacobians: int = 0
    hessians: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass
class Calls:
    """Calls of each function, by what they were for: `solve`, `answer`, `certificate`, or `check` at the start and on resuming.
    What is known from before is no call.

    `calls.gradients`, `.rows`, `.hvps`, ... add up the functions under `solve`; `calls.total("answer")` another purpose.
    """

    by: dict[str, dict[str, Count]] = field(default_factory=dict)
    purpose: str = "solve"

    def of(self, function: str) -> Count:
        """The count of a function that is about to be called: the time may be over."""
        look()
        counts = self.by.setdefault(self.purpose, {})
        return counts[function] if function in counts else counts.setdefault(function, Count())

    @contextlib.contextmanager
    def counting(self, purpose: str) -> Iterator[None]:
        """Count what runs inside under another purpose."""
        before, self.purpose = self.purpose, purpose
        try:
            yield
        finally:
            self.purpose = before

    def total(self, purpose: str = "solve") -> Count:
        return sum(self.by.get(purpose, {}).values(), Count())

    def copy(self) -> Calls:
        return Calls({p: {name: Count(**vars(c)) for name, c in one.items()} for p, one in self.by.items()}, self.purpose)

    def as_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        return {p: {name: dict(vars(count)) for name, count in one.items()} for p, one in self.by.items()}

    @classmethod
    def from_dict(cls, by: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Calls:
        return cls(
            {p: {name: Count(**{k: int(n) for k, n in count.items()}) for name, count in one.items()} for p, one in by.items()}
        )

    def __getattr__(self, name: str) -> int:
        if name in Count.__dataclass_fields__:
            return getattr(self.total(), name)
        raise AttributeError(name)
