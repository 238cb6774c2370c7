"""Looks at a problem's functions before a solver does: the start, and every derivative against finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from constrained.core.derivatives import looks
from constrained.core.derivatives.finite_differences import Finding, Report, compare, direction, worst
from constrained.core.derivatives.looks import NEAR, Scalar
from constrained.core.errors import NonFiniteStart, ProblemError
from constrained.core.live import LiveVec
from constrained.core.vec import Vec

from ..lower.solution import UNKNOWNS
from ..oracle import BilevelOracle, Level

NAMES = ("x", "y")


def check_start(oracle: BilevelOracle, x: Vec, y: Vec) -> None:
    """Each function at the start: of the right shape, finite, and it depends on something by a graph. Raises ProblemError."""
    generator, project = torch.Generator().manual_seed(0), (oracle.X.project, oracle.Y.project)
    for level in (oracle.f, oracle.g):
        draw = level.draw(0)
        if isinstance(y, LiveVec):  # its gradient may be larger than what the solver will ever hold
            value = level.value((x, y), draw)
            if not bool(value.isfinite()):
                raise NonFiniteStart(f"{level.name}: its value is {float(value)} at the start")
            continue
        given = "x, y and a batch" if level.takes_batch else "x and y, no batch"
        scalar = Scalar.of(level, (x, y), NAMES, generator, draw)
        grads = looks.start(scalar, (x, y), given)
        flat = all(float(grad.max_norm()) == 0 for grad in grads)
        if flat and level.own.gradient is None and not looks.depends(level, (x, y), draw):
            raise ProblemError(f"{level.name}: expected a function of x or y, got one that depends on neither (is it detached?)")
        looks.nothing_lost(scalar, (x, y), grads, project)
        looks.own_products(level, (x, y), draw)
    for constraint in oracle.constraints.values():
        looks.rows(constraint, (x, y), "x and y")
        if not isinstance(y, LiveVec):
            scalar = Scalar.of(constraint, (x, y), NAMES, generator, None)
            looks.nothing_lost(scalar, (x, y), looks.start(scalar, (x, y), "x and y"), project)


def wrong(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float]:
    """Relative errors of first derivatives that differ from central differences at two random points near (x, y), by name.

    Only those that are off at both, so that a kink between the points of a difference is no error.
    """
    return looks.off_at_both(_near(oracle, x, y))


def _near(oracle: BilevelOracle, x: Vec, y: Vec) -> Iterator[list[Finding]]:
    """`_first` at two random points near (x, y), none where a function is not finite."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):  # by lengths that differ: where y(x) = x and both move alike, g_x stays 0
        ways = ((x, NEAR), (y, NEAR / 2))
        u, v = (one.add(direction(one, generator), far * (1.0 + float(one.norm()))) for one, far in ways)
        u, v = oracle.X.project(u), oracle.Y.project(v)
        yield _first(oracle, u, v, generator, finite=True)


def expect_right(oracle: BilevelOracle, x: Vec, y: Vec) -> None:
    """Raise ProblemError where a first derivative is `wrong` near (x, y)."""

    def values() -> list[float]:
        if oracle.memory is not None:
            oracle.memory.forget()
        return [float(level.value((x, y), level.draw(0))) for level in (oracle.f, oracle.g)]

    looks.expect_right(wrong(oracle, x, y), lambda: values() == values())


def lost_twice(oracle: BilevelOracle, x: Vec, y: Vec) -> str:
    """Why products with g_yy and g_xy are not to be had, tried once near (x, y); '' where they are."""
    if not oracle.g.second_order:
        return f"{oracle.g.name}: no second derivatives are given"
    if oracle.lost_twice is None:
        oracle.lost_twice = looks.lost_twice(oracle.g, (x, y), {(1, 1): "g_yy", (0, 1): "g_xy"})
    return oracle.lost_twice


