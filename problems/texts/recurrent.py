"""A small recurrent network that reads short texts, and how it is trained without a second level."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from constrained.core.data import MiniBatches

WIDTH, STATES = 12, 24
Net = TypeVar("Net", bound=nn.Module)


class Encoder(nn.Module):
    """Tokens (n, length) in 0..tokens-1 to features (n, 24) in [-1, 1]: Embedding 12, GRU 24, the largest state over the text."""

    def __init__(self, tokens: int):
        super().__init__()
        self.embed, self.gru = nn.Embedding(tokens, WIDTH), nn.GRU(WIDTH, STATES, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gru(self.embed(tokens))[0].amax(1)


class Reader(nn.Module):
    """Tokens (n, length) to the logits of the classes (n, classes): an encoder and a linear layer."""

    def __init__(self, tokens: int, classes: int):
        super().__init__()
        self.encoder, self.out = Encoder(tokens), nn.Linear(STATES, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.encoder(tokens))


def seeded(make: Callable[[], Net], seed: int, dtype: torch.dtype, device: torch.device) -> Net:
    """The network at its start: N(0, 1) for the embedding, U(-1, 1) / sqrt(24) for the rest, torch's own distributions."""
    with torch.device("meta"):  # so that torch draws nothing
        net = make().double()
    net.to_empty(device="cpu")
    generator, bound = torch.Generator().manual_seed(seed), STATES**-0.5
    for name, parameter in net.named_parameters():
        values = parameter.detach()
        if "embed" in name:
            values.normal_(generator=generator)
        else:
            values.uniform_(-bound, bound, generator=generator)
    return net.to(device=device, dtype=dtype)


def squares(net: nn.Module) -> Tensor:
    """|w|^2 of all parameters."""
    return torch.stack([(p**2).sum() for p in net.parameters()]).sum()


def trained(net: Reader, data: tuple[Tensor, Tensor], *, steps: int, gamma: float, ridge: float, batch: int, seed: int) -> Reader:
    """The same network after SGD on mean CE + ridge |w|^2, `steps` batches with step size gamma."""
    batches, optimizer = MiniBatches(data, batch), torch.optim.SGD(net.parameters(), lr=gamma)
    for n in range(steps):
        tokens, labels = batches.draw(seed, 1, n)
        optimizer.zero_grad()
        (F.cross_entropy(net(tokens), labels) + ridge * squares(net)).backward()
        optimizer.step()
    return net


@torch.no_grad()
def accuracy(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Share of the texts for which the largest logit is that of the label."""
    tokens, labels = data
    return float((net(tokens).argmax(1) == labels).double().mean())
