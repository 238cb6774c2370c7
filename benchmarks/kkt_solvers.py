"""The inner linear solvers beside one another, on KKT systems of Newton steps from ten to fifty thousand unknowns.

    python benchmarks/kkt_solvers.py [--only WORD] [--tol 1e-8] [--limit 6] [--device cpu] [--json FILE]

    K z = b,  K = [[H, J'], [J, 0]],  b = -(grad L, c),  to |b - K z| <= tol |b|

at points of the zoo's problems and of two more, a chain sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 with n/10 or 2 spheres and a
network on the digits whose mean prediction of two classes is held. Matrix-free: K by the tape's products; explicit: K is given as
a matrix, up to 2,000 unknowns. float64, one thread. Seconds are those of the processor, on CUDA of the clock, of `init` and one
`solve` on a fresh tape, the least of a few runs in turn, in one process; ratios are to the fastest that reached the tolerance.
The residual is the benchmark's own, relative to |b|, by double backward of the plain functions.

A solve is skipped ("-", with the reason) where its cost, from one timed batch of products and the flops, is above `--limit`
seconds or its memory above 2 GiB; those with a cap of steps get as many as the limit allows, and a miss is shown as one. The last
table: AutoLinear's seconds over the best of Direct, Minres, Sketch and ProjectedCG, matrix-free, 500 to 5,000 unknowns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from constrained import (
    AutoLinear,
    ConstrainedProblem,
    Direct,
    Gaussian,
    Kaczmarz,
    Minres,
    ProjectedCG,
    Sketch,
    SketchedNewton,
    System,
    iterate,
)
from constrained.core.vec import Vec
from constrained.linear import LinearSolver
from constrained.newton.kkt_system import kkt_system
from problems.cutest import cutest
from problems.logistic import logistic
from problems.pde import poisson_control

EXPLICIT, LITERAL = 2_000, 50  # unknowns up to which K is also given as a matrix; up to which one-vector sketches run
SPEED = {"cpu": 1.5e10, "cuda": 2e12}  # operations a second of dense linear algebra, for the estimates
MEMORY = 2 * 2**30
WITHIN = (500, 5_000)  # unknowns of the last table
ROUNDS, SHORT = 5, 0.5  # further runs of solves that take less than so many seconds
RIVALS = ("Direct", "Minres", "Sketch", "ProjectedCG")


# -- the problems -----------------------------------------------------------------------------------------------------------
@dataclass
class Case:
    """A KKT system: at x and lam (of the unscaled rows) of a problem; `inverse`: the preconditioner."""

    name: str
    problem: ConstrainedProblem
    x: Vec
    lam: Tensor
    inverse: Callable[[Vec], Vec] | None = None
    explicit: bool = False
    _K: Tensor | None = field(default=None, init=False)

    def system(self) -> tuple[System, Vec]:
        """On a fresh tape, and the right-hand side."""
        at = self.problem.oracle(0).tape(self.x).lagrangian(self.lam)
        system = replace(kkt_system(at, torch.ones_like(self.lam)), inverse=self.inverse)
        b = Vec.of(-torch.cat([at.gradient, at.tape.c]))
        if not self.explicit:
            return system, b
        K = self._K = system.dense()[0] if self._K is None else self._K

        def times(v: Vec) -> Vec:
            return v.map(lambda t: t @ K)

        return replace(system, product=times, products=times, matrix=lambda: K, below=lambda: K[self.x.size :]), b

    def residual(self, z: Tensor) -> float:
        """|b - K z| / |b| from the functions alone."""
        objective, equality = self.problem.objective, self.problem.equality
        assert equality is not None
        n, x = self.x.size, self.x.ravel().requires_grad_(True)
        lam, tree = self.lam.clone().requires_grad_(True), self.x.unravel(x).tree()
        c = equality(tree)
        (g,) = torch.autograd.grad(objective(tree) + lam @ c, x, create_graph=True)
        top, bottom = torch.autograd.grad(g @ z[:n] + c @ z[n:], [x, lam])
        b = -torch.cat([g, c]).detach()
        return float((b - torch.cat([top, bottom])).norm() / b.norm())


def newton_point(name: str, instance: Any, steps: int) -> Case:
    """A zoo problem after some steps of SketchedNewton."""
    for event in iterate(instance.problem, SketchedNewton(), start=instance.start, max_steps=steps):
        state = event.state
    return Case(name, instance.problem, state.x, state.rows * state.lam, instance.preconditioner)


def penalised_point(name: str, problem: ConstrainedProblem, weight: float) -> Case:
    """Near a minimiser of f + weight/2 |c|^2, with lam = weight c: a Newton step from there is one that counts."""
    x = Vec.of(problem.x).clone()
    leaves = [leaf.requires_grad_(True) for leaf in x.leaves]
    optimizer = torch.optim.LBFGS(leaves, max_iter=400, history_size=20, line_search_fn="strong_wolfe")
    assert problem.equality is not None
    objective, equality = problem.objective, problem.equality

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = objective(x.tree()) + weight / 2 * equality(x.tree()).square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    x = x.detach()
    return Case(name, problem, x, weight * equality(x.tree()))


def chain(n: int, spheres: int, device: str) -> ConstrainedProblem:
    """sum 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 with the squares of each of `spheres` runs of unknowns summing to half."""
    x = torch.full((n,), 0.5, dtype=torch.float64, device=device)
    return ConstrainedProblem(
        objective=lambda x: 100 * (x[1:] - x[:-1] ** 2).square().sum() + (1 - x).square().sum(),
        equality=lambda x: x.reshape(spheres, -1).square().mean(1) - 0.5,
        x=x,
    )


def network(hidden: int, device: str) -> ConstrainedProblem:
    """A tanh network on the digits with a ridge; the mean probabilities of the first two classes are 0.1."""
    from sklearn.datasets import load_digits

    a, y = load_digits(return_X_y=True)
    A, Y = torch.tensor(a / 16, device=device), torch.tensor(y, device=device)
    draw = torch.Generator().manual_seed(0)
    x = {
        name: (torch.randn(shape, generator=draw, dtype=torch.float64) / shape[-1] ** 0.5).to(device)
        for name, shape in {"W": (hidden, 64), "b": (hidden,), "V": (10, hidden), "c": (10,)}.items()
    }

    def scores(x: dict[str, Tensor]) -> Tensor:
        return torch.tanh(A @ x["W"].T + x["b"]) @ x["V"].T + x["c"]

    return ConstrainedProblem(
        objective=lambda x: F.cross_entropy(scores(x), Y) + 2e-2 * sum(leaf.square().sum() for leaf in x.values()),
        equality=lambda x: scores(x).softmax(1)[:, :2].mean(0) - 0.1,
        x=x,
    )


def cases(device: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Names, and what makes them."""
    for name in ("HS56", "GENHS28", "ORTHREGB"):
        yield name, lambda name=name: newton_point(name, cutest(name=name, device=device), 2 if name != "GENHS28" else 0)
    for n, N in ((40, 400), (500, 2000), (2000, 3000), (4900, 6000), (50_000, 1000)):
        made = {"data": "synthetic", "n": n, "N": N, "sphere": False, "ridge": 1e-3, "device": device}
        yield f"logistic {n}", lambda n=n, made=made: newton_point(f"logistic {n}", logistic(**made), 2)
    for N in (16, 32, 64, 128):
        plain = f"Poisson {N}"
        yield plain, lambda N=N, name=plain: replace(newton_point(name, poisson_control(N=N, device=device), 0), inverse=None)
        name = f"Poisson {N}, preconditioned"
        yield name, lambda N=N, name=name: newton_point(name, poisson_control(N=N, device=device), 0)
    for n, m in ((500, 50), (1000, 2), (4500, 450)):
        name = f"chain {n}, {m} rows"
        yield name, lambda n=n, m=m, name=name: penalised_point(name, chain(n, m, device), 10.0)
    for hidden in (10, 30):
        yield f"network {hidden}", lambda hidden=hidden: penalised_point(f"network {hidden}", network(hidden, device), 10.0)


