"""Problem, Oracle, Point, Multipliers: what a solver is given."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .data import Sampler, exact
from .derivatives.counts import Calls
from .errors import OptionError, Unsuitable
from .status import WELCOME, Feature
from .vec import Tree, Vec


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """L = f + lam'c + mu'h with mu >= 0; bounds: mu >= 0 on the active side. None where there is no such constraint."""

    equality: Tensor | None = None
    inequality: Tensor | None = None
    lower: Tree | None = None
    upper: Tree | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """Where to start, or what a solver answers: x, the lower variable y where there is one, multipliers.

    >>> Point(x=torch.tensor(1.0)).y is None
    True
    """

    x: Tree
    y: Tree = None
    multipliers: Multipliers | None = None


class Oracle(ABC):
    """A problem as a solver sees it: functions that differentiate, draw and count. `variables`: by name, at the start."""

    calls: Calls
    variables: dict[str, Vec]


class Problem(ABC):
    """What `solve` takes. Residuals and certificates are computed here, from the problem, never by a solver."""

    features: Feature

    @abstractmethod
    def oracle(self, seed: int = 0) -> Oracle: ...

    @abstractmethod
    def begin(self, oracle: Any, start: Point | None) -> Point:
        """The start as Vecs, checked: shapes, dtypes, finite values. Raises ProblemError before any work is done."""

    @abstractmethod
    def finish(self, point: Point) -> Point:
        """A solver's answer in the user's structures."""

    @abstractmethod
    def fun(self, point: Point) -> float:
        """The objective, of bilevel problems the upper one."""

    @abstractmethod
    def residuals(self, point: Point) -> dict[str, float]:
        """Optimality residuals at a point, unscaled."""

    @abstractmethod
    def certify(self, point: Point) -> dict[str, float]:
        """Residuals and what takes more work: the lower level re-solved from several starts."""

    @abstractmethod
    def signature(self) -> dict[str, Any]:
        """Names, shapes, dtypes, features and sampler lengths: what a checkpoint must match."""

    @abstractmethod
    def fingerprint(self, oracle: Any) -> list[float]:
        """Numbers that tell two problems of one signature apart: values and gradient norms at the problem's own variables.

        Empty where the problem is not `exact`: the batches they would be taken on cannot be had again.
        """

    @abstractmethod
    def full_batch(self) -> Problem:
        """The same problem with each sampler replaced by one batch of all its data. Raises ProblemError for a stream."""

    def closed_form(self, x: Vec) -> Vec | None:
        """The lower solution at x, where the problem has a formula for it."""
        return None

    def require(self, who: str, supported: Feature) -> None:
        """Raise Unsuitable where the problem has features beyond the `supported` ones."""
        bad = self.features & ~(supported | WELCOME)
        if bad:
            raise Unsuitable(f"{who}: does not handle {bad.words()}")

    def samplers(self) -> dict[str, Sampler]:
        """Where its batches come from, by name. The state of one that has a `state_dict` travels in checkpoints."""
        return {}

    @property
    def exact(self) -> bool:
        """Batches are a function of (seed, stream, n), so that a resumed run equals an uninterrupted one bit for bit."""
        return all(exact(sampler) for sampler in self.samplers().values())

    def module(self, point: Point) -> torch.nn.Module:
        raise OptionError("module(): the lower variable of this problem is not an nn.Module")
