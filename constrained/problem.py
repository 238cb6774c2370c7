"""ConstrainedProblem: the definition, and what solvers and residuals need of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import kkt, progress
from .core.data import NoData, Sampler, expect_sampler
from .core.derivatives.function import Function
from .core.derivatives.replay import Replay
from .core.errors import OptionError, ProblemError, shown
from .core.problem import Multipliers, Point, Problem, entries, expect_point, sides
from .core.status import Feature
from .core.variables import Modules, calling, checked_start, module_with, no_dropout, variable
from .core.vec import Vec
from .oracle import ConstrainedOracle
from .sets import ConvexSet, Everywhere, expect_set

FUNCTIONS = ("objective", "equality", "inequality")


@dataclass(frozen=True, kw_only=True, eq=False)
class ConstrainedProblem(Problem):
    """min over x in X of f(x) subject to c(x) = 0 and h(x) <= 0.

    objective: f(x), a scalar tensor; with `data` it gets the batch as second argument. equality, inequality: c and h, scalar or
    1-D, deterministic. x: the variable at the start, a tensor, a tree of tensors or an nn.Module (the functions then receive a
    copy of it, its trainable parameters replaced). X: a convex set. `Function(...)` in place of any callable brings derivatives
    of its own.

    Raises ProblemError for what is not callable, a variable that has no entries or is not in float32 or float64, a set that does
    not fit; when it is solved, for functions that return another number of rows at another call.

    >>> import torch, constrained
    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    >>> hs6 = ConstrainedProblem(objective=lambda x: (1 - x[0]) ** 2, equality=lambda x: 10 * (x[1] - x[0] ** 2), x=x)
    >>> hs6.features.words()
    'equality constraints'
    """

    kind = "ConstrainedProblem"

    objective: Callable[..., Any]  # pyright: ignore[reportIncompatibleMethodOverride]
    x: Any
    equality: Callable[..., Any] | None = None
    inequality: Callable[..., Any] | None = None
    X: ConvexSet = field(default_factory=Everywhere)
    data: Sampler = field(default_factory=NoData)
    replay: Replay | None = field(default=None, init=False, repr=False)  # of `traced`; `replace` drops it
    _right = False  # no first derivative was wrong near a start; on the instance, not a field, so that `replace` drops it

    def __post_init__(self) -> None:
        for name in FUNCTIONS:
            value = getattr(self, name)
            if not callable(value) and (name == "objective" or value is not None):
                raise ProblemError(f"{name}: expected a function, got {type(value).__name__}")
        expect_set("X", self.X)
        expect_sampler("data", self.data)
        self._one_dtype()
        self.X.check(self.variables()["x"], "X")

    # -- what it is -----------------------------------------------------------------------------------------------------
    @functools.cached_property
    def features(self) -> Feature:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What a solver must handle."""
        own = [f for f in (self.objective, self.equality, self.inequality) if isinstance(f, Function)]
        has = {
            Feature.SAMPLES: self.data.stochastic,
            Feature.NO_HVP: not all(f.second_order for f in own),
            Feature.X_SET: not self.X.whole,
            Feature.EQUALITY: self.equality is not None,
            Feature.INEQUALITY: self.inequality is not None,
        }
        return Feature(sum(feature.value for feature, there in has.items() if there))

    def variables(self) -> dict[str, Vec]:
        return {"x": variable(self.x, "x")}

    def samplers(self) -> dict[str, Sampler]:
        return {"data": self.data}

    # -- what solvers get -----------------------------------------------------------------------------------------------
    def oracle(self, seed: int = 0) -> ConstrainedOracle:
        module = self.x if isinstance(self.x, torch.nn.Module) else None
        own = {name: getattr(self, name) for name in FUNCTIONS}
        if module is not None:
            modules = Modules(module)
            own = {name: None if g is None else calling(name, g, modules) for name, g in own.items()}
        f, c, h = own.values()
        assert f is not None
        random = module is not None and module.training
        return ConstrainedOracle(f, c, h, self.data, self.variables()["x"], self.X, seed, random, self.replay)

    def traced(self) -> ConstrainedProblem:
        """The same problem with f, c and their derivatives recorded as programs, for small ones that are solved many times.

        Recording takes 0.1 to 0.5 s and an evaluation then a fifth of the time. What the functions hold (data, numbers) is that
        of the moment of recording. Residuals never come from the recording. Where the functions cannot be recorded (branches on
        x, mini-batches, own derivatives, more than 50 unknowns) the problem is solved as before, and `replay.reason` says why.

        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> hs6 = ConstrainedProblem(objective=lambda x: (1 - x[0]) ** 2, equality=lambda x: 10 * (x[1] - x[0] ** 2), x=x)
        >>> hs6.traced().replay.reason
        ''
        """
        twin = replace(self)
        object.__setattr__(twin, "replay", self.oracle().recorded())
        return twin

    def begin(self, oracle: ConstrainedOracle, start: Point | None) -> Point:
        """The start as Vecs, projected on X. Raises ProblemError; NonFiniteStart names the part that is not finite."""
        x = checked_start("x", start and start.x, oracle.variables["x"])
        if start is not None and start.y is not None:
            raise ProblemError(f"start.y: expected None, since this problem has no lower level, got {shown(start.y)}")
        if Feature.SAMPLES not in self.features:
            no_dropout(self.x, "x")
        x = self.X.project(x.detach().clone())
        _expect_rows(oracle, start and start.multipliers)
        kkt.check_start(oracle, x)
        if not self._right:
            kkt.expect_right(oracle, x)
            object.__setattr__(self, "_right", True)
        return Point(x, None, start.multipliers if start else None)

    def fingerprint(self, oracle: ConstrainedOracle) -> list[float]:
        if not self.exact:
            return []
        x = oracle.variables["x"]
        generator, weights = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        found, later = [], []
        for far in (0.0, 0.1):
            step = x.map(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t))
            u = self.X.project(x.add(step, far * (1.0 + float(x.norm())) / float(step.norm())))
            tape = oracle.tape(u, oracle.f.draw(0))
            h = [] if oracle.h is None else [oracle.h.value((u,))]
            found += [float(u.norm()), float(tape.value), float(tape.gradient.norm()), float(tape.c.norm())]
            found += [float(rows.norm()) for rows in h]
            later += [entries(part, weights) for part in (tape.gradient, tape.c, *h)]
        return found + later + ([] if self.X.whole else sides(self.X.project, x, weights))

    def finish(self, point: Point) -> Point:
        return Point(point.x.tree(), None, point.multipliers)

    def completed(self, point: Point, by: ConstrainedOracle) -> Point:
        if self.X.whole or not self.X.entrywise or point.multipliers is None or Feature.SAMPLES in self.features:
            return point
        return replace(point, multipliers=kkt.with_bounds(by.unrecorded, point.x, point.multipliers))

    # -- truth ----------------------------------------------------------------------------------------------------------
    def fun(self, point: Point) -> float:
        oracle, x, _ = self._read(point)
        return float(oracle.f.value((x,)))

    def residuals(self, point: Point) -> dict[str, float]:
        """`constrained.kkt.residuals` at a point: unscaled 2-norms. With mini-batches: on all of the data.

        Multipliers that the point does not bring are taken as the least-squares ones.
        """
        oracle, x, suffix = self._read(point)
        return self._renamed(kkt.residuals(oracle, x, point.multipliers or Multipliers()), suffix)

    def certify(self, point: Point, *, by: ConstrainedOracle | None = None) -> dict[str, float]:
        """`residuals`; and, where a first derivative is not that of its function, its relative error, `objective: gradient`."""
        oracle, x, suffix = self._read(point, by)
        if oracle.memory is not None:
            oracle.memory.forget_at((x,))
        found = kkt.residuals(oracle, x, point.multipliers or Multipliers())
        off = kkt.wrong_here(oracle, x) | kkt.wrong(oracle, x)  # first where there is a graph
        return self._renamed(found, suffix) | {f"{name}{suffix}": error for name, error in off.items()}

    def progress(
        self,
        point: Point,
        start: Point,
        found: Mapping[str, float] | None = None,
        *,
        by: ConstrainedOracle | None = None,
    ) -> dict[str, float]:
        """`stationarity` and `feasibility`: the share of the improvement since the start that may be missing, to first order, and
        the violation in the change since the start; see `constrained.progress`.
        """
        oracle, x, _ = self._read(point, by)
        x0 = checked_start("x", start.x, oracle.variables["x"])
        return progress.shares(oracle, x, point.multipliers or Multipliers(), x0)

    def check(self, start: Point | None = None) -> kkt.Report:
        """Compare every derivative with finite differences at the start, or at a given point, and near it."""
        oracle, x, _ = self._read(Point(None) if start is None else start)
        return kkt.check(oracle, x)

    def module(self, point: Point) -> torch.nn.Module:
        """A copy of the module given as x with the point's values as its parameters."""
        if not isinstance(self.x, torch.nn.Module):
            raise OptionError("module(): x of this problem is not an nn.Module")
        return module_with(self.x, point.x)

    @staticmethod
    def _renamed(found: dict[str, float], suffix: str) -> dict[str, float]:
        return {f"{name}{suffix}" if name != "feasibility" else name: value for name, value in found.items()}

    def _read(self, point: Point, by: ConstrainedOracle | None = None) -> tuple[ConstrainedOracle, Vec, str]:
        """An oracle on all of the data (on the first batch of a stream: suffix `_estimate`), and the point.

        The given one where it may be used, without its recording.
        """
        expect_point("point", point)
        if by is not None and by.memory is not None and not by.f.random:
            oracle, without = by.unrecorded, []
        else:
            whole, without = self.judged()
            oracle = whole.oracle().remember()
        _expect_rows(oracle, point.multipliers)
        return oracle, checked_start("x", point.x, oracle.variables["x"]), "_estimate" if without else ""


def _expect_rows(oracle: ConstrainedOracle, given: Multipliers | None) -> None:
    """Multipliers say how many rows c and h have. Raises ProblemError for what is no vector of numbers."""
    for name, constraint in (("equality", oracle.c), ("inequality", oracle.h)):
        value = getattr(given, name, None)
        if value is None or constraint is None:
            continue
        if not isinstance(value, torch.Tensor) or value.ndim != 1 or not value.is_floating_point():
            raise ProblemError(f"multipliers.{name}: expected a vector of floating-point numbers, got {value!r:.60}")
        constraint.m = len(value)
