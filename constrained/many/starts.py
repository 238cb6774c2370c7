"""What `solve_many` is given, as lanes: of each a problem and a start; where they go side by side, one function of them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.derivatives.function import Function
from ..core.derivatives.lanes import LaneTape, Whole
from ..core.errors import NonFiniteStart, ProblemError, shown
from ..core.problem import Multipliers, Point
from ..core.result import Result
from ..core.solver import Solver
from ..core.status import Feature
from ..core.variables import checked_start, describe
from ..core.vec import Tree, Vec, leaves_by_path
from ..oracle import ConstrainedOracle
from ..problem import ConstrainedProblem
from ..solvers.interior_point import InteriorPoint

ROOM = 50_000_000  # entries of all KKT matrices
AGREE = 1e4  # round-offs by which a value of a lane may differ from the function's own

Family = Callable[[Tree], ConstrainedProblem]


@dataclass(frozen=True)
class Given:
    """Of each lane its problem and its start; the family and its parameters (leading axis), where they came from one.

    multipliers: of each lane, where every start brings some.
    """

    problems: Sequence[ConstrainedProblem]
    starts: Sequence[Vec]
    multipliers: Sequence[Multipliers] | None
    family: Family | None
    parameters: Vec | None

    @property
    def problem(self) -> ConstrainedProblem:
        return self.problems[0]

    def point(self, i: int) -> Point:
        """The start of a lane."""
        return Point(self.starts[i].tree(), None, self.multipliers[i] if self.multipliers else None)


def given(problem: ConstrainedProblem | Family, starts: Any, parameters: Any) -> Given:
    """Raises ProblemError for what does not fit together."""
    if isinstance(problem, ConstrainedProblem):
        if parameters is not None:
            raise ProblemError("parameters: expected None with one problem, or a function of them that returns it as problem")
        if starts is None:
            raise ProblemError("starts: expected a tensor or tree with a leading axis, or a list of starts, got None")
        each = _starts(starts, problem.variables()["x"])
        return Given([problem] * len(each), each, _multipliers(starts), None, None)
    if not callable(problem):
        raise ProblemError(f"problem: expected a ConstrainedProblem or a function that returns one, got {shown(problem)}")
    if parameters is None:
        raise ProblemError("parameters: expected tensors with a leading axis for a function that returns problems, got None")
    stacked = Vec.of(parameters, "parameters")
    count = _lanes(stacked, "parameters")
    problems = [_member(problem, stacked.map(lambda leaf, i=i: leaf[i]).tree()) for i in range(count)]
    shapes = {describe(one.variables()["x"]) for one in problems}
    if len(shapes) > 1:
        raise ProblemError(f"problem: expected x of one shape for all parameters, got {', '.join(sorted(shapes))}")
    own = [one.variables()["x"].detach() for one in problems]
    each = own if starts is None else _starts(starts, own[0])
    if len(each) != count:
        raise ProblemError(f"starts: expected one for each of {count} parameters, got {len(each)}")
    return Given(problems, each, _multipliers(starts), problem, stacked)


def _member(family: Family, parameter: Tree) -> ConstrainedProblem:
    found = family(parameter)
    if not isinstance(found, ConstrainedProblem):
        raise ProblemError(f"problem: expected a function that returns a ConstrainedProblem, got {shown(found)}")
    return found


def _lanes(stacked: Vec, name: str) -> int:
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in stacked.leaves}
    if len(counts) != 1 or 0 in counts:
        raise ProblemError(f"{name}: expected leaves with one leading axis, of length >= 1, got {describe(stacked)}")
    return counts.pop()


def _starts(starts: Any, like: Vec) -> list[Vec]:
    """One Vec a lane, of the variable's structure, dtype and device. Arrays of numpy are taken in its dtype."""
    points = isinstance(starts, Sequence) and any(isinstance(one, (Point, Result)) for one in starts)
    try:
        stacked = None if points else Vec.of(starts, "starts")
    except ProblemError:
        stacked = None
    if stacked is not None and stacked.spec == like.spec:
        _lanes(stacked, "starts")
        stacked = _cast(stacked, like, starts)
        each = [like.like(row) for row in zip(*(leaf.unbind() for leaf in stacked.leaves))]
        checked_start("starts[0]", each[0].tree(), like)  # all are of one shape, dtype and device
        if not bool(stacked.finite()):
            _ = [checked_start(f"starts[{i}]", one.tree(), like) for i, one in enumerate(each)]
        return each
    if not (points or isinstance(starts, (list, tuple))) or not len(starts):
        got = shown(starts) if stacked is None else describe(stacked)
        raise ProblemError(f"starts: expected a tensor or tree with a leading axis, or a list of starts, got {got}")
    each = [one.x if isinstance(one, (Point, Result)) else one for one in starts]
    found = [_cast(Vec.of(one, f"starts[{i}]"), like, one) for i, one in enumerate(each)]
    return [checked_start(f"starts[{i}]", one.tree(), like).detach() for i, one in enumerate(found)]


def _multipliers(starts: Any) -> list[Multipliers] | None:
    """Those of Points, or of Results from before, if all have them."""
    points = [one for one in starts if isinstance(one, (Point, Result))] if isinstance(starts, Sequence) else []
    found = [one.multipliers for one in points if isinstance(one.multipliers, Multipliers)]
    return found if found and len(found) == len(starts) else None


