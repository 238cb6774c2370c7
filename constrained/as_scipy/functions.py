"""Functions as scipy's users write them, numpy or torch, as functions with derivatives: autodiff, theirs, or differences."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..core.derivatives.constraint import Constraint
from ..core.derivatives.counts import Calls
from ..core.derivatives.function import Function
from ..core.derivatives.matrix import is_sparse
from ..core.errors import OptionError, ProblemError, shown
from ..core.vec import Vec
from .differences import EPS, SHORTER, STEPS, Differences

REMEMBERED = 4  # points of a function


@dataclass(frozen=True)
class Setting:
    """Where functions are evaluated: the start; whether it came as a tensor, so that the user's functions may want tensors; the
    bounds, and which of them hold for every evaluation; whether a point is one where the function may be asked (None: each is);
    the steps of differences.
    """

    x: Tensor
    tensors: bool
    low: np.ndarray
    high: np.ndarray
    keep: np.ndarray
    relative: Any = None
    absolute: Any = None
    workers: Callable[..., Any] = map
    allowed: Callable[[np.ndarray], bool] | None = None

    @property
    def start(self) -> np.ndarray:
        return np.clip(self.x.detach().cpu().double().numpy(), self.low, self.high)

    @property
    def arrays(self) -> Setting:
        """The same for functions of arrays."""
        return dataclasses.replace(self, tensors=False)

    def inside(self, x: np.ndarray) -> np.ndarray:
        """x with the entries of keep_feasible bounds within them: trust-constr leaves them, and rounding may."""
        return x if np.iscomplexobj(x) else np.where(self.keep, np.clip(x, self.low, self.high), x)

    def differences(self, function: Callable[[np.ndarray], Any], scheme: str) -> Differences:
        """Its Jacobian by differences: of a user's function, or of one made of such."""
        if not isinstance(function, Once):
            return Differences(
                function, function, scheme, self.low, self.high, self.relative, self.absolute, allowed=self.allowed
            )

        def each(points: list[np.ndarray]) -> list[np.ndarray]:
            function.calls += len(points)
            return list(self.workers(function.plain, points))

        steps = self.relative, self.absolute
        return Differences(function.fresh, function, scheme, self.low, self.high, *steps, each, self.allowed)


# -- what users return ----------------------------------------------------------------------------------------------------------
def numbers(name: str, found: Any) -> np.ndarray:
    """Numbers in any form as an array of their own: float64, or complex."""
    found = found.detach().cpu().numpy() if isinstance(found, Tensor) else found
    try:
        array = np.array(found)
        array = array if array.dtype.kind == "c" else array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ProblemError(f"{name}: expected numbers, got {shown(found)}") from None
    return array


def number(name: str, found: Any) -> np.ndarray:
    array = numbers(name, found)
    if array.size != 1:
        raise ProblemError(f"{name}: expected one number, got {array.size} in shape {array.shape}")
    return array.reshape(())


def vector(name: str, found: Any) -> np.ndarray:
    return numbers(name, found).reshape(-1)


def matrix(name: str, found: Any) -> Any:
    """A matrix as it comes, dense, sparse or as an operator; a row or a number as one of two dimensions."""
    if is_sparse(found):
        return found.clone() if isinstance(found, Tensor) else found.copy()
    return found if is_operator(found) else np.atleast_2d(numbers(name, found))


