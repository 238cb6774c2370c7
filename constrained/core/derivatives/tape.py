"""f and the rows c of one or several constraints at a point, and every derivative of L = sigma f + lam'c there, from one graph.

With objective.py one of the two files that differentiate. Vectors are flat: x in R^n in the order of its leaves, c in R^m.
Jacobians, Hessians and stacks of products are batched backwards of the same graph. A user's own derivatives take the place of
the graph's; matrices stay as they come, dense or sparse.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import Unsuitable
from ..vec import Vec
from .constraint import Constraint
from .function import Function
from .leaves import no_inference_mode, shaped
from .matrix import Matrix, matrix, stacked
from .objective import Backward, Draw, Objective, backward, backwards, twice_missing


class Tape:
    """f(x) and c(x): `value` (0-dim float64), `c` (m entries). Derivatives are computed when asked for, each counted.

    constraints: their rows one below the other are c.
    """

    def __init__(self, f: Objective, constraints: Sequence[Constraint], x: Vec, draw: Draw | None = None):
        no_inference_mode()
        self.f, self.constraints, self.at, self.draw = f, tuple(constraints), x, f._at(draw)
        f.calls.of(f.name).rows += self.draw.rows
        with torch.enable_grad():
            self.x = x.ravel().detach().requires_grad_(True)
            self._tree = x.unravel(self.x).tree()
        self._f_out = self._value_of(f, f.own.gradient is None)
        self._outs = [self._value_of(c, not _first_order(c.own)) for c in self.constraints]

    def _value_of(self, part: Objective | Constraint, differentiate: bool) -> Tensor:
        """f or c, with its graph where it will be differentiated."""
        part.calls.of(part.name).values += 1
        tree = self._tree if differentiate else self.at.detach().tree()
        with torch.enable_grad():
            found = part.evaluate([tree], self.draw) if isinstance(part, Objective) else part.evaluate([tree]).to(self.x.dtype)
        return found if differentiate else found.detach()

    def afresh(self) -> Tape:
        """The same evaluation, of which no derivative was taken yet."""
        twin = copy.copy(self)
        for kind in type(self).__mro__:
            for name, field in vars(kind).items():
                if isinstance(field, functools.cached_property):
                    vars(twin).pop(name, None)
        return twin

    def first(self, count: int) -> Tape:
        """The same evaluation, of the rows of the first constraints alone."""
        twin = self.afresh()
        twin.constraints, twin._outs = self.constraints[:count], self._outs[:count]
        return twin

    @property
    def graph_outs(self) -> list[tuple[Objective | Constraint, Tensor]]:
        """f and the constraints with what they returned."""
        return list(zip(self.parts, [self._f_out, *self._outs]))

    @functools.cached_property
    def value(self) -> Tensor:
        """f."""
        return self._f_out.detach().double()

    @functools.cached_property
    def c(self) -> Tensor:
        """c."""
        return self._joined([out.detach() for out in self._outs])

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat([self.x.detach().new_zeros(0), *parts])

    def split(self, w: Tensor) -> tuple[Tensor, ...]:
        """The entries of each constraint's rows, of stacks too."""
        return (w,) if len(self._outs) == 1 else w.split([len(out) for out in self._outs], -1)

    @property
    def m(self) -> int:
        return len(self.c)

    @property
    def parts(self) -> list[Objective | Constraint]:
        """f and the constraints."""
        return [self.f, *self.constraints]

    @property
    def batch(self) -> tuple[Any, ...]:
        """What f gets beside x."""
        return (self.draw.batch,) if self.f.takes_batch else ()

    @functools.cached_property
    def gradient(self) -> Tensor:
        """grad f."""
        self.f.calls.of(self.f.name).gradients += 1
        own = self.f.own.gradient
        if own is not None:
            return self.f._own_gradient([self.at], self.draw, [0], self.value)[1][0].ravel()
        return self._backward([(self._f_out, None)])

    def vjp(self, w: Tensor) -> Tensor:
        """J'w."""
        found, pairs = torch.zeros_like(self.x), []
        for k, (c, part) in enumerate(zip(self.constraints, self.split(w))):
            if c.own.vjp is not None:
                found = found + c.vjp([self.at], part)[0].ravel()
            elif c.own.jacobian is not None:
                found = found + self._blocks[k].T @ part
            else:
                c.calls.of(c.name).vjps += 1
                pairs.append((self._outs[k], part))
        return found + self._backward(pairs) if pairs else found

    @functools.cached_property
    def _blocks(self) -> list[Matrix]:
        """J of each constraint, as the user gives it, dense or sparse; else dense."""
        return [self._block(c, out) for c, out in zip(self.constraints, self._outs)]

    def _block(self, c: Constraint, out: Tensor) -> Matrix:
        c.calls.of(c.name).jacobians += 1
        if c.own.jacobian is not None:
            return c.matrices([self.at], len(out))[0]
        if c.own.vjp is not None:
            return Matrix(c.rows([self.at], torch.eye(len(out), dtype=self.x.dtype, device=self.x.device))[0])
        return Matrix(_rows(out, self.x))

    @functools.cached_property
    def J(self) -> Matrix:
        """J, m x n: sparse where the user gives one sparse; else dense, by one backward where all is autodiff's."""
        if len(self._outs) < 2 or any(_first_order(c.own) for c in self.constraints):
            return stacked(self._blocks, self.x.detach())
        for c in self.constraints:
            c.calls.of(c.name).jacobians += 1
        with torch.enable_grad():
            whole = self._joined(self._outs)
        return Matrix(_rows(whole, self.x))

    @functools.cached_property
    def jacobian(self) -> Tensor:
        """J, m x n, dense."""
        return self.J.dense()

    def lagrangian(self, lam: Tensor, sigma: float = 1.0) -> Lagrangian:
        """grad (sigma f + lam'c) at (x, lam), differentiable once more."""
        return Lagrangian(self, lam, sigma)

    def gradient_of_lagrangian(self, lam: Tensor) -> Tensor:
        """grad f + J'lam by one backward."""
        if self.f.own.gradient is not None or not self.constraints or any(_first_order(c.own) for c in self.constraints):
            return self.gradient + self.vjp(lam)
        self.f.calls.of(self.f.name).gradients += 1
        with torch.enable_grad():
            total = sum((out @ part for out, part in zip(self._outs, self.split(lam.detach()))), self._f_out)
        return self._backward([(total, None)])

    @functools.cached_property
    def graphs(self) -> list[Tensor]:
        """f and the constraints to differentiate twice; evaluated again where the user's own first derivatives were used so far.

        Raises Unsuitable where such a value has no graph of autograd: its second derivatives are not zero but unknown.
        """
        outs = [self._f_out, *self._outs]
        used = [self.f.own.gradient is not None, *(_first_order(c.own) for c in self.constraints)]
        return [self._grown(p) if own and not _twice(p.own) else out for p, out, own in zip(self.parts, outs, used)]

    def _grown(self, part: Objective | Constraint) -> Tensor:
        out = self._value_of(part, True)
        if not out.requires_grad and out.numel():
            raise Unsuitable(f"{part.name}: its value has no graph of autograd: give Function(..., hvp=) or hessian=")
        return out

    def _backward(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        pairs = [(out, w) for out, w in pairs if out.requires_grad]
        return backward([out for out, _ in pairs], [w for _, w in pairs], [self.x])[0] if pairs else torch.zeros_like(self.x)


class Lagrangian:
    """At (x, lam): `gradient` = sigma grad f + J'lam, `product(u, v)` = (H u + J'v, J u), H = sigma hess f + sum lam_i hess c_i.

    Second derivatives that the user gives are taken; the others are a backward of s = grad_x of what is left of L.
    """

    def __init__(self, tape: Tape, lam: Tensor, sigma: float = 1.0):
        self.tape, self.lam, self.sigma = tape, lam.detach(), sigma
        f, rows = tape.f, tape.constraints
        missing = [part.name for part in tape.parts if not part.own.second_order]
        if missing:
            raise Unsuitable(f"{', '.join(missing)}: second derivatives are missing: give Function(..., hvp=) or hessian=")
        self._own = [part for part in tape.parts if _twice(part.own)]
        self._graph_J = bool(rows) and not any(_first_order(c.own) or _twice(c.own) for c in rows)  # J by the graph, with H of c
        f_out, *outs = tape.graphs
        with torch.enable_grad():
            self._lam = self.lam.clone().requires_grad_(True)
            total = tape.x.new_zeros(()) if _twice(f.own) or sigma == 0 else f_out if sigma == 1 else sigma * f_out
            for c, out, part in zip(rows, outs, tape.split(self._lam)):
                total = total if _twice(c.own) else total + out @ part
            self._s = _first(total, tape.x)
        f.calls.of(f.name).gradients += len(self._own) < len(tape.parts)  # s is a backward of its own
        whole = (self._graph_J or not rows) and f.own.gradient is None and not self._own
        if whole:
            self.gradient = self._s.detach()
        else:
            self.gradient = tape.gradient_of_lagrangian(self.lam) if sigma == 1 else sigma * tape.gradient + tape.vjp(self.lam)

    def product(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(H u + J'v, J u); by one backward of the gradient map where all is autodiff."""
        self._count(1)
        return self._product(u, v, backward)

    def products(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """The same for stacks of vectors: (q, n), (q, m) in and out."""
        self._count(len(U))
        return self._product(U, V, backwards)

    def _count(self, n: int) -> None:
        self.tape.f.calls.of(self.tape.f.name).hvps += n

    def _product(self, u: Tensor, v: Tensor, back: Backward) -> tuple[Tensor, Tensor]:
        tape = self.tape
        outs = [(self._s, u), *(zip(tape._outs, tape.split(v)) if self._graph_J else ())]
        pairs = [(out, w) for out, w in outs if out.requires_grad and out.numel()]
        top, bottom = torch.zeros_like(u), torch.zeros_like(v)
        if pairs:
            with self._named():
                top, bottom = back([out for out, _ in pairs], [w for _, w in pairs], [tape.x, self._lam])
        if tape.constraints and not self._graph_J:
            top, bottom = top + tape.J.T @ v, tape.J @ u
        for part in self._own:
            top = top + self._bend(part, u)
        return top, bottom

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Unsuitable in place of torch's words where an operator of f or c has no second derivative."""
        try:
            yield
        except RuntimeError as cause:
            raise twice_missing(", ".join(part.name for part in self.tape.parts), cause) from cause

    # -- the user's own ---------------------------------------------------------------------------------------------------
    def _weight(self, part: Objective | Constraint) -> float:
        """Of its summand in H; that of a constraint has lam in it."""
        return self.sigma if part is self.tape.f else 1.0

    @property
    def explicit(self) -> bool:
        """Every summand of H is given as a matrix."""
        return all(part.own.hessian is not None for part in self.tape.parts)

    @functools.cached_property
    def summands(self) -> dict[str, Matrix]:
        """sigma hess f and sum lam_i hess c_i by the names of f and c, n x n, dense or sparse: those that the user gives."""
        given = [part for part in self.tape.parts if part.own.hessian is not None]
        return {part.name: self._matrix(part) for part in given}

    def _matrix(self, part: Objective | Constraint) -> Matrix:
        assert part.own.hessian is not None
        n, (before, after) = self.tape.at.size, self._beside(part)
        part.calls.of(part.name).hessians += 1
        with torch.enable_grad():
            given = part.own.hessian(self.tape.at.detach().tree(), *before, *after)
        found = matrix(given, (n, n), self.tape.x, f"{part.name}.hessian")
        return found if self._weight(part) == 1 else Matrix(self._weight(part) * found.entries)

    def _bend(self, part: Objective | Constraint, u: Tensor) -> Tensor:
        """The summand of H times u, for a stack of vectors row by row."""
        hvp, at, (before, after) = part.own.hvp, self.tape.at, self._beside(part)
        if hvp is None:
            return self.summands[part.name] @ u
        with torch.enable_grad():
            each = [hvp(at.detach().tree(), *before, at.unravel(v).tree(), *after) for v in u.reshape(-1, at.size)]
        return self._weight(part) * torch.stack([shaped(one, at, f"{part.name}.hvp").ravel() for one in each]).reshape(u.shape)

    def _beside(self, part: Objective | Constraint) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What second derivatives get between x and v, and after v: its lam for a constraint, the batch for f."""
        if part is self.tape.f:
            return (), self.tape.batch
        return (dict(zip(self.tape.constraints, self.tape.split(self.lam)))[part],), ()  # pyright: ignore[reportArgumentType]

    @functools.cached_property
    def hessian(self) -> Tensor:
        """H, n x n, symmetric."""
        self.tape.f.calls.of(self.tape.f.name).hessians += not self.explicit
        with self._named():
            H = _rows(self._s, self.tape.x)
        if self._own:
            eye = torch.eye(len(self.tape.x), dtype=self.tape.x.dtype, device=self.tape.x.device)
            H = sum((self._bend(part, eye) for part in self._own), H)
        return 0.5 * (H + H.T)


def _first_order(own: Function) -> bool:
    """J is the user's own."""
    return own.jacobian is not None or own.vjp is not None


def _twice(own: Function) -> bool:
    """Second derivatives are the user's own."""
    return own.hvp is not None or own.hessian is not None


def _first(out: Tensor, x: Tensor) -> Tensor:
    """The gradient with its graph."""
    if not out.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(out, [x], create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def _rows(outs: Tensor, x: Tensor) -> Tensor:
    """d outs / dx, one row an entry."""
    if not outs.requires_grad or not outs.numel():
        return x.new_zeros(len(outs), len(x))
    if len(outs) == 1:  # half the time of a batch of one
        return backward([outs], [torch.ones_like(outs)], [x])[0][None]
    return backwards([outs], [torch.eye(len(outs), dtype=outs.dtype, device=outs.device)], [x])[0]
