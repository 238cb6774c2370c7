"""What a step of our optimizers costs, in steps of torch's own on the same leaves: fused, and as torch takes it by default.

    PYTHONPATH=. python3 benchmarks/optimizer_step.py [--rounds 200] [--dtype float32] [--device cpu] [--json FILE]

Many small leaves, where calls count, and fewer large ones, where memory does. One thread; the sides take turns in one process,
figures are medians. `update_` writes into its arguments like torch; `update` copies the variable and the state first.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from step_cost import seconds
from torch import Tensor

from constrained.core.optimizers import SGD, AdamW, InPlace
from constrained.core.vec import Vec

SIZES = [(300, 64), (60, 65536)]  # leaves, entries of each
OPTIMIZERS: dict[str, tuple[InPlace, type[torch.optim.Optimizer], dict[str, Any]]] = {
    "AdamW": (AdamW(decay=0.01), torch.optim.AdamW, {"weight_decay": 0.01}),
    "SGD": (SGD(), torch.optim.SGD, {}),
    "SGD, momentum": (SGD(momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
}
LR = 1e-3


def in_place(optimizer: InPlace, x: Vec, grads: Sequence[Tensor]) -> Callable[[], object]:
    x, state = x.clone(), optimizer.init(x)

    def step() -> None:
        nonlocal state
        state = optimizer.update_(x, grads, state, LR)

    return step


def by_copies(optimizer: InPlace, x: Vec, grads: Sequence[Tensor]) -> Callable[[], object]:
    state = optimizer.init(x)

    def step() -> None:
        nonlocal x, state
        x, state = optimizer.update(x, grads, state, LR)

    return step


def torchs(cls: Any, x: Vec, grads: Sequence[Tensor], **options: Any) -> Callable[[], object]:
    params = [torch.nn.Parameter(leaf.clone()) for leaf in x.leaves]
    for p, grad in zip(params, grads):
        p.grad = grad
    return cls(params, lr=LR, **options).step


def compare(name: str, leaves: int, entries: int, args: argparse.Namespace) -> dict[str, float]:
    """Medians of milliseconds."""
    torch.manual_seed(0)
    x, grads = ([torch.randn(entries).to(args.device, getattr(torch, args.dtype)) for _ in range(leaves)] for _ in "xd")
    optimizer, cls, options = OPTIMIZERS[name]
    vec = Vec.of({str(i): leaf for i, leaf in enumerate(x)})
    sides = {
        "update_": in_place(optimizer, vec, grads),
        "update": by_copies(optimizer, vec, grads),
        "fused": torchs(cls, vec, grads, **options, fused=True),
        "default": torchs(cls, vec, grads, **options),
    }
    for step in [*sides.values()] * 2:  # the state is made, the memory warm
        step()
    found = [{side: seconds(step, args.device) for side, step in sides.items()} for _ in range(args.rounds)]
    return {side: 1e3 * statistics.median(one[side] for one in found) for side in sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    columns = ["update_ / fused", "update_ / default", "update / fused", "update_ ms", "fused ms"]
    print(f"{'optimizer':16}{'leaves':>8}{'entries':>9}" + "".join(f"{column:>19}" for column in columns))
    for leaves, entries in SIZES:
        for name in OPTIMIZERS:
            ms = compare(name, leaves, entries, args)
            rows.append({"optimizer": name, "leaves": leaves, "entries": entries, "ms": ms})
            pairs = [("update_", "fused"), ("update_", "default"), ("update", "fused")]
            figures = [*(ms[ours] / ms[theirs] for ours, theirs in pairs), ms["update_"], ms["fused"]]
            print(f"{name:16}{leaves:8}{entries:9,}" + "".join(f"{figure:19.2f}" for figure in figures), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, "device": args.device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
