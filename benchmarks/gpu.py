"""What the library costs on one device, from the source tree, in one call; a JSON, and the page made from it.

    PYTHONPATH=. python3 benchmarks/gpu.py --json gpu.json                     # on a GPU: 125M, 1.3B and 7B parameters
    PYTHONPATH=. python3 benchmarks/gpu.py --sizes 0.2M --json cpu.json        # anywhere
    PYTHONPATH=. python3 benchmarks/gpu.py --from gpu.json cpu.json --page docs/measurements.md

training    seconds and peak memory of a step of ScaleBiO (all blocks; LISA, 2 layers; LoRA, rank 8) and of one plain step of
            torch.optim.AdamW on the same model and batch: 1 x 1024 tokens, bf16 arithmetic on float32 weights, blocks recomputed
            in the backward. A side that does not fit into memory says so.
products    a Hessian-vector product in gradients, and a step of `PenaltySGD`, on an MLP
kkt         64 products with the KKT matrix at once against one by one, and against one product
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import step_cost
from decoder import SHAPES, Decoder, adapted
from scalebio_step import Ours, token_loss

from bilevel import LISA, AllBlocks, BilevelProblem, Live, MiniBatches, Mixture, PenaltySGD, ScaleBiO, memory, per_source
from bilevel.advice.memory import peak, words
from constrained.core.vec import Vec
from problems.logistic import logistic

SOURCES, LENGTH = 4, 1024
KINDS = {"plain": None, "all": AllBlocks(), "lisa": LISA(layers=2, every=20), "lora": AllBlocks()}


def problem(model: torch.nn.Module, length: int, device: str, rows: int = 1) -> BilevelProblem:
    """Four sources of random tokens, one row a batch from any of them."""
    count = model.tokens.num_embeddings  # pyright: ignore
    generator = torch.Generator().manual_seed(0)
    tokens, trusted = (torch.randint(count, (16, length), generator=generator).to(device) for _ in "gf")
    owner, shares = torch.arange(16, device=device) % SOURCES, torch.full((SOURCES,), 1 / SOURCES)

    def losses(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return per_source(token_loss(model, batch[0]), batch[1], SOURCES, shares)

    return BilevelProblem(
        upper=lambda x, model, rows: token_loss(model, rows).mean(),
        lower=Mixture(losses),
        x=torch.zeros(SOURCES, device=device),
        y=Live(model),
        upper_data=MiniBatches(trusted, rows),
        lower_data=MiniBatches((tokens, owner), rows),
    )


def median(work: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds, after a warm-up."""
    work()
    return statistics.median(step_cost.seconds(work, device) for _ in range(rounds))


