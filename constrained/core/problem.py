"""Problem, Oracle, Point, Multipliers: what a solver is given."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .data import FullBatch, Sampler, exact
from .derivatives.counts import Calls
from .derivatives.finite_differences import direction
from .derivatives.memory import Memory
from .errors import BilevelError, OptionError, ProblemError, Unsuitable, shown
from .status import WELCOME, Feature
from .vec import Tree, Vec

HALF = (torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """grad f + J_c'lam + J_h'mu - low + high = 0, mu, low, high >= 0. None where there is no such constraint.

    equality, inequality: lam and mu, one entry a row. low, high: of the bounds of x, like x. lower: of bilevel problems, those of
    the lower level's constraints, by kind.

    f falls by lam_i a unit that c_i = 0 gives way to c_i = 1, by mu_i for h_i <= 1, by low_i for a bound one unit lower.
    """

    equality: Tensor | None = None
    inequality: Tensor | None = None
    low: Tree | None = None
    high: Tree | None = None
    lower: Tree | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """Where to start, or what a solver answers: x, the lower variable y where there is one, multipliers.

    >>> Point(x=torch.tensor(1.0)).y is None
    True
    """

    x: Tree
    y: Tree = None
    multipliers: Multipliers | None = None


def expect_point(name: str, value: Any) -> None:
    """Raise OptionError for what is no Point."""
    if not isinstance(value, Point):
        raise OptionError(f"{name}: expected Point(x=..., y=...), got {type(value).__name__}")
    if value.multipliers is not None and not isinstance(value.multipliers, Multipliers):
        raise OptionError(f"{name}.multipliers: expected Multipliers(...) or None, got {shown(value.multipliers)}")


def entries(v: Tensor, generator: torch.Generator) -> float:
    """A number that each entry of v, its place and its sign have a part in; at least |v| / 2, so that rounding stays small."""
    if not v.numel():
        return 0.0
    v, w = v.detach().double().cpu(), torch.randn(v.numel(), generator=generator, dtype=torch.float64)
    return float(v.norm() + 0.5 * (w @ v) / w.norm())


def sides(project: Callable[[Vec], Vec], x: Vec, generator: torch.Generator) -> list[float]:
    """Numbers that tell two sets apart: what they make of points far from x on opposite sides. NaN where a projection fails."""
    found = []
    for far in (10.0, 1e3):
        d = direction(x, generator)
        for sign in (far, -far):
            try:
                found.append(entries(project(x.add(d, sign * (1.0 + float(x.norm())))).ravel(), generator))
            except BilevelError:
                found.append(math.nan)
    return found


class Oracle(ABC):
    """A problem as a solver sees it: functions that differentiate, draw and count. `variables`: by name, at the start."""

    calls: Calls
    variables: dict[str, Vec]
    memory: Memory | None = None

    @property
    def functions(self) -> Sequence[Any]:
        """The user's, as far as they are remembered."""
        return ()

    def remember(self) -> Self:
        """From here on a function is asked once at a point: in a run, or a certificate, while nothing that it holds changes."""
        self.memory = Memory(self.calls)
        for function in self.functions:
            function.memory = self.memory
        return self