def _cast(start: Vec, like: Vec, given: Any) -> Vec:
    """In the dtype and on the device of the variable, where no tensor was given."""
    if any(isinstance(leaf, Tensor) for leaf in leaves_by_path(given).values()):
        return start
    return start.map(lambda leaf: leaf.to(like.leaves[0]))


# -- side by side -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Batch:
    """The function of a lane and its parameters; starts in X, (L, N), the tape there; bounds, float64; rows of c and h."""

    whole: Whole
    parameters: tuple[Tensor, ...]
    x0: Tensor
    tape: LaneTape
    low: Tensor
    high: Tensor
    sizes: tuple[int, int]
    multipliers: Tensor | None  # (L, m) of all rows, where every lane brings one a row


def _stacked(lanes: Given, sizes: tuple[int, int], like: Tensor) -> Tensor | None:
    if lanes.multipliers is None:
        return None
    each = [[part for part in (one.equality, one.inequality) if part is not None] for one in lanes.multipliers]
    rows = [torch.cat([like.new_zeros(0, dtype=torch.float64), *(part.to(like.device).double() for part in one)]) for one in each]
    return torch.stack(rows) if all(len(one) == sum(sizes) for one in rows) else None


def unfit(solver: Solver[Any, Any], lanes: Given) -> str:
    """Why lanes cannot go side by side, as far as the problem says; ''."""
    problem = lanes.problem
    own = [getattr(problem, name) for name in ("objective", "equality", "inequality")]
    if type(solver) is not InteriorPoint:
        return f"{type(solver).__name__} has no such form"
    if Feature.SAMPLES in problem.features:
        return "the problem draws mini-batches"
    if isinstance(problem.x, torch.nn.Module) and lanes.family is not None:
        return "modules are copied, parameters cannot be"
    if any(isinstance(f, Function) for f in own):
        return "a Function brings derivatives of its own"
    return "" if problem.X.whole or problem.X.entrywise else f"{type(problem.X).__name__} does not bound each entry alone"


def batch(lanes: Given, oracle: ConstrainedOracle, checked: int) -> Batch:
    """Raises whatever the functions raise when they are called for all lanes at once, `Unequal` with a reason of its own.

    checked: a lane whose start the oracle has been asked about.
    """
    x = torch.stack([start.ravel() for start in lanes.starts])
    if lanes.family is None:
        low, high = (torch.from_numpy(end).to(x.device).expand(len(x), -1) for end in oracle.bounds)
        whole, parameters = _of_problem(lanes.problem), ()
    else:
        ends = [one.oracle().bounds for one in lanes.problems]
        low, high = (torch.stack([torch.from_numpy(end[i]) for end in ends]).to(x.device) for i in (0, 1))
        assert lanes.parameters is not None
        whole, parameters = _of_family(lanes.family, lanes.parameters), tuple(lanes.parameters.leaves)
    x0 = torch.clamp(x, low.to(x.dtype), high.to(x.dtype))
    here = oracle.stacked(oracle.variables["x"].unravel(x0[checked]))
    _, c, h = oracle.parted(here)
    size = x.shape[1] + len(here.c)
    if len(x) * size**2 > ROOM:
        raise Unequal(f"{len(x)} KKT matrices of {size} rows are more work than their overhead")
    if not bool((low < high).any(1).all()):
        raise Unequal("bounds fix every entry")
    tape = LaneTape(whole, x0, parameters, len(here.c))
    there, plain = torch.cat([tape.c[checked], tape.value[checked, None]]), torch.cat([here.c.double(), here.value[None]])
    if not bool(((there - plain).abs() <= AGREE * torch.finfo(x.dtype).eps * (1 + plain.abs())).all()):
        raise Unequal("called for all lanes at once, the functions have other values")
    sizes = (len(c), 0 if h is None else len(h))
    return Batch(whole, parameters, x0, tape, low, high, sizes, _stacked(lanes, sizes, x))


class Unequal(Exception):
    """Side by side is no way for these lanes; why, in words."""


def _of_problem(problem: ConstrainedProblem) -> Whole:
    oracle = problem.oracle()
    like, draw = oracle.variables["x"], oracle.f.draw(0)

    def whole(flat: Tensor) -> Tensor:
        tree = like.unravel(flat).tree()
        f = oracle.f.evaluate([tree], draw)
        return torch.cat([*(c.evaluate([tree]).to(flat.dtype) for c in oracle.rows), f.to(flat.dtype).reshape(1)])

    return whole


def _of_family(family: Family, parameters: Vec) -> Whole:
    return lambda flat, *leaves: _of_problem(family(parameters.like(leaves).tree()))(flat)


def look(lanes: Given) -> tuple[ConstrainedOracle, int]:
    """The checks that a problem gets before it is solved, once: at the first start where it is finite. Raises ProblemError."""
    first: NonFiniteStart | None = None
    for i, problem in enumerate(lanes.problems):
        oracle = problem.oracle().remember()
        try:
            problem.begin(oracle, lanes.point(i))
            return oracle, i
        except NonFiniteStart as error:
            first = first or error
    assert first is not None
    raise first
