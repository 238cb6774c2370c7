"""A problem as Ipopt, Pounce and Uno take it: the rows of c and h in one stack, matrices as numbers at places fixed before.

    min f(x)  subject to  bottom <= (c, h)(x) <= 0,  low <= x <= high,    H = hess (sigma f + (lam, mu)'(c, h))

Dense derivatives have all places, sparse ones of the user's `Function` those it stores. No place is left out because its number
happens to be zero at some point: a number that comes later at a place not fixed before raises `Grown`, and `solved` begins anew.

These solvers take an exception of a callback for a failed evaluation. Here it is kept, later callbacks answer NaN without a call
of the user's functions, and `solved` raises it when the solver has returned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from .reference import Found, View

T = TypeVar("T")


class Grown(Exception):
    """A number came at a place that was not fixed before; the places are fixed anew."""


class Places:
    """Where the entries of a matrix are, those of its lower triangle if `lower`: all of them, or what was stored so far."""

    def __init__(self, shape: tuple[int, int], *, lower: bool = False):
        self.shape, self.lower = shape, lower
        self.keys = np.zeros(0, dtype=np.int64)  # row * columns + column, sorted

    @property
    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = np.divmod(self.keys, self.shape[1])
        return rows, columns

    @property
    def full(self) -> bool:
        rows, columns = self.shape
        return len(self.keys) == (rows * (rows + 1) // 2 if self.lower else rows * columns)

    def _entries(self, summands: list[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Keys and numbers of blocks, each with the row that it begins at."""
        from scipy.sparse import coo_array, issparse

        for first, A in summands:
            if issparse(A):
                at = coo_array(A)
                rows, columns, numbers = *at.coords, at.data
            else:
                rows, columns, numbers = *(grid.ravel() for grid in np.indices(A.shape)), A.ravel()
            kept = slice(None) if not self.lower else rows >= columns
            yield (rows[kept] + first).astype(np.int64) * self.shape[1] + columns[kept], numbers[kept]

    def include(self, summands: list[Any]) -> None:
        found = np.unique(np.concatenate([self.keys, *(keys for keys, _ in self._entries(summands))]))
        self.keys = found if len(found) or 0 in self.shape else np.zeros(1, dtype=np.int64)  # Ipopt refuses a matrix of none

    def numbers(self, summands: list[Any]) -> np.ndarray:
        """The entries of the sum of the blocks, place by place. Raises Grown where one has no place."""
        if self.full:
            from scipy.sparse import issparse

            total = np.zeros(self.shape)
            for first, A in summands:
                total[first : first + A.shape[0]] += A.toarray() if issparse(A) else A
            return total[self.indices]
        found = np.zeros(len(self.keys))
        for keys, numbers in self._entries(summands):
            at = np.searchsorted(self.keys, keys)
            known = at < len(self.keys)
            known[known] = self.keys[at[known]] == keys[known]
            if numbers[~known].any():
                self.include(summands)
                raise Grown
            np.add.at(found, at[known], numbers[known])
        return found


class Stacked:
    """The callbacks: `objective`, `gradient`, `constraints`, `jacobian`, `hessian`, under the names that cyipopt gave them."""

    def __init__(self, view: View):
        self.view = view
        self.equalities = len(view.c(view.x0)) if view.equalities else 0
        self.inequalities = len(view.h(view.x0)) if view.inequalities else 0
        self.n, self.m = len(view.x0), self.equalities + self.inequalities
        self.bottom = np.concatenate([np.zeros(self.equalities), np.full(self.inequalities, -np.inf)])
        self.top = np.zeros(self.m)
        self.iterations = 0
        self.failure: BaseException | None = None
        self.of_J, self.of_H = Places((self.m, self.n)), Places((self.n, self.n), lower=True)
        self.of_J.include(self._jacobian(view.x0))
        if view.twice:
            self.of_H.include(self._hessian(view.x0, 1.0, np.ones(self.m)))

    def solved(self, run: Callable[[Stacked], Found]) -> Found:
        """What `run` returns, with the places of all matrices that it met; or the error of a callback."""
        while True:
            self.failure, self.iterations = None, 0
            found = run(self)
            if self.failure is None:
                return found
            if not isinstance(self.failure, Grown):
                raise self.failure

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is raised inside."""
        try:
            yield
        except BaseException as failure:  # Ctrl-C and the end of the time too
            self.failure = failure

    def asked(self, what: Callable[[], T], otherwise: T) -> T:
        """What the user's functions say, `otherwise` from the first failure on."""
        found = otherwise
        if self.failure is None:
            with self.kept():
                found = what()
        return found

    def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows[: self.equalities], rows[self.equalities :]

    def _jacobian(self, x: np.ndarray) -> list[Any]:
        blocks = [(0, self.view.own_jacobian(x))] if self.equalities else []
        return blocks + ([(self.equalities, self.view.own_h_jacobian(x))] if self.inequalities else [])

    def _hessian(self, x: np.ndarray, sigma: float, weights: np.ndarray) -> list[Any]:
        return [(0, A) for A in self.view.hessian(x, sigma, *self.split(weights))]

    def _values(self, x: np.ndarray) -> np.ndarray:
        parts = [self.view.c(x)] if self.equalities else []
        return np.concatenate([np.zeros(0), *parts, *([self.view.h(x)] if self.inequalities else [])])

    # -- what the solvers call ------------------------------------------------------------------------------------------
    def objective(self, x: np.ndarray) -> float:
        return self.asked(lambda: self.view.f(x), np.nan)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        return self.asked(lambda: self.view.gradient(x), np.full(self.n, np.nan))

    def constraints(self, x: np.ndarray) -> np.ndarray:
        return self.asked(lambda: self._values(x), np.full(self.m, np.nan))

    def jacobianstructure(self) -> tuple[np.ndarray, np.ndarray]:
        return self.of_J.indices

    def jacobian(self, x: np.ndarray) -> np.ndarray:
        return self.asked(lambda: self.of_J.numbers(self._jacobian(x)), np.full(len(self.of_J.keys), np.nan))

    def hessianstructure(self) -> tuple[np.ndarray, np.ndarray]:
        return self.of_H.indices

    def hessian(self, x: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
        return self.asked(lambda: self.of_H.numbers(self._hessian(x, sigma, weights)), np.full(len(self.of_H.keys), np.nan))

    def intermediate(self, mode: int, iteration: int, *figures: float) -> bool:
        """Go on?"""
        self.iterations = iteration
        return self.failure is None
