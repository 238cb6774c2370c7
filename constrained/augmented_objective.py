"""The augmented Lagrangian of a constrained problem as an objective for descent methods.

A(x) = f + lam'c + rho/2 |c|^2 + 1/(2 rho) sum_i (max(0, mu_i + rho h_i)^2 - mu_i^2)
grad A = grad f + J'(lam + rho c) + J_h'mu+,  mu+ = max(0, mu + rho h)
hess A = hess f + sum (lam + rho c)_i hess c_i + rho J'J + sum mu+_i hess h_i + rho J_h'D J_h,  D = 1 where mu+ > 0
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core.derivatives.constraint import Constraint
from .core.derivatives.counts import Calls
from .core.derivatives.objective import Draw, Objective
from .core.derivatives.tape import Lagrangian, Tape
from .core.errors import Unsuitable
from .core.vec import Vec
from .descent import Reformulation
from .interior.quadratic import Quadratic, minimiser
from .linear import Operator
from .oracle import ConstrainedOracle

NOTHING = Objective("nothing", lambda x: torch.zeros(()), Calls())  # the objective of the tape of h
DENSE = 2000  # n + m up to which dense matrices are factorised; beyond, products with them


class AugmentedObjective(Reformulation):
    """A at (lam, mu, rho), f on the given draw, on all of the data without one: value and gradient, and Hessian-vector products.

    `products` raises Unsuitable, naming the function, where second derivatives are missing. `newton` is for those
    who give their Hessians as matrices.
    """

    def __init__(self, oracle: ConstrainedOracle, lam: Tensor, mu: Tensor, rho: float, draw: Draw | None = None):
        self.oracle, self.lam, self.mu, self.rho, self.draw = oracle, lam, mu, rho, draw
        self.set = oracle.X
        self._last: tuple[Vec, Tape, Tape | None] | None = None  # second derivatives are asked for where the value was
        self._bent: tuple[Lagrangian, Lagrangian | None] | None = None  # of `_last`

    def __call__(self, x: Vec) -> tuple[float, Vec]:
        self._last = self._bent = None  # lets its graphs go before the next are made
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
        for function in self.oracle.functions:
            _twice(function)
        at, at_h = self._lagrangians(x)
        tape, zero = at.tape, torch.zeros_like(at.lam)

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

    def newton(self, x: Vec, gradient: Vec) -> Vec | None:
        """d that makes g'd + d'(hess A + w I) d / 2 least with x + d in X, from the user's matrices; None without."""
        if any(function.own.hessian is None for function in self.oracle.functions):
            return None
        at, at_h = self._lagrangians(x)
        both = [at] if at_h is None else [at, at_h]
        H, J = [A for one in both for A in one.summands.values()], [one.tape.J for one in both]
        count = [np.ones(at.tape.m, dtype=bool)] + [(one.lam > 0).cpu().numpy() for one in both[1:]]
        sparse = any(A.sparse for A in H)
        if not sparse and x.size + sum(int(mask.sum()) for mask in count) > DENSE:
            return None
        if sparse:
            from scipy.sparse import vstack

            whole: Any = sum(A.scipy() for A in H)
            rows: Any = vstack([A.scipy()[mask] for A, mask in zip(J, count)], format="csr")
        else:
            whole = sum(A.entries.double().cpu().numpy() for A in H)
            rows = np.concatenate([A.dense().double().cpu().numpy()[mask] for A, mask in zip(J, count)])
        (low, high), flat = self.oracle.bounds, x.ravel()
        here, g = flat.double().cpu().numpy(), gradient.ravel().double().cpu().numpy()
        found = minimiser(Quadratic(whole, rows, self.rho, g, low - here, high - here, sparse))
        return None if found is None else x.unravel(torch.from_numpy(found).to(flat))

    def _lagrangians(self, x: Vec) -> tuple[Lagrangian, Lagrangian | None]:
        """f + (lam + rho c)'c and mu+'h at x, twice differentiable."""
        if self._last is None or self._last[0] is not x:
            self._last, self._bent = self._tapes(x), None
        if self._bent is None:
            _, tape, tape_h = self._last
            at_h = None if tape_h is None else tape_h.lagrangian((self.mu + self.rho * tape_h.c).clamp(min=0))
            self._bent = tape.lagrangian(self.lam + self.rho * tape.c), at_h
        return self._bent

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
