"""f and c at a point, and every derivative of the Lagrangian L = f + lam'c there, from one graph.

With autodiff.py one of the two files that differentiate. Vectors are flat: x in R^n in the order of its leaves, c in R^m.
Jacobians, Hessians and stacks of products are batched backwards of the same graph; `backwards` says how they are batched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .autodiff import Constraint, Draw, Objective, shaped
from .errors import Unsuitable
from .vec import Vec

BATCHED = 50  # unknowns up to which the overhead of a batched backward outweighs its arithmetic


class Tape:
    """f(x) and c(x): `value` (0-dim float64), `c` (m entries). Derivatives are computed when asked for, each counted."""

    def __init__(self, f: Objective, c: Constraint | None, x: Vec, draw: Draw | None = None):
        self.f, self._c, self.at, self.draw = f, c, x, f._at(draw)
        f.calls.of(f.name).values += 1
        f.calls.of(f.name).rows += self.draw.rows
        with torch.enable_grad():
            self.x = x.ravel().detach().requires_grad_(True)
            tree = x.unravel(self.x).tree()
            self._f_out = self._graph(f.own.gradient is None, lambda: f.evaluate([tree], self.draw))
            self._c_out = self.x.new_zeros(0)
            if c is not None:
                c.calls.of(c.name).values += 1
                own = c.own.jacobian is not None or c.own.vjp is not None
                self._c_out = self._graph(not own, lambda: c.evaluate([tree])).to(self.x.dtype)

    def _graph(self, differentiate: bool, evaluate: Any) -> Tensor:
        if differentiate:
            return evaluate()
        with torch.no_grad():
            return evaluate()

    @functools.cached_property
    def value(self) -> Tensor:
        """f."""
        return self._f_out.detach().double()

    @functools.cached_property
    def c(self) -> Tensor:
        """c."""
        return self._c_out.detach()

    @property
    def m(self) -> int:
        return len(self.c)

    @functools.cached_property
    def gradient(self) -> Tensor:
        """grad f."""
        self.f.calls.of(self.f.name).gradients += 1
        own = self.f.own.gradient
        if own is not None:
            return self.f._own_gradient([self.at], self.draw, [0])[1][0].ravel()
        return self._backward(self._f_out, None)

    def vjp(self, w: Tensor) -> Tensor:
        """J'w."""
        if self._c is None:
            return torch.zeros_like(self.x)
        if self._c.own.vjp is not None:
            return self._c.vjp([self.at], w)[0].ravel()
        if self._c.own.jacobian is not None:
            return self.jacobian.T @ w
        self._c.calls.of(self._c.name).vjps += 1
        return self._backward(self._c_out, w)

    @functools.cached_property
    def jacobian(self) -> Tensor:
        """J, m x n."""
        if self._c is None:
            return self.x.new_zeros(0, len(self.x))
        self._c.calls.of(self._c.name).jacobians += 1
        if self._c.own.jacobian is not None:
            with torch.no_grad():
                given = self._c.own.jacobian(self.at.detach().tree())
            stack = self.at.map(lambda leaf: leaf.expand(self.m, *leaf.shape))
            return torch.cat([rows.reshape(self.m, -1) for rows in shaped(given, stack, f"{self._c.name}.jacobian").leaves], 1)
        if self._c.own.vjp is not None:
            return torch.stack([self._c.vjp([self.at], row)[0].ravel() for row in torch.eye(self.m, dtype=self.x.dtype)])
        return _rows(self._c_out, self.x)

    def lagrangian(self, lam: Tensor) -> Lagrangian:
        """grad L at (x, lam), differentiable once more."""
        return Lagrangian(self, lam)

    def gradient_of_lagrangian(self, lam: Tensor) -> Tensor:
        """grad f + J'lam by one backward."""
        auto_c = self._c is not None and self._c.own.vjp is None and self._c.own.jacobian is None
        if self.f.own.gradient is not None or not auto_c:
            return self.gradient + self.vjp(lam)
        self.f.calls.of(self.f.name).gradients += 1
        with torch.enable_grad():
            total = self._f_out + self._c_out @ lam.detach()
        return self._backward(total, None)

    def _backward(self, out: Tensor, w: Tensor | None) -> Tensor:
        if not out.requires_grad:
            return torch.zeros_like(self.x)
        return backward([out], [w], [self.x])[0]


