"""Sources of token sequences weighted for a tiny decoder: synthetic ones, and bytes of texts that lie on this machine.

    lower  g(x, w) = sum_i p_i(x) l_i(w), p = softmax(x), l_i = mean over the sequences of source i of their mean CE a token
    upper  f(w)    = mean CE a token of held-out sequences of the wanted kind
    start  x = 0, w of `TinyDecoder` by the seed, float32

The decoder: 2 layers, width 64, 4 heads, a tied head; 106,240 parameters on the chains, 112,384 on the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.mixture import Mixture, per_source
from bilevel.oracle import LOWER_STREAM
from bilevel.problem import BilevelProblem
from bilevel.solvers.scalebio import ScaleBiO, ScaleBiOState
from constrained.core.arguments import expect
from constrained.core.data import MiniBatches, Sampler
from constrained.core.errors import OptionError
from constrained.core.live import Live
from constrained.core.optimizers import AdamW
from constrained.core.options import Range
from constrained.core.result import Result
from constrained.core.sources import SourceBatches

from ..arguments import placed, whole
from ..instance import Instance, Recommended
from .study import WeightRow, WeightStudy
from .tiny_decoder import TinyDecoder, row_losses
from .token_sources import TokenSources, byte_texts, noisy_chains

WIDTH, HEADS, LAYERS = 64, 4, 2
VALIDATION = 12  # sequences of a validation batch
RATE = 1e-3
SOURCE = "the data reweighting of Pan et al., arXiv 2406.19976 (ScaleBiO), with a decoder of 100,000 parameters"
STEPS = {"reweighting-lm": 300, "reweighting-text": 400}


def reweighting_lm(
    *,
    rates: Sequence[float] = (0.0, 0.5, 1.0),
    live: bool = True,
    sharded: bool = False,
    precision: torch.dtype | None = None,
    width: int = WIDTH,
    layers: int = LAYERS,
    batch: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Instance:
    """Sources of noisy walks of a Markov chain, weighted for a tiny decoder by walks without noise.

    rates: for each source the share of tokens that are noise, 0..1. live: y is `Live(decoder)`; False: the decoder itself, which
    every solver takes. sharded: by FSDP2, over the processes of torchrun. precision: None, or torch.bfloat16: autocast, with
    losses in float32. width, layers: of the decoder. batch: sequences of each source in a batch. seed: of the sequences and of
    the start.
    """
    if not isinstance(rates, tuple | list) or len(rates) < 2:
        raise OptionError(f"reweighting_lm(rates=...): expected at least two rates, got {rates!r}")
    for rate in rates:
        expect("reweighting_lm(rates=...)", rate, Range(0, 1, "numbers in [0, 1]"))
    whole("reweighting_lm(seed=...)", seed, 0, 2**63 - 1)
    device = placed("reweighting_lm", dtype, device)
    task = DecoderTask(noisy_chains(seed, rates, device=device), width, layers, precision, batch, seed, dtype, live, sharded)
    return task.instance("reweighting-lm")


def reweighting_text(
    *,
    live: bool = True,
    sharded: bool = False,
    precision: torch.dtype | None = None,
    batch: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Instance:
    """Texts weighted for a tiny decoder of bytes: which of them is like the reference of the Python language?

    Sources: `problems.reweighting.token_sources.byte_texts`: that reference itself, docstrings of three libraries, fortunes
    where Debian installed them, shuffled bytes. Their texts depend on the versions installed. Arguments as in `reweighting_lm`.
    """
    whole("reweighting_text(seed=...)", seed, 0, 2**63 - 1)
    device = placed("reweighting_text", dtype, device)
    task = DecoderTask(byte_texts(seed, device=device), WIDTH, LAYERS, precision, batch, seed, dtype, live, sharded)
    return task.instance("reweighting-text")


@dataclass(frozen=True, eq=False)
class DecoderTask:
    """Sources, a decoder and the losses of its sequences."""

    data: TokenSources
    width: int
    layers: int
    precision: torch.dtype | None
    batch: int
    seed: int
    dtype: torch.dtype
    live: bool
    sharded: bool

    def network(self) -> TinyDecoder:
        """The decoder at its start."""
        data = self.data
        net = TinyDecoder(data.vocab, self.width, HEADS, self.layers, data.length, twice=not self.live, seed=self.seed)
        return net.to(data.test.device, self.dtype)

    def losses(self, net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One a source."""
        tokens, source = batch
        return per_source(row_losses(net, tokens, self.precision), source, len(self.data.sources))

    def upper(self, x: Tensor, net: nn.Module, tokens: Tensor) -> Tensor:
        return row_losses(net, tokens, self.precision).mean()

    def instance(self, name: str) -> Instance:
        expect(f"{name}(live=...)", self.live, bool)
        if expect(f"{name}(sharded=...)", self.sharded, bool) and not self.live:
            raise OptionError(f"{name}(sharded=...): expected live=True too, got live=False")
        if self.precision is not None and not (isinstance(self.precision, torch.dtype) and self.precision.is_floating_point):
            raise OptionError(f"{name}(precision=...): expected None or torch.bfloat16, got {self.precision!r}")
        whole(f"{name}(batch=...)", self.batch, 1, min(map(len, self.data.sources.values())))
        net = self.network()
        problem = BilevelProblem(
            upper=self.upper,
            lower=Mixture(self.losses),
            x=torch.zeros(len(self.data.sources), dtype=self.dtype, device=self.data.test.device),
            y=Live(net, wrap=_shard if self.sharded else None) if self.live else net,
            upper_data=MiniBatches(self.data.validation, VALIDATION),
            lower_data=SourceBatches(self.data.sources, self.batch),
        )
        solver = ScaleBiO(inner=AdamW(lr=RATE), outer=AdamW(lr=2e-2))
        return Instance(
            name=name,
            problem=problem,
            source=SOURCE,
            recommended={ScaleBiO: Recommended(solver, STEPS[name])},
            study=DecoderStudy(self),
        )

    def trained(self, p: Tensor, steps: int, seed: int) -> TinyDecoder:
        """The decoder after AdamW on sum_i p_i l_i alone, on the batches that a run with that seed draws."""
        batches = SourceBatches(self.data.sources, self.batch)
        return self._descended(batches, lambda net, batch: p.to(self.dtype) @ self.losses(net, batch), steps, seed)

    def trained_alone(self, steps: int, seed: int) -> TinyDecoder:
        """The same on the validation sequences, as many a step as there are of all sources together."""
        rows = min(self.batch * len(self.data.sources), len(self.data.validation))
        batches = MiniBatches(self.data.validation, rows)
        return self._descended(batches, lambda net, tokens: row_losses(net, tokens, self.precision).mean(), steps, seed)

    def _descended(self, batches: Sampler, loss: Any, steps: int, seed: int) -> TinyDecoder:
        net = self.network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
        with torch.enable_grad():
            for n in range(steps):
                optimizer.zero_grad()
                loss(net, batches.draw(seed, LOWER_STREAM, n)).backward()
                optimizer.step()
        return net

    def filled(self, values: Any) -> TinyDecoder:
        """The decoder with given parameters, by name."""
        net = self.network()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                value = values[name]
                parameter.copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)  # the parts of all processes
        return net

    @torch.no_grad()
    def cross_entropy(self, net: nn.Module) -> float:
        """Mean CE a token of the test sequences, in the type of the parameters."""
        return float(row_losses(net, self.data.test).mean())


