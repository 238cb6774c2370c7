"""Poisson control by SketchedNewton with preconditioned MINRES, against a sparse factorisation of the KKT matrix.

    python benchmarks/poisson_control.py [--sizes 32 64 128 256] [--tol 1e-8] [--json FILE]

n = 2 N^2 variables, N^2 constraints; to |(grad L, c)| <= tol, float64, one thread. spsolve: the KKT matrix assembled with
scipy.sparse and factorised by SuperLU, one solve. Memory: bytes of the factors L and U, against the peak of live tensor bytes of
a solve (torch's profiler). The preconditioner is the instance's own, by fast sine transforms. Times are of one run each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu

from constrained import Minres, SketchedNewton, solve
from problems.pde import WEIGHT, poisson_control


def factorised(N: int) -> tuple[float, int, float]:
    """Seconds to factorise and solve, bytes of the factors, the residual."""
    h = 2 / (N + 1)
    one = sp.diags([np.ones(N - 1), -2 * np.ones(N), np.ones(N - 1)], [-1, 0, 1]) / h**2  # pyright: ignore[reportArgumentType]
    eye, I = sp.identity(N), sp.identity(N * N)
    lap = sp.kron(one, eye) + sp.kron(eye, one)
    K = sp.bmat([[I, None, lap], [None, WEIGHT * I, I], [lap, I, None]], format="csc")
    b = np.random.default_rng(0).standard_normal(3 * N * N)
    start = time.perf_counter()
    factors = splu(K)
    x = factors.solve(b)
    seconds = time.perf_counter() - start
    return seconds, 12 * (factors.L.nnz + factors.U.nnz), float(np.linalg.norm(b - K @ x))


def ours(N: int, tol: float) -> tuple[float, int, int, float, int]:
    """Seconds, outer steps, products, |(grad L, c)|, peak bytes."""
    instance = poisson_control(N=N)
    solver = SketchedNewton(linear_solver=Minres(preconditioner=instance.preconditioner))
    start = time.perf_counter()
    result = solve(instance.problem, solver, start=instance.start, tol=tol)
    seconds = time.perf_counter() - start
    result.raise_for_status()
    kkt = sum(value**2 for value in result.residuals().values()) ** 0.5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        solve(instance.problem, solver, start=instance.start, tol=tol)
    now = most = 0
    for event in profile.profiler.kineto_results.events():  # pyright: ignore[reportOptionalMemberAccess]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return seconds, result.steps, result.state.products, kkt, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 128, 256], help="grid points a side")
    parser.add_argument("--tol", type=float, default=1e-8, help="of |(grad L, c)|; 1e-7 is within what rounding leaves at N = 32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(
        f"{'N':>5}{'steps':>7}{'products':>10}{'KKT':>10}{'seconds':>9}{'spsolve':>9}{'ratio':>7}{'MiB':>8}{'factors':>9}{'ratio':>7}"
    )
    ours(8, args.tol)  # torch's first calls
    for N in args.sizes:
        seconds, steps, products, kkt, peak = ours(N, args.tol)
        other, factors, _ = factorised(N)
        row = {"N": N, "steps": steps, "products": products, "kkt": kkt, "seconds": seconds, "spsolve": other}
        rows.append({**row, "peak_bytes": peak, "factor_bytes": factors})
        memory = f"{peak / 2**20:8.1f}{factors / 2**20:9.1f}{peak / factors:7.2f}"
        print(f"{N:5}{steps:7}{products:10}{kkt:10.1e}{seconds:9.3f}{other:9.3f}{seconds / other:7.2f}{memory}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
