"""Looks at a function before a solver does: are its first derivatives those of its values, or do some get lost on the way?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteStart, ProblemError, Unsuitable, raised
from ..vec import Vec
from .constraint import Constraint
from .finite_differences import Finding, compare, direction
from .graph import reaches
from .leaves import differentiable
from .objective import Draw, Objective

NEAR = 0.1  # times 1 + |x|: how far points are that derivatives are looked at
APART = (NEAR, 1.0)  # the same where a derivative is zero
SHORTER, TELLING = (1e-2, 1e-4), 1e-2  # lengths of differences; the tolerance up to which one tells right from wrong
HALVINGS = 30  # of the way between two points without a slope, until a step is told from a ramp

Project = Callable[[Vec], Vec]


@dataclass(frozen=True)
class Scalar:
    """f(args), or w'c(args) with random w, and its gradients. names: of the arguments."""

    name: str
    names: tuple[str, ...]
    value: Callable[[Sequence[Vec]], float]  # at points of differences: none is asked about again
    gradient: Callable[[Sequence[Vec]], tuple[Tensor, list[Vec]]]
    size: Callable[[Tensor], float]  # of what its value is a sum of

    @staticmethod
    def of(
        part: Objective | Constraint, args: Sequence[Vec], names: tuple[str, ...], generator: torch.Generator, draw: Draw | None
    ) -> Scalar:
        """f with one draw; of a constraint a combination of its rows, drawn at `args`."""
        if isinstance(part, Objective):

            def gradient(at: Sequence[Vec]) -> tuple[Tensor, list[Vec]]:
                return part.gradient(at, draw, tuple(range(len(at))))

            def value(at: Sequence[Vec]) -> float:
                return float(part.value(at, draw, remember=False))

            return Scalar(part.name, names, value, gradient, lambda value: abs(float(value)))
        like = part.value(args)
        w = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

        def combined(at: Sequence[Vec]) -> tuple[Tensor, list[Vec]]:
            return w @ part.value(at), part.vjp(at, w.to(at[0].dtype))

        def along(at: Sequence[Vec]) -> float:
            return float(w @ part.value(at, remember=False))

        length = float(torch.linalg.vector_norm(like)) * float(torch.linalg.vector_norm(w))
        return Scalar(part.name, names, along, combined, lambda _: length)


def start(scalar: Scalar, args: Sequence[Vec], given: str) -> list[Vec]:
    """The gradients at the start; values and they are there and finite. `given`: what the user's function gets.

    Raises ProblemError; NonFiniteStart.
    """
    with raised(scalar.name, f"at the start, given {given}"):
        value, grads = scalar.gradient(args)
    if not bool(value.isfinite()):
        raise NonFiniteStart(f"{scalar.name}: its value is {float(value)} at the start")
    for name, grad in zip(scalar.names, grads):
        if not bool(grad.finite()):
            raise NonFiniteStart(f"{scalar.name}: its gradient in {name} is NaN or infinite at the start")
    return grads


def depends(part: Objective, args: Sequence[Vec], draw: Draw) -> bool:
    """Whether the value depends on any argument by a graph of autograd, not on tensors from outside alone."""
    with torch.enable_grad():
        trees, leaves = differentiable(args, range(len(args)))
        out = part.evaluate(trees, draw)
    return reaches(out, leaves)


def rows(part: Constraint, args: Sequence[Vec], given: str) -> None:
    """A constraint at the start: its rows are there and finite. Raises ProblemError; NonFiniteStart."""
    with raised(part.name, f"at the start, given {given}"):
        values = part.value(args)
    if not bool(values.isfinite().all()):
        raise NonFiniteStart(f"{part.name}: NaN or infinite at the start")


def own_products(part: Objective, args: Sequence[Vec], draw: Draw) -> None:
    """The user's own products with second derivatives can be called. Raises ProblemError."""
    last = len(args) - 1
    for name, row in (("hvp", last), ("jvp", 0)):
        if not part.second_order or getattr(part.own, name) is None or (name == "jvp" and last == 0):
            continue
        with raised(f"{part.name}.{name}", "at the start"):
            part.linearize(args, draw).product(args[last], row, last)