def plain_step(model: Decoder, tokens: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        token_loss(model, tokens).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(size: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: seconds and peak bytes of a step, or that it does not fit."""
    torch.manual_seed(0)
    device, place = args.device, torch.device(args.device)
    cuda = place.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    model = Decoder(size, args.length, device, half=cuda)
    parameters = sum(p.numel() for p in model.parameters())
    row: dict[str, Any] = {"size": size, "kind": kind, "parameters": parameters}
    try:
        if kind == "plain":
            tokens = torch.randint(model.tokens.num_embeddings, (1, args.length), device=device)
            step = plain_step(model, tokens)
            row["seconds"] = median(step, device, args.rounds)
            fixed = 4 * parameters * 3
        else:
            of = problem(adapted(model) if kind == "lora" else model, args.length, device)
            solver = ScaleBiO(blocks=KINDS[kind])  # pyright: ignore[reportArgumentType]
            row["report"] = memory(of, solver).total
            step = Ours(of, solver)
            row["seconds"] = median(step, device, args.rounds)
            frozen = [p for p in model.parameters() if not p.requires_grad]
            fixed = step_cost.size([step.state, frozen])
        row["peak"] = torch.cuda.max_memory_allocated() if cuda else fixed + peak(step, place)
    except torch.cuda.OutOfMemoryError:
        row["fits"] = False
    return row


def products(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A Hessian-vector product and a penalty step, in gradients of the lower level."""
    rows = []
    for count in args.networks:
        of = step_cost.problem(int(count), 256, False, args.device)
        oracle = of.oracle()
        x, y = oracle.variables["x"], oracle.variables["y"]
        here = oracle.g.at(x, y)
        gradient = median(lambda oracle=oracle, x=x, y=y: oracle.g.grad_y(x, y), args.device, args.rounds)
        product = median(lambda here=here, y=y: here.yy(y), args.device, args.rounds)
        penalty = step_cost.Stepper(of, PenaltySGD(sigma=1.0, gamma=0.1, warmup=0))
        step = median(penalty, args.device, args.rounds)
        true = sum(p.numel() for p in of.y.parameters())
        rows.append({"parameters": true, "gradient": gradient, "product": product / gradient, "penalty": step / gradient})
    return rows


def kkt(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Products with H = hess (f + lam'c) of constrained logistic regression, 64 at once, against 64 times one."""
    rows = []
    for n in args.unknowns:
        of = logistic(data="synthetic", n=int(n), N=2 * int(n), sphere=False, device=args.device).problem
        oracle = of.oracle(0)
        linear = oracle.f.linearize((oracle.variables["x"],))
        x = oracle.variables["x"]
        stack = Vec([torch.randn(64, *leaf.shape, device=leaf.device, dtype=leaf.dtype) for leaf in x.leaves], x.spec)
        one = x.like([leaf[0] for leaf in stack.leaves])
        together = median(lambda linear=linear, stack=stack: linear.products(stack, 0, 0), args.device, args.rounds)
        single = median(lambda linear=linear, one=one: linear.product(one, 0, 0), args.device, args.rounds)
        rows.append({"unknowns": int(n), "batched": together, "single": single, "gain": 64 * single / together})
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if args.device != "cpu" else platform.processor() or platform.machine()
    found: dict[str, Any] = {"device": where, "torch": torch.__version__, "length": args.length, "training": []}
    for size in args.sizes:
        for kind in args.kinds:
            row = training(size, kind, args)
            gc.collect()
            if args.device != "cpu":
                torch.cuda.empty_cache()
            found["training"].append(row)
            print(json.dumps(row), flush=True)
            write(found, args.json)
    for name, part in (("products", products), ("kkt", kkt)):
        found[name] = part(args)
        print(name, json.dumps(found[name]), flush=True)
        write(found, args.json)
    return found


def write(found: dict[str, Any], path: Path | None) -> None:
    """After every row: a run that is cut short leaves what it has."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


# -- the page -----------------------------------------------------------------------------------------------------------------
def page(all_found: list[dict[str, Any]]) -> str:
    """docs/measurements.md from the JSON of one or more devices."""
    lines = ["# Measurements", "", "Made by `benchmarks/gpu.py` from its own JSON; ratios are of two sides in one run.", ""]
    if all("cpu" in found["torch"] for found in all_found):
        lines += [
            "No GPU was at hand: figures of the CPU, one thread. The script measures 125M, 1.3B and 7B parameters on one.",
            "",
        ]
    for found in all_found:
        lines += [f"## {found['device']}, torch {found['torch']}", ""]
        lines += [
            f"A training step on 1 x {found['length']} tokens, blocks recomputed in the backward; the ratio is to the plain step."
        ]
        lines += ["", "| parameters | step | seconds | ratio | peak memory | of the report |", "|---|---|---|---|---|---|"]
        plain = {row["size"]: row.get("seconds") for row in found["training"] if row["kind"] == "plain"}
        for row in found["training"]:
            ratio = f"{row['seconds'] / plain[row['size']]:.2f}" if row.get("seconds") and plain.get(row["size"]) else "-"
            seconds = f"{row['seconds']:.3g}" if row.get("seconds") else "does not fit"
            held_ = words(row["peak"]) if row.get("peak") else "-"
            share = f"{row['peak'] / row['report']:.2f}" if row.get("peak") and row.get("report") else "-"
            lines.append(f"| {row['parameters']:,} | {row['kind']} | {seconds} | {ratio} | {held_} | {share} |")
        lines += ["", "Second-order products and penalty steps on an MLP, in gradients of the lower level:", ""]
        lines += ["| parameters | gradient, ms | product | penalty step |", "|---|---|---|---|"]
        for row in found.get("products", ()):
            figures = f"{1e3 * row['gradient']:.2f} | {row['product']:.2f} | {row['penalty']:.2f}"
            lines.append(f"| {row['parameters']:,} | {figures} |")
        lines += ["", "64 products with the Hessian of the Lagrangian at once, constrained logistic regression:", ""]
        lines += ["| unknowns | at once, ms | one, ms | 64 x one / at once |", "|---|---|---|---|"]
        for row in found.get("kkt", ()):
            lines.append(f"| {row['unknowns']:,} | {1e3 * row['batched']:.2f} | {1e3 * row['single']:.2f} | {row['gain']:.1f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["125M", "1.3B", "7B"] if cuda else ["0.2M"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--networks", nargs="+", type=float, default=[1e6, 1e7] if cuda else [1e5])
    parser.add_argument("--unknowns", nargs="+", type=float, default=[5e3] if cuda else [500])
    parser.add_argument("--length", type=int, default=LENGTH if cuda else 64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--from", dest="files", nargs="+", type=Path, help="write the page from these instead of measuring")
    parser.add_argument("--page", type=Path, default=Path("docs/measurements.md"))
    args = parser.parse_args()
    if args.files:
        args.page.write_text(page([json.loads(path.read_text()) for path in args.files]))
        return
    start = time.perf_counter()
    if args.device == "cpu":
        torch.set_num_threads(1)
    measure(args)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
