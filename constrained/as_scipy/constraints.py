"""scipy's constraints as c(x) = 0 and h(x) <= 0, and the multipliers of these as theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.derivatives.constraint import Constraint
from ..core.derivatives.counts import Calls
from ..core.derivatives.function import Function
from ..core.derivatives.matrix import is_sparse
from ..core.derivatives.matrix import matrix as checked
from ..core.derivatives.objective import Objective
from ..core.errors import ProblemError, raised, shown
from ..core.problem import Multipliers
from ..core.vec import Vec
from .differences import STEPS
from .functions import Counted, Once, Setting, by_torch, is_operator, lift, matrix, second, vector

NONE = torch.zeros((), dtype=torch.bool)
KEYS = {"type", "fun", "jac", "args"}
EXPECTED = "expected LinearConstraint, NonlinearConstraint or a dict with type 'eq' or 'ineq' and fun"


@dataclass(frozen=True)
class Piece:
    """One of the user's constraints: low <= value(x) <= high, row by row.

    jacobian: m x n, dense or sparse; hessian: of (x, v), sum v_i hess c_i, a matrix or an operator. None: autodiff where `value`
    is torch code, else unknown. scheme: of the differences that stand for `jacobian`, '' where none do. keep: rows outside of
    which fun is not to be asked, one mask or one for all; equalities are not among them.
    """

    value: Callable[[Tensor], Tensor]
    low: Tensor
    high: Tensor
    jacobian: Callable[[Tensor], Any] | None = None
    hessian: Callable[[Tensor, Tensor], Any] | None = None
    scheme: str = ""
    torch: bool = False
    keep: Tensor = NONE

    @property
    def equal(self) -> Tensor:
        return self.low == self.high

    def slopes(self, x: Tensor) -> Any:
        if self.jacobian is not None:
            return self.jacobian(x)
        eye = torch.eye(len(self.low), dtype=x.dtype, device=x.device)
        return Constraint("constraints", self.value, Calls()).rows((Vec.of(x),), eye)[0]

    @property
    def bent(self) -> bool:
        """Second derivatives are known."""
        return self.torch or self.hessian is not None

    def curvature(self, x: Tensor, v: Tensor) -> Any:
        if self.hessian is not None:
            return self.hessian(x, v)
        weighted = Objective("constraints", lambda at: v.to(at) @ self.value(at), Calls())
        at, eye = Vec.of(x), torch.eye(len(x), dtype=x.dtype, device=x.device)
        return weighted.linearize([at]).products(at.like([eye]), 0, 0).leaves[0].cpu().double().numpy()


# -- what users give ------------------------------------------------------------------------------------------------------------
def pieces(constraints: Any, at: Setting) -> list[Piece]:
    """One a constraint. Raises ProblemError for what is none."""
    given = [] if constraints is None else list(constraints) if isinstance(constraints, (list, tuple)) else [constraints]
    return [_piece(one, at) for one in given]


def _piece(one: Any, at: Setting) -> Piece:
    from scipy.optimize import LinearConstraint, NonlinearConstraint

    if isinstance(one, LinearConstraint):
        return _keeping(_linear(one, at), one)
    if isinstance(one, NonlinearConstraint):
        relative = one.finite_diff_rel_step
        found = _nonlinear(
            one.fun, one.jac, one.hess, (), one.lb, one.ub, at if relative is None else replace(at, relative=relative)
        )
        pattern = one.finite_diff_jac_sparsity
        if found.scheme and pattern is not None:
            found = replace(found, jacobian=_patterned(found.jacobian, pattern))
        return _keeping(found, one)
    if isinstance(one, dict):
        kind, fun, args = one.get("type"), one.get("fun"), one.get("args", ())
        kind = kind.lower() if isinstance(kind, str) else kind
        if more := set(one) - KEYS:
            raise ProblemError(f"constraints: a dict has {', '.join(sorted(KEYS))}, got {', '.join(map(shown, more))} too")
        if kind in ("eq", "ineq") and callable(fun):
            args = args if isinstance(args, tuple) else tuple(args) if isinstance(args, list) else (args,)
            return _nonlinear(fun, one.get("jac"), None, args, 0.0, 0.0 if kind == "eq" else np.inf, at)
        raise ProblemError(f"constraints: {EXPECTED}, got a dict with type {one.get('type')!r:.40} and fun {shown(fun)}")
    raise ProblemError(f"constraints: {EXPECTED}, got {type(one).__name__}")


def _keeping(piece: Piece, one: Any) -> Piece:
    """With what its keep_feasible says. Raises ProblemError."""
    try:
        keep = np.broadcast_to(np.asarray(one.keep_feasible, dtype=bool), (len(piece.low),))
    except (TypeError, ValueError):
        raise ProblemError(
            f"constraints: keep_feasible: expected a bool or {len(piece.low)} of them, got {shown(one.keep_feasible)}"
        ) from None
    return replace(piece, keep=torch.as_tensor(keep.copy()).to(piece.low.device))


def _linear(one: Any, at: Setting) -> Piece:
    A: Any = one.A
    if not is_sparse(A):
        A = np.atleast_2d(np.asarray(A, dtype=np.float64))
    if A.ndim != 2 or A.shape[1] != len(at.x):
        raise ProblemError(f"constraints: LinearConstraint: expected a matrix with {len(at.x)} columns, got shape {A.shape}")
    low, high = _sides(one.lb, one.ub, A.shape[0], at.x)
    if is_sparse(A):
        from scipy.sparse import csr_array

        A, n = A.tocsr(), len(at.x)
        return Piece(lift(lambda x: A @ x), low, high, lambda _: A, lambda _x, _v: csr_array((n, n)))
    rows, none = torch.as_tensor(A.copy()), np.zeros((len(at.x), len(at.x)))
    return Piece(lambda x: rows.to(x) @ x, low, high, lambda x: rows.to(x), lambda _x, _v: none, torch=True)


def _nonlinear(fun: Any, jac: Any, hess: Any, args: tuple[Any, ...], low: Any, high: Any, at: Setting) -> Piece:
    if not (jac is None or isinstance(jac, bool) or callable(jac) or (isinstance(jac, str) and jac in STEPS)):
        raise ProblemError(f"constraints: jac: expected a function or one of {[*STEPS]}, got {shown(jac)}")
    hess = second("constraints: hess", hess)
    values, counted = Once("constraints", fun, vector, at, args), Counted(fun, args, at)
    if not callable(jac) and by_torch(counted, values, at):

        def flat(x: Tensor) -> Tensor:
            return counted(x).reshape(-1)

        with raised("constraints", "at the start, given x"):
            count = len(Constraint("constraints", flat, Calls()).value((Vec.of(torch.as_tensor(at.start).to(at.x)),)))
        return Piece(flat, *_sides(low, high, count, at.x), torch=True)
    with raised("constraints", "at the start, given x"):
        count = len(values(at.start))
    low, high = _sides(low, high, count, at.x)
    m, n, scheme = len(low), len(at.x), ""
    if callable(jac):
        slopes = Once("constraints: jac", jac, lambda name, found: _shaped(name, matrix(name, found), (m, n)), at, args)
    else:
        if isinstance(hess, str):
            hess = None  # what scipy refuses; its default for both is differences
        scheme = jac if isinstance(jac, str) else "3-point"
        scheme = "3-point" if scheme == "2-point" else scheme  # NonlinearConstraint's default; too coarse for residuals
        slopes = Once("constraints", at.differences(values, scheme), matrix, at.arrays)
    return Piece(lift(values), low, high, lift(slopes), _curvature(hess, slopes, at), scheme)


def _curvature(hess: Any, slopes: Once, at: Setting) -> Callable[[Tensor, Tensor], Any] | None:
    """sum v_i hess c_i: the user's, or by differences of J'v."""
    if hess is None:
        return None
    if callable(hess):
        own = Once("constraints: hess", hess, matrix, at)
        return lambda x, v: own(_array(x), _array(v))

    def by_differences(x: Tensor, v: Tensor) -> np.ndarray:
        def weighted(at_x: np.ndarray) -> np.ndarray:
            return slopes(at_x).T @ _array(v)

        H = at.differences(weighted, hess)(_array(x))
        return 0.5 * (H + H.T)

    return by_differences


def _patterned(jacobian: Any, pattern: Any) -> Callable[[Tensor], Any]:
    """Differences with the zeros of a pattern left out: sparse."""
    from scipy.sparse import csr_array

    kept = csr_array(pattern).astype(bool)
    return lambda x: csr_array(kept.multiply(_array(jacobian(x))))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _shaped(name: str, found: Any, shape: tuple[int, int]) -> Any:
    if is_sparse(found):
        found = checked(found, shape, found, name).scipy() if isinstance(found, Tensor) else found
    elif found.size == shape[0] * shape[1]:
        found = found.reshape(shape)
    if found.shape != shape:
        raise ProblemError(f"{name}: expected shape {shape}, one row a component, got {found.shape}")
    return found


def _sides(low: Any, high: Any, count: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds as vectors of the value's length."""
    try:
        sides = [torch.as_tensor(np.broadcast_to(np.asarray(side, dtype=np.float64), (count,)).copy()) for side in (low, high)]
    except (TypeError, ValueError) as cause:
        raise ProblemError(f"constraints: expected bounds for {count} rows ({cause})") from cause
    if not bool((sides[0] <= sides[1]).all()):
        raise ProblemError("constraints: expected lb <= ub in every row")
    return sides[0].to(x.device), sides[1].to(x.device)