class Lagrangian:
    """At (x, lam): `gradient` = grad f + J'lam, `product(u, v)` = (H u + J'v, J u) with H = hess f + sum lam_i hess c_i."""

    def __init__(self, tape: Tape, lam: Tensor):
        self.tape, self.lam = tape, lam.detach()
        f, c = tape.f, tape._c
        if not f.second_order or (c is not None and not (c.own.torch or c.own.hvp is not None)):
            raise Unsuitable("second derivatives are missing: give Function(..., hvp=) to the objective and the constraints")
        self._auto_f = f.own.gradient is None and f.own.hvp is None
        self._auto_c = c is not None and c.own.jacobian is None and c.own.vjp is None and c.own.hvp is None
        self._auto = self._auto_f and (self._auto_c or c is None)
        f.calls.of(f.name).gradients += 1
        with torch.enable_grad():
            self._lam = self.lam.clone().requires_grad_(True)
            total = tape._f_out if self._auto_f else tape.x.new_zeros(())
            if self._auto_c:
                total = total + tape._c_out @ self._lam
            self._s = _first(total, tape.x)
        rest = torch.zeros_like(self.lam) if self._auto_c else self.lam
        self.gradient = self._s.detach() + (0 if self._auto_f else tape.gradient) + (tape.vjp(rest) if not self._auto_c else 0)

    def product(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(H u + J'v, J u) by one backward of the gradient map."""
        self._count(1)
        return self._product(u, v, backward)

    def products(self, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        """The same for stacks of vectors: (q, n), (q, m) in and out."""
        self._count(len(U))
        if self._auto:
            return self._product(U, V, backwards)
        pairs = [self._product(u, v, backward) for u, v in zip(U, V)]
        return torch.stack([top for top, _ in pairs]), torch.stack([bottom for _, bottom in pairs])

    def _count(self, n: int) -> None:
        self.tape.f.calls.of(self.tape.f.name).hvps += n

    def _product(self, u: Tensor, v: Tensor, back: Backward) -> tuple[Tensor, Tensor]:
        tape = self.tape
        pairs = [(out, w) for out, w in ((self._s, u), (tape._c_out, v)) if out.requires_grad and out.numel()]
        top, bottom = torch.zeros_like(u), torch.zeros_like(v)
        if pairs:
            outs, weights = zip(*pairs)
            top, bottom = back(outs, weights, [tape.x, self._lam])
        c = tape._c
        if not self._auto_f:
            top = top + self._own_objective(u)
        if c is not None and not self._auto_c:
            J = tape.jacobian
            bottom = J @ u
            top = top + (J.T @ v if not tape._c_out.requires_grad else 0) + self._own_constraint(u)
        return top, bottom

    def _own_objective(self, u: Tensor) -> Tensor:
        f, tape = self.tape.f, self.tape
        if f.own.hvp is None:
            raise Unsuitable(f"{f.name}: a Function with its own gradient needs hvp= for a Newton method")
        batch = (tape.draw.batch,) if f.takes_batch else ()
        with torch.no_grad():
            return shaped(f.own.hvp(tape.at.tree(), tape.at.unravel(u).tree(), *batch), tape.at, f"{f.name}.hvp").ravel()

    def _own_constraint(self, u: Tensor) -> Tensor:
        c, at = self.tape._c, self.tape.at
        assert c is not None
        if c.own.hvp is None:
            raise Unsuitable(f"{c.name}: a Function with its own Jacobian needs hvp= for a Newton method")
        with torch.no_grad():
            return shaped(c.own.hvp(at.tree(), self.lam, at.unravel(u).tree()), at, f"{c.name}.hvp").ravel()

    @functools.cached_property
    def hessian(self) -> Tensor:
        """H, n x n, symmetric."""
        self.tape.f.calls.of(self.tape.f.name).hessians += 1
        n = len(self.tape.x)
        if self._auto:
            H = _rows(self._s, self.tape.x)
        else:
            eye, none = torch.eye(n, dtype=self.tape.x.dtype, device=self.tape.x.device), torch.zeros_like(self.lam)
            H = torch.stack([self._product(row, none, backward)[0] for row in eye])
        return 0.5 * (H + H.T)


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
    return backwards([outs], [torch.eye(len(outs), dtype=outs.dtype, device=outs.device)], [x])[0]


# -- backward of a kept graph -----------------------------------------------------------------------------------------------
Backward = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]


def backward(outs: Sequence[Tensor], weights: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """sum_i (d outs_i / d input)' weights_i for each input."""
    found = torch.autograd.grad(outs, inputs, weights, retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(at) if grad is None else grad for grad, at in zip(found, inputs))


def backwards(outs: Sequence[Tensor], stacks: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same for q weights an output, stacked: every result has q rows. One by one where an operator has no batching rule.

    Measured (torch 2.13, one thread): `torch.func.vmap` of the backward is the fastest or within 1.3 of it on logistic
    regression, stencils, chains and small networks. `is_grads_batched` costs 0.2 ms less a call, which is all at n = 5, but makes
    A'W from q products of A with one vector: 8 to 20 times slower at n = 500. A user's A @ X with one column is slow in both.
    """
    q, n = len(stacks[0]), len(inputs[0])
    try:
        if n > BATCHED:
            return torch.func.vmap(backward, (None, 0, None))(outs, stacks, inputs)
        found = torch.autograd.grad(outs, inputs, stacks, retain_graph=True, allow_unused=True, is_grads_batched=True)
        return tuple(at.new_zeros(q, *at.shape) if grad is None else grad for grad, at in zip(found, inputs))
    except RuntimeError:
        each = [backward(outs, weights, inputs) for weights in zip(*stacks)]
        return tuple(torch.stack(rows) for rows in zip(*each))