def own_hessian(part: Objective | Constraint, given: str) -> None:
    """The user's Hessian takes as many arguments as it will be given. Raises ProblemError."""
    if part.own.hessian is None:
        return
    count = given.count(",") + 1
    try:
        inspect.signature(part.own.hessian).bind(*range(count))
    except TypeError as cause:
        raise ProblemError(f"{part.name}.hessian: expected a function of {given}, got another: {cause}") from cause
    except ValueError:  # of what is not written in Python nothing is known
        return


def nothing_lost(scalar: Scalar, args: Sequence[Vec], grads: Sequence[Vec], project: Sequence[Project]) -> None:
    """Raise ProblemError where a derivative that is 0 at the start is 0 near it too, while values there differ.

    All arguments move: at the start more than that may vanish. A penalty has no slope in its weight where what it is on is 0.
    """
    generator, eps = torch.Generator().manual_seed(0), torch.finfo(args[0].dtype).eps
    flat = [i for i, grad in enumerate(grads) if float(grad.max_norm()) == 0]
    for far in APART:
        if not flat:
            return
        here = [to(_moved(arg, far, generator)) for arg, to in zip(args, project)]
        value, grads = scalar.gradient(here)
        flat = [i for i in flat if float(grads[i].max_norm()) == 0]
        for i in flat:
            there = [project[i](_moved(v, far, generator)) if j == i else v for j, v in enumerate(here)]
            a, b = float(value), scalar.value(there)
            if abs(a - b) > 1e4 * eps * (abs(a) + abs(b)) and not _slopes(scalar, here, there, i, a):
                name = scalar.names[i]
                raise ProblemError(
                    f"{scalar.name}: its derivative in {name} is 0, but its values change with {name}: expected torch operations "
                    f"on {name} all the way, got .detach(), .item(), numpy or a step function"
                )


def _slopes(scalar: Scalar, here: Sequence[Vec], there: Sequence[Vec], i: int, a: float) -> bool:
    """On the way where values change there is a slope in argument i: between plateaus, bisected for."""
    low, high = here[i], there[i]
    for _ in range(HALVINGS):
        middle = (low + high) * 0.5
        value, grads = scalar.gradient([middle if j == i else v for j, v in enumerate(here)])
        if float(grads[i].max_norm()) != 0:
            return True
        low, high = (middle, high) if float(value) == a else (low, middle)
    return float(scalar.gradient(there)[1][i].max_norm()) != 0


def _moved(arg: Vec, far: float, generator: torch.Generator) -> Vec:
    return arg.add(direction(arg, generator), far * (1.0 + float(arg.norm())))


def with_room(project: Project, x: Vec, d: Vec) -> tuple[Vec, Vec]:
    """A point near x and a direction near d, such that the points of differences along it are in the set: functions need not be
    defined outside, and may have a kink on its boundary. Where the set has no room, the direction is 0. x itself to the last bit
    where there is room around it: a derivative may be lost from there on.
    """
    eps, size = torch.finfo(x.dtype).eps, max(1.0, float(x.max_norm()))
    far = 2.2 * eps ** (1 / 3) * size  # beyond what `compare` asks for
    a, b = project(x.add(d, far)), project(x.add(d, -far))
    middle = (a + b) * 0.5
    return x if float((middle - x).max_norm()) <= 4 * eps * size else middle, (a - b) * (0.5 / far)


Claim = tuple[Scalar, Sequence[str], Tensor, list[Vec]]  # labels of the gradients, value, gradients


def compared(claim: Claim, args: Sequence[Vec], along: Sequence[Vec]) -> list[Finding]:
    """Derivatives in each argument along a direction against central differences of the values."""
    scalar, labels, value, grads = claim
    eps, findings = torch.finfo(args[0].dtype).eps, []
    for i, (arg, d, grad, label) in enumerate(zip(args, along, grads, labels)):
        h = eps ** (1 / 3) * max(1.0, float(arg.max_norm()))

        def moved(t: float, i: int = i, d: Vec = d) -> float:
            return scalar.value([v.add(d, t) if j == i else v for j, v in enumerate(args)])

        slope, size = float(grad @ d), scalar.size(value)
        finding = compare(label, slope, moved, size, h, eps)
        for share in SHORTER:  # in other units a function may bend within h; a wrong derivative is wrong at all lengths
            if finding.ok:
                break
            other = compare(label, slope, moved, size, share * h, eps)
            finding = other if other.ok and other.tolerance <= TELLING else finding
        findings.append(finding)
    return findings


