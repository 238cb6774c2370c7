"""Penalties chosen on validation data, four ways: Implicit, the bare loop by hand, scikit-learn's GridSearchCV, Optuna.

    python benchmarks/penalty_search.py [--repeats 5] [--json FILE]

Bare loop: numpy and scipy; ridge by a Cholesky factorisation with the exact hypergradient, the lasso by scikit-learn's fit and
the hypergradient on its support, scipy's L-BFGS-B outside. Implicit: `bilevel.solve(problem, Implicit())`, all of it, the
certificate included; solver: the part of the solver alone. GridSearchCV: 100 values on the range of x, the same split, one job,
no refit; one penalty for all 50 features of ridge-50. Optuna: 100 trials of the bare loop's values.
Regret: f at the x found, by the bare loop's own fit, minus the least known value; local: minus the next known local optimum.
CPU seconds, one thread, the least of the repeats and the first; ratio: to the bare loop.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit

import bilevel
from bilevel import Implicit
from constrained.core.vec import Vec
from problems import Instance
from problems.tuning.ridge import Rows, ridge_1, ridge_50
from problems.tuning.sparse import lasso

TRIALS = 100


# -- the three problems, by hand --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """fun: x -> (f(w(x)), its gradient). model: exp(x) -> scikit-learn's estimator with that one penalty."""

    instance: Instance
    rows: Rows
    fun: Callable[[np.ndarray], tuple[float, np.ndarray]]
    model: Callable[[float], Ridge | Lasso]

    def box(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The start and the bounds."""
        problem = self.instance.problem
        low, high = (problem.X.project(Vec.of(problem.x + far)).tree().numpy() for far in (-100.0, 100.0))
        return problem.x.numpy(), low, high


def by_cholesky(rows: Rows) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """C w = A'b / n,  C q = V'(V w - v) / m,  C = A'A / n + diag(exp(x)):  gradient -exp(x) w q, summed for one x."""
    G, c, V, v = rows.G, rows.c, rows.V, rows.v

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        penalty = np.broadcast_to(np.exp(x), len(c))
        factor = cho_factor(G + np.diag(penalty))
        w = cho_solve(factor, c)
        error = V @ w - v
        gradient = -penalty * w * cho_solve(factor, V.T @ error / len(v))
        return 0.5 * np.mean(error**2), gradient.sum(keepdims=True) if len(x) == 1 else gradient

    return fun


def by_fits(rows: Rows) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """On the support F of w, with signs s:  C q = 2 V'(V w - v) / m,  C = A'A / n:  gradient -exp(x) s'q."""
    model = Lasso(fit_intercept=False, tol=1e-12, max_iter=100_000, warm_start=True)

    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        w = model.set_params(alpha=np.exp(x[0])).fit(rows.A, rows.b).coef_
        F = np.flatnonzero(w)
        error = rows.V @ w - rows.v
        q = np.linalg.solve(rows.G[np.ix_(F, F)], 2 * rows.V[:, F].T @ error / len(error))
        return np.mean(error**2), -np.exp(x) * (np.sign(w[F]) @ q)

    return fun


def cases() -> dict[str, Case]:
    one = Rows.drawn(0, train=400, validate=200, p=200, k=60, snr=3.0)
    fifty = Rows.drawn(1, train=100, validate=100, p=50, k=15, snr=2.0)
    sparse = Rows.drawn(2, train=300, validate=300, p=300, k=20, snr=3.0)
    return {
        "ridge-1": Case(ridge_1(), one, by_cholesky(one), lambda a: Ridge(alpha=400 * a, fit_intercept=False)),
        "ridge-50": Case(ridge_50(), fifty, by_cholesky(fifty), lambda a: Ridge(alpha=100 * a, fit_intercept=False)),
        "lasso": Case(lasso(), sparse, by_fits(sparse), lambda a: Lasso(alpha=a, fit_intercept=False)),
    }


# -- the four sides: where one ends, its lower solves, the seconds of the solver alone -------------------------------------------
Found = tuple[np.ndarray, int, float | None]


def loop(case: Case) -> Found:
    start, low, high = case.box()
    options = {"maxiter": 5000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(case.fun, start, jac=True, method="L-BFGS-B", bounds=list(zip(low, high)), options=options)
    return found.x, found.nfev, None


def implicit(problem: bilevel.BilevelProblem) -> Found:
    result = bilevel.solve(problem, Implicit())
    return result.x.numpy(), result.state.evaluations, result.seconds


def grid_search(case: Case) -> Found:
    start, low, high = case.box()
    rows, x = case.rows, np.linspace(low[0], high[0], TRIALS)
    split = PredefinedSplit(np.repeat([-1, 0], [len(rows.b), len(rows.v)]))
    penalties = {"alpha": [case.model(np.exp(one)).alpha for one in x]}
    search = GridSearchCV(case.model(1.0), penalties, cv=split, scoring="neg_mean_squared_error", refit=False)
    search.fit(np.vstack([rows.A, rows.V]), np.concatenate([rows.b, rows.v]))
    return np.full_like(start, x[search.best_index_]), TRIALS, None


def optuna_search(case: Case) -> Found:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _, low, high = case.box()

    def value(trial: optuna.Trial) -> float:
        return case.fun(np.array([trial.suggest_float(str(i), *ends) for i, ends in enumerate(zip(low, high))]))[0]

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(value, n_trials=TRIALS)
    return np.array([study.best_params[str(i)] for i in range(len(low))]), TRIALS, None


# -- side by side -----------------------------------------------------------------------------------------------------------
@dataclass
class Line:
    problem: str
    side: str
    regret: float
    local: float
    solves: int
    seconds: float
    first: float
    ratio: float
    solver: float | None


def lines(name: str, case: Case, repeats: int) -> list[Line]:
    known = [case.fun(point.x.numpy())[0] for point in case.instance.solution]
    sides: dict[str, Callable[[], Found]] = {
        "bare loop": lambda: loop(case),
        "Implicit": lambda: implicit(case.instance.problem),
        "GridSearchCV": lambda: grid_search(case),
        "Optuna": lambda: optuna_search(case),
    }
    found: list[Line] = []
    for side, run in sides.items():
        runs: list[tuple[float, Found]] = []
        try:
            for _ in range(repeats):
                checked_start, end = time.process_time(), run()
                runs.append((time.process_time() - checked_start, end))
        except ImportError as error:
            print(f"{name:>9}{side:>14}  left out: {error}")
            continue
        x, solves, _ = runs[-1][1]
        seconds, solver = [one for one, _ in runs], [end[2] for _, end in runs if end[2] is not None]
        value = case.fun(x)[0]
        local = min((value - one for one in known), key=abs)
        ratio = min(seconds) / (found[0].seconds if found else min(seconds))
        alone = min(solver, default=None)
        found.append(Line(name, side, value - min(known), local, solves, min(seconds), seconds[0], ratio, alone))
        show(found[-1])
    return found


def show(line: Line) -> None:
    figures = f"{line.regret:11.1e}{line.local:11.1e}{line.solves:8}{line.seconds:10.4f}{line.first:10.4f}{line.ratio:8.1f}"
    print(f"{line.problem:>9}{line.side:>14}{figures}" + ("" if line.solver is None else f"{line.solver:10.4f}"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the lasso's fits at small penalties
    heads = ("regret", 11), ("local", 11), ("solves", 8), ("seconds", 10), ("first", 10), ("ratio", 8), ("solver", 10)
    print(" " * 23 + "".join(f"{head:>{width}}" for head, width in heads))
    found = [line for name, case in cases().items() for line in lines(name, case, args.repeats)]
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": [asdict(line) for line in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