def both(name: str, found: Any) -> tuple[np.ndarray, np.ndarray]:
    """The value and gradient of a function that returns the two."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise ProblemError(f"{name}: expected the value and its gradient, as jac=True says, got {shown(found)}")
    return number(name, found[0]), vector("jac", found[1])


def nowhere(found: Any) -> Any:
    """What a function is where it may not be asked, from what it is elsewhere: an infinite number, derivatives of 0, since
    trust-constr's algebra asks them of the points that it refuses and takes no others.
    """
    if isinstance(found, tuple):
        return tuple(map(nowhere, found))
    return np.array(np.inf) if isinstance(found, np.ndarray) and found.ndim == 0 else found * 0.0


class Once:
    """A user's function of x, called once a point and counted. x and what it returns are copies: users write into arrays.

    Where it may not be asked it is `nowhere`.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], read: Callable[[str, Any], Any], at: Setting, args: tuple[Any, ...] = ()
    ):
        self.name, self.function, self.read, self.at, self.args = name, function, read, at, args
        self.calls = 0
        self.tensors = at.tensors  # until it turns out to take arrays
        self._known: dict[bytes, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """To another process, without the workers that may be processes themselves."""
        return vars(self) | {"at": dataclasses.replace(self.at, workers=map, allowed=None), "_known": {}}

    def __call__(self, x: np.ndarray, *more: np.ndarray) -> Any:
        x = self.at.inside(np.asarray(x, dtype=np.float64))
        key = b"".join(part.tobytes() for part in (x, *more))
        if key not in self._known:
            found = self.fresh(x, *more)
            if len(self._known) == REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return self._known[key]

    def fresh(self, x: np.ndarray, *more: np.ndarray) -> Any:
        """Not remembered."""
        if self.at.allowed is not None and not self.at.allowed(self.at.inside(x)):
            return nowhere(self(self.at.start, *more))
        self.calls += 1
        return self.plain(x, *more)

    def plain(self, x: np.ndarray, *more: np.ndarray) -> Any:
        """Neither remembered nor counted: another process may do it."""
        given = [np.array(part) for part in (self.at.inside(x), *more)]
        if self.tensors:
            try:
                return self.real(self.function(*(torch.as_tensor(part).to(self.at.x) for part in given), *self.args), given)
            except ProblemError:
                raise
            except Exception:  # numpy code refuses tensors in many ways
                if self._known or self.calls > 1:
                    raise
                self.tensors = False
                given = [np.array(part) for part in (self.at.inside(x), *more)]
        return self.real(self.function(*given, *self.args), given)

    def real(self, found: Any, given: list[np.ndarray]) -> Any:
        """What was returned, as it is read. Raises ProblemError for complex numbers where none went in."""
        found = self.read(self.name, found)
        if isinstance(found, np.ndarray) and np.iscomplexobj(found) and not any(map(np.iscomplexobj, given)):
            raise ProblemError(f"{self.name}: expected real numbers, got {shown(found)}")
        return found


class Counted:
    """A torch function of x, counted; a list of numbers that it returns is a vector."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], at: Setting):
        self.function, self.args, self.calls = function, args, 0
        kept = [np.where(at.keep, side, free) for side, free in ((at.low, -np.inf), (at.high, np.inf))] if at.keep.any() else []
        self.kept = [torch.as_tensor(side).to(at.x) for side in kept]
        self.allowed = at.allowed

    def __call__(self, x: Tensor) -> Any:
        x = x.clamp(*self.kept) if self.kept else x
        if self.allowed is not None and not self.allowed(x.detach().cpu().double().numpy()):
            return 0.0 * x.sum() + np.inf  # with a graph, as elsewhere
        self.calls += 1
        found = self.function(x, *self.args)
        if isinstance(found, (list, tuple)) and any(isinstance(one, Tensor) for one in found):
            return torch.stack([torch.as_tensor(one).to(x).reshape(()) for one in found])
        return found


def by_torch(function: Counted, values: Once, at: Setting) -> bool:
    """A tensor comes out of a tensor. Where the start is no tensor, code for arrays may do that too and lose derivatives on the
    way, as `math.sin(x[0])` does: the slope between the start and a point near it must be that of the values.
    """
    a, b = at.start, _beside(at)
    generator = np.random.default_rng(1)
    middle = torch.as_tensor((a + b) / 2).to(at.x)
    try:
        with warnings.catch_warnings(action="ignore"), torch.enable_grad():
            found = function(middle.clone().requires_grad_())
    except Exception:  # of any kind, where arrays are expected
        return False
    if not isinstance(found, Tensor):
        return False
    if at.tensors:
        return True
    try:
        with warnings.catch_warnings(action="ignore"):
            fa, fb = (np.atleast_1d(values(point)) for point in (a, b))
    except Exception:  # torch code, for tensors only
        return True
    weights = generator.standard_normal(len(fa))
    try:
        with warnings.catch_warnings(action="ignore"):
            row = Constraint("", function, Calls()).vjp((Vec.of(middle),), torch.as_tensor(weights))[0].ravel()
    except Exception:  # what it returns, or how, is nothing to differentiate
        return False
    claim, truth = float(row.double().cpu().numpy() @ (b - a)), float(weights @ (fb - fa))
    rounding = 1e3 * EPS * float(np.abs(weights) @ (np.abs(fa) + np.abs(fb)))
    return abs(claim - truth) <= 1e-4 * (abs(claim) + abs(truth)) + rounding


def _beside(at: Setting) -> np.ndarray:
    """A point near the start that functions may be asked at, and between the two; the start itself where none is found."""
    generator, a = np.random.default_rng(0), at.start
    for far in 2.0 * np.array(SHORTER):
        signs, lengths = generator.choice([-1.0, 1.0], len(a)), generator.uniform(0.5, 1, len(a))
        step = far * STEPS["3-point"] * max(1.0, float(np.abs(a).max())) * signs * lengths
        for sign in (1.0, -1.0):
            b = np.clip(a + sign * step, at.low, at.high)
            b = np.where(b == a, np.clip(a - sign * step, at.low, at.high), b)
            if at.allowed is None or (at.allowed(b) and at.allowed((a + b) / 2)):
                return b
    return a


# -- derivatives ----------------------------------------------------------------------------------------------------------------
@dataclass
class Objective:
    """fun as the problem's objective; `scheme` of the differences that stand for its gradient, '' where none do."""

    function: Any
    values: Counted | Once
    scheme: str = ""
    slopes: Callable[[], int] | None = None  # calls of jac; autodiff is counted by the oracle
    bends: Callable[[], int] | None = None


def objective(fun: Any, at: Setting, args: tuple[Any, ...], jac: Any, hess: Any, hessp: Any) -> Objective:
    """Raises ProblemError and OptionError for what is no function and no scheme."""
    if not callable(fun):
        raise ProblemError(f"fun: expected a function, got {shown(fun)}")
    if not (jac is None or isinstance(jac, bool) or callable(jac) or (isinstance(jac, str) and jac in STEPS)):
        raise ProblemError(
            f"jac: expected a function, True where fun returns its gradient too, or one of {[*STEPS]}, got {shown(jac)}"
        )
    if hessp is not None and not callable(hessp):
        raise ProblemError(f"hessp: expected a function of (x, p), got {shown(hessp)}")
    hess = second("hess", hess)
    value, counted = Once("fun", fun, number, at, args), Counted(fun, args, at)
    if not jac and by_torch(counted, value, at):
        own, calls = _bent(None if isinstance(hess, str) else hess, hessp, None, at, args)
        return Objective(Function(counted, **own) if own else counted, counted, bends=calls if own else None)
    scheme = jac if isinstance(jac, str) else "" if jac else "3-point"
    values: Callable[[np.ndarray], Any] = value
    if jac is True:
        counter = slope = Once("fun", fun, both, at, args)
        values, gradient = lambda x: slope(x)[0], lambda x: slope(x)[1]
    elif scheme:
        if isinstance(hess, str):
            raise OptionError(f"hess: expected a function, BFGS() or SR1() where jac is made of differences, got {hess!r}")
        counter, gradient = value, Once("fun", at.differences(value, scheme), vector, at.arrays)
        slope = gradient
    else:
        counter, gradient = value, Once("jac", cast("Any", jac), vector, at, args)
        slope = gradient
    own, bends = _bent(hess, hessp, gradient, at, args)
    function = Function(lift(values), gradient=lift(gradient), **own, torch=False, differences=bool(scheme))
    return Objective(function, counter, scheme, lambda: slope.calls, bends)


def second(name: str, hess: Any) -> Any:
    """A function or scheme for second derivatives; None for an update strategy, whose part the library's own solvers play."""
    from scipy.optimize import HessianUpdateStrategy

    if hess is None or isinstance(hess, HessianUpdateStrategy):
        return None
    if callable(hess) or (isinstance(hess, str) and hess in STEPS):
        return hess
    raise ProblemError(f"{name}: expected a function, BFGS() or SR1(), or one of {[*STEPS]}, got {shown(hess)}")


def _bent(hess: Any, hessp: Any, gradient: Any, at: Setting, args: tuple[Any, ...]) -> tuple[dict[str, Any], Callable[[], int]]:
    """Second derivatives of fun as `Function` takes them, by the name of the argument, and how often they were asked for."""
    if not callable(hess) and callable(hessp):
        product = Once("hessp", hessp, vector, at, args)
        return {"hvp": lift(product)}, lambda: product.calls
    if callable(hess):
        whole = Once("hess", hess, matrix, at, args)
    elif isinstance(hess, str):
        whole = Once("hess", at.differences(gradient, hess), lambda _, H: 0.5 * (H + H.T), at.arrays)
    else:
        return {}, lambda: 0
    if is_operator(whole(at.start)):
        return {"hvp": lift(lambda x, v: whole(x) @ v)}, lambda: whole.calls
    return {"hessian": lift(whole)}, lambda: whole.calls


def is_operator(found: Any) -> bool:
    """A LinearOperator: products, no entries."""
    return hasattr(found, "matvec") and not hasattr(found, "tocsr")


def lift(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of arrays as one of tensors; a sparse matrix stays what it is."""

    def lifted(x: Tensor, *more: Tensor) -> Any:
        found = function(*(part.detach().cpu().double().numpy() for part in (x, *more)))
        return found if is_sparse(found) else torch.as_tensor(np.array(found)).to(x)

    return lifted