# -- c and h --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """Some rows of a piece as rows of c or h: sign (value - bound)."""

    piece: int
    mask: Tensor
    bound: Tensor
    sign: float


@dataclass(frozen=True)
class Rows:
    """c, the equality rows as value - low, or h, the others as low - value and value - high, of finite bounds."""

    pieces: Sequence[Piece]
    parts: tuple[Part, ...]

    @staticmethod
    def equality(given: Sequence[Piece]) -> Rows:
        return Rows(given, tuple(Part(i, p.equal, p.low, 1.0) for i, p in enumerate(given) if bool(p.equal.any())))

    @staticmethod
    def inequality(given: Sequence[Piece]) -> Rows:
        parts = [
            Part(i, ~p.equal & side.isfinite(), side, sign)
            for i, p in enumerate(given)
            for side, sign in ((p.low, -1.0), (p.high, 1.0))
        ]
        return Rows(given, tuple(part for part in parts if bool(part.mask.any())))

    def values(self, x: Tensor) -> Tensor:
        found = {i: self.pieces[i].value(x).reshape(-1) for i in self.used}
        return torch.cat([p.sign * (found[p.piece][p.mask] - p.bound[p.mask].to(found[p.piece])) for p in self.parts])

    @property
    def used(self) -> list[int]:
        return sorted({part.piece for part in self.parts})

    def jacobian(self, x: Tensor) -> Any:
        """Sparse where that of any piece is."""
        found = {i: self.pieces[i].slopes(x) for i in self.used}
        if not any(is_sparse(J) for J in found.values()):
            return torch.cat([p.sign * found[p.piece][p.mask] for p in self.parts])
        from scipy.sparse import csr_array, vstack

        sparse = {i: csr_array(J if is_sparse(J) else _array(J)) for i, J in found.items()}
        return vstack([p.sign * sparse[p.piece][p.mask.cpu().numpy().nonzero()[0]] for p in self.parts], format="csr")

    def weights(self, w: Tensor) -> dict[int, Tensor]:
        """For each piece v with w'(c or h) = v'value + constant."""
        found = {i: w.new_zeros(len(self.pieces[i].low)) for i in self.used}
        at = 0
        for part in self.parts:
            count = int(part.mask.sum())
            found[part.piece][part.mask] += part.sign * w[at : at + count]
            at += count
        return found

    def summands(self, x: Tensor, w: Tensor) -> list[Any]:
        """The Hessians that add up to sum w_i hess of row i."""
        each = self.weights(w)
        return [self.pieces[i].curvature(x, each[i]) for i in self.used]

    def hessian(self, x: Tensor, w: Tensor) -> Any:
        found = self.summands(x, w)
        if all(is_sparse(H) for H in found):
            return sum(found[1:], found[0])
        return torch.as_tensor(sum(np.asarray(H.toarray() if is_sparse(H) else H) for H in found)).to(x)

    def product(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        u = _array(v)
        return torch.as_tensor(sum(H @ u for H in self.summands(x, w))).to(x)

    def function(self, x: Tensor) -> Callable[..., Any] | None:
        """What `ConstrainedProblem` takes: torch code where all pieces are, else a Function with what is known."""
        if not self.parts:
            return None
        used = [self.pieces[i] for i in self.used]
        if all(piece.torch for piece in used):
            return self.values
        differences = any(piece.scheme for piece in used)
        bent: dict[str, Any] = {}
        if all(piece.bent for piece in used):
            each = self.summands(x, x.new_ones(sum(int(part.mask.sum()) for part in self.parts)))
            bent = {"hvp": self.product} if any(is_operator(H) for H in each) else {"hessian": self.hessian}
        return Function(self.values, jacobian=self.jacobian, torch=False, differences=differences, **bent)


def multipliers(equality: Rows, inequality: Rows, found: Multipliers | None) -> list[np.ndarray]:
    """One array a constraint, as given: grad f + sum_i J_i'v_i = 0 but for bounds; > 0 at an upper bound, < 0 at a lower one."""
    total = [np.zeros(len(piece.low)) for piece in equality.pieces]
    for rows, w in ((equality, getattr(found, "equality", None)), (inequality, getattr(found, "inequality", None))):
        if w is not None and len(w):
            for i, v in rows.weights(w).items():
                total[i] += _array(v)
    return total
