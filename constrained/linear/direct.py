"""Direct: factorise a symmetric K, dense (L D L') or sparse (L U).

    P K P' = L D L'    L unit lower triangular, D block diagonal with blocks of 1 and 2: the inertia of K is that of D
                       (Sylvester), for free

Source: Bunch and Kaufman 1977; LAPACK sytrf through torch, on the CPU and on CUDA alike; SuperLU through scipy for sparse K.
Measured (d = 8 and 2,000, one thread): torch.linalg.ldl_factor_ex 3 us and 110 ms, scipy.linalg.ldl 44 us and 825 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.vec import Vec
from .spectrum import growth
from .system import LinearSolution, LinearSolver, LinearStatus, System

ZERO_PIVOT = 50  # of eps System.scale: 1e-14 in float64
SPARSE = 500  # unknowns from which a sparse matrix is factorised as one: below, dense with the inertia
DENSE = 4096  # unknowns up to which a singular sparse matrix is made dense
Apply = Callable[[Tensor], Tensor]


class Factors:
    """A factorised K: `times` and `inverse` on flat float64 vectors, `inertia`, `smallest`, `largest`, `spent` products."""

    inertia: tuple[int, int, int] | None = None
    smallest = largest = 0.0

    def __init__(self, system: System):
        self.system, self.spent, self.eps = system, 0, torch.finfo(system.template.dtype).eps
        self.regular, self.finite = False, True
        self.times: Apply
        self.inverse: Apply | None = None
        if system.sparse is not None and system.matrix is None and system.size > SPARSE:
            self._sparse()
        else:
            self._dense()

    def _dense(self) -> None:
        own, self.spent = self.system.dense()
        K, self.eps = own.double(), torch.finfo(own.dtype).eps
        self.times = lambda v: K @ v
        self._matrix = K
        size = float(torch.linalg.vector_norm(K, math.inf))
        self.finite = math.isfinite(size)
        if not self.finite:
            return
        LD, pivots, info = torch.linalg.ldl_factor_ex(K)
        scale = size if self.system.scale is None else self.system.scale
        self.inertia = inertia(LD, pivots, ZERO_PIVOT * self.eps * scale)
        if int(info) == 0:
            self.inverse = lambda v: torch.linalg.ldl_solve(LD, pivots, v[:, None])[:, 0]
        self._estimate(K.shape[0], K.device)
        self.regular &= self.inertia[2] == 0

    def _sparse(self) -> None:
        import numpy as np
        from scipy.sparse.linalg import splu

        assert self.system.sparse is not None
        K, device = self.system.sparse().tocsc().astype(np.float64), self.system.template.device
        self.times = lambda v: torch.as_tensor(K @ v.cpu().numpy(), device=device)
        self.finite = bool(np.isfinite(K.data).all())
        if not self.finite:
            return
        try:
            factors = splu(K)
            self.inverse = lambda v: torch.as_tensor(factors.solve(v.cpu().numpy()), device=device)
        except RuntimeError:  # "Factor is exactly singular"
            pass
        self._estimate(K.shape[0], device)

    def _estimate(self, size: int, device: torch.device) -> None:
        self.largest = growth(self.times, size, device)
        grown = growth(self.inverse, size, device) if self.inverse is not None else math.inf
        self.smallest = 1 / grown if grown > 0 else 0.0
        self.regular = self.smallest > self.eps * self.largest

    @cached_property
    def pseudoinverse(self) -> Apply | None:
        """b -> K^+ b from the eigenvalues above size * eps * |K|; None where K is sparse and too large to be made dense."""
        if not hasattr(self, "_matrix"):
            if self.system.size > DENSE:
                return None
            self._matrix = self.system.dense()[0].double()
        values, V = torch.linalg.eigh(self._matrix)
        size = values.abs().max() if len(values) else 0.0
        keep = values.abs() > len(values) * self.eps * size
        values, V = values[keep], V[:, keep]
        return lambda b: V @ ((V.T @ b) / values)

    def refined(self, apply: Apply, b: Tensor) -> Tensor:
        """x = A b and one step more: x + A (b - K x)."""
        x = apply(b)
        return x + apply(b - self.times(x))


@dataclass(frozen=True, kw_only=True)
class Direct(LinearSolver):
    """Factorise K: dense L D L' (Bunch-Kaufman), with the inertia; L U where K is sparse and has more than 500 unknowns.

    K is `System.matrix` or `System.sparse` where there is one, and is else made by batched products with the identity. One
    step of iterative refinement. Pivots count as zero up to 50 eps scale, 1e-14 scale in float64. A singular K is solved by its
    eigenvalues: SOLVED with the least-norm solution where the system is consistent, else LEAST_SQUARES; SINGULAR where K is
    sparse and too large (4,096) for that. `start` is not needed.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> direct, b = Direct(), Vec.of(torch.tensor([3.0, 1.0], dtype=torch.float64))
    >>> found = direct.solve(direct.init(System(lambda v: v.map(lambda t: K @ t), 2, matrix=lambda: K)), b, tol=1e-12)
    >>> found.x.tree(), found.inertia, found.reason.name
    (tensor([1., 1.], dtype=torch.float64), (1, 1, 0), 'SOLVED')
    """

    def init(self, system: System) -> Factors:
        return Factors(system)

    def solve(
        self, prepared: Factors, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        flat, product, spent = b.ravel().double(), prepared.system.product, 0

        def ended(x: Vec, residual: float, reason: LinearStatus) -> LinearSolution:
            known = prepared.inertia, prepared.smallest, prepared.largest
            return LinearSolution(x, residual, spent, reason, None, *known)

        def tried(apply: Apply) -> tuple[Vec, float]:
            nonlocal spent
            spent += 1
            x = b.unravel(prepared.refined(apply, flat))
            residual = float((b - product(x)).norm())
            return x, residual if math.isfinite(residual) else math.inf

        zero = b.zeros(), float(b.norm())
        if not (prepared.finite and math.isfinite(zero[1])):
            return ended(*zero, LinearStatus.NONFINITE)
        found = tried(prepared.inverse) if prepared.inverse is not None else zero
        if prepared.regular:
            if found[1] == math.inf:
                return ended(*zero, LinearStatus.NONFINITE)
            return ended(*found, LinearStatus.SOLVED if found[1] <= tol else LinearStatus.PRECISION)
        if prepared.pseudoinverse is None:
            x, residual = min(found, zero, key=lambda pair: pair[1])
            return ended(x, residual, LinearStatus.SOLVED if residual <= tol else LinearStatus.SINGULAR)
        least = tried(prepared.pseudoinverse)
        if least[1] <= tol:
            return ended(*least, LinearStatus.SOLVED)
        if found[1] <= tol:  # badly scaled, not singular
            return ended(*found, LinearStatus.SOLVED)
        r = flat - prepared.times(least[0].ravel().double())
        null = float(prepared.times(r).norm()) <= math.sqrt(prepared.eps) * prepared.largest * float(r.norm())
        return ended(*least, LinearStatus.LEAST_SQUARES if null else LinearStatus.PRECISION)


def inertia(LD: Tensor, pivots: Tensor, zero: float) -> tuple[int, int, int]:
    """(positive, negative, zero) eigenvalues of D from LAPACK's packed factor: a pivot < 0 marks half of a 2 x 2 block."""
    diagonal, below = LD.diagonal().cpu().numpy(), LD.diagonal(-1).cpu().numpy()
    paired = pivots.cpu().numpy() < 0
    values = list(diagonal[~paired])
    (places,) = paired.nonzero()
    for k in places[::2]:
        middle, half = (diagonal[k] + diagonal[k + 1]) / 2, (diagonal[k] - diagonal[k + 1]) / 2
        radius = math.hypot(half, below[k])
        values += [middle + radius, middle - radius]
    positive, negative = sum(v > zero for v in values), sum(v < -zero for v in values)
    return int(positive), int(negative), len(values) - int(positive) - int(negative)
