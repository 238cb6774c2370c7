"""What f, c and their derivatives cost on small problems, and what a solve makes of it.

    python benchmarks/oracle_cost.py [--problems HS6 HS40 HS71 HS78] [--repeats 15] [--products] [--json FILE]

Derivatives: microseconds, the smallest mean of 20 calls over the repeats, all sides taking turns; float64, one thread.

plain   f(x), grad f, c(x) and J one after another, in plain torch: f and c once without and once with a graph, J by
        `is_grads_batched`
tape    f, grad f, c and J from one tape of the library, without H
joint   the same tape with H = hess (f + lam'c)
replay  joint from a recorded program; `record s`: the seconds that recording took, the first with imports

Solves: milliseconds, the smallest over the repeats: SketchedNewton on tapes and on recorded programs, SLSQP of scipy on the
library's tapes, all through `constrained.solve` with its own stopping rule. HS71 stands here with x free and its inequality as an
equality, and is not solved. `--products`: q products with the KKT matrix at once by the library, by a loop, by
`is_grads_batched` and by `torch.func` (a vmap of jvp of grad L), milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained import SLSQP, ConstrainedProblem, SketchedNewton, solve
from constrained.core.derivatives.tape import Tape
from problems.cutest import cutest
from problems.logistic import logistic
from problems.pde import poisson_control

Sides = dict[str, Callable[[], object]]


def problem(name: str) -> ConstrainedProblem:
    if name != "HS71":
        return cutest(name=name).problem
    return ConstrainedProblem(
        objective=lambda x: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equality=lambda x: torch.stack([(x**2).sum() - 40, x.prod() - 25]),
        x=torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=torch.float64),
    )


def plain(of: ConstrainedProblem, eye: Tensor) -> Callable[[], object]:
    """f, grad f, c and J as anyone would write them."""
    f, c, x = of.objective, of.equality, of.x

    def numbers() -> object:
        leaf = x.clone().requires_grad_(True)
        with torch.no_grad():
            found = [f(x), c(x)]
        found += torch.autograd.grad(f(leaf), leaf)
        return [*found, *torch.autograd.grad(c(leaf).reshape(-1), leaf, eye, is_grads_batched=True)]

    return numbers


def first(tape: Tape) -> object:
    return tape.value, tape.gradient, tape.c, tape.jacobian


def best(sides: Sides, repeats: int, calls: int) -> dict[str, float]:
    """Seconds of one call of each side, taking turns."""
    found = dict.fromkeys(sides, float("inf"))
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(calls):
                side()
            found[name] = min(found[name], (time.perf_counter() - start) / calls)
    return found


def derivatives(of: ConstrainedProblem, repeats: int) -> dict[str, float]:
    eager, replaying = of.oracle(), of.oracle()
    x = eager.variables["x"]
    start = time.perf_counter()
    replaying.replay = replaying.recorded()
    recording = time.perf_counter() - start
    if replaying.replay.reason:
        raise SystemExit(replaying.replay.reason)
    lam = torch.ones_like(eager.tape(x).c)

    def joint(tape: Tape) -> object:
        return tape.lagrangian(lam).hessian, first(tape)

    sides: Sides = {
        "plain": plain(of, torch.eye(len(lam), dtype=lam.dtype)),
        "tape": lambda: first(eager.tape(x)),
        "joint": lambda: joint(eager.tape(x)),
        "replay": lambda: joint(replaying.tape(x)),
        "replay, first order": lambda: first(replaying.tape(x)),
    }
    found = {name: 1e6 * seconds for name, seconds in best(sides, repeats, 20).items()}
    found["joint / plain"], found["joint / tape"] = found["joint"] / found["plain"], found["joint"] / found["tape"]
    return {**found, "replay / joint": found["replay"] / found["joint"], "record s": recording}


def solves(of: ConstrainedProblem, repeats: int) -> dict[str, float]:
    traced = of.traced()
    sides: Sides = {
        "Newton": lambda: solve(of, SketchedNewton()),
        "Newton, replay": lambda: solve(traced, SketchedNewton()),
        "SLSQP": lambda: solve(of, SLSQP()),
        "SLSQP, replay": lambda: solve(traced, SLSQP()),
    }
    found = {name: 1e3 * seconds for name, seconds in best(sides, repeats, 1).items()}
    found["Newton / SLSQP"], found["replay / SLSQP"] = (found[name] / found["SLSQP"] for name in ("Newton", "Newton, replay"))
    return found


def chain(n: int) -> ConstrainedProblem:
    def objective(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    return ConstrainedProblem(objective=objective, equality=lambda x: x @ x - n, x=torch.linspace(-1, 1, n, dtype=torch.float64))


def products(of: ConstrainedProblem, q: int, repeats: int) -> dict[str, float]:
    """(H u + J'v, J u) for q pairs (u, v)."""
    oracle = of.oracle()
    tape = oracle.tape(oracle.variables["x"])
    lam, x, f, c = torch.ones_like(tape.c), tape.x.detach(), tape.f, oracle.c
    at = tape.lagrangian(lam)
    torch.manual_seed(0)
    U, V = (torch.randn(q, k, dtype=x.dtype) for k in (len(x), len(lam)))
    s, graph = torch.autograd.grad(tape._f_out + tape._outs[0] @ at._lam, tape.x, create_graph=True)[0], [tape.x, at._lam]

    def gradients(x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
        def L(x: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
            tree = tape.at.unravel(x).tree()
            rows = c.evaluate([tree])
            return f.evaluate([tree], tape.draw) + rows @ lam, rows

        return torch.func.grad(L, has_aux=True)(x, lam)

    sides: Sides = {
        "library": lambda: at.products(U, V),
        "loop": lambda: [at.product(u, v) for u, v in zip(U, V)],
        "is_grads_batched": lambda: torch.autograd.grad(
            (s, tape._outs[0]), graph, (U, V), retain_graph=True, allow_unused=True, is_grads_batched=True
        ),
        "torch.func": lambda: torch.func.vmap(lambda u, v: torch.func.jvp(gradients, (x, lam), (u, v))[1])(U, V),
    }
    found = {name: 1e3 * seconds for name, seconds in best(sides, repeats, 1).items()}
    return {**found, "library / best": found["library"] / min(found.values())}


LARGE: dict[str, Callable[[], Any]] = {
    "logistic, n = 500": lambda: logistic(data="synthetic", n=500, N=2000).problem,
    "logistic, n = 2000": lambda: logistic(data="synthetic", n=2000, N=2000).problem,
    "Poisson, n = 800": lambda: poisson_control(N=20).problem,
    "chain, n = 500": lambda: chain(500),
    "chain, n = 5000": lambda: chain(5000),
}


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print(f"\n{title:24}" + "".join(f"{column:>{max(10, len(column) + 2)}}" for column in columns))
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{row[column]:{max(10, len(column) + 2)}.3g}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--problems", nargs="+", default=["HS6", "HS40", "HS71", "HS78"], help="of CUTEst, with n <= 50")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--products", action="store_true", help="stacks of products on larger problems too")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"derivatives, us": {name: derivatives(problem(name), args.repeats) for name in args.problems}}
    found["solve, ms"] = {name: solves(problem(name), args.repeats) for name in args.problems if name != "HS71"}
    if args.products:
        found["products, ms"] = {
            f"{name}, q = {q}": products(make(), q, min(3, args.repeats)) for name, make in LARGE.items() for q in (16, 64, 128)
        }
    for title, rows in found.items():
        table(title, rows)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
