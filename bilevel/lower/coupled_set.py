"""The set C = {(x, y) in X x Y: lower constraints}, and the rows of its constraints normalised.

How C is projected on is read off the constraints once, at the problem's own variables:

    affine, only equalities, X and Y whole or affine     `Affine`: one factorisation
    affine, one inequality, X and Y whole                `Halfspace`
    affine, one equality, X and Y boxes                  `BoxHyperplane`
    affine otherwise                                     `Polyhedron`: Newton on the dual, or on few variables
    not affine                                           `Curved`: an augmented Lagrangian at each projection

Affine means that the values at three more points are those that the Jacobian predicts. Rows are scaled to length 1 there;
several affine equalities are combined so that their Jacobian in y has orthonormal rows, where it has full rank.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from constrained.core.derivatives.constraint import Constraint
from constrained.core.derivatives.counts import Calls
from constrained.core.errors import ProblemError
from constrained.core.problem import Multipliers, Point
from constrained.core.vec import Vec
from constrained.linear.system import CHUNK
from constrained.polyhedron import Polyhedron
from constrained.problem import ConstrainedProblem
from constrained.sets import Affine, ConvexSet, Everywhere, Halfspace
from constrained.sets.intersections import BoxHyperplane
from constrained.solvers.augmented_lagrangian import AugmentedLagrangian

from ..oracle import BilevelOracle
from .constraints import NAMES, LowerConstraints

TOLERANCE = 1e-9  # of predicted values of an affine function, relative to the variables
WELL = 1e-6  # smallest singular value, relative, of a Jacobian in y that is made orthonormal


class Pair(ConvexSet):
    """X x Y, or a set of {"x": ..., "y": ...}, for the entries of x and y as one tensor."""

    def __init__(self, x: Vec, y: Vec, X: ConvexSet, Y: ConvexSet, both: ConvexSet | None = None):
        super().__init__()
        self.x, self.y, self.X, self.Y, self.both = x, y, X, Y, both
        self.whole, self.entrywise = both is None and X.whole and Y.whole, both is None and X.entrywise and Y.entrywise

    def project(self, v: Vec) -> Vec:
        flat = v.ravel()
        x, y = self.split(flat, flat.dtype)
        if self.both is not None:
            tree = self.both.project(Vec.of({"x": x.tree(), "y": y.tree()})).tree()
            x, y = Vec.of(tree["x"]), Vec.of(tree["y"])
        else:
            x, y = self.X.project(x), self.Y.project(y)
        return v.unravel(join(x, y))

    def split(self, flat: Tensor, dtype: torch.dtype | None = None) -> tuple[Vec, Vec]:
        """x and y in their own dtype, or in the given one: `Polyhedron` projects in float64."""
        x, y = self.x, self.y
        if dtype not in (None, x.dtype):
            x, y = (v.map(lambda leaf: leaf.to(dtype)) for v in (x, y))
        return x.unravel(flat[: x.size]), y.unravel(flat[x.size :])


def join(x: Vec, y: Vec) -> Tensor:
    """The entries of x and y as one tensor."""
    return torch.cat([x.ravel(), y.ravel()])


class Curved(ConvexSet):
    """{w in S: c(w) = 0, h(w) <= 0} by an augmented Lagrangian on min |w - u|^2 / 2. Nearest only where the set is convex."""

    def __init__(self, pair: Pair, equality: Any, inequality: Any):
        super().__init__()
        self.pair, self.equality, self.inequality = pair, equality, inequality

    def project(self, v: Vec) -> Vec:
        u = v.ravel()
        near = ConstrainedProblem(
            objective=lambda w: 0.5 * ((w - u) ** 2).sum(),
            equality=self._of(self.equality),
            inequality=self._of(self.inequality),
            x=u,
            X=self.pair if not self.pair.whole else Everywhere(),
        )
        if not bool(u.isfinite().all()):
            return v
        oracle, solver = near.oracle(), AugmentedLagrangian(tol=1e3 * torch.finfo(u.dtype).eps)
        state = solver.init(oracle, near.begin(oracle, Point(u, None, Multipliers())))
        for _ in range(solver.max_steps or 100):
            if solver.terminate(oracle, state).done:
                break
            state = solver.step(oracle, state)
        return v.unravel(Vec.of(solver.answer(oracle, state).x).ravel())

    def _of(self, constraint: Constraint | None) -> Any:
        if constraint is None:
            return None

        def call(w: Tensor) -> Tensor:
            x, y = self.pair.split(w)
            return constraint.evaluate((x.tree(), y.tree()))

        return call


@dataclass(frozen=True)
class Coupled:
    """`rows`: the normalised constraints. `pair`: X x Y. `C`: the set, of the entries of x and y. `plane`: C is affine."""

    rows: LowerConstraints
    pair: Pair
    C: ConvexSet
    plane: bool


_known: weakref.WeakKeyDictionary[BilevelOracle, dict[Any, Coupled]] = weakref.WeakKeyDictionary()


def coupled(oracle: BilevelOracle, limit: float, given: ConvexSet | None = None) -> Coupled:
    """C of a problem, read once for each oracle at the problem's own variables: a function of the problem alone, so that a
    resumed run has the same. limit: r of Z. given: the set of {"x": ..., "y": ...} to use in place of what is read off.
    """
    found = _known.setdefault(oracle, {})
    key = limit, id(given)
    if key not in found:
        found[key] = _read(oracle, limit, given)
    return found[key]


def jacobian(constraint: Constraint, x: Vec, y: Vec) -> Any:
    """The rows (J_x, J_y) as a scipy.sparse matrix."""
    from scipy import sparse

    count = len(constraint.value((x, y)))
    if constraint.own.jacobian is not None:
        return sparse.csr_matrix(sparse.hstack([J.scipy() for J in constraint.matrices((x, y), count)]))
    blocks = [sparse.csr_matrix((0, x.size + y.size))]
    for start in range(0, count, CHUNK):  # dense rows of few at a time
        units = torch.eye(min(CHUNK, count - start), count, dtype=x.dtype, device=x.device).roll(start, 1)
        dense = torch.cat(constraint.rows((x, y), units), 1)
        blocks.append(sparse.csr_matrix(dense.double().cpu().numpy()))
    return sparse.vstack(blocks).tocsr()


def _read(oracle: BilevelOracle, limit: float, given: ConvexSet | None) -> Coupled:
    x, y = oracle.X.project(oracle.variables["x"]), oracle.Y.project(oracle.variables["y"])
    pair = Pair(x, y, oracle.X, oracle.Y)
    # Read on a tally of their own: a resumed run reads them again.
    parts = [Constraint(n, oracle.constraints[n].own, Calls()) if n in oracle.constraints else None for n in NAMES]
    read = [_affine(part, pair, join(x, y)) for part in parts]
    (E, d, straight), (A, b, level) = read
    rows = LowerConstraints(oracle, _combination(E, x, straight), torch.from_numpy(1 / _sizes(A)).to(x.device), limit)
    if given is not None:
        return Coupled(rows, pair, Pair(x, y, oracle.X, oracle.Y, given), False)
    if not (straight and level):
        return Coupled(rows, pair, Curved(pair, *parts), False)
    plane = _plane(oracle, x, y, E, d) if A.shape[0] == 0 else None
    C = plane or _straight(pair, join(x, y), E, d, A, b)
    try:
        C.check(Vec.of(join(x, y)))
    except ProblemError as cause:
        names = ", ".join(part.name for part in parts if part is not None)
        raise ProblemError(f"{names}: expected constraints that some x of X and y of Y satisfy: {cause}") from cause
    return Coupled(rows, pair, C, plane is not None)


def _affine(part: Constraint | None, pair: Pair, w: Tensor) -> tuple[Any, np.ndarray, bool]:
    """The Jacobian J, the right-hand side J w - c(w), and whether c is what they say at three other points."""
    from scipy import sparse

    if part is None:
        return sparse.csr_matrix((0, len(w))), np.zeros(0), True
    J = jacobian(part, *pair.split(w))
    right = J @ w.double().cpu().numpy() - part.value(pair.split(w)).cpu().numpy()
    if not (np.isfinite(J.data).all() and np.isfinite(right).all()):
        raise ProblemError(f"{part.name}: NaN or infinite at the start")
    generator, same = torch.Generator().manual_seed(0), True
    for _ in range(3):
        away = w + (1 + w.abs()) * torch.randn(len(w), generator=generator, dtype=torch.float64).to(w)
        there = part.value(pair.split(away)).cpu().numpy()
        size = abs(J) @ away.abs().double().cpu().numpy() + abs(right)
        slack = max(TOLERANCE, 1e3 * torch.finfo(w.dtype).eps) * (1e-3 + size)
        same = same and bool((abs(J @ away.double().cpu().numpy() - right - there) <= slack).all())
    return J, right, same


def _sizes(J: Any) -> np.ndarray:
    size = np.sqrt(np.asarray(J.multiply(J).sum(1)).ravel())
    return np.where(size > 0, size, 1.0)


def _combination(E: Any, x: Vec, straight: bool) -> Tensor:
    """T of the equalities: T J_y has orthonormal rows, or one factor a row."""
    if straight and E.shape[0] > 1:
        of_y = E[:, x.size :].toarray()
        singular = np.linalg.svd(of_y, compute_uv=False)
        if len(singular) == E.shape[0] and singular[-1] > WELL * singular[0]:
            R = np.asarray(np.linalg.qr(of_y.T, mode="r"))
            return torch.from_numpy(np.linalg.inv(R.T)).to(x.device)
    return torch.from_numpy(1 / _sizes(E)).to(x.device)


def _plane(oracle: BilevelOracle, x: Vec, y: Vec, E: Any, d: np.ndarray) -> Affine | None:
    """C where X and Y are whole or affine themselves."""
    blocks, right = [E.toarray()], [d]
    for one, v, at in ((oracle.X, x, 0), (oracle.Y, y, x.size)):
        if isinstance(one, Affine):
            Q, c = one._on(v)
            block = np.zeros((len(Q), E.shape[1]))
            block[:, at : at + v.size] = Q.cpu().numpy()
            blocks, right = [*blocks, block], [*right, c.cpu().numpy()]
        elif not one.whole:
            return None
    return Affine(np.concatenate(blocks), np.concatenate(right))


def _straight(pair: Pair, w: Tensor, E: Any, d: np.ndarray, A: Any, b: np.ndarray) -> ConvexSet:
    """C where all constraints are affine."""
    inside = Everywhere() if pair.whole else pair
    if E.shape[0] + A.shape[0] == 0:
        return inside
    if pair.whole and E.shape[0] == 0 and A.shape[0] == 1:
        return Halfspace(A.toarray()[0], float(b[0]))
    if pair.entrywise and E.shape[0] == 1 and A.shape[0] == 0:
        low, high = (pair.project(Vec.of(torch.full_like(w, end))).leaves[0] for end in (-torch.inf, torch.inf))
        return BoxHyperplane(E.toarray()[0], float(d[0]), low, high)
    return Polyhedron(A, b, E, d, inside) if E.shape[0] else Polyhedron(A, b, inside=inside)
