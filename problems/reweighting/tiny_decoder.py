"""A small decoder-only transformer in plain torch, and its loss on sequences."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from constrained.core.errors import OptionError
from constrained.core.shared_state import generators_kept

from ..arguments import whole


class Block(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)): causal attention, a hidden layer of 4 widths with GELU.

    twice: by the attention that torch can differentiate twice, which is slower.
    """

    def __init__(self, width: int, heads: int, twice: bool):
        super().__init__()
        self.heads, self.twice = heads, twice
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        n, length, width = h.shape
        q, k, v = self.qkv(self.norm_1(h)).view(n, length, 3 * self.heads, -1).transpose(1, 2).chunk(3, dim=1)
        with sdpa_kernel(SDPBackend.MATH) if self.twice else contextlib.nullcontext():
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return h + self.narrow(F.gelu(self.wide(self.norm_2(h)), approximate="tanh"))


class TinyDecoder(nn.Module):
    """Tokens (n, length) in 0..vocab-1, length <= context, to the logits (n, length, vocab) of each next token.

    The shape of GPT-2: embeddings of tokens and places, `layers` blocks in the list `h`, a norm, a head. tied: the head is the
    embedding of tokens. twice: it has second derivatives, slower. Weights start N(0, 0.02^2), biases 0, norms 1, by the seed
    alone. No dropout. Raises OptionError.

    >>> sum(p.numel() for p in TinyDecoder(64, 64, 4, 2, 32).parameters())
    106240
    """

    def __init__(
        self,
        vocab: int,
        width: int,
        heads: int,
        layers: int,
        context: int,
        *,
        tied: bool = True,
        twice: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        for name, size in (("vocab", vocab), ("width", width), ("heads", heads), ("layers", layers), ("context", context)):
            whole(f"TinyDecoder({name}=...)", size, 1)
        if width % heads:
            raise OptionError(f"TinyDecoder(heads=...): expected a divisor of the width {width}, got {heads}")
        with generators_kept(torch_alone=True):  # torch's own layers draw first
            self.tokens, self.places = nn.Embedding(vocab, width), nn.Embedding(context, width)
            self.h = nn.ModuleList(Block(width, heads, twice) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = None if tied else nn.Linear(width, vocab, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.Linear | nn.Embedding):
                    part.weight.normal_(0.0, 0.02, generator=generator)
                if isinstance(part, nn.Linear) and part.bias is not None:
                    part.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            h = block(h)
        h = self.norm(h)
        return h @ self.tokens.weight.T if self.head is None else self.head(h)


def row_losses(net: nn.Module, tokens: Tensor, precision: torch.dtype | None = None) -> Tensor:
    """(n,): for each sequence the mean cross-entropy of its tokens 1, 2, ... given those before.

    precision: the type that autocast computes the logits in, torch.bfloat16; losses are in float32 then. None: all in the type
    of the parameters.
    """
    with torch.autocast(tokens.device.type, dtype=precision or torch.bfloat16, enabled=precision is not None):
        logits = net(tokens[:, :-1])
    logits = logits if precision is None else logits.float()
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)
