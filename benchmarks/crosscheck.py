"""Our CUTEst problems against sif2jax: values, gradients and Jacobians at the start and at three random points near it, bounds.

    make crosscheck

sif2jax has its own transcription of the SIF files, in JAX, with the variables in their order. Exit code 1 on any relative
difference above 1e-8. It runs in an environment of its own (requirements-crosscheck.txt).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sif2jax
import torch
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parents[1]))

from problems.cutest import CUTEST, HS_INEQUALITY, PAPER_47

TOLERANCE = 1e-8
POINTS = 3  # random ones

DEFINITIONS = {**CUTEST, **HS_INEQUALITY}

# Names that sif2jax 0.0.8 does not have.
MISSING = (
    *("CUBENE", "GENHS28", "HS100LNP", "HS118", "MOREBVNE", "MWRIGHT", "PRICE4NE", "RSNBRNE", "WAYSEA1NE", "WAYSEA2NE"),
    "ZANGWIL3",
)
# f of sif2jax less ours, where it leaves out a constant that the SIF file has.
CONSTANT = {"MARATOS": 1e-6}
# The rows of sif2jax by the numbers k of ours, h_k <= 0, with a minus where it has -h_k >= 0: all of ours in our order but for
# these. Some of its rows are <= 0, though it says that all are >= 0, and of an inequality with two sides it has one.
ROWS = {
    **{"HS64": (1,), "HS76": (1, 2, -3), "HS76I": (1, 2, -3), "HS83": (-1, -2, -3), "HS93": (-1, 2)},
    **dict.fromkeys(("HS101", "HS102", "HS103"), (1, 2, 3, 4, 6)),
    "HS104": (1, 2, 3, 4, -5),
    "HS108": (1, 3, 2, 4, 5, 6, 7, 8, 9, -11, -13, -10, 12),
    "HS116": tuple(range(-1, -15, -1)),
}


@dataclass(frozen=True)
class Functions:
    """f, c, h and their derivatives, on numpy vectors; low and high."""

    f: Callable[[np.ndarray], Any]
    g: Callable[[np.ndarray], Any]
    c: Callable[[np.ndarray], Any]
    J: Callable[[np.ndarray], Any]
    h: Callable[[np.ndarray], Any]
    A: Callable[[np.ndarray], Any]
    bounds: np.ndarray


def ours(name: str) -> Functions:
    definition = DEFINITIONS[name]

    def h(x: torch.Tensor) -> torch.Tensor:
        """With the rows and signs of sif2jax."""
        rows = definition.inequality(x)
        order = torch.tensor(ROWS.get(name, tuple(-k for k in range(1, len(rows) + 1))), dtype=torch.long)
        return order.sign() * rows[order.abs() - 1]

    def on(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: function(torch.from_numpy(x)).numpy()

    f, c, jacobian = definition.objective, definition.equality, torch.func.jacrev
    return Functions(on(f), on(jacobian(f)), on(c), on(jacobian(c)), on(h), on(jacobian(h)), np.array(definition.bounds()))


def theirs(problem: Any) -> Functions:
    y0, tree = ravel_pytree(problem.y0)

    def f(y: jax.Array) -> jax.Array:
        return jax.numpy.asarray(problem.objective(tree(y), problem.args), dtype=float) - CONSTANT.get(problem.name, 0.0)

    def rows(part: int) -> Callable[[jax.Array], jax.Array]:
        """c for 0 and h for 1; problems with bounds alone have neither."""
        return lambda y: ravel_pytree(problem.constraint(tree(y))[part] if hasattr(problem, "constraint") else ())[0].astype(
            float
        )

    def on(function: Callable[[jax.Array], jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.asarray(function(jax.numpy.asarray(x)))

    given = getattr(problem, "bounds", None)  # None too where there are none
    free = (np.full(len(y0), -np.inf), np.full(len(y0), np.inf))
    bounds = np.array(free if given is None else [ravel_pytree(side)[0] for side in given], dtype=float)
    c, h = rows(0), rows(1)
    return Functions(on(f), on(jax.grad(f)), on(c), on(jax.jacfwd(c)), on(h), on(jax.jacfwd(h)), bounds)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, relative to the largest entry (at least 1); infinite where shapes differ or a number is NaN."""
    if np.shape(one) != np.shape(other):
        return np.inf
    found = float(np.abs(one - other).max(initial=0) / np.abs(other).max(initial=1))
    return found if np.isfinite(found) else np.inf


def main() -> int:
    jax.config.update("jax_enable_x64", True)
    known = sorted((problem for problem in sif2jax.problems if problem.name in DEFINITIONS), key=lambda problem: problem.name)
    names = {problem.name for problem in known}
    assert names == set(DEFINITIONS) - set(MISSING), sorted(names ^ (set(DEFINITIONS) - set(MISSING)))
    titles = ("start", "bounds", "f", "grad f", "c", "grad c", "h", "grad h")
    print(f"{'problem':<11} {'n':>3} {'c':>3} {'h':>3} " + " ".join(f"{title:>8}" for title in titles))
    worst, bad = 0.0, []
    for problem in known:
        name = problem.name
        x0 = np.array(DEFINITIONS[name].start, dtype=float)
        mine, other = ours(name), theirs(problem)
        rng = np.random.default_rng(0)
        away = rng.standard_normal((POINTS, len(x0))) if name in CUTEST else rng.random((POINTS, len(x0)))  # logarithms, roots
        points = [x0, *(x0 + 0.1 * (1 + np.abs(x0)) * step for step in away)]
        found = [difference(x0, np.asarray(ravel_pytree(problem.y0)[0]))]
        found.append(float(not np.allclose(mine.bounds, other.bounds, rtol=TOLERANCE, atol=0)))
        for part in ("f", "g", "c", "J", "h", "A"):
            found.append(max(difference(getattr(mine, part)(x), getattr(other, part)(x)) for x in points))
        if max(found) > TOLERANCE:
            bad.append(name)
        worst = max(worst, *found)
        sizes = (len(x0), len(mine.c(x0)), len(mine.h(x0)))
        print(f"{name:<11} " + " ".join(f"{size:>3}" for size in sizes) + " " + " ".join(f"{value:8.1e}" for value in found))
    of_paper, bounded = (len(names & set(table)) for table in (PAPER_47, HS_INEQUALITY))
    print(f"{len(names)} problems compared, {of_paper} of the paper's, {bounded} with inequalities or bounds")
    print(f"not in sif2jax {version('sif2jax')}: {', '.join(MISSING)}")
    print(f"largest relative difference {worst:.1e}; {len(bad)} above {TOLERANCE:g}{': ' if bad else ''}{', '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