# -- one solve --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Costs:
    """Seconds of a product, alone and in a batch."""

    single: float
    batched: float


def seconds(work: Callable[[], object], device: str) -> float:
    """Of the processor, which other work on the machine does not lengthen; on CUDA of the clock."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def costs(case: Case, device: str) -> Costs:
    system, b = case.system()
    system.product(b)
    single = min(seconds(lambda: system.product(b), device) for _ in range(3))
    q = min(system.size, 64)
    rows = torch.eye(q, system.size, dtype=torch.float64, device=device)
    return Costs(single, seconds(lambda: system.times(rows, b), device) / q)


def solvers(case: Case, cost: Costs, limit: float, device: str) -> Iterator[tuple[str, LinearSolver | str]]:
    """Names, and the solver or why it is skipped."""
    n, m, speed = case.x.size, len(case.lam), SPEED[device]
    d, steps = n + m, max(50, math.ceil(limit / cost.single))

    def unless(solver: LinearSolver, seconds: float, numbers: float) -> LinearSolver | str:
        if 8 * numbers > MEMORY:
            return f"{8 * numbers / 2**30:.0f} GiB"
        return f"some {seconds:.0f} s" if seconds > limit else solver

    each = 0.0 if case.explicit else cost.batched
    yield "Direct", unless(Direct(), d * each + d**3 / (3 * speed), 3 * d**2)
    yield "Minres", Minres(max_steps=steps)
    rows = 0.0 if case.explicit else m * cost.batched
    yield "ProjectedCG", unless(ProjectedCG(max_steps=steps), rows + (2 * n * m**2 + m**3 / 3) / speed, n * m + 2 * m**2)
    yield "Sketch", unless(Sketch(), d * cost.batched + 4 * d**3 / speed, 3 * d**2)
    if d <= LITERAL:
        yield "Gaussian", Gaussian(max_steps=50 * math.ceil(limit / (50 * cost.batched + 3e-4)))
        if case.explicit:
            yield "Kaczmarz", Kaczmarz(max_steps=50 * math.ceil(limit / (cost.single + 3e-4)))
    yield "AutoLinear", AutoLinear()


def solved(case: Case, solver: LinearSolver, tol: float, device: str) -> dict[str, Any]:
    """One run: seconds, products, the true residual."""
    system, b = case.system()
    system.product(b)  # what a tape forms once, at its first product
    target = tol * float(b.norm())

    def work() -> None:
        nonlocal prepared, found
        prepared = solver.init(system)
        found = solver.solve(prepared, b, tol=target)

    prepared, found = None, None
    took = seconds(work, device)
    assert prepared is not None
    assert found is not None
    residual = case.residual(found.x.ravel())
    return {"products": found.products + prepared.spent, "residual": residual, "seconds": took, "reason": found.reason.name}


# -- tables -----------------------------------------------------------------------------------------------------------------
def compared(case: Case, tol: float, limit: float, device: str) -> list[dict[str, Any]]:
    """One row a solver, printed."""
    cost, d = costs(case, device), case.x.size + len(case.lam)
    kind = "explicit" if case.explicit else "matrix-free"
    print(f"\n{case.name}: d = {case.x.size:,} + {len(case.lam):,} = {d:,}, {kind}, ", end="")
    print(f"a product {1e3 * cost.single:.2f} ms, in a batch {1e3 * cost.batched:.3f} ms")
    print(f"{'':>14}{'products':>10}{'residual':>10}{'seconds':>10}{'ratio':>8}", flush=True)
    rows: list[dict[str, Any]] = []
    running: list[tuple[dict[str, Any], LinearSolver]] = []
    for name, solver in solvers(case, cost, limit, device):
        row = {"case": case.name, "d": d, "kind": kind, "solver": name, "single": cost.single, "batched": cost.batched}
        rows.append(row)
        if name == "AutoLinear" and not any(other["residual"] <= 2 * tol for other, _ in running):
            solver = "no other is done in time"
        if isinstance(solver, str):
            row["skipped"] = solver
            continue
        row.update(solved(case, solver, tol, device))
        running.append((row, solver))
    for _ in range(ROUNDS):  # all in turn, so that what else the machine does meets all
        for row, solver in running:
            if row["seconds"] < SHORT:
                row["seconds"] = min(row["seconds"], solved(case, solver, tol, device)["seconds"])
    best = min((row["seconds"] for row in rows if row.get("residual", math.inf) <= 2 * tol), default=math.nan)
    for row in rows:
        if "skipped" in row:
            print(f"{row['solver']:>14}{'-':>10}{'-':>10}{'-':>10}{'-':>8}  {row['skipped']}")
            continue
        row["ratio"] = row["seconds"] / best if row["residual"] <= 2 * tol else math.inf
        figures = f"{row['products']:10,}{row['residual']:10.0e}{row['seconds']:10.4f}{row['ratio']:8.2f}"
        print(f"{row['solver']:>14}{figures}  {row['reason'] if row['reason'] != 'SOLVED' else ''}", flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> None:
    """AutoLinear over the best of its rivals."""
    low, high = WITHIN
    print(f"\nAutoLinear over the best of {', '.join(RIVALS)}, matrix-free, d = {low:,} to {high:,}")
    ratios = []
    for name in dict.fromkeys(row["case"] for row in rows if row["kind"] == "matrix-free" and low <= row["d"] <= high):
        here = [row for row in rows if row["case"] == name and row["kind"] == "matrix-free" and "skipped" not in row]
        done = {row["solver"]: row for row in here if math.isfinite(row["ratio"])}
        if "AutoLinear" not in done:
            print(f"{name:>28}       -")
            continue
        best = min((solver for solver in done if solver in RIVALS), key=lambda solver: done[solver]["seconds"])
        ratios.append(done["AutoLinear"]["seconds"] / done[best]["seconds"])
        print(f"{name:>28}{ratios[-1]:8.2f}  {best}")
    if ratios:
        print(f"{'median':>28}{statistics.median(ratios):8.2f}\n{'largest':>28}{max(ratios):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--tol", type=float, default=1e-8, help="of |b - K z| / |b|")
    parser.add_argument("--limit", type=float, default=6.0, help="seconds of a solve")
    parser.add_argument("--device", default="cpu", choices=list(SPEED))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, make in cases(args.device):
        if args.only not in name:
            continue
        case = make()
        for explicit in (False, True) if case.x.size + len(case.lam) <= EXPLICIT else (False,):
            rows += compared(replace(case, explicit=explicit), args.tol, args.limit, args.device)
    summary(rows)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, "device": args.device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
