"""What a step of ScaleBiO costs: time in plain AdamW steps on the same batch, peak memory beside the report. Sides take turns.

    PYTHONPATH=. python3 benchmarks/scalebio_step.py --parameters 1e7

A plain step trains the same decoder on the rows of the mixture's batch, by torch.optim.AdamW on the module itself. The trusted
batch has as many rows, so that ScaleBiO does three forwards and backwards of that size.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path

import torch
from step_cost import seconds, size
from torch import Tensor, nn

from bilevel import LISA, AllBlocks, BilevelProblem, Live, MiniBatches, Mixture, ScaleBiO, SourceBatches, memory, per_source
from bilevel.advice.memory import peak, words
from problems.reweighting.tiny_decoder import TinyDecoder

VOCABULARY, SOURCES = 1024, 4
SCHEDULES = {"all": AllBlocks(), "lisa": LISA(layers=2, every=20)}


def decoder(parameters: float, length: int, device: str) -> nn.Module:
    """A decoder of about so many parameters: 12 width^2 a layer, 8 layers."""
    layers = 8
    width = max(64, 64 * round((parameters / (12 * layers)) ** 0.5 / 64))
    torch.manual_seed(0)
    return TinyDecoder(vocab=VOCABULARY, width=width, heads=width // 64, layers=layers, context=length).to(device)


def token_loss(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1]).float()
    each = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return each.reshape(len(rows), -1).mean(1)


def problem(model: nn.Module, rows: int, length: int, device: str) -> BilevelProblem:
    """Four sources of random tokens; as many trusted rows as there are in a batch of all sources."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(VOCABULARY, (4 * rows, length), generator=generator).to(device) for _ in range(SOURCES + 1)]

    def losses(model: nn.Module, batch: tuple) -> Tensor:
        return per_source(token_loss(model, batch[0]), batch[1], SOURCES)

    return BilevelProblem(
        upper=lambda x, model, rows: token_loss(model, rows).mean(),
        lower=Mixture(losses),
        x=torch.zeros(SOURCES, device=device),
        y=Live(model),
        upper_data=MiniBatches(draws[SOURCES], rows),
        lower_data=SourceBatches({str(i): draws[i] for i in range(SOURCES)}, rows // SOURCES),
    )


class Ours:
    """ScaleBiO stepped by hand: what `solve` does between two looks."""

    def __init__(self, of: BilevelProblem, solver: ScaleBiO):
        self.oracle, self.solver = of.oracle(0), solver
        with torch.no_grad():
            self.state = solver.init(self.oracle, of.begin(self.oracle, None))

    def __call__(self) -> None:
        with torch.no_grad():
            self.state = self.solver.step(self.oracle, self.state)


class Plain:
    """The same model on the same batches by torch.optim.AdamW."""

    def __init__(self, model: nn.Module, of: BilevelProblem):
        self.model, self.of, self.k = model, of, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def __call__(self) -> None:
        rows, _ = self.of.lower_data.draw(0, 1, self.k)
        token_loss(self.model, rows).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.k += 1


def compare(args: argparse.Namespace, schedule: str) -> dict[str, float]:
    model = decoder(args.parameters, args.length, args.device)
    plain_model = copy.deepcopy(model)
    of = problem(model, args.rows, args.length, args.device)
    solver = ScaleBiO(blocks=SCHEDULES[schedule])
    report = memory(of, solver)
    step, plain = Ours(of, solver), Plain(plain_model, of)
    step(), plain()
    pairs = [(seconds(step, args.device), seconds(plain, args.device)) for _ in range(args.rounds)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs))
    before = size([step.state])
    measured = before + peak(step, torch.device(args.device))
    print(report)
    parameters = sum(p.numel() for p in model.parameters())
    figures = {"parameters": parameters, "ratio": ours / theirs, "step_s": ours, "plain_s": theirs}
    return figures | {"peak": measured, "report": report.total, "peak_over_report": measured / report.total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--parameters", type=float, default=1e7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {schedule: compare(args, schedule) for schedule in SCHEDULES}
    for schedule, one in found.items():
        print(
            f"{schedule:5} {one['parameters']:12,} parameters: a step {one['step_s']:.2f} s, plain {one['plain_s']:.2f} s, "
            f"ratio {one['ratio']:.2f}; peak {words(int(one['peak']))}, {one['peak_over_report']:.3f} of the report"
        )
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
