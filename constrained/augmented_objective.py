"""The augmented Lagrangian of a constrained problem as an objective for descent methods.

A(x) = f + lam'c + rho/2 |c|^2 + 1/(2 rho) sum_i (max(0, mu_i + rho h_i)^2 - mu_i^2)
grad A = grad f + J'(lam + rho c) + J_h'mu+,  mu+ = max(0, mu + rho h)
hess A = hess f + sum (lam + rho c)_i hess c_i + rho J'J + sum mu+_i hess h_i + rho J_h'D J_h,  D = 1 where mu+ > 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core.derivatives.constraint import Constraint
from .core.derivatives.counts import Calls
from .core.derivatives.objective import Draw, Objective
from .core.derivatives.tape import Tape
from .core.errors import Unsuitable
from .core.vec import Vec
from .descent import Reformulation
from .linear import Operator
from .oracle import ConstrainedOracle

NOTHING = Objective("nothing", lambda x: torch.zeros(()), Calls())  # the objective of the tape of h


class AugmentedObjective(Reformulation):
    """A at (lam, mu, rho), f on the given draw, on all of the data without one: value and gradient, and Hessian-vector products.

    `products` raises Unsuitable, naming the function, where second derivatives are missing.
    """

    def __init__(self, oracle: ConstrainedOracle, lam: Tensor, mu: Tensor, rho: float, draw: Draw | None = None):
        self.oracle, self.lam, self.mu, self.rho, self.draw = oracle, lam, mu, rho, draw
        self.set = oracle.X
        self._last: tuple[Vec, Tape, Tape | None] | None = None  # products are asked for where the value was

    def __call__(self, x: Vec) -> tuple[float, Vec]:
        self._last = None  # lets its graphs go before the next are made
        self._last = _, tape, tape_h = self._tapes(x)
        h = self.mu.new_zeros(0) if tape_h is None else tape_h.c
        lam, mu = self.multipliers(tape.c, h)
        rest = 0.5 / self.rho * float((mu.double() ** 2 - self.mu.double() ** 2).sum())
        value = float(tape.value) + float((self.lam + 0.5 * self.rho * tape.c).double() @ tape.c.double()) + rest
        grad = tape.gradient_of_lagrangian(lam)
        return value, x.unravel(grad if tape_h is None else grad + tape_h.vjp(mu))

    def multipliers(self, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """lam + rho c, max(0, mu + rho h)."""
        return self.lam + self.rho * c, (self.mu + self.rho * h).clamp(min=0)

    def products(self, x: Vec) -> Operator:
        for function in (self.oracle.f, self.oracle.c, self.oracle.h):
            if function is not None:
                _twice(function)
        _, tape, tape_h = self._last if self._last is not None and self._last[0] is x else self._tapes(x)
        at, zero = tape.lagrangian(self.lam + self.rho * tape.c), torch.zeros_like(tape.c)
        at_h = None if tape_h is None else tape_h.lagrangian((self.mu + self.rho * tape_h.c).clamp(min=0))

        def product(v: Vec) -> Vec:
            flat = v.ravel()
            found, Jv = at.product(flat, zero)
            if tape.m:
                found = found + tape.vjp(self.rho * Jv)
            if at_h is not None:
                bent, Jv = at_h.product(flat, torch.zeros_like(at_h.lam))
                found = found + bent + at_h.tape.vjp(self.rho * (at_h.lam > 0) * Jv)
            return x.unravel(found)

        return product

    def _tapes(self, x: Vec) -> tuple[Vec, Tape, Tape | None]:
        h = self.oracle.h
        return x, self.oracle.tape(x, self.draw), None if h is None else Tape(NOTHING, [h], x)


def _twice(function: Objective | Constraint) -> None:
    """Raise Unsuitable where a function has first derivatives of its own but no second ones."""
    own = function.own
    first = own.gradient is not None or own.jacobian is not None or own.vjp is not None
    if own.hvp is None and own.hessian is None and (first or not own.torch):
        raise Unsuitable(
            f"{function.name}: no second derivatives for NewtonCG: give Function(..., hvp=) or hessian=, or take inner=LBFGS()"
        )


def inequality(oracle: ConstrainedOracle, x: Vec) -> Tensor:
    """h(x); no entries where there is no inequality."""
    return torch.zeros(0, dtype=x.dtype, device=x.device) if oracle.h is None else oracle.h.value((x,)).to(x.dtype)
