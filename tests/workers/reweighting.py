"""ScaleBiO on a small decoder, alone or as one of several processes of torchrun; writes what test_distributed.py compares."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bilevel import (
    LISA,
    AdamW,
    AllBlocks,
    BilevelProblem,
    Checkpoint,
    Event,
    Live,
    MiniBatches,
    Mixture,
    ScaleBiO,
    SourceBatches,
    iterate,
    per_source,
)
from constrained.core.live import norm

WORDS, LENGTH, WIDTH = 16, 12, 16


class Block(nn.Module):
    """Causal attention and a network of one hidden layer, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.net = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.first(x))[:, None].chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return x + self.net(self.second(x))


class Decoder(nn.Module):
    """Embedding, two blocks, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.head(x).float()


def token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Cross entropy of each sequence, the mean over its tokens."""
    logits = model(tokens[:, :-1])
    each = nn.functional.cross_entropy(logits.reshape(-1, WORDS), tokens[:, 1:].reshape(-1), reduction="none")
    return each.reshape(len(tokens), -1).mean(1)


def sequences(n: int, noise: float, seed: int) -> Tensor:
    """Each token follows from the last by one rule, but for a share of random ones."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(WORDS, (n, LENGTH), generator=generator)
    for t in range(1, LENGTH):
        follows = torch.rand(n, generator=generator) >= noise
        tokens[:, t] = torch.where(follows, (5 * tokens[:, t - 1] + 3) % WORDS, tokens[:, t])
    return tokens


def wrapping(kind: str, bf16: bool):
    """What shards or wraps a model; None where the processes average by themselves."""
    if kind == "ddp":
        return lambda model: nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    if kind != "fsdp":
        return None
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()

    def shard(model: nn.Module) -> nn.Module:
        for block in model.h:  # pyright: ignore
            fully_shard(block, mp_policy=policy)
        return fully_shard(model, mp_policy=policy)

    return shard


class Uneven(Decoder):
    """A parameter that the last process alone uses."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(WORDS))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = super().forward(tokens)
        return logits + self.extra if dist.get_rank() == dist.get_world_size() - 1 else logits


def problem(kind: str, bf16: bool, uneven: bool = False) -> BilevelProblem:
    torch.manual_seed(0)
    sources = {"clean": sequences(64, 0.1, 1), "half": sequences(64, 0.5, 2), "noise": sequences(64, 1.0, 3)}

    def losses(model: nn.Module, batch: tuple) -> Tensor:
        tokens, source = batch
        return per_source(token_loss(model, tokens), source, 3)

    return BilevelProblem(
        upper=lambda x, model, tokens: token_loss(model, tokens).mean(),
        lower=Mixture(losses),
        x=torch.zeros(3),
        y=Live(Uneven() if uneven else Decoder(), wrap=wrapping(kind, bf16)),
        upper_data=MiniBatches(sequences(64, 0.1, 4), 8, drop_last=True),
        lower_data=SourceBatches(sources, 4),
    )


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def run(
    kind: str, *, bf16: bool = False, lisa: bool = False, steps: int = 10, checkpoint=None, resume=False, kill=-1, uneven=False
) -> dict:
    """What a run ends with; it kills itself at step `kill`."""
    blocks = LISA(layers=1, every=4) if lisa else AllBlocks()
    solver = ScaleBiO(inner=AdamW(lr=3e-3), outer=AdamW(lr=5e-2), blocks=blocks)
    callbacks: list = [] if checkpoint is None else [Checkpoint(checkpoint, every=3)]

    def die(event: Event) -> None:
        if event.k == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    what = problem(kind, bf16, uneven)
    first = gradients(what)
    more = {"max_steps": steps, "seed": 1, "callbacks": [*callbacks, die], "resume": checkpoint if resume else None}
    *_, event = iterate(what, solver, **more)
    state = event.state
    return {
        "x": state.x.tree().tolist(),
        "weights": state.weights.tolist(),
        "u": [whole(leaf).double().reshape(-1).tolist() for leaf in state.u.leaves],
        "norm": float(norm(state.w.leaves)),
        "kept": sorted(state.inner_u),
        "gradients": first,
        "rows": event.calls.rows,
    }


def gradients(what: BilevelProblem) -> dict:
    """The gradients of both levels on their first batches at the start."""
    oracle = what.oracle(1)
    assert oracle.sources is not None
    x, y = oracle.variables["x"], oracle.variables["y"]
    p = oracle.sources.weights(x)
    at = oracle.mixed(x, y, p, [oracle.g.draw(0)], [oracle.f.draw(0)], weight=0.5)
    _, (f_x, f_y) = oracle.f.gradient((x, y), oracle.f.draw(0), (0, 1))
    parts = (("mixed", at.y), ("f_y", f_y.leaves))
    flat = {name: [whole(leaf).reshape(-1).tolist() for leaf in part if leaf is not None] for name, part in parts}
    _, (g_x, _) = oracle.g.gradient((x, y), oracle.g.draw(0), (0, 1))
    return {
        **flat,
        "losses": at.losses.tolist(),
        "value": float(at.upper),
        "f_x": f_x.tree().tolist(),
        "g_x": g_x.tree().tolist(),
    }


def main(runs: dict[str, dict], out: Path) -> None:
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    found = {name: run(**options) for name, options in runs.items()}
    (out / f"{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
