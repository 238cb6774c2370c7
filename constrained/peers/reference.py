"""Other people's solvers behind this library's interface, on its derivatives: what they share.

Problem
    min f(x) subject to c(x) = 0, h(x) <= 0, low <= x <= high.

Each runs as one step: what is checkpointed is the point it started from, what is counted is what it asked for, and the residuals
decide the verdict; its own message is kept as a note. Baselines, and a second opinion. `scipy_solvers`, `ipopt`, `pounce` and
`uno` have one each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import kkt
from ..core.deadline import OutOfTime
from ..core.derivatives.counts import Calls
from ..core.derivatives.function import Function
from ..core.derivatives.objective import Objective
from ..core.derivatives.tape import Lagrangian, Tape
from ..core.errors import BilevelError, Unsuitable
from ..core.problem import Multipliers, Point
from ..core.solver import Solver
from ..core.states import solver_state
from ..core.status import Feature, Status
from ..core.vec import Tree, Vec
from ..oracle import ConstrainedOracle

T = TypeVar("T")


@solver_state("ReferenceState")
class ReferenceState:
    """Where the other solver ended, and what it said."""

    k: int
    x: Vec
    lam: Tensor | None
    mu: Tensor | None
    iterations: int
    said: str
    outcome: Status


@dataclass(frozen=True)
class Found:
    """What another solver returns: x and its own words. Where it has them lam and mu with the signs of L = f + lam'c + mu'h, and
    the multipliers of bounds, low and high, >= 0.
    """

    x: np.ndarray
    iterations: int
    said: str
    solved: bool
    lam: np.ndarray | None = None
    mu: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None


Watcher = Callable[[np.ndarray, Any], bool]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """After each iteration of another solver that runs inside, `by(x, its state or None)` is called; True stops it."""
    token = _watcher.set(by)
    try:
        yield
    finally:
        _watcher.reset(token)


class Reference(Solver[ConstrainedOracle, ReferenceState]):
    """Runs another solver in one step."""

    supports: ClassVar[Feature] = Feature.EQUALITY | Feature.INEQUALITY | Feature.X_SET | Feature.NO_HVP
    requires: ClassVar[Feature] = Feature(0)

    @property
    def max_steps(self) -> int | None:
        return 1

    def init(self, oracle: ConstrainedOracle, start: Point) -> ReferenceState:
        if not (oracle.X.whole or oracle.X.entrywise):
            raise Unsuitable(f"{type(self).__name__}: of sets it takes a Box, got {type(oracle.X).__name__}")
        return ReferenceState(k=0, x=start.x, lam=None, mu=None, iterations=0, said="", outcome=Status.RUNNING)

    def step(self, oracle: ConstrainedOracle, state: ReferenceState) -> ReferenceState:
        view = View(oracle, state.x)
        try:
            found = Found(view.x0, 0, "the bounds fix every entry", True) if view.fixed else self.run(view)
        except OutOfTime:
            x, said = view.vec(view.seen), "stopped at the limit of time"
            return replace(state, k=1, x=x, iterations=0, said=said, outcome=Status.MAX_SECONDS)
        except StopIteration:  # of `view.tell`, where the other solver does not know it for a wish to stop
            x = view.vec(view.seen)
            return replace(state, k=1, x=x, iterations=view.told, said="stopped on request", outcome=Status.STOPPED)
        except ValueError as error:  # scipy's linear algebra on NaN
            if error is view.raised or isinstance(error, BilevelError):
                raise
            found = Found(view.x0, 0, str(error), False)
        x = view.vec(found.x)
        tape, h = oracle.tape(x), torch.zeros(0) if oracle.h is None else oracle.h.value((x,))
        parts = (tape.value, tape.c, h, *x.leaves)
        state = replace(state, k=1, iterations=found.iterations, said=found.said)
        if not all(bool(part.isfinite().all()) for part in parts) or not (found.iterations or found.solved):
            return replace(state, outcome=Status.NONFINITE)
        lam, mu = (None if given is None else torch.from_numpy(given).to(tape.c) for given in (found.lam, found.mu))
        return replace(state, x=x, lam=lam, mu=mu, outcome=Status.STOPPED if view.stopped else Status.CONVERGED)

    def run(self, view: View) -> Found:
        raise NotImplementedError

    def terminate(self, oracle: ConstrainedOracle, state: ReferenceState) -> Status:
        return state.outcome

    def answer(self, oracle: ConstrainedOracle, state: ReferenceState) -> Point:
        x = oracle.X.project(state.x)
        if state.outcome == Status.NONFINITE:
            return Point(x)
        theirs = state.lam is not None or state.mu is not None
        return Point(x, None, Multipliers(state.lam, state.mu) if theirs else kkt.multipliers(oracle, x))

    def notes(self, state: ReferenceState) -> tuple[str, ...]:
        return (f"{type(self).__name__}: {state.said} ({state.iterations} iterations)",) if state.k else ()


class View:
    """The problem in numpy: flat x, and one graph for the values and derivatives asked for at one point."""

    def __init__(self, oracle: ConstrainedOracle, start: Vec):
        self.oracle, self.start = oracle, start
        self.x0 = start.ravel().double().cpu().numpy().copy()
        infinite = [oracle.X.project(start.map(lambda leaf, s=s: torch.full_like(leaf, s))) for s in (-np.inf, np.inf)]
        self.low, self.high = (bound.ravel().double().cpu().numpy() for bound in infinite)
        self.seen = self.x0  # where the last gradient was asked for: of these solvers, where they stand
        self._of_h = Objective("nothing", nothing(start), Calls())
        self.told, self.stopped = 0, False  # iterations heard of; somebody who watches wants no more
        self.raised: BaseException | None = None  # by the problem's functions
        self._at: tuple[bytes, dict[str, Any]] | None = None

    def tell(self, x: np.ndarray, state: Any = None) -> None:
        """Who watches hears of an iteration, and may stop the run."""
        watcher = _watcher.get()
        self.told += 1
        if watcher is not None and watcher(np.array(x), state):
            self.stopped = True
            raise StopIteration

    def vec(self, x: np.ndarray) -> Vec:
        return self.start.unravel(torch.as_tensor(np.array(x)).to(self.start.ravel()))

    def _asked(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except Exception as error:
            self.raised = error
            raise

    def _once(self, x: np.ndarray, name: str, make: Callable[[], Any]) -> Any:
        """What is made at x, made once while x stays."""
        key = np.asarray(x).tobytes()
        if self._at is None or self._at[0] != key:
            self._at = (key, {})
        kept = self._at[1]
        if name not in kept:
            kept[name] = self._asked(make)
        return kept[name]

    def tape(self, x: np.ndarray) -> Any:
        """f and c."""
        return self._once(x, "f, c", lambda: self.oracle.tape(self.vec(x)))

    def h_tape(self, x: np.ndarray) -> Any:
        """h, beside an objective that is zero."""
        return self._once(x, "h", lambda: Tape(self._of_h, [self.oracle.h] if self.oracle.h else [], self.vec(x)))

    def f(self, x: np.ndarray) -> float:
        return float(self.tape(x).value)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self.seen = np.array(x)
        return self._asked(lambda: array(self.tape(x).gradient))

    def c(self, x: np.ndarray) -> np.ndarray:
        return array(self.tape(x).c)

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        return self._asked(lambda: array(self.tape(x).jacobian))

    def own_jacobian(self, x: np.ndarray) -> Any:
        """The same as scipy.sparse where the user gives it sparse."""
        return self._asked(lambda: own(self.tape(x)))

    def h(self, x: np.ndarray) -> np.ndarray:
        return array(self.h_tape(x).c)

    def h_jacobian(self, x: np.ndarray) -> np.ndarray:
        return self._asked(lambda: array(self.h_tape(x).jacobian))

    def own_h_jacobian(self, x: np.ndarray) -> Any:
        return self._asked(lambda: own(self.h_tape(x)))

    # -- second derivatives -----------------------------------------------------------------------------------------------
    def lagrangian(self, x: np.ndarray, lam: np.ndarray, sigma: float = 1.0) -> Lagrangian:
        """sigma f + lam'c."""
        tape = self.tape(x)
        return tape.lagrangian(torch.as_tensor(np.array(lam)).to(tape.c), sigma)

    def h_lagrangian(self, x: np.ndarray, mu: np.ndarray) -> Lagrangian:
        """mu'h."""
        tape = self.h_tape(x)
        return tape.lagrangian(torch.as_tensor(np.array(mu)).to(tape.c))

    def product(self, x: np.ndarray, lam: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(hess f + sum lam_i hess c_i) v; zero lam gives the objective's."""
        return self._asked(lambda: times(self.lagrangian(x, lam), v))

    def h_product(self, x: np.ndarray, mu: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(sum mu_i hess h_i) v."""
        return self._asked(lambda: times(self.h_lagrangian(x, mu), v))

    def hessian(self, x: np.ndarray, sigma: float, lam: np.ndarray, mu: np.ndarray) -> list[Any]:
        """Summands of hess (sigma f + lam'c + mu'h), n x n: dense, or scipy.sparse where the user gives them so."""
        return self._asked(lambda: self._summands(x, sigma, lam, mu))

    def _summands(self, x: np.ndarray, sigma: float, lam: np.ndarray, mu: np.ndarray) -> list[Any]:
        summands = matrices(self.lagrangian(x, lam, sigma))
        return summands + (matrices(self.h_lagrangian(x, mu)) if self.inequalities else [])

    @property
    def sparse(self) -> bool:
        """The user gives the Jacobians sparse: all there are, at least one."""
        tapes = [self.tape(self.x0)] if self.equalities else []
        tapes += [self.h_tape(self.x0)] if self.inequalities else []
        return bool(tapes) and all(tape.J.sparse for tape in tapes)

    @property
    def twice(self) -> bool:
        """Second derivatives exist: given, or by autodiff."""
        parts = (self.oracle.f, self.oracle.c, self.oracle.h)
        return all(part is None or part.own.second_order for part in parts)

    # Others' solvers fail on constraints without rows, and on variables that cannot move.
    @property
    def equalities(self) -> bool:
        c = self.oracle.c
        return c is not None and (c.m if c.m is not None else len(self.c(self.x0))) > 0  # a recording does not tell m

    @property
    def inequalities(self) -> bool:
        return self.oracle.h is not None and self.oracle.h.m != 0

    @property
    def fixed(self) -> bool:
        return bool((self.low == self.high).all())

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())


def nothing(start: Vec) -> Function:
    """f = 0 with its derivatives."""
    from scipy.sparse import csr_array

    n = start.size

    def zero(tree: Tree) -> Tensor:
        return start.ravel().new_zeros(())

    return Function(zero, gradient=lambda tree: start.map(torch.zeros_like).tree(), hessian=lambda tree: csr_array((n, n)))


def array(found: Tensor) -> np.ndarray:
    return found.double().cpu().numpy()


def own(tape: Any) -> Any:
    """J, as scipy.sparse where the user gives it sparse."""
    return tape.J.scipy() if tape.J.sparse else array(tape.jacobian)


def times(at: Lagrangian, v: np.ndarray) -> np.ndarray:
    u = torch.as_tensor(np.array(v)).to(at.tape.x)
    return array(at.product(u, torch.zeros_like(at.tape.c))[0])


def matrices(at: Lagrangian) -> list[Any]:
    """Summands of the Hessian as the user gives them, dense or sparse; the whole of it where it is autodiff's."""
    if not at.explicit:
        return [array(at.hessian)]
    return [A.scipy() if A.sparse else array(A.dense()) for A in at.summands.values()]
