"""Looks at a problem's functions before a solver does: the start, and every derivative against finite differences."""

from __future__ import annotations

import torch

from constrained.core.derivatives.finite_differences import Finding, Report, compare, direction, worst
from constrained.core.derivatives.objective import Draw
from constrained.core.errors import BilevelError, NonFiniteStart, ProblemError
from constrained.core.live import LiveVec
from constrained.core.vec import Vec

from ..oracle import BilevelOracle, Level

NEAR = 0.1  # times 1 + |x|: how far the second point is that derivatives are looked at


def check_start(level: Level, x: Vec, y: Vec) -> None:
    """One gradient at the start: the function is a scalar, finite, and depends on something. Raises ProblemError."""
    draw = level.draw(0)
    if isinstance(y, LiveVec):  # its gradient may be larger than what the solver will ever hold
        _finite(level, level.value((x, y), draw))
        return
    try:
        value, grads = level.gradient((x, y), draw, (0, 1))
    except BilevelError:
        raise
    except Exception as cause:  # the user's function, with whatever it raises
        what = "x, y and a batch" if level.takes_batch else "x and y, no batch"
        raise ProblemError(f"{level.name}: raised {type(cause).__name__} at the start, given {what}: {cause}") from cause
    _finite(level, value)
    for name, grad in zip("xy", grads):
        if not bool(grad.finite()):
            raise NonFiniteStart(f"{level.name}: its gradient in {name} is NaN or infinite at the start")
    if level.own.gradient is None and not level.depends((x, y), draw):
        raise ProblemError(f"{level.name}: expected a function of x or y, got one that depends on neither (is it detached?)")
    for i, grad in enumerate(grads):
        if float(grad.max_norm()) == 0:
            _lost(level, (x, y), i, draw)


def _finite(level: Level, value: torch.Tensor) -> None:
    if not bool(value.isfinite()):
        raise NonFiniteStart(f"{level.name}: its value is {float(value)} at the start")


def _lost(level: Level, at: tuple[Vec, Vec], i: int, draw: Draw) -> None:
    """Raise ProblemError where the derivative in x or y is 0 at the start and near it, while values there differ."""
    near, eps = list(at), torch.finfo(at[0].dtype).eps
    near[i] = at[i].add(direction(at[i], torch.Generator().manual_seed(0)), NEAR * (1.0 + float(at[i].norm())))
    value, (grad,) = level.gradient(near, draw, (i,))
    here = float(level.value(at, draw))
    if float(grad.max_norm()) == 0 and abs(float(value) - here) > 1e4 * eps * (abs(float(value)) + abs(here)):
        name = "xy"[i]
        raise ProblemError(
            f"{level.name}: its derivative in {name} is 0, but its values change with {name}: expected torch operations on "
            f"{name} all the way, got .detach(), .item(), numpy or a step function"
        )


def wrong(oracle: BilevelOracle, x: Vec, y: Vec) -> dict[str, float]:
    """Relative errors of first derivatives that differ from central differences at two random points near (x, y), by name.

    Only those that are off at both, so that a kink between the points of a difference is no error.
    """
    generator, bad = torch.Generator().manual_seed(1), []
    for _ in range(2):  # by lengths that differ: where y(x) = x and both move alike, g_x stays 0
        ways = ((x, NEAR), (y, NEAR / 2))
        u, v = (one.add(direction(one, generator), far * (1.0 + float(one.norm()))) for one, far in ways)
        u, v = oracle.X.project(u), oracle.Y.project(v)
        if not all(bool(level.value((u, v), level.draw(0)).isfinite()) for level in (oracle.f, oracle.g)):
            return {}
        bad.append({finding.name: finding.error for finding in _first(oracle, u, v, generator) if not finding.ok})
    return {name: min(error, bad[1][name]) for name, error in bad[0].items() if name in bad[1]}


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
    if oracle.g.second_order:
        found += [finding for point in points for finding in _second(oracle, *point, generator, right)]
    return worst(found)


def _steps(x: Vec, y: Vec) -> tuple[float, float, float]:
    eps = torch.finfo(x.dtype).eps
    hx, hy = (eps ** (1 / 3) * max(1.0, float(v.max_norm())) for v in (x, y))
    return eps, hx, hy


def _first(oracle: BilevelOracle, x: Vec, y: Vec, generator: torch.Generator) -> list[Finding]:
    """d/dx and d/dy of the objectives and constraints, from values."""
    eps, hx, hy = _steps(x, y)
    dx, dy = direction(x, generator), direction(y, generator)
    findings = []
    for level, name in ((oracle.f, "upper"), (oracle.g, "lower")):
        value, (gx, gy) = level.gradient((x, y), wrt=(0, 1))
        size = abs(float(value))
        findings.append(compare(f"{name}: d/dx", gx @ dx, lambda t, f=level: f.value((x.add(dx, t), y)), size, hx, eps))
        findings.append(compare(f"{name}: d/dy", gy @ dy, lambda t, f=level: f.value((x, y.add(dy, t))), size, hy, eps))
    for name, c in oracle.constraints.items():
        value = c.value((x, y))
        w = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        jx, jy = c.vjp((x, y), w)
        size = float(value.norm()) * float(w.norm())
        findings.append(compare(f"{name}: d/dx", jx @ dx, lambda t, c=c, w=w: w @ c.value((x.add(dx, t), y)), size, hx, eps))
        findings.append(compare(f"{name}: d/dy", jy @ dy, lambda t, c=c, w=w: w @ c.value((x, y.add(dy, t))), size, hy, eps))
    return findings


def _second(oracle: BilevelOracle, x: Vec, y: Vec, generator: torch.Generator, right: set[str]) -> list[Finding]:
    """g_yy v and g_xy v, from those gradients of g that are right."""
    eps, _, h = _steps(x, y)
    at, v, g = oracle.g.at(x, y), direction(y, generator), oracle.g
    findings = []
    if "d/dy" in right:
        size = float(at.y.norm())
        findings.append(compare("lower: d2/dy2 v", at.yy(v).ravel(), lambda t: g.grad_y(x, y.add(v, t)).ravel(), size, h, eps))
    if "d/dx" in right:
        size = float(at.x.norm())
        findings.append(compare("lower: d2/dxdy v", at.xy(v).ravel(), lambda t: g.grad_x(x, y.add(v, t)).ravel(), size, h, eps))
    return findings
