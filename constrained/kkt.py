"""The conditions of Karush, Kuhn and Tucker: residuals, multipliers, checks of a start and of derivatives.

L = f + lam'c + mu'h,  mu >= 0

stationarity      |x - P_X(x - grad_x L)|
feasibility       |(c, max(h, 0), x - P_X(x))|
complementarity   |min(mu, max(-h, 0))|, where there are inequalities
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm

from .core.derivatives import looks
from .core.derivatives.constraint import Constraint
from .core.derivatives.finite_differences import Finding, Report, compare, direction, worst
from .core.derivatives.looks import NEAR
from .core.derivatives.objective import Objective
from .core.derivatives.tape import Tape
from .core.errors import ProblemError, Unsuitable
from .core.moved import forward_names
from .core.problem import Multipliers
from .core.vec import Vec
from .oracle import ConstrainedOracle

SMALL = 2_500  # entries of a Jacobian that costs not much more than a product with it


# -- truth ------------------------------------------------------------------------------------------------------------------
def check_start(oracle: ConstrainedOracle, x: Vec) -> None:
    """f, c, h and their first derivatives at the start: they exist, have the right shapes, are finite, and nothing is lost.

    Raises ProblemError.
    """
    generator, given = torch.Generator().manual_seed(0), "x and a batch" if oracle.f.takes_batch else "x, no batch"
    if oracle.memory is not None:
        with contextlib.suppress(Exception):  # on one graph, which the solver takes up; what fails is named below
            oracle.stacked(x, oracle.f.draw(0))
    for part in _parts(oracle):
        if isinstance(part, Constraint):
            looks.rows(part, (x,), "x")
            looks.own_hessian(part, "x, lam")
        scalar = _scalar(oracle, part, x, generator)
        grads = looks.start(scalar, (x,), given)
        looks.nothing_lost(scalar, (x,), grads, (oracle.X.project,))
        if isinstance(part, Objective):
            flat = float(grads[0].max_norm()) == 0 and part.own.gradient is None
            if flat and not oracle.rows and not looks.depends(part, (x,), oracle.f.draw(0)):  # with rows: any feasible point
                raise ProblemError(f"{part.name}: expected a function of x, got one of other tensors alone, or of none")
            looks.own_products(part, (x,), oracle.f.draw(0))
            looks.own_hessian(part, "x, batch" if oracle.f.takes_batch else "x")


def _parts(oracle: ConstrainedOracle) -> list[Objective | Constraint]:
    return [part for part in (oracle.f, oracle.c, oracle.h) if part is not None]


def _scalar(oracle: ConstrainedOracle, part: Objective | Constraint, x: Vec, generator: torch.Generator) -> looks.Scalar:
    return looks.Scalar.of(part, (x,), ("x",), generator, oracle.f.draw(0))


def wrong(oracle: ConstrainedOracle, x: Vec) -> dict[str, float]:
    """Relative errors of first derivatives that differ from central differences at two random points near x, by name."""
    return looks.off_at_both(_near(oracle, x))


def _near(oracle: ConstrainedOracle, x: Vec) -> Iterator[list[Finding]]:
    """`_first` at two random points near x, none where a function is not finite."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        at = oracle.X.project(x.add(direction(x, generator), NEAR * (1.0 + float(x.norm()))))
        yield _first(oracle, at, generator, finite=True)


def expect_right(oracle: ConstrainedOracle, x: Vec) -> None:
    """Raise ProblemError where a first derivative is `wrong` near x."""

    def values() -> list[list[float]]:
        if oracle.memory is not None:
            oracle.memory.forget()
        return [value.reshape(-1).tolist() for value in _values(oracle, x)]

    looks.expect_right(wrong(oracle, x), lambda: values() == values())


def _values(oracle: ConstrainedOracle, x: Vec) -> list[Tensor]:
    draw = oracle.f.draw(0)
    return [part.value((x,), draw) if isinstance(part, Objective) else part.value((x,)) for part in _parts(oracle)]


def _first(oracle: ConstrainedOracle, x: Vec, generator: torch.Generator, *, finite: bool = False) -> list[Finding]:
    """grad f and J'w from values; `finite`: none where a value is not."""
    claims, x, d = _claims(oracle, x, generator)
    if finite and not all(math.isfinite(value) for _, _, value, _ in claims):
        return []
    return [finding for claim in claims for finding in looks.compared(claim, (x,), [d])]


def wrong_here(oracle: ConstrainedOracle, x: Vec) -> dict[str, float]:
    """Relative errors of first derivatives at x itself, by name; see `looks.off_here`."""
    claims, x, d = _claims(oracle, x, torch.Generator().manual_seed(4))
    return {name: error for claim in claims for name, error in looks.off_here(claim, (x,), [d]).items()}