def twice(oracle: BilevelOracle, x: Vec, y: Vec) -> bool:
    """A certificate may use g_yy and g_xy: they exist, and of not too many unknowns."""
    return y.size <= UNKNOWNS and not lost_twice(oracle, x, y)


def check(oracle: BilevelOracle, x: Vec, y: Vec) -> Report:
    """Every first and second derivative along random directions against central differences, at (x, y) and at a point nearby:
    a start is often one where derivatives vanish, and there any multiple of them is right.

    A first derivative is compared with values; a second with gradients, where these are right. Steps and tolerances follow from
    the dtype.
    """
    generator = torch.Generator().manual_seed(0)
    points = [(x, y)]
    u, v = (one.add(direction(one, generator), NEAR * (1.0 + float(one.norm()))) for one in (x, y))
    u, v = oracle.X.project(u), oracle.Y.project(v)
    if all(bool(level.value((u, v), level.draw(0)).isfinite()) for level in (oracle.f, oracle.g)):
        points.append((u, v))
    found = [finding for point in points for finding in _first(oracle, *point, generator)]
    right = {name for name in ("d/dx", "d/dy") if all(finding.ok for finding in found if finding.name == f"lower: {name}")}
    if not lost_twice(oracle, x, y):
        found += [finding for point in points for finding in _second(oracle, *point, generator, right)]
    return worst(found)


def _first(oracle: BilevelOracle, x: Vec, y: Vec, generator: torch.Generator, *, finite: bool = False) -> list[Finding]:
    """d/dx and d/dy of the objectives and constraints, from values; `finite`: none where f or g is not."""
    claims, at, along = _claims(oracle, x, y, generator)
    if finite and not all(bool(value.isfinite()) for _, _, value, _ in claims[:2]):
        return []
    return [finding for claim in claims for finding in looks.compared(claim, at, along)]


def wrong_here(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float]:
    """Relative errors of first derivatives at (x, y) itself, by name; see `looks.off_here`."""
    claims, at, along = _claims(oracle, x, y, torch.Generator().manual_seed(4))
    return {name: error for claim in claims for name, error in looks.off_here(claim, at, along).items()}


def _claims(
    oracle: BilevelOracle, x: Vec, y: Vec, generator: torch.Generator
) -> tuple[list[looks.Claim], tuple[Vec, Vec], tuple[Vec, Vec]]:
    """The functions with their derivatives near (x, y), a point with room to both sides along the directions."""
    rooms = [looks.with_room(X.project, v, direction(v, generator)) for X, v in ((oracle.X, x), (oracle.Y, y))]
    claims, ((x, dx), (y, dy)) = [], rooms
    for part in (oracle.f, oracle.g, *oracle.constraints.values()):
        labels = [f"{part.name}: d/d{name}" for name in NAMES]
        scalar = Scalar.of(part, (x, y), NAMES, generator, part.draw(0) if isinstance(part, Level) else None)
        claims.append((scalar, labels, *scalar.gradient((x, y))))
    return claims, (x, y), (dx, dy)


def _second(oracle: BilevelOracle, x: Vec, y: Vec, generator: torch.Generator, right: set[str]) -> list[Finding]:
    """g_yy v and g_xy v, from those gradients of g that are right."""
    eps = torch.finfo(x.dtype).eps
    h = eps ** (1 / 3) * max(1.0, float(y.max_norm()))
    at, v, g = oracle.g.at(x, y), direction(y, generator), oracle.g
    findings = []
    if "d/dy" in right:
        size = float(at.y.norm())
        findings.append(compare("lower: d2/dy2 v", at.yy(v).ravel(), lambda t: g.grad_y(x, y.add(v, t)).ravel(), size, h, eps))
    if "d/dx" in right:
        size = float(at.x.norm())
        findings.append(compare("lower: d2/dxdy v", at.xy(v).ravel(), lambda t: g.grad_x(x, y.add(v, t)).ravel(), size, h, eps))
    return findings