class Problem(ABC):
    """What `solve` takes. Residuals and certificates are computed here, from the problem, never by a solver."""

    kind: ClassVar[str]  # in checkpoints
    features: Feature

    @abstractmethod
    def variables(self) -> dict[str, Vec]:
        """Its variables at the start, by name."""

    @abstractmethod
    def oracle(self, seed: int = 0) -> Oracle: ...

    @abstractmethod
    def begin(self, oracle: Any, start: Point | None) -> Point:
        """The start as Vecs, checked: shapes, dtypes, finite values. Raises ProblemError before any work is done."""

    def try_second_order(self, oracle: Any, at: Point, who: str) -> None:
        """Raise Unsuitable where second derivatives are not to be had, for one who needs them."""
        return

    @abstractmethod
    def finish(self, point: Point) -> Point:
        """A solver's answer in the user's structures."""

    def completed(self, point: Point, by: Any) -> Point:
        """A solver's answer with what is read off there beside: the multipliers of bounds. by: the oracle of the run."""
        return point

    @abstractmethod
    def fun(self, point: Point) -> float:
        """The objective, of bilevel problems the upper one."""

    @abstractmethod
    def residuals(self, point: Point) -> dict[str, float]:
        """Optimality residuals at a point, unscaled."""

    @abstractmethod
    def certify(self, point: Point, *, by: Any = None) -> dict[str, float]:
        """Residuals and what takes more work: the lower level re-solved from several starts.

        by: the oracle of a run that ends, for what it remembers and its counts; one of its own where there is none.
        """

    def progress(
        self, point: Point, start: Point, found: Mapping[str, float] | None = None, *, by: Any = None
    ) -> dict[str, float]:
        """Which share of the improvement since the start may be missing at a point, by the residual that would say so: numbers
        that no unit changes. `found`: what `certify` says of the point, where it is known. by: as in `certify`. Empty: not
        measured.
        """
        return {}

    @abstractmethod
    def fingerprint(self, oracle: Any) -> list[float]:
        """Numbers that tell two problems of one signature apart: values and gradient norms at the problem's own variables,
        rows of constraints, and what sets make of far points. New numbers go to the end: older files lack them.

        Empty where the problem is not `exact`: the batches they would be taken on cannot be had again.
        """

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
        """A copy of the module given as a variable, with the point's values as its parameters."""
        raise OptionError("module(): no variable of this problem is an nn.Module")

    # -- what all problems share ------------------------------------------------------------------------------------------
    def signature(self) -> dict[str, Any]:
        """Names, shapes, dtypes, features and sampler lengths: what a checkpoint must match."""
        leaves = {
            name: [[path, list(leaf.shape), str(leaf.dtype), leaf.device.type] for path, leaf in zip(vec.paths(), vec.leaves)]
            for name, vec in self.variables().items()
        }
        samplers = {name: repr(sampler) for name, sampler in self.samplers().items()}
        return {"kind": self.kind, **leaves, "features": self.features.words(), **samplers}

    def full_batch(self) -> Self:
        """The same problem with each sampler replaced by one batch of all its data. Raises ProblemError for a stream."""
        whole = {name: sampler.full() for name, sampler in self.samplers().items()}
        for name, data in whole.items():
            if data is None:
                raise ProblemError(f"{name}: {getattr(self, name)!r} has no full batch")
        return self._with(whole)

    def judged(self) -> tuple[Self, list[str]]:
        """The problem on all of its data, where it is judged, and the samplers that have no full batch but give their first."""
        if Feature.SAMPLES not in self.features:
            return self._with({}), []
        samplers = self.samplers()
        whole = {name: None if Feature.LIVE in self.features else sampler.full() for name, sampler in samplers.items()}
        without = [name for name, full in whole.items() if full is None]
        first = {name: FullBatch(samplers[name].draw(0, list(samplers).index(name), 0)) for name in without}
        return self._with({**whole, **first}), without

    def _with(self, fields: dict[str, Any]) -> Self:
        return dataclasses.replace(self, **fields)  # pyright: ignore[reportArgumentType]

    def expect_values(self) -> None:
        """Raise ProblemError for variables on the meta device, where a problem can be made and not be solved."""
        variables = self.variables()
        if any(leaf.device.type == "meta" for vec in variables.values() for leaf in vec.leaves):
            raise ProblemError(f"{', '.join(variables)}: expected tensors with values, got tensors on the meta device")

    def _one_dtype(self) -> None:
        """Raise ProblemError where variables differ in dtype or device, or have one in which nothing here is solved."""
        variables = self.variables()
        seen = {(leaf.dtype, leaf.device) for vec in variables.values() for leaf in vec.leaves}
        if len(seen) != 1:
            listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in seen))
            raise ProblemError(f"{', '.join(variables)}: expected one dtype and device for all variables, got {listed}")
        (dtype, _), names = seen.pop(), ", ".join(variables)
        if dtype not in (torch.float32, torch.float64, *(HALF if Feature.LIVE in self.features else ())):
            raise ProblemError(f"{names}: expected float32 or float64, half precision only with Live(module), got {dtype}")