def _claims(oracle: ConstrainedOracle, x: Vec, generator: torch.Generator) -> tuple[list[looks.Claim], Vec, Vec]:
    """f and w'c with their derivatives near x, a point with room to both sides along the direction."""
    d = direction(x, generator)
    claims, (x, d) = [], (x, d) if oracle.X.whole else looks.with_room(oracle.X.project, x, d)
    for part in _parts(oracle):
        if part.own.differences:
            continue
        scalar = _scalar(oracle, part, x, generator)
        label = f"{part.name}: {'gradient' if isinstance(part, Objective) else 'Jacobian'}"
        claims.append((scalar, [label], *scalar.gradient((x,))))
    return claims, x, d


def multipliers(oracle: ConstrainedOracle, x: Vec) -> Multipliers:
    """The least-squares multipliers at x, of inequalities the active ones."""
    if oracle.c is None and oracle.h is None:
        return Multipliers()
    tape = oracle.stacked(x, oracle.f.draw(0))
    m, _, h = oracle.parted(tape)
    J, rows = tape.jacobian[:m], tape.jacobian[m:]
    free = inside(oracle, x)  # entries at a bound have a multiplier of their own
    active = None if h is None else h > -1e-6 * max(1.0, float(h.abs().max()) if len(h) else 0.0)
    lam, mu = least_squares(J[:, free], rows[:, free], tape.gradient[free], active)
    return Multipliers(None if oracle.c is None else lam, mu)


def with_bounds(oracle: ConstrainedOracle, x: Vec, given: Multipliers) -> Multipliers:
    """The multipliers and those of bounds: what is left of grad f + J'lam where a step against it meets the bound."""
    tape = oracle.stacked(x, oracle.f.draw(0))
    rows = [part for part in (given.equality, given.inequality) if part is not None]
    left = (gradient_of_lagrangian(tape, torch.cat(rows).to(tape.c)) if rows else tape.gradient).double()
    low, high = (torch.from_numpy(bound).to(left) for bound in oracle.bounds)
    flat = x.ravel().double()
    zero = torch.zeros_like(left)
    met = (left > 0) & (flat - left <= low), (left < 0) & (flat - left >= high)
    zl, zu = (x.unravel(torch.where(at, left.abs(), zero).to(x.dtype)).tree() for at in met)
    return replace(given, low=zl, high=zu)


def residuals(oracle: ConstrainedOracle, x: Vec, given: Multipliers) -> dict[str, float]:
    """The residuals at x with the given multipliers; missing ones are the least-squares ones."""
    tape = oracle.stacked(x, oracle.f.draw(0))
    _, c, h = oracle.parted(tape)
    lam, mu = given.equality, given.inequality
    if (lam is None and oracle.c is not None) or (mu is None and h is not None):
        estimated = multipliers(oracle, x)
        lam, mu = estimated.equality, estimated.inequality
    weights = [
        part.to(tape.c).reshape(-1)
        for part in (lam if oracle.c is not None else None, mu if h is not None else None)
        if part is not None
    ]
    grad = gradient_of_lagrangian(tape, torch.cat(weights)) if weights else tape.gradient
    violated, found = [c], {}
    if h is not None and mu is not None:
        violated.append(h.clamp(min=0))
        found["complementarity"] = float(vector_norm(torch.minimum(mu.double(), (-h).clamp(min=0))))
    if oracle.X.whole:
        stationarity = float(vector_norm(grad.double()))
    else:
        violated.append((x - oracle.X.project(x)).ravel().double())
        stationarity = float((x - oracle.X.project(x.add(x.unravel(grad), -1.0))).norm())
    return {"stationarity": stationarity, "feasibility": float(vector_norm(torch.cat(violated))), **found}


def gradient_of_lagrangian(tape: Tape, lam: Tensor) -> Tensor:
    """grad f + J'lam where both parts are asked for again: a small J is formed, which its rows' lengths take too."""
    small = tape.m * len(tape.x) <= SMALL and all(c.own.vjp is None for c in tape.constraints)
    return tape.gradient + (tape.J.T @ lam if small else tape.vjp(lam))


def inside(oracle: ConstrainedOracle, x: Vec) -> Tensor:
    """Flat mask of the entries that can move both ways in X; all of them where entries do not project alone."""
    if not oracle.X.entrywise:
        return torch.ones(x.size, dtype=torch.bool, device=x.device)
    step = x.map(lambda leaf: 1e-7 * (1 + leaf.abs()))
    moved = [(oracle.X.project(x.add(step, sign)) - x).ravel() * sign > 0.5 * step.ravel() for sign in (1.0, -1.0)]
    return moved[0] & moved[1]


