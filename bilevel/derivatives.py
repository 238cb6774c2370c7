"""Looks at a problem's functions before a solver does: the start, and every derivative against finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from constrained.core.errors import NonFiniteStart, ProblemError
from constrained.core.vec import Vec

from .oracle import BilevelOracle, Level


def look(level: Level, x: Vec, y: Vec) -> None:
    """One gradient at the start: the function is a scalar, finite, and depends on something. Raises ProblemError."""
    draw = level.draw(0)
    value, grads = level.gradient((x, y), draw, (0, 1))
    if not bool(value.isfinite()):
        raise NonFiniteStart(f"{level.name}: its value is {float(value)} at the start")
    for name, grad in zip("xy", grads):
        if not bool(grad.finite()):
            raise NonFiniteStart(f"{level.name}: its gradient in {name} is NaN or infinite at the start")
    if level.own.gradient is None and not level.depends((x, y), draw):
        raise ProblemError(f"{level.name}: expected a function of x or y, got one that depends on neither (is it detached?)")


@dataclass(frozen=True)
class Finding:
    """One derivative compared: its name, the relative error, and whether it agrees to `tolerance`."""

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Report:
    """What `problem.check()` found. `ok`; `bad`, the names that are off; printing it gives a line a derivative."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    @property
    def bad(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.findings if not finding.ok)

    def raise_for_errors(self) -> Report:
        """This report, or ProblemError naming every derivative that is off."""
        if not self.ok:
            raise ProblemError(
                f"check: expected derivatives that agree with finite differences, got other ones for {', '.join(self.bad)}"
            )
        return self

    def __str__(self) -> str:
        return "\n".join(f"{'ok ' if f.ok else 'OFF'}  {f.name:<24} relative error {f.error:.1e}" for f in self.findings)


def check(oracle: BilevelOracle, x: Vec, y: Vec) -> Report:
    """Every first and second derivative along random directions against central differences.

    A first derivative is compared with values; a second with gradients, where these are right. Steps and tolerances follow from
    the dtype.
    """
    eps = torch.finfo(x.dtype).eps
    step, tolerance = eps ** (1 / 3), 100 * eps ** (2 / 3)
    generator = torch.Generator().manual_seed(0)

    def direction(like: Vec) -> Vec:
        v = like.map(lambda t: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t))
        return v * (1.0 / float(v.norm()))

    findings = []

    def compare(name: str, claimed: torch.Tensor, ahead: torch.Tensor, behind: torch.Tensor, size: float, h: float) -> None:
        difference = (ahead - behind).double() / (2 * h)
        noise = 10 * eps * size / h  # what rounding alone does to the difference
        error = float((claimed.double() - difference).norm()) / (float(difference.norm()) + 1e-3 * max(1.0, size))
        findings.append(Finding(name, error, max(tolerance, noise / (float(difference.norm()) + 1e-3 * max(1.0, size)))))

    dx, dy = direction(x), direction(y)
    hx, hy = (step * max(1.0, float(v.max_norm())) for v in (x, y))
    for level, letter in ((oracle.f, "upper"), (oracle.g, "lower")):
        value, (gx, gy) = level.gradient((x, y), wrt=(0, 1))
        size = abs(float(value))
        compare(f"{letter}: d/dx", gx @ dx, level.value((x.add(dx, hx), y)), level.value((x.add(dx, -hx), y)), size, hx)
        compare(f"{letter}: d/dy", gy @ dy, level.value((x, y.add(dy, hy))), level.value((x, y.add(dy, -hy))), size, hy)
    if oracle.g.second_order:
        at = oracle.g.at(x, y)
        right = {finding.name: finding.ok for finding in findings}
        if right["lower: d/dy"]:
            ahead, behind = oracle.g.grad_y(x, y.add(dy, hy)), oracle.g.grad_y(x, y.add(dy, -hy))
            compare("lower: d2/dy2 v", at.yy(dy).ravel(), ahead.ravel(), behind.ravel(), float(at.y.norm()), hy)
        if right["lower: d/dx"]:
            ahead, behind = oracle.g.grad_x(x, y.add(dy, hy)), oracle.g.grad_x(x, y.add(dy, -hy))
            compare("lower: d2/dxdy v", at.xy(dy).ravel(), ahead.ravel(), behind.ravel(), float(at.x.norm()), hy)
    for name, c in oracle.constraints.items():
        value = c.value((x, y))
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
        jx, jy = c.vjp((x, y), weights)
        size = float(value.norm()) * float(weights.norm())
        compare(f"{name}: d/dx", jx @ dx, weights @ c.value((x.add(dx, hx), y)), weights @ c.value((x.add(dx, -hx), y)), size, hx)
        compare(f"{name}: d/dy", jy @ dy, weights @ c.value((x, y.add(dy, hy))), weights @ c.value((x, y.add(dy, -hy))), size, hy)
    return Report(tuple(findings))
