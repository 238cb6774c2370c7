"""Replay: f, the constraints c and their derivatives from recorded programs, for small problems that are solved many times.

    first(x)       -> f, c, g = grad f, J
    second(x, lam) -> H = hess_xx (f + lam'c)

c: the rows of all constraints; a tape of the first of them alone gets its part.

Both are the tape's own operations, recorded once (`make_fx`) and run by TorchScript without Python. On HS78 (n = 5, m = 3) they
take 0.1 and 0.15 ms, the tape 0.4 and 0.7; recording takes 0.1 to 0.5 s, the first in a process 2 s. A program is used only
after it agreed with the tape at the start and near it; where it cannot be recorded or does not agree, the tape is used and
`reason` says why. (`torch.jit.trace` is deprecated from torch 2.13 on; once it is gone, that is the reason.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..vec import Vec
from .constraint import Constraint
from .graph import BATCHED
from .matrix import Matrix
from .objective import Draw, Objective
from .tape import Lagrangian, Tape

AGREE = 4e3  # round-offs by which a replayed number may differ from the tape's, 1e-12 in float64
Program = Callable[..., tuple[Tensor, ...]]  # of x, or of (x, lam)
UNFIT = {
    torch.Tag.data_dependent_output: "reads a number of a tensor",
    torch.Tag.dynamic_output_shape: "returns a shape that depends on numbers",
    torch.Tag.nondeterministic_seeded: "draws random numbers",
}


class Unrecorded(Exception):
    """Why there is no program."""


@dataclass(frozen=True)
class Replay:
    """Programs for f and the constraints of one problem, or the reason why there are none ('' where there are).

    sizes: of each constraint, its rows.

    Numbers and tensors that the functions hold are those of the time of recording: record again after a change.

    >>> from constrained import ConstrainedProblem
    >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    >>> hs6 = ConstrainedProblem(objective=lambda x: (1 - x[0]) ** 2, equality=lambda x: 10 * (x[1] - x[0] ** 2), x=x)
    >>> oracle = hs6.oracle()
    >>> oracle.replay = oracle.recorded()
    >>> oracle.tape(oracle.variables["x"]).lagrangian(torch.ones(1, dtype=torch.float64)).hessian
    tensor([[-18.,   0.],
            [  0.,   0.]], dtype=torch.float64)
    """

    first: Program | None
    second: Program | None
    reason: str
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, f: Objective, c: Sequence[Constraint], x: Vec) -> Replay:
        """Record f and the constraints at x. Never raises: what goes wrong is the reason."""
        try:
            _fit(f, c, x)
            seen = Tape(f, c, x)
            sizes, at = tuple(map(len, seen.split(seen.c))), (x.ravel().detach().clone(), torch.ones_like(seen.c))
            first = _recorded(lambda flat: _first(Tape(f, c, x.unravel(flat))), at[:1])
            second = _recorded(lambda flat, lam: (Tape(f, c, x.unravel(flat)).lagrangian(lam).hessian,), at)
            _compare(first, second, f, c, x)
        except Unrecorded as why:
            return cls(None, None, str(why))
        except Exception as error:  # the functions' own, and whatever recording meets
            return cls(None, None, f"recording raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return cls(first, second, "", sizes if c else ())

    def tape(self, f: Objective, c: Sequence[Constraint], x: Vec, draw: Draw | None) -> Tape:
        """f and c, the first of the constraints, at x, replayed where there is a program."""
        if self.first is None or self.second is None:
            return Tape(f, c, x, draw)
        return ReplayedTape(self.first, self.second, self.sizes, f, c, x, draw)


class ReplayedTape(Tape):
    """A tape whose numbers come from programs: those of first order all at once, and Hessians."""

    def __init__(
        self,
        first: Program,
        second: Program,
        sizes: Sequence[int],
        f: Objective,
        c: Sequence[Constraint],
        x: Vec,
        draw: Draw | None,
    ):
        self._first, self._second = first, second
        self.f, self.constraints, self.at, self.draw = f, tuple(c), x, f._at(draw)
        self._sizes, self._rest = sizes[: len(self.constraints)], sum(sizes[len(self.constraints) :])
        self.x = x.ravel().detach()
        f.calls.of(f.name).values += 1
        f.calls.of(f.name).rows += self.draw.rows
        for one in self.constraints:
            one.calls.of(one.name).values += 1

    @property
    def graph_outs(self) -> list[tuple[Objective | Constraint, Tensor]]:
        return []  # no graphs

    @functools.cached_property
    def _numbers(self) -> Sequence[Tensor]:  # f, c, g, J
        numbers = self._first(self.x)
        if not self._rest:
            return numbers
        m = sum(self._sizes)
        return [part[:m] if i in (1, 3) else part for i, part in enumerate(numbers)]  # without the rows of other constraints

    def split(self, w: Tensor) -> tuple[Tensor, ...]:
        return w.split(list(self._sizes), -1)

    @functools.cached_property
    def value(self) -> Tensor:
        return self._numbers[0]

    @functools.cached_property
    def c(self) -> Tensor:
        return self._numbers[1]

    @functools.cached_property
    def gradient(self) -> Tensor:
        self.f.calls.of(self.f.name).gradients += 1
        return self._numbers[2]

    @functools.cached_property
    def jacobian(self) -> Tensor:
        for one in self.constraints:
            one.calls.of(one.name).jacobians += 1
        return self._numbers[3]

    @functools.cached_property
    def J(self) -> Matrix:
        return Matrix(self.jacobian)

    def vjp(self, w: Tensor) -> Tensor:
        for one in self.constraints:
            one.calls.of(one.name).vjps += 1
        return w @ self._numbers[3]

    def gradient_of_lagrangian(self, lam: Tensor) -> Tensor:
        if not self.constraints:
            return self.gradient
        self.f.calls.of(self.f.name).gradients += 1
        return self._numbers[2] + lam @ self._numbers[3]

    def lagrangian(self, lam: Tensor, sigma: float = 1.0) -> Lagrangian:
        if sigma == 0:  # the programs have L = f + lam'c
            return Tape(self.f, self.constraints, self.at, self.draw).lagrangian(lam, sigma)
        weights = torch.cat([lam.detach() / sigma, self.x.new_zeros(self._rest)])
        (H,) = self._second(self.x, weights)
        return ReplayedLagrangian(self, lam, sigma, sigma * H if sigma != 1 else H)


class ReplayedLagrangian(Lagrangian):
    """Products with the matrices themselves."""

    def __init__(self, tape: ReplayedTape, lam: Tensor, sigma: float, H: Tensor):
        self.tape, self.lam, self.sigma, self._H = tape, lam.detach(), sigma, H
        _, _, self._g, self._J = tape._numbers
        tape.f.calls.of(tape.f.name).gradients += 1

    @functools.cached_property
    def gradient(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.sigma * self._g + self.lam @ self._J

    def product(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._count(1)
        return self._H @ u + v @ self._J, self._J @ u

    def products(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        self._count(len(U))
        return U @ self._H + V @ self._J, U @ self._J.T

    @functools.cached_property
    def hessian(self) -> Tensor:
        self.tape.f.calls.of(self.tape.f.name).hessians += 1
        return self._H


# -- recording --------------------------------------------------------------------------------------------------------------
def _first(tape: Tape) -> tuple[Tensor, ...]:
    return tape.value, tape.c, tape.gradient, tape.jacobian


def _fit(f: Objective, c: Sequence[Constraint], x: Vec) -> None:
    """Raises Unrecorded for what one look tells."""
    own = [f.own, *(one.own for one in c)]
    if x.size > BATCHED:
        raise Unrecorded(f"{x.size} unknowns: beyond {BATCHED} the operations cost more than their overhead")
    if f.random:
        raise Unrecorded("the objective has mini-batches, or a module in train mode")
    if any(not g.torch or (g.gradient or g.hvp or g.hessian or g.jacobian or g.vjp) for g in own):
        raise Unrecorded("a Function brings derivatives of its own")


def _recorded(numbers: Program, at: tuple[Tensor, ...]) -> Program:
    """The same as a program, recorded at a point. Raises Unrecorded, and what tracing raises."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # Fake tensors hold no numbers: what reads one, to branch on it for instance, is refused here.
    graph = make_fx(numbers, tracing_mode="fake", _allow_non_fake_inputs=True)(*at)
    for node in graph.graph.nodes:
        _deterministic(node)
    program: Any = torch.jit.trace(graph, at, check_trace=False)

    forward = program.forward  # without the hooks of modules

    def run(*at: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            found = forward(*at)
        return tuple(t.clone() for t in found)  # tensors that autograd may use, and none that the program holds

    return run


def _deterministic(node: torch.fx.Node) -> None:
    """Raises Unrecorded where an operation may do something else next time."""
    indices = [index for index in node.all_input_nodes[1:] if index.op != "get_attr"]
    if node.target == torch.ops.aten.index.Tensor and all(i.meta["tensor_meta"].dtype != torch.bool for i in indices):
        return  # integers, or a mask that does not depend on x: the shape is always the same
    for tag in getattr(node.target, "tags", ()):
        if tag in UNFIT:
            raise Unrecorded(f"{node.target} {UNFIT[tag]}")


def _compare(first: Program, second: Program, f: Objective, c: Sequence[Constraint], x: Vec) -> None:
    """Raises Unrecorded where a program and the tape differ, at x or at a random point near it with random multipliers."""
    generator = torch.Generator().manual_seed(0)
    for far in (0.0, 0.1, 1e-3):
        step = x.map(lambda leaf: _normal(leaf, generator))
        tape = Tape(f, c, x.add(step, far * (1.0 + float(x.norm())) / float(step.norm())))
        lam = _normal(tape.c, generator)
        true = *_first(tape), tape.lagrangian(lam).hessian
        if far == 0.1 and not all(bool(t.isfinite().all()) for t in true):  # outside of a logarithm's domain
            continue
        flat = tape.x.detach()
        for a, b in zip((*first(flat), *second(flat, lam)), true):
            error, size = float((a - b).double().norm()), float(b.double().norm())
            if not error <= AGREE * torch.finfo(b.dtype).eps * max(1.0, size):
                raise Unrecorded(f"replayed numbers differ from the tape's by {error:.1e}, {far:g} (1 + |x|) from the start")


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