def least_squares(J: Tensor, rows: Tensor, g: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Least-norm lam, and mu >= 0 on the active inequalities, that minimise |g + J'lam + rows'mu|."""
    chosen = rows[:0] if active is None else rows[active]
    A, b = torch.cat([J, chosen]).T.double().cpu().numpy(), -g.double().cpu().numpy()
    found = torch.from_numpy(half_bounded(A, b, len(J))).to(g)
    if active is None:
        return found, None
    mu = g.new_zeros(len(rows))
    mu[active] = found[len(J) :]
    return found[: len(J)], mu


def half_bounded(A: np.ndarray, b: np.ndarray, free: int, tol: float = 1e-10) -> np.ndarray:
    """The z that makes |A z - b| least, its entries from `free` on >= 0; without such ones the least-norm z. NaN for NaN."""
    if not (np.isfinite(A).all() and np.isfinite(b).all()):
        return np.full(A.shape[1], np.nan)
    if free == A.shape[1]:
        return np.linalg.lstsq(A, b, rcond=1e-12)[0] if free else np.zeros(0)
    from scipy.optimize import lsq_linear, nnls

    F, B = A[:, :free], A[:, free:]

    def beside(v: np.ndarray) -> np.ndarray:  # what F explains of v
        return np.linalg.lstsq(F, v, rcond=1e-12)[0] if free else np.zeros((0, *v.shape[1:]))

    try:  # exact zeros, where an interior method leaves 1e-6
        bounded = nnls(B - F @ beside(B), b - F @ beside(b))[0]
    except RuntimeError:  # its limit of iterations
        low = np.concatenate([np.full(free, -np.inf), np.zeros(A.shape[1] - free)])
        return lsq_linear(A, b, bounds=(low, np.inf), tol=tol).x
    return np.concatenate([beside(b - B @ bounded), bounded])


def beside(oracle: ConstrainedOracle, x: Vec) -> Vec:
    """A point of X near x, where second derivatives are tried."""
    return oracle.X.project(x.add(direction(x, torch.Generator().manual_seed(3)), NEAR * (1.0 + float(x.norm()))))


def lost_twice(oracle: ConstrainedOracle, at: Vec) -> str:
    """Why products with the Hessian of the Lagrangian are not to be had, tried once at a point; '' where they are."""
    generator = torch.Generator().manual_seed(2)
    tape = oracle.stacked(at, oracle.f.draw(0))
    v, lam = direction(at, generator), torch.randn(tape.m, generator=generator, dtype=torch.float64).to(tape.c)
    try:
        claim = tape.lagrangian(lam).product(v.ravel(), torch.zeros_like(lam))[0]
        own = any(looks.own_nodes(graph) for graph in tape.graphs)
    except Unsuitable as why:
        return str(why)
    if not own or not bool(tape.value.isfinite()):
        return ""
    eps, size = torch.finfo(at.dtype).eps, float(tape.gradient_of_lagrangian(lam).norm())

    def slope(t: float) -> Tensor:
        return oracle.stacked(at.add(v, t), oracle.f.draw(0)).gradient_of_lagrangian(lam)

    if compare("", claim, slope, size, eps ** (1 / 3) * max(1.0, float(at.max_norm())), eps).ok:
        return ""
    return "the Hessian is not that of the gradients: an own autograd function loses it"


def check(oracle: ConstrainedOracle, x: Vec) -> Report:
    """grad f, J'w, and products with the KKT matrix along random directions against central differences, at x and near it."""
    generator = torch.Generator().manual_seed(0)
    points = [x, oracle.X.project(x.add(direction(x, generator), NEAR * (1.0 + float(x.norm()))))]
    points = [point for point in points if all(bool(value.isfinite().all()) for value in _values(oracle, point))]
    return worst([finding for point in points for finding in _compared(oracle, point, generator)])


def _compared(oracle: ConstrainedOracle, x: Vec, generator: torch.Generator) -> list[Finding]:
    findings = _first(oracle, x, generator)
    draw = oracle.f.draw(0)
    tape = oracle.tape(x, draw)
    if all(part.own.second_order for part in tape.parts):
        eps = torch.finfo(x.dtype).eps
        h, v = eps ** (1 / 3) * max(1.0, float(x.max_norm())), direction(x, generator)
        lam = torch.randn(tape.m, generator=generator, dtype=torch.float64).to(tape.c)
        at, flat = tape.lagrangian(lam), v.ravel()

        def slope(t: float) -> Tensor:
            return oracle.tape(x.add(v, t), draw).gradient_of_lagrangian(lam)

        claims = {"Lagrangian: Hessian": at.product(flat, torch.zeros_like(lam))[0]}
        if at.explicit:  # hvp= may say something else
            claims["Lagrangian: hessian="] = torch.stack([A @ flat for A in at.summands.values()]).sum(0)
        size = float(tape.gradient_of_lagrangian(lam).norm())
        findings += [compare(name, along, slope, size, h, eps) for name, along in claims.items()]
    return findings


def kkt_norm(gradient: Tensor, c: Tensor) -> float:
    """|(grad_x L, c)|."""
    return math.hypot(float(gradient.double().norm()), float(c.double().norm()))


forward_names(__name__, {"norm": "constrained.kkt:kkt_norm", "system": "constrained.newton.kkt_system:kkt_system"})
