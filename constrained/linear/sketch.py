"""Sketch-and-project: K z = b through random projections. `Gaussian`, `Kaczmarz`: one vector a step; `Sketch`: blocks, memory.

    z+ = z + Y (Y'Y)^+ S'(b - K z),   Y = K S                 the projection of z onto {z : S'K z = S'b}

S'(b - K z) = S'b - Y'z needs no residual, so a step costs the products Y alone; true residuals are checked from time to time.
Vectors are the rows of S and Y here, in float64.

References: Hong, Na, Mahoney and Kolar, ICML 2023, arXiv 2305.18379, and its public code; Gower and Richtarik, arXiv 1506.03296;
Brust and Saunders (PLSS) for the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import Unsuitable
from ..core.options import Count, Steps
from ..core.vec import Vec
from .spectrum import growth
from .system import LinearSolution, LinearSolver, LinearStatus, System

DROP = 1e-11  # new directions under this part of |K s| are rounding


class _Run:
    """z, its residual |r|, the products spent, and `best`, the point of least residual among those looked at."""

    def __init__(self, system: System, b: Vec, generator: torch.Generator | None, start: Vec | None):
        self.system, self.b, self.flat, self.products = system, b, b.ravel().double(), 0
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        if start is None:
            self.z, self.r, self.best = torch.zeros_like(self.flat), self.flat, b.zeros()
            self.residual = self.least = float(self.r.norm())
        else:
            self.z, self.best, self.least = start.ravel().double(), start, math.inf
            self.look()

    def normal(self, rows: int) -> Tensor:
        """Rows of independent N(0, 1), drawn on the CPU, rounded to what b's dtype holds."""
        draw = torch.randn(rows, self.b.size, generator=self.generator, dtype=torch.float64)
        return draw.to(self.b.device, self.b.dtype).double()

    def times(self, S: Tensor) -> Tensor:
        self.products += len(S)
        return self.system.times(S.to(self.b.dtype), self.b).double()

    def look(self) -> None:
        """The true residual at z; one product."""
        x = self.b.unravel(self.z)
        self.products += 1
        self.r = (self.b - self.system.product(x)).ravel().double()
        self.residual = float(self.r.norm())
        if self.residual < self.least:
            self.best, self.least = x, self.residual

    def verdict(self, tol: float, otherwise: LinearStatus) -> LinearStatus:
        if not math.isfinite(self.residual):
            return LinearStatus.NONFINITE
        return LinearStatus.SOLVED if self.residual <= tol else otherwise

    def ended(self, reason: LinearStatus, smallest: float | None = None, largest: float | None = None) -> LinearSolution:
        return LinearSolution(self.best, self.least, self.products, reason, None, None, smallest, largest)