def off_here(claim: Claim, args: Sequence[Vec], along: Sequence[Vec]) -> dict[str, float]:
    """Relative errors of derivatives at the very point, by label, where no kink is: slopes to both sides and a longer one agree
    with each other and not with the claim. Near an answer a derivative may be right that is lost at it.
    """
    scalar, labels, value, grads = claim
    eps, off, here = torch.finfo(args[0].dtype).eps, {}, float(value)
    for i, (arg, d, grad, label) in enumerate(zip(args, along, grads, labels)):
        h, claimed = eps ** (1 / 3) * max(1.0, float(arg.max_norm())), float(grad @ d)
        slopes = [
            (float(scalar.value([v.add(d, t) if j == i else v for j, v in enumerate(args)])) - here) / t for t in (h, -h, 2 * h)
        ]
        truth, size = sum(slopes) / len(slopes), scalar.size(value)
        error, apart = abs(claimed - truth), max(slopes) - min(slopes)
        if error > 10 * (apart + 10 * eps * size / h) and error > TELLING * abs(truth):
            off[label] = error / (abs(truth) + 1e-3 * max(1.0, size))
    return off


def off_at_both(points: Iterable[Sequence[Finding]]) -> dict[str, float]:
    """Relative errors of what is off at each of several points, by name: a kink within a difference is no error.

    Points are asked for one by one, and none after one where all is right.
    """
    off: dict[str, float] | None = None
    for found in points:
        bad = {finding.name: finding.error for finding in found if not finding.ok}
        off = bad if off is None else {name: min(error, bad[name]) for name, error in off.items() if name in bad}
        if not off:
            break
    return off or {}


def expect_right(wrong: Mapping[str, float], repeats: Callable[[], bool]) -> None:
    """Raise ProblemError that names the derivatives which are `wrong`, by their relative errors.

    Not where an error is NaN, nor where a function has another value at the same point: no difference is to be had there.
    """
    told = {name: error for name, error in wrong.items() if error == error}
    if told and repeats():
        listed = ", ".join(f"{name} by {error:.1e}" for name, error in told.items())
        raise ProblemError(f"derivatives: expected those of the values, got others (relative errors): {listed}; see check()")


# -- second derivatives ---------------------------------------------------------------------------------------------------------
def own_nodes(out: Tensor) -> bool:
    """The graph has a user's own `torch.autograd.Function`. Its backward may leave no graph, and second derivatives read as 0."""
    seen, left = set(), [out.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        left += [parent for parent, _ in node.next_functions]
    return False


def lost_twice(part: Objective, args: Sequence[Vec], labels: Mapping[tuple[int, int], str]) -> str:
    """Why products with second derivatives of a function are not to be had, tried once near `args`; '' where they are.

    labels: names of the blocks (row, column) that are wanted.
    """
    generator, eps = torch.Generator().manual_seed(2), torch.finfo(args[0].dtype).eps
    at = [_moved(arg, NEAR, generator) for arg in args]
    draw = part.draw(0)
    try:
        here = part.linearize(at, draw)
        vs = [direction(arg, generator) for arg in at]
        claims = {block: here.product(vs[block[1]], *block) for block in labels}
    except Unsuitable as why:
        return str(why)
    if part.own.hvp is not None or not own_nodes(part.graph(at, draw) if here.out is None else here.out):
        return ""
    for (row, col), claim in claims.items():
        h = eps ** (1 / 3) * max(1.0, float(at[col].max_norm()))

        def along(t: float, row: int = row, col: int = col) -> Tensor:
            moved = [v.add(vs[col], t) if j == col else v for j, v in enumerate(at)]
            return part.gradient(moved, draw, (row,))[1][0].ravel()

        size = float(here.grads[row].norm())
        if bool(here.value.isfinite()) and not compare("", claim.ravel(), along, size, h, eps).ok:
            return f"{part.name}: {labels[row, col]} is not that of its gradients: an own autograd function loses it"
    return ""
