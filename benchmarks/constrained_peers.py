"""Our solvers of constrained problems beside SLSQP, trust-constr, Ipopt, Pounce and Uno, on the same functions in one process.

    make constrained-peers
    python benchmarks/constrained_peers.py --set cutest-eq hs-ineq fresh torch-small sparse dense
        [--solvers default SLSQP Pounce ...] [--only NAME ...] [--cap 20] [--repeats 1] [--to Ipopt] [--csv FILE]
        [--profile FILE.svg [--points]]

cutest-eq     75 problems with equalities alone, n <= 300, m <= n, of sif2jax 0.0.8, by jitted jax functions
hs-ineq       the 90 problems of Hock and Schittkowski with inequalities or bounds, n <= 20, of sif2jax; f, c, h with gradients,
              Jacobians and Hessians as numpy functions, given to all alike (`Function.numpy` to ours)
fresh         299 others of sif2jax, n <= 60, m <= 100: unconstrained, bounds, inequalities, mixed. No option was chosen on them,
              but kinds of failures were looked for there. Some are unbounded or infeasible as sif2jax has them: signs are turned
torch-small   24 small problems in torch, differentiated by autograd: 19 with equalities, 5 with inequalities
sparse        2,000 unknowns with sparse derivatives of their own
dense         300 and 1,000 unknowns, a logistic f, n / 3 nonlinear rows, in torch

--solvers: `default` is what `solve` chooses; others by their class in `constrained`, with default options. Where a package is
missing its solver is left out, and so is Uno above 500 unknowns unless it is named: no clock interrupts its quadratic programs.

Solved: the residual of the judge (nlp/judge.py), from the functions and least-squares multipliers alone, is at most 1e-4, 1e-6,
1e-8. false: the solver says that it converged, and the residual is above 1e-4. worse: solved at 1e-6, with an objective above
that of another solver. Evaluations are points at which values, first and second derivatives were asked for (f, g, H), calls those
of f and grad f. Ratios are geometric means over the problems that both solve at 1e-6, to the side `--to`: of points, calls, and
seconds of the whole call and of the solver alone (own); ours checks its start and certifies its answer besides, which no count of
evaluations includes (`beside` in the CSV). One thread; --cap: seconds of one run. jit compilation is not in the times; what is
compiled is kept in the folder for temporary files, since the first run takes a quarter of an hour for it. Of functions in torch
gradients and products with Hessians are those that the library's own tally counts.

Multipliers of rows and bounds are compared with those of Ipopt and Pounce where both ends are one point, the active gradients are
independent, and no active inequality or bound has a multiplier near zero (nlp/multipliers.py); those of least squares at each
answer tell whose are nearer.

TrustConstr, as `constrained` has it, does not let scipy end before the barrier parameter is small. Ipopt and Pounce keep bounds
to the last digit.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from nlp.model import Model, TorchModel
from nlp.multipliers import paired, report
from nlp.run import LEVELS, Row, named, run

from constrained import MissingExtra
from constrained.core.errors import extra

SOLVERS = ("default", "SketchedNewton", "SLSQP", "TrustConstr", "Ipopt", "Pounce", "Uno")
PACKAGES = {"Ipopt": "cyipopt", "Pounce": "pounce", "Uno": "unopy"}
LONG = ("Uno", 500)
COUNTS = ("f", "g", "H", "f_calls", "g_calls")


def models(group: str, only: list[str] | None) -> Iterator[Model | TorchModel]:
    if group in ("cutest-eq", "hs-ineq", "fresh"):
        from nlp import with_jax

        names = {"cutest-eq": with_jax.CUTEST_EQ, "hs-ineq": with_jax.HS_INEQ, "fresh": with_jax.FRESH}[group]
        yield from with_jax.models(name for name in names if only is None or name in only)
        return
    from nlp import sparse, with_torch

    found = {"torch-small": with_torch.small, "sparse": sparse.models, "dense": with_torch.dense}[group]
    yield from (model for model in found() if only is None or model.name in only)


def installed(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        named(name)
        try:
            if name in PACKAGES:
                extra(PACKAGES[name], name.lower())
            yield name
        except MissingExtra as missing:
            print(f"{name} is left out: {missing}")


def measured(args: argparse.Namespace, solvers: list[str]) -> Iterator[Row]:
    for group in args.set:
        for model in models(group, args.only):
            model.warm()
            for solver in solvers:
                if solver == LONG[0] and model.size > LONG[1] and args.solvers is None:
                    continue
                row = run(group, model, solver, args.cap, args.repeats)
                yield row
                counts = " ".join(f"{row.counts.get(name, 0):>6}" for name in COUNTS)
                verdict = "FALSE" if row.false else ""
                left = f"{row.problem:<14} {row.n:>4} {row.m:>4} {row.solver:<18} {row.residual:8.1e} {row.objective:14.7g}"
                print(f"{left} {counts} {1e3 * row.seconds:9.1f} {1e3 * row.own:9.1f} {verdict:<5} {row.said[:60]}", flush=True)


def geometric(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else np.nan


def good_at(row: Row | None, level: float = 1e-6) -> bool:
    return row is not None and row.solved(level)


def summary(rows: list[Row], to: str) -> None:
    by = {(row.solver, row.set, row.problem): row for row in rows}
    solvers, problems = (
        list(dict.fromkeys(row.solver for row in rows)),
        list(dict.fromkeys((row.set, row.problem) for row in rows)),
    )
    best = {key: min((by[s, *key].objective for s in solvers if good_at(by.get((s, *key)))), default=np.inf) for key in problems}
    print(f"\n{len(problems)} problems; ratios to {to} over the problems that both solve at 1e-6")
    heads = [f"{level:.0e}" for level in LEVELS] + ["false", "worse", "common", *COUNTS, "time", "own"]
    print(f"{'':18}" + "".join(f"{head:>9}" for head in heads))
    for solver in solvers:
        own = [by[solver, *key] for key in problems if (solver, *key) in by]
        counts = [sum(row.solved(level) for row in own) for level in LEVELS] + [sum(row.false for row in own)]
        good = [key for key in problems if good_at(by.get((solver, *key)))]
        counts.append(sum(by[solver, *key].objective > best[key] + 1e-4 * (1 + abs(best[key])) for key in good))
        common = [(by[solver, *key], by[to, *key]) for key in good if good_at(by.get((to, *key)))]
        pairs = [[(a.counts.get(name, 0), b.counts.get(name, 0)) for a, b in common] for name in COUNTS]
        pairs += [[(a.seconds, b.seconds) for a, b in common], [(a.own, b.own) for a, b in common]]
        ratios = [geometric([a / b for a, b in each if a > 0 and b > 0]) for each in pairs]
        print(f"{solver:18}" + "".join(f"{count:9}" for count in (*counts, len(common))) + "".join(f"{r:9.2f}" for r in ratios))


def profile(rows: list[Row], path: Path, points: bool) -> None:
    """Performance profiles (Dolan and More 2002): the share of problems solved at 1e-6 within t times the least. points: of the
    points of f alone, without seconds.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "constrained"  # the same rows make the same file
    from matplotlib import pyplot as plt

    solvers = list(dict.fromkeys(row.solver for row in rows))
    measures = {"points of f": lambda row: row.counts.get("f", 0), "seconds": lambda row: row.seconds}
    shown = list(measures.items())[: 1 if points else 2]
    figure, axes = plt.subplots(1, len(shown), figsize=(3 + 4 * len(shown), 4), sharey=True, squeeze=False)
    for axis, (title, cost) in zip(axes[0], shown):
        costs = {(row.solver, row.set, row.problem): float(cost(row)) if row.solved(1e-6) else np.inf for row in rows}
        problems = list(dict.fromkeys(key[1:] for key in costs))
        least = {key: max(min(costs.get((s, *key), np.inf) for s in solvers), 1e-12) for key in problems}
        for solver in solvers:
            ratios = np.sort([costs[solver, *key] / least[key] for key in problems if costs.get((solver, *key), np.inf) < np.inf])
            share = np.arange(1, len(ratios) + 1) / len(problems)
            axis.step([*ratios, 100], [*share, share[-1] if len(share) else 0], where="post", label=solver)
        axis.set(xscale="log", xlim=(1, 100), ylim=(0, 1), xlabel=f"{title}, times the least", title=title)
    axes[0, 0].set_ylabel("share of problems solved at 1e-6")
    axes[0, -1].legend(loc="lower left", bbox_to_anchor=(1.02, 0))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def write(rows: list[Row], path: Path) -> None:
    """apart: multipliers from those of `default`, where both end at one point."""
    apart = {key: pair.apart for key, pair in paired(rows).items()}
    lines = [{**row.flat(), "apart": apart.get((row.solver, row.set, row.problem), np.nan)} for row in rows]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    groups = ("cutest-eq", "hs-ineq", "fresh", "torch-small", "sparse", "dense")
    parser.add_argument("--set", nargs="+", choices=groups, default=list(groups[:2]))
    parser.add_argument("--solvers", "--solver-class", nargs="+", help="default, or classes of constrained")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these problems")
    parser.add_argument("--cap", type=float, default=20.0, help="seconds of one run")
    parser.add_argument("--repeats", type=int, default=1, help="the least time of so many runs")
    parser.add_argument("--to", help="the solver that ratios are to; Ipopt, else Pounce, else the first")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--profile", type=Path, metavar="FILE.svg")
    parser.add_argument("--points", action="store_true", help="no seconds in the profile, where other work disturbs them")
    args = parser.parse_args()
    torch.set_num_threads(1)
    solvers = list(installed(args.solvers or SOLVERS))
    to = args.to or next((name for name in ("Ipopt", "Pounce") if name in solvers), solvers[0])
    heads = f"{'problem':<14} {'n':>4} {'m':>4} {'solver':<18} {'residual':>8} {'objective':>14} "
    print(heads + " ".join(f"{name:>6.6}" for name in COUNTS) + f" {'ms':>9} {'own ms':>9}")
    rows: list[Row] = []
    for row in measured(args, solvers):
        rows.append(row)
        if args.csv:
            write(rows, args.csv)  # what there is, should the rest be broken off
    if rows:
        summary(rows, to)
        print("\n".join(report(rows)))
    if args.profile and rows:
        profile(rows, args.profile, args.points)


if __name__ == "__main__":
    main()
