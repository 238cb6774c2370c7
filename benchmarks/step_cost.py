"""What one step of a single-loop penalty method costs, in plain gradients of the lower loss, and what memory it needs.

    python benchmarks/step_cost.py [--sizes 1e4 1e5 1e6] [--rounds 50] [--rows 256] [--square] [--device cpu] [--json FILE]

Lower: MLP 784-h-10 with tanh, cross-entropy of each of 256 rows weighted by sigmoid(x_i), and a ridge. Upper: cross-entropy of
256 other rows. float32, one thread. Step and gradient take turns in one process; the figure is the ratio of their medians. The
gradient is that of the lower loss, ridge included, by `torch.autograd.grad` on the module's own parameters, without the library.
Memory: the peak of live tensor bytes (torch's own profiler of allocations) beyond x, y, z and one gradient of the parameters, in
copies of the parameters: of a step, momentum and activations included, and of the plain gradient by itself. `--square` writes the
ridge as p**2 instead of p * p, whose backward holds one copy more, on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bilevel import F2SA, BilevelProblem, FullBatch, KwonSingleLoop, PenaltySGD, Point
from bilevel.advice.memory import peak
from constrained.core.solver import Solver
from constrained.core.vec import tensors

INPUTS, CLASSES, RIDGE = 784, 10, 0.1


def network(parameters: int) -> nn.Sequential:
    """INPUTS - h - CLASSES with tanh, h chosen so that it has about this many parameters."""
    h = round((parameters - CLASSES) / (INPUTS + CLASSES + 1))
    return nn.Sequential(nn.Linear(INPUTS, h), nn.Tanh(), nn.Linear(h, CLASSES))


def problem(parameters: int, rows: int, square: bool, device: str) -> BilevelProblem:
    """Weights of training rows for the network, on random data."""
    torch.manual_seed(0)
    train, held = ((torch.randn(rows, INPUTS, device=device), torch.randint(0, CLASSES, (rows,), device=device)) for _ in "fg")

    def lower(x: Tensor, net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        losses = F.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return (torch.sigmoid(x) * losses).mean() + 0.5 * RIDGE * sum((p**2 if square else p * p).sum() for p in net.parameters())

    def upper(x: Tensor, net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    net = network(parameters).to(device).eval()  # no module randomness to seed
    x = torch.zeros(rows, device=device)
    return BilevelProblem(upper=upper, lower=lower, x=x, y=net, upper_data=FullBatch(*held), lower_data=FullBatch(*train))


def plain_gradient(of: BilevelProblem) -> Callable[[], object]:
    """One gradient of the lower loss in the parameters, as anyone would write it."""
    net, x, data = of.y, of.x, of.lower_data.draw(0, 0, 0)
    parameters = list(net.parameters())
    return lambda: torch.autograd.grad(of.lower(x, net, data), parameters)


class Stepper:
    """A solver stepped by hand: what `solve` does between two looks."""

    def __init__(self, of: BilevelProblem, solver: Solver):
        self.oracle, self.solver = of.oracle(0), solver
        start = {name: vec.clone() for name, vec in self.oracle.variables.items()}
        with torch.no_grad():
            self.state = solver.init(self.oracle, Point(**start))

    def __call__(self) -> None:
        with torch.no_grad():
            self.state = self.solver.step(self.oracle, self.state)


def seconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def cost(of: BilevelProblem, solver: Solver, rounds: int, device: str) -> dict[str, float]:
    """Medians of both sides, taking turns, and the peak memory of a step."""
    step, gradient = Stepper(of, solver), plain_gradient(of)
    for _ in range(5):
        step()
        gradient()
    pairs = [(seconds(step, device), seconds(gradient, device)) for _ in range(rounds)]
    ours, plain = (statistics.median(side) for side in zip(*pairs))
    state = step.state
    copy, held = size([state.y]), size([state])
    own = size([state.x, state.y, state.z if hasattr(state, "z") else state.w_z]) + copy  # x, y, z and one gradient
    copies = (held + peak(step, torch.device(device)) - own) / copy
    plain_copies = peak(gradient, torch.device(device)) / copy - 1
    return {
        "ratio": ours / plain,
        "step_ms": 1e3 * ours,
        "gradient_ms": 1e3 * plain,
        "copies": copies,
        "plain_copies": plain_copies,
    }


def size(trees: list[Any]) -> int:
    """Bytes of the tensors of some trees, each counted once."""
    return sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in tensors(trees)}.values())


SOLVERS: dict[str, Solver] = {
    "PenaltySGD": PenaltySGD(sigma=1.0, gamma=0.1, warmup=0),
    "F2SA": F2SA(),
    "KwonSingleLoop": KwonSingleLoop(),  # without noise: three gradients
}
COLUMNS = {"ratio": "step / gradient", "step_ms": "step ms", "gradient_ms": "gradient ms"}
COLUMNS |= {"copies": "copies", "plain_copies": "plain gradient's"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e4, 1e5, 1e6], help="numbers of parameters")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--rows", type=int, default=256, help="of the training and of the validation batch")
    parser.add_argument("--square", action="store_true", help="ridge as p**2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'solver':16}{'parameters':>12}" + "".join(f"{title:>18}" for title in COLUMNS.values()))
    for count in args.sizes:
        of = problem(int(count), args.rows, args.square, args.device)
        true = sum(p.numel() for p in of.y.parameters())
        for name, solver in SOLVERS.items():
            found = cost(of, solver, args.rounds, args.device)
            rows.append({"solver": name, "parameters": true, **found})
            print(f"{name:16}{true:12,}" + "".join(f"{found[key]:18.2f}" for key in COLUMNS), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"torch": torch.__version__, "device": args.device, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