# -- one vector a step: the paper's inner solvers ---------------------------------------------------------------------------
def one_by_one(Y: Tensor, c: Tensor) -> Tensor:
    """The sum of the steps z <- z + (s_i'(b - K z) / y_i'y_i) y_i over the rows y_i of Y in turn, where c = S'(b - K z) at the
    first: step i sees the earlier ones through y_i'y_j, so the steps t solve tril(Y Y') t = c.

    >>> one_by_one(torch.eye(2), torch.tensor([3.0, 4.0]))
    tensor([3., 4.])
    """
    L = torch.tril(Y @ Y.T)
    diagonal = L.diagonal()
    diagonal[diagonal == 0] = 1.0  # K s = 0: no step
    return Y.T @ torch.linalg.solve_triangular(L, c[:, None], upper=False)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Gaussian(LinearSolver):
    """The paper's GV: z <- z + (s'(b - K z) / |K s|^2) K s with s ~ N(0, I), one product a step.

    The residual is looked at every `refresh` steps (in the authors' code after each, at two more products), and it starts at
    r = b (theirs has the first sign wrong). Expect d log(1/eps) products at the very least, and many times that where K is
    ill-conditioned: the rate is 1 - sigma_min(K)^2 / |K|_F^2 a step. `max_steps` is the paper's cap.

    >>> K = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    >>> gaussian, b = Gaussian(), Vec.of(torch.tensor([2.0, 3.0], dtype=torch.float64))
    >>> found = gaussian.solve(gaussian.init(System(lambda v: v.map(lambda t: K @ t), 2)), b, tol=1e-6)
    >>> found.x.tree().round(decimals=4), found.reason.name
    (tensor([ 1., -3.], dtype=torch.float64), 'SOLVED')

    Source: arXiv 2305.18379, variant GV.
    """

    refresh: Steps = 50
    max_steps: Steps = 100_000

    def solve(
        self, prepared: System, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        run = _Run(prepared, b, generator, start)

        def sketch(count: int) -> tuple[Tensor, Tensor]:
            S = run.normal(count)
            return S @ run.flat, run.times(S)

        return _vector_steps(run, sketch, tol, self.refresh, self.max_steps)


@dataclass(frozen=True)
class Rows:
    """The nonzero rows of an explicit K: `of(places)` as a dense matrix."""

    system: System
    places: Tensor
    of: Callable[[Tensor], Tensor]
    spent: int = 0


@dataclass(frozen=True, kw_only=True)
class Kaczmarz(LinearSolver):
    """The paper's RK: z <- z + ((b - K z)_i / |K_i|^2) K_i with i uniform over the nonzero rows.

    Needs rows: `System.matrix` or `System.sparse`. A row of an operator would cost a full product. The residual is looked at
    every `refresh` steps; only these looks are products.

    >>> K = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    >>> kaczmarz, b = Kaczmarz(), Vec.of(torch.tensor([2.0, 3.0], dtype=torch.float64))
    >>> found = kaczmarz.solve(kaczmarz.init(System(lambda v: v.map(lambda t: K @ t), 2, matrix=lambda: K)), b, tol=1e-6)
    >>> found.x.tree(), found.reason.name
    (tensor([ 1., -3.], dtype=torch.float64), 'SOLVED')

    Source: arXiv 2305.18379, variant RK.
    """

    refresh: Steps = 50
    max_steps: Steps = 100_000

    def init(self, system: System) -> Rows:
        if system.matrix is not None:
            K = system.matrix().detach().double()
            return Rows(system, (K.square().sum(1) != 0).nonzero()[:, 0].cpu(), lambda places: K[places.to(K.device)])
        if system.sparse is not None:
            A, device = system.sparse().tocsr(), system.template.device
            places = torch.as_tensor(abs(A).sum(1)).reshape(-1).nonzero()[:, 0]
            return Rows(system, places, lambda i: torch.as_tensor(A[i.numpy()].toarray(), dtype=torch.float64, device=device))
        raise Unsuitable("Kaczmarz needs the rows of an explicit matrix, and this system has products only: use Gaussian()")

    def solve(
        self, prepared: Rows, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        run, places = _Run(prepared.system, b, generator, start), prepared.places
        if not len(places):
            return run.ended(run.verdict(tol, LinearStatus.SINGULAR))

        def sketch(count: int) -> tuple[Tensor, Tensor]:
            chosen = places[torch.randint(len(places), (count,), generator=run.generator)]
            return run.flat[chosen.to(run.flat.device)], prepared.of(chosen)

        return _vector_steps(run, sketch, tol, self.refresh, self.max_steps)


def _vector_steps(
    run: _Run, sketch: Callable[[int], tuple[Tensor, Tensor]], tol: float, refresh: int, limit: int
) -> LinearSolution:
    """`sketch(count)` draws S and gives (S'b, K S); `refresh` steps between two looks at the residual."""
    steps = 0
    while run.residual > tol and steps < limit:
        count = min(refresh, limit - steps)
        Sb, Y = sketch(count)
        run.z = run.z + one_by_one(Y, Sb - Y @ run.z)
        steps += count
        run.look()
    return run.ended(run.verdict(tol, LinearStatus.MAX_STEPS))


# -- blocks, with memory ----------------------------------------------------------------------------------------------------
class _Memory:
    """The directions of the past as orthonormal rows Q: none, the last few steps (a ring), or all, then with K S' = Q' R."""

    def __init__(self, like: Tensor, capacity: int, full: bool):
        d = len(like)
        self.full, self.kept = full, 0
        self._Q = like.new_empty(capacity, d)
        self._S, self._R = (like.new_empty(d, d), like.new_zeros(d, d)) if full else (None, None)

    @property
    def Q(self) -> Tensor:
        return self._Q[: min(self.kept, len(self._Q))]

    def orthogonal(self, Y: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """N, R, C with Y = C Q + R'N for the first rows of Y, up to one with no more than `least` outside the span before it; N
        orthonormal, orthogonal to Q. Two passes, the second on orthonormal rows: where Y lies nearly in the span of Q, what is
        left of it by the first is not orthogonal to Q beside its own size.
        """
        C = Y @ self.Q.T
        N, R = torch.linalg.qr((Y - C @ self.Q).T)
        small = (R.diagonal().abs() <= least).nonzero()
        rank = int(small[0]) if len(small) else len(Y)
        N, R, C = N[:, :rank].T, R[:rank, :rank], C[:rank]
        again = N @ self.Q.T
        N, correction = torch.linalg.qr((N - again @ self.Q).T)
        return N.T, correction @ R, C + R.T @ again

    def keep(self, step: Tensor, new: Tensor, S: Tensor, C: Tensor, R: Tensor) -> None:
        if self._S is not None and self._R is not None:
            old, self.kept = self.kept, self.kept + len(new)
            now = slice(old, self.kept)
            self._Q[now], self._S[now], self._R[:old, now], self._R[now, now] = new, S, C.T, R
        elif len(self._Q) and bool(step.any()):
            self._Q[self.kept % len(self._Q)] = step / step.norm()
            self.kept += 1

    def solve(self, v: Tensor) -> Tensor:
        """Q' R^-T S v: the least-norm solution of K z = v, exact where Q spans the range of K and v lies in it."""
        assert self._S is not None
        assert self._R is not None
        R, Sv = self._R[: self.kept, : self.kept], self._S[: self.kept] @ v
        return self.Q.T @ torch.linalg.solve_triangular(R.T, Sv[:, None], upper=False)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Sketch(LinearSolver):
    """Block sketch-and-project with orthogonal memory.

    memory=None: progressive. Every direction Y = K S that was used stays in an orthonormal basis Q; the error is orthogonal to
    Q, and the iterates are those of one block sketch of growing width. Ends within d products and d / block looks at the
    residual, for some 8 d^2 block flops a step at the end and 3 d^2 numbers. Once Q spans the range of K the factors solve: they
    refine a solution that rounding spoilt (two looks more), and give the least-squares one of an inconsistent system.
    memory=0: fresh Gaussian blocks, nothing kept: the literal block method, linear at a rate like that of `Gaussian`.
    memory=p: the last p steps are kept, and S = r, the residual (all steps kept would be SYMMLQ; p = 1 is heavy ball with the
    best coefficients). Where the residual does not halve for long, block - 1 Gaussian columns join it.

    The projection is in the plain metric: a system's `inverse` is not used.

    block: vectors a step; None: min(d, 128), 64 for d > 2,000, 512 on CUDA. max_steps: of blocks; None: until solved, or, where
    not everything is kept, STALLED: no halving of the residual in 200 steps, 20 d / block or 2 d (memory=p).

    >>> K = torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64))
    >>> sketch, b = Sketch(block=1), Vec.of(torch.tensor([2.0, 3.0], dtype=torch.float64))
    >>> found = sketch.solve(sketch.init(System(lambda v: v.map(lambda t: K @ t), 2)), b, tol=1e-12)
    >>> found.x.tree().round(decimals=9), found.products
    (tensor([ 1., -3.], dtype=torch.float64), 4)

    Source: arXiv 2305.18379 (blocks); PLSS (memory). The columns of S are in general position, so plain QR shows the rank that
    pivoting would.
    """

    block: Steps | None = None
    memory: Count | None = None
    max_steps: Steps | None = None

    def solve(
        self, prepared: System, b: Vec, *, tol: float, generator: torch.Generator | None = None, start: Vec | None = None
    ) -> LinearSolution:
        run, d, progressive = _Run(prepared, b, generator, start), b.size, self.memory is None
        q = min(d, self.block or usual_block(d, b.device))
        limit, patience = self.max_steps or math.inf, max(200, 2 * d if self.memory else 20 * math.ceil(d / q))
        drop = max(DROP, 10 * torch.finfo(b.dtype).eps)
        memory = _Memory(run.flat, d if self.memory is None else self.memory, progressive)
        steps, waited, mark, exhausted, largest = 0, 0, run.residual, False, None
        while run.residual > tol and steps < limit and (progressive or waited <= patience) and not exhausted:
            S = self._columns(run, min(q, d - memory.kept) if progressive else q, 2 * waited > patience)
            Y = run.times(S)
            if not bool(Y.isfinite().all()):
                return run.ended(LinearStatus.NONFINITE)
            if not self.memory and steps == 0:
                largest = norm_of(S, Y)
            c, size = S @ run.flat - Y @ run.z, Y.norm(dim=1).max()
            new, R, C = memory.orthogonal(Y, drop * size)
            rank = len(new)
            step = new.T @ torch.linalg.solve_triangular(R.T, c[:rank, None], upper=False)[:, 0]
            memory.keep(step, new, S[:rank], C, R)
            run.z, steps = run.z + step, steps + 1
            run.look()
            mark, waited = (run.residual, 0) if run.residual <= 0.5 * mark else (mark, waited + 1)
            exhausted = progressive and (rank < len(S) or memory.kept == d)
        if exhausted:
            return self._finished(run, memory, tol, largest)
        return run.ended(run.verdict(tol, LinearStatus.MAX_STEPS if steps >= limit else LinearStatus.STALLED), None, largest)

    def _columns(self, run: _Run, q: int, stuck: bool) -> Tensor:
        """S as rows: Gaussian, or the residual with a window, joined by q - 1 Gaussians where that is stuck."""
        if not self.memory:
            return run.normal(q)
        residual = (run.r * (math.sqrt(len(run.r)) / run.residual))[None]
        return torch.cat([run.normal(q - 1), residual]) if stuck else residual

    def _finished(self, run: _Run, memory: _Memory, tol: float, largest: float | None) -> LinearSolution:
        """Q spans the range of K: solve on with the factors, for the part of the residual in that range."""
        Q = memory.Q
        for _ in range(2):
            if not run.residual > tol:
                break
            run.z = run.z + memory.solve(Q.T @ (Q @ run.r))
            run.look()
        outside = len(Q) < len(run.z) and float((Q @ run.r).norm()) <= 1e-8 * run.residual
        reason = run.verdict(tol, LinearStatus.LEAST_SQUARES if outside else LinearStatus.PRECISION)
        smallest = 1 / growth(memory.solve, len(run.z), run.z.device) if len(Q) == len(run.z) else None
        return run.ended(reason, smallest, largest)


def usual_block(d: int, device: torch.device) -> int:
    """Vectors in a block for which batched products are cheapest (measured on one core)."""
    if device.type == "cuda":
        return 512
    return 64 if d > 2000 else 128


def norm_of(S: Tensor, Y: Tensor) -> float:
    """An estimate of |K|_2 from Y = K S, S of q Gaussian vectors. |K S|_2 <= |K|_2 sqrt(q) + |K|_F in the mean (Chevet) with
    |K|_F = |Y|_F / sqrt(q) in the mean; and |K|_2 is at least |K S|_2 / |S|_2 and any |K s| / |s|.
    """
    root, frobenius = math.sqrt(len(Y)), float(Y.norm()) / math.sqrt(len(Y))
    of_S, of_Y = (math.sqrt(float(torch.linalg.eigvalsh(A @ A.T)[-1])) for A in (S, Y))
    return max((of_Y - frobenius) / root, of_Y / of_S, float((Y.norm(dim=1) / S.norm(dim=1)).max()))
