"""BilevelProblem: what a user writes down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from constrained.core.choice import diagnosed
from constrained.core.data import NoData, Sampler, exact, expect_sampler
from constrained.core.derivatives.function import Function
from constrained.core.errors import OptionError, ProblemError, Unsuitable, raised
from constrained.core.live import Live, LiveVec
from constrained.core.problem import Point, Problem, entries, expect_point, sides
from constrained.core.processes import Ranks
from constrained.core.status import Feature
from constrained.core.variables import Modules, calling, checked_start, module_of, module_with, no_dropout, variable
from constrained.core.vec import Vec
from constrained.sets import ConvexSet, Everywhere, expect_set

from .advice.diagnosis import Diagnosis
from .certificates import derivatives, progress, residuals
from .certificates.kinks import kink
from .certificates.lower_gap import lower_gap
from .hypergradients.adjoint import SUPPORTS
from .mixture import Mixture
from .oracle import LOWER_STREAM, UPPER_STREAM, BilevelOracle
from .reformulations.differentiable_value import DifferentiableValue

CONSTRAINTS = ("lower_equality", "lower_inequality", "upper_equality", "upper_inequality")
STREAMS = {"upper_data": UPPER_STREAM, "lower_data": LOWER_STREAM}


@dataclass(frozen=True, kw_only=True, eq=False)
class BilevelProblem(Problem):
    """min over x in X of f(x, y), where y minimises g(x, .) over Y: among several lower solutions the best for f.

    upper, lower: f(x, y) and g(x, y), scalar tensors; with `upper_data` / `lower_data` they get the batch as third argument,
    drawn from a sampler: `FullBatch`, `MiniBatches` or `Stream`. x, y: the variables at the start: a tensor, a tree of tensors,
    or an nn.Module (the functions then receive a copy of the module, its trainable parameters replaced); y may be
    `Live(module)`, for large models. lower may be a `Mixture`. X, Y: convex sets.
    lower_equality, ... : functions of (x, y), zero or <= 0, scalar or 1-D, deterministic. lower_solution: x -> argmin g(x, .),
    where there is a formula; it is used to certify.
    `Function(...)` in place of any callable brings derivatives of its own.

    Raises ProblemError for what is not callable, variables that have no entries, are not in float32 or float64 (half precision:
    only with `Live`) or differ in dtype or device, sets that do not fit, BatchNorm in train mode.

    >>> import torch, bilevel
    >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> problem = BilevelProblem(
    ...     upper=lambda x, y: ((y - a) ** 2).sum() + 0.1 * (x**2).sum(),
    ...     lower=lambda x, y: ((y - x) ** 2).sum() + 0.5 * (y**2).sum(),
    ...     x=torch.zeros(2, dtype=torch.float64), y=torch.zeros(2, dtype=torch.float64))
    >>> result = bilevel.solve(problem)
    >>> result.status.name, result.x.round(decimals=4)
    ('CONVERGED', tensor([1.2245, 2.4490], dtype=torch.float64))
    """

    kind = "BilevelProblem"

    upper: Callable[..., Any]
    lower: Callable[..., Any]
    x: Any
    y: Any
    X: ConvexSet = field(default_factory=Everywhere)
    Y: ConvexSet = field(default_factory=Everywhere)
    lower_equality: Callable[..., Any] | None = None
    lower_inequality: Callable[..., Any] | None = None
    upper_equality: Callable[..., Any] | None = None
    upper_inequality: Callable[..., Any] | None = None
    upper_data: Sampler = field(default_factory=NoData)
    lower_data: Sampler = field(default_factory=NoData)
    lower_solution: Callable[[Any], Any] | None = None
    _right = False  # no first derivative was wrong near a start
    _second_order = False  # g has second derivatives
    _value = None  # what `value` keeps between calls, on the instance; not a field, so that `replace` drops it

    def __post_init__(self) -> None:
        for name in ("upper", "lower", *CONSTRAINTS, "lower_solution"):
            value = getattr(self, name)
            if not callable(value) and (name in ("upper", "lower") or value is not None):
                raise ProblemError(f"{name}: expected a function, got {type(value).__name__}")
        for name in ("X", "Y"):
            expect_set(name, getattr(self, name))
        for name in STREAMS:
            expect_sampler(name, getattr(self, name))
        if self.upper_data is self.lower_data and not exact(self.upper_data):
            raise ProblemError(f"upper_data, lower_data: expected a stream each, got the same {self.upper_data!r}")
        self._one_dtype()
        if isinstance(self.x, Live):
            raise ProblemError("x: expected a tensor, a tree of tensors or an nn.Module, got Live: only y can be live")
        if self._is_live and not self.Y.whole:
            raise ProblemError(f"Y: expected Everywhere() for a live y, got {self.Y!r}")
        variables = self.variables()
        self.X.check(variables["x"], "X")
        self.Y.check(variables["y"], "Y")

    # -- what it is -----------------------------------------------------------------------------------------------------
    @property
    def features(self) -> Feature:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What a solver must handle."""
        has = {
            Feature.LOWER: True,
            Feature.SAMPLES: self.upper_data.stochastic or self.lower_data.stochastic,
            Feature.NO_HVP: isinstance(self.lower, Function)
            and not self.lower.torch
            and None in (self.lower.hvp, self.lower.jvp),
            Feature.X_SET: not self.X.whole,
            Feature.Y_SET: not self.Y.whole,
            Feature.LOWER_EQUALITY: self.lower_equality is not None,
            Feature.LOWER_INEQUALITY: self.lower_inequality is not None,
            Feature.UPPER_EQUALITY: self.upper_equality is not None,
            Feature.UPPER_INEQUALITY: self.upper_inequality is not None,
            Feature.MIXTURE: isinstance(self.lower, Mixture),
            Feature.LIVE: self._is_live,
        }
        return Feature(sum(feature.value for feature, there in has.items() if there))

    def variables(self) -> dict[str, Vec]:
        return {"x": variable(self.x, "x"), "y": variable(self.y, "y")}

    def samplers(self) -> dict[str, Sampler]:
        return {name: getattr(self, name) for name in STREAMS}

    # -- what solvers get -----------------------------------------------------------------------------------------------
    def oracle(self, seed: int = 0) -> BilevelOracle:
        given = [value if isinstance(value, torch.nn.Module) else None for value in (self.x, self.y)]
        modules = Modules(*given)
        random = any(module is not None and module.training for module in map(module_of, (self.x, self.y)))
        variables = self.variables()
        mixture = None
        if isinstance(self.lower, Mixture):
            weights, losses = Modules(given[0]), Modules(given[1])
            mixture = calling("weights", self.lower.weights, weights), calling("losses", self.lower.losses, losses)
        upper, lower = calling("upper", self.upper, modules), calling("lower", self.lower, modules)
        own = {name: getattr(self, name) for name in CONSTRAINTS if getattr(self, name) is not None}
        constraints = {name: calling(name, function, modules) for name, function in own.items()}
        data, ranks = (self.upper_data, self.lower_data), Ranks.here(variables["y"].device) if self._is_live else None
        return BilevelOracle(upper, lower, constraints, data, variables, self.X, self.Y, seed, random, mixture, ranks)

    def begin(self, oracle: BilevelOracle, start: Point | None) -> Point:
        """The start as Vecs, projected on X and Y. Raises ProblemError; NonFiniteStart names the function that is not finite."""
        x, y = (
            checked_start(name, value, oracle.variables[name])
            for name, value in (("x", start and start.x), ("y", start and start.y))
        )
        if Feature.SAMPLES not in self.features:
            for name in ("x", "y"):
                no_dropout(getattr(self, name), name)
        x = self.X.project(x.detach().clone())  # a solver may write into its state
        y = y if self._is_live else self.Y.project(y.detach().clone())
        self._check_live(oracle, x, y)
        derivatives.check_start(oracle, x, y)
        if oracle.memory is not None:
            oracle.memory.keep()
        if not self._right and not self._is_live:
            self.closed_form(x)
            derivatives.expect_right(oracle, x, y)
            object.__setattr__(self, "_right", True)
        return Point(x, y, start.multipliers if start else None)

    def fingerprint(self, oracle: BilevelOracle) -> list[float]:
        if not self.exact or self._is_live:  # a live variable may stand anywhere
            return []
        x, y = oracle.variables["x"], oracle.variables["y"]
        generator, weights = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        found, later = [], []
        for far in (0.0, 0.1, 10.0):  # the start, a point near it for the functions, a far one for the sets
            u, v = (one.add(derivatives.direction(one, generator), far * (1.0 + float(one.norm()))) for one in (x, y))
            u, v = self.X.project(u), self.Y.project(v)
            found += [float(u.norm()), float(v.norm())]
            for level in (oracle.f, oracle.g) if far < 1 else ():
                value, grads = level.gradient((u, v), level.draw(0), (0, 1))
                found += [float(value), *(float(grad.norm()) for grad in grads)]
                later += [entries(grad.ravel(), weights) for grad in grads]
            for constraint in oracle.constraints.values() if far < 1 else ():
                later.append(entries(constraint.value((u, v)), weights))
        for one, of in ((x, self.X), (y, self.Y)):
            later += [] if of.whole else sides(of.project, one, weights)
        return found + later

    def finish(self, point: Point) -> Point:
        return Point(point.x.tree(), point.y.plain().tree(), point.multipliers)

    # -- for loops of the user's own ------------------------------------------------------------------------------------
    def value(self, x: Any, *, tol: float | None = None) -> torch.Tensor:
        """Phi(x) = f(x, y(x)), a 0-dim tensor that `backward()` differentiates by implicit differentiation.

        x: structured like the problem's x (for a module: the module, or one like it). Its tensors get the gradient f_x - g_xy v
        with g_yy v = f_y. Each call starts from the lower solution of the last. tol: on |y - P_Y(y - g_y)|, 1e-8 (1e-4 in
        float32). Raises SolveFailed where the lower level cannot be solved or no hypergradient exists, Unsuitable for
        mini-batches and constraints on the lower level, ProblemError where x does not fit. Differentiable once.

        >>> import torch
        >>> one = torch.ones(2, dtype=torch.float64)
        >>> f, g = lambda x, y: (y**2).sum(), lambda x, y: ((y - 3 * x) ** 2).sum()
        >>> problem = BilevelProblem(upper=f, lower=g, x=one, y=one)
        >>> x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> problem.value(x).backward()
        >>> x.grad
        tensor([18., 36.], dtype=torch.float64)
        """
        return self._live()(x, tol)

    def response(self, x: Any, *, tol: float | None = None) -> Any:
        """y(x) = argmin over Y of g(x, .), structured like the problem's y; what `value` finds on the way, without a gradient."""
        live = self._live()
        live.at(checked_start("x", x, live.like).detach(), live.accuracy(tol))
        return live.phi.response.y.clone().tree()

    def _live(self) -> DifferentiableValue:
        if self._value is None:
            self.require("value", SUPPORTS)
            oracle = self.oracle()
            self.try_second_order(oracle, self.begin(oracle, None), "a hypergradient")
            object.__setattr__(self, "_value", DifferentiableValue(oracle))
        assert self._value is not None
        return self._value

    def try_second_order(self, oracle: BilevelOracle, at: Point, who: str) -> None:
        """Try the second derivatives that a hypergradient is made of, once a problem. Raises Unsuitable where g has none."""
        if self._second_order:
            return
        lost = derivatives.lost_twice(oracle, at.x, at.y)
        if lost:
            raise Unsuitable(f"{who} needs products with g_yy and g_xy: {lost}; Penalty() does without")
        object.__setattr__(self, "_second_order", True)

    # -- truth ----------------------------------------------------------------------------------------------------------
    def fun(self, point: Point) -> float:
        oracle, x, y, _ = self.read(point)
        return float(oracle.f.value((x, y)))

    def residuals(self, point: Point) -> dict[str, float]:
        """`bilevel.certificates.residuals` at a point. With mini-batches: on all of the data; what depends on a `Stream`: on its
        first batch, under a name that ends in `_estimate`.
        """
        oracle, x, y, without = self.read(point)
        return residuals.renamed(residuals.residuals(oracle, x, y, point.multipliers), without)

    def certify(self, point: Point, *, by: BilevelOracle | None = None) -> dict[str, float]:
        """`residuals`; `lower_gap` against re-solves of the lower level from several starts; `tie`, what f would gain at another
        lower solution of equal g, where a better one was found; `kink`, the slope on the other side of a kink of Phi, where that
        side goes down; and, where a first derivative is not that of its function, its relative error, `lower: d/dx` for instance.
        """
        oracle, x, y, without = self.read(point, by)
        if oracle.memory is not None:
            oracle.memory.forget_at((x, y))
        starts = [oracle.variables["y"]]
        known = self.closed_form(x)
        starts += [] if known is None else [known]
        found = residuals.residuals(oracle, x, y, point.multipliers)
        if self._is_live:
            return residuals.renamed(found, without)
        if oracle.memory is not None:
            oracle.memory.keep()
        off = derivatives.wrong_here(oracle, x, y)  # while the graphs are there
        found |= lower_gap(oracle, x, y, starts)
        found |= kink(oracle, x, y)
        found |= off | derivatives.wrong(oracle, x, y)
        return residuals.renamed(found, without)

    def progress(
        self, point: Point, start: Point, found: Mapping[str, float] | None = None, *, by: BilevelOracle | None = None
    ) -> dict[str, float]:
        """`upper`, `lower` (and `constraints`): the share of the improvement since the start that may be missing, to first order;
        see `bilevel.certificates.progress`. Empty for a live y, and with constraints on the upper level.
        """
        if self.features & (Feature.LIVE | Feature.UPPER_EQUALITY | Feature.UPPER_INEQUALITY):
            return {}
        oracle, x, y, _ = self.read(point, by)
        x0, y0 = (checked_start(n, getattr(start, n), oracle.variables[n]) for n in ("x", "y"))
        return progress.shares(oracle, (x, y), point.multipliers, (x0, y0), found or {})

    def check(self, start: Point | None = None) -> derivatives.Report:
        """Compare every derivative with finite differences at the start, or at a given point. See `derivatives.Report`."""
        self.require("check", ~Feature.LIVE)
        oracle, x, y, _ = self.read(Point(None) if start is None else start)
        return derivatives.check(oracle, x, y)

    def diagnose(self, start: Point | None = None) -> Diagnosis:
        """A page on the problem at the start, or at a given point: `print(problem.diagnose())`. See `Diagnosis`."""
        self.require("diagnose", ~Feature.LIVE)
        return diagnosed(self, start)

    def module(self, point: Point) -> torch.nn.Module:
        """A copy of the module given as y (else as x) with the point's values as its parameters; a live one where it has them."""
        if isinstance(self.y, Live):
            module = self._at(point.y).tree()
            assert isinstance(module, torch.nn.Module)
            return module
        for value, tree in ((self.y, point.y), (self.x, point.x)):
            if isinstance(value, torch.nn.Module):
                return module_with(value, tree)
        raise OptionError("module(): neither x nor y of this problem is an nn.Module")

    # -- helpers --------------------------------------------------------------------------------------------------------
    def closed_form(self, x: Vec) -> Vec | None:
        """`lower_solution(x)`, where the problem has one."""
        if self.lower_solution is None:
            return None
        with raised("lower_solution", "given x"):
            y = self.lower_solution(x.tree())
        if y is None:
            raise ProblemError("lower_solution: expected a y, got None")
        return checked_start("lower_solution", y, self.variables()["y"])

    def read(self, point: Point, by: BilevelOracle | None = None) -> tuple[BilevelOracle, Vec, Vec, list[str]]:
        """An oracle on all of the data, the point as Vecs, and the samplers that have no full batch but give their first.

        by: the oracle of a run, which is taken where nothing in it is random.
        """
        expect_point("point", point)
        if by is not None and by.memory is not None and not (by.f.random or by.g.random):
            oracle, without = by, []
        else:
            whole, without = self.judged()
            oracle = whole.oracle().remember()
        x = checked_start("x", point.x, oracle.variables["x"])
        y = self._at(point.y) if self._is_live else checked_start("y", point.y, oracle.variables["y"])
        return oracle, x, y, without

    def _at(self, y: Any) -> LiveVec:
        """The live variable where y is its own values, else a twin that has them: to ask moves nothing."""
        assert isinstance(self.y, Live)
        own = self.y.vec()
        if y is None or own.is_held_by(Vec.of(y)):
            return own
        twin = own.clone()
        checked_start("y", y, twin)
        return twin

    def _check_live(self, oracle: BilevelOracle, x: Vec, y: Vec) -> None:
        """Raise ProblemError where a live module was frozen meanwhile, or processes do not agree at the start."""
        if isinstance(y, LiveVec) and not all(p.requires_grad for p in y.parameters):
            raise ProblemError("y: expected what was trainable when Live(...) was made, got parameters that are frozen since")
        ranks = oracle.f.ranks
        if ranks is not None:
            ranks.same("seed", oracle.f.seed)
            ranks.same("x", float(x.norm()), float(x.ravel().double().sum()))
            ranks.same("y", float(y.norm()))
            for name, sampler in self.samplers().items():
                ranks.check(name, sampler)

    @property
    def _is_live(self) -> bool:
        return isinstance(self.y, Live)
