"""Implicit against hand-written code on 65 log-penalties of logistic regression: hypergradients and CPU seconds, in one process.

    python benchmarks/hyperparameters.py [--repeats 3] [--json FILE]

By hand: numpy and scipy, Newton's method with conjugate gradients preconditioned by the exact diagonal of the Hessian inside, to
|g_W|_inf <= 1e-7, warm-started; the adjoint system to 1e-6; scipy's L-BFGS-B outside. Ours: `Implicit()` with its defaults on
`logistic-penalties`, derivatives written out (own) or by autodiff, up to the certificate. Gap: f minus the best known value, over
that of the start. CPU seconds, one thread, the least of the repeats.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from bilevel import Implicit, iterate
from problems.tuning.logistic import BEST, HIGH, LEAST, LOW, logistic_penalties, rows

SHARES = (0.9, 0.99, 0.999)


def softmax(Z: np.ndarray) -> np.ndarray:
    E = np.exp(Z - Z.max(1, keepdims=True))
    return E / E.sum(1, keepdims=True)


def conjugate_gradients(product: Any, b: np.ndarray, diagonal: np.ndarray, tol: float, steps: int) -> np.ndarray:
    x, r = np.zeros_like(b), b.copy()
    z = r / diagonal
    p, rz, stop = z.copy(), (r * z).sum(), tol * np.linalg.norm(b)
    for _ in range(steps):
        if rz == 0 or np.linalg.norm(r) <= stop:
            break
        q = product(p)
        alpha = rz / (p * q).sum()
        x, r = x + alpha * p, r - alpha * q
        z = r / diagonal
        rz, old = (r * z).sum(), rz
        p = z + rz / old * p
    return x


def by_hand() -> list[tuple[float, float]]:
    """(value, CPU seconds) after each hypergradient."""
    (A, a), (V, v), _ = rows(0)
    n, Y, Yv = len(a), np.eye(10)[a], np.eye(10)[v]
    W, trace, start = np.zeros((65, 10)), [], time.process_time()

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal W
        ridge = np.exp(x) + LEAST

        def product(U: np.ndarray) -> np.ndarray:
            S = P * (A @ U)
            return A.T @ (S - P * S.sum(1, keepdims=True)) / n + ridge[:, None] * U

        for _ in range(80):
            P = softmax(A @ W)
            G = A.T @ (P - Y) / n + ridge[:, None] * W
            diagonal = (A**2).T @ (P * (1 - P)) / n + ridge[:, None]
            worst = np.abs(G).max()
            if worst < 1e-7:
                break
            W = W - conjugate_gradients(product, G, diagonal, min(0.3, max(worst, 1e-3)), 60)
        Q = softmax(V @ W)
        f = -np.log(Q[np.arange(len(v)), v]).mean()
        adjoint = conjugate_gradients(product, V.T @ (Q - Yv) / len(v), diagonal, 1e-6, 200)
        trace.append((f, time.process_time() - start))
        return f, -(np.exp(x)[:, None] * W * adjoint).sum(1)

    options = {"maxiter": 200, "ftol": 1e-14, "gtol": 1e-8}
    minimize(value, np.zeros(65), jac=True, method="L-BFGS-B", bounds=[(LOW, HIGH)] * 65, options=options)
    return trace


def ours(own: bool) -> list[tuple[float, float]]:
    problem, trace = logistic_penalties(own=own).problem, []
    start, done = time.process_time(), 0
    for event in iterate(problem, Implicit()):
        seconds = time.process_time() - start
        trace += [(event.monitor["upper"], seconds)] * (event.state.evaluations - done)
        done = event.state.evaluations
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sides: dict[str, Any] = {"by hand": by_hand, "Implicit, own": lambda: ours(True), "Implicit, autodiff": lambda: ours(False)}
    print(
        f"{'':>20}{'hypergradients to 90, 99, 99.9%':>33}{'seconds to 99.9%':>18}{'ratio':>7}{'all':>5}{'seconds':>9}{'gap':>10}"
    )
    first, found = 0.0, []
    ours(False)  # torch's first calls
    for name, side in sides.items():
        runs = [side() for _ in range(args.repeats)]
        whole = runs[0][0][0] - BEST
        at = [next(i for i, (f, _) in enumerate(runs[0]) if f - BEST <= (1 - share) * whole) for share in SHARES]
        seconds = min(run[at[-1]][1] for run in runs)
        end = min(run[-1][1] for run in runs)
        first = first or seconds
        gap = (min(f for f, _ in runs[0]) - BEST) / whole
        counts = ", ".join(str(i + 1) for i in at)
        found.append({"side": name, "hypergradients": [i + 1 for i in at], "seconds": seconds, "ratio": seconds / first})
        found[-1] |= {"all": len(runs[0]), "seconds_all": end, "gap": gap}
        print(f"{name:>20}{counts:>33}{seconds:18.3f}{seconds / first:7.2f}{len(runs[0]):5}{end:9.2f}{gap:10.1e}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