@dataclass(frozen=True, kw_only=True)
class Row(WeightRow):
    """cross_entropy: of the test sequences, nats a token."""

    cross_entropy: float


class DecoderStudy(WeightStudy):
    """Learned weights and both models of a run beside plain training, with as many steps on the same batches."""

    title = "cross-entropy of the test sequences (nats a token), sum of the matching sources' weights"
    columns = {"cross_entropy": "cross-entropy", "clean": "matching mass"}
    claims = (
        "w has been trained on the validation sequences too: weights are to be judged by u or by training anew. The decoders are "
        "far from trained to the end: a difference in cross-entropy is one of so many steps.",
    )

    def __init__(self, task: DecoderTask):
        super().__init__(task.data.names)
        self.task = task

    def rows(self, result: Result) -> list[Row]:
        task, name = self.task, type(result.solver).__name__
        p = torch.softmax(torch.as_tensor(result.x).detach(), 0)
        m, steps, seed = len(p), result.steps, result.seed
        found = [self._row(f"{name}, its y", task.filled(result.y), p)]
        if isinstance(result.state, ScaleBiOState):
            found.append(self._row(f"{name}, its w", task.filled(result.state.w.plain().tree())))
        found.append(self._row("its weights from the start", task.trained(p, steps, seed)))
        matching = torch.tensor([name in task.data.matching for name in task.data.names]).to(p)
        ways = {"uniform weights": torch.ones_like(p) / m, "matching sources (an oracle)": matching / matching.sum()}
        found += [self._row(name, task.trained(q, steps, seed), q) for name, q in ways.items()]
        return [*found, self._row("validation sequences alone", task.trained_alone(steps, seed))]

    def _row(self, name: str, net: nn.Module, p: Tensor | None = None) -> Row:
        weights = None if p is None else tuple(p.tolist())
        clean = None
        if weights is not None:
            clean = sum(one for one, source in zip(weights, self.task.data.names) if source in self.task.data.matching)
        return Row(name=name, cross_entropy=self.task.cross_entropy(net), weights=weights, clean=clean)


def _shard(net: nn.Module) -> nn.Module:
    """FSDP2: each block by itself, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for block in net.h:  # pyright: ignore[reportGeneralTypeIssues]
        fully_shard(block)
    fully_shard(net)
    return net
