"""Linear systems K z = b with K symmetric, and the solvers that know K by its products: CG and MINRES.

    system = System(product, size)
    prepared = solver.init(system)                 a factorisation, or nothing
    found = solver.solve(prepared, b, tol=1e-10)   as often as there are right-hand sides

A `LinearSolution` carries the true residual |b - K z| (recomputed, never the recurrence's) and a `LinearStatus`. The solvers that
factorise are in `direct.py`, those for KKT systems in `projected_cg.py`, random sketches in `sketch.py`, the default choice in
`auto.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.options import Options
from ..core.states import state_enum
from ..core.vec import Vec

Operator = Callable[[Vec], Vec]
CHUNK = 256  # vectors in one batched product


@state_enum
class LinearStatus(enum.Enum):
    """Why a linear solve ended."""

    SOLVED = "The residual is within the tolerance."
    LEAST_SQUARES = "The system is singular and inconsistent; the solution is the least-norm least-squares one."
    NEGATIVE_CURVATURE = "The operator is not positive semidefinite: v'Av < 0 for some v."
    SINGULAR = "The operator is singular and the system inconsistent."
    STALLED = "The residual has stopped falling: the system is inconsistent, or too ill-conditioned for this solver."
    MAX_STEPS = "Stopped at the step limit."
    PRECISION = "Round-off limits further progress."
    NONFINITE = "A product returned NaN or infinity."


@dataclass(frozen=True)
class System:
    """A symmetric operator K on R^size by its products; KKT systems have vectors of one flat leaf, x first.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    >>> system = System(lambda v: v.map(lambda t: K @ t), 2, matrix=lambda: K, split=(1, 1))
    """

    product: Operator
    size: int
    products: Operator | None = None  # a stack of vectors: every leaf with one leading dimension more, in and out
    matrix: Callable[[], Tensor] | None = None  # K as a dense tensor, where it is explicit or cheap to form
    sparse: Callable[[], Any] | None = None  # K as a scipy.sparse matrix
    inverse: Operator | None = None  # products with a symmetric positive definite approximation of K^-1
    split: tuple[int, int] | None = None  # (n, m) of a KKT system
    below: Callable[[], Tensor] | None = None  # its last m rows, where they are cheaper than m products
    convex: bool = False  # only a K without negative curvature on their null space is worth solving
    scale: float | None = None  # pivots up to 1e-14 scale count as zero; None: scale = max |K_ij|
    like: Vec | None = None  # a vector of the space, for `init`; None: one flat leaf in float64
    spent: ClassVar[int] = 0  # products that `init` took: none where it returns the system as it is

    @property
    def template(self) -> Vec:
        return self.like if self.like is not None else Vec.of(torch.zeros(self.size, dtype=torch.float64))

    def times(self, rows: Tensor, like: Vec) -> Tensor:
        """K applied to each row of a matrix, as rows; one batched product where there is one, else one by one."""
        if self.products is None:
            return torch.stack([self.product(like.unravel(row)).ravel() for row in rows])
        parts = rows.split([leaf.numel() for leaf in like.leaves], dim=1)
        stack = like.like(part.reshape(-1, *leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, like.leaves))
        return torch.cat([leaf.reshape(len(rows), -1) for leaf in self.products(stack).leaves], dim=1)

    def dense(self) -> tuple[Tensor, int]:
        """K, and the products that it took: none where it is explicit, else one a column, in batches."""
        if self.matrix is not None:
            return self.matrix().detach(), 0
        like = self.template
        if self.sparse is not None:
            return torch.as_tensor(self.sparse().toarray(), dtype=like.dtype, device=like.device), 0
        basis = torch.eye(self.size, dtype=like.dtype, device=like.device)
        K = torch.cat([self.times(rows, like) for rows in basis.split(CHUNK)])
        return (K + K.T) / 2, self.size


@dataclass(frozen=True)
class LinearSolution:
    """`x`; `residual` = |b - K x|, recomputed; `products` spent by this solve; `reason`; `direction` of negative curvature,
    where found; `inertia`, the numbers of positive, negative and zero eigenvalues, where a factorisation knows them;
    `smallest` and `largest`, estimates of K's extreme singular values from within, where they come for free: `smallest` is
    from above, and by much where few steps were taken.
    """

    x: Vec
    residual: float
    products: int
    reason: LinearStatus
    direction: Vec | None = None
    inertia: tuple[int, int, int] | None = None
    smallest: float | None = None
    largest: float | None = None


class LinearSolver(Options):
    """Options of a linear solver; `init` prepares a system once, `solve` runs for a right-hand side.

    What `init` returns counts the products it took as `spent`; a solution counts those of its own solve.
    """

    def init(self, system: System) -> Any:
        return system

    def solve(
        self, prepared: Any, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        """z with |b - K z| <= tol, or the best there is and the reason. `generator` (CPU): the only source of randomness."""
        raise NotImplementedError
