"""A decoder-only transformer of any size for benchmarks: random weights made on the device, bf16, checkpoints, adapters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from problems.reweighting.tiny_decoder import Block

VOCABULARY = 32_000
SHAPES = {  # name: (width, layers, heads)
    "0.2M": (64, 3, 4),
    "10M": (384, 3, 6),
    "125M": (768, 12, 12),
    "1.3B": (2048, 24, 16),
    "7B": (4096, 32, 32),
}


class Decoder(nn.Module):
    """Tokens (n, length) to float32 logits; float32 weights, bf16 arithmetic where `half`, blocks recomputed in the backward."""

    def __init__(self, name: str, context: int, device: str, *, half: bool):
        super().__init__()
        width, layers, heads = SHAPES[name]
        self.half = half
        with torch.device(device):
            vocabulary = min(VOCABULARY, 32 * width)
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
            self.h = nn.ModuleList(Block(width, heads, twice=False) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.Linear | nn.Embedding):
                    part.weight.normal_(0.0, 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=self.half):
            h = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
            for block in self.h:
                h = checkpoint(block, h, use_reentrant=False) if torch.is_grad_enabled() else block(h)
            logits = self.norm(h) @ self.tokens.weight.T
        return logits.float()


class Adapter(nn.Module):
    """x -> A x + B C x with A frozen and B, C of rank 8, B zero at the start (LoRA, arXiv 2106.09685, eq. 3)."""

    def __init__(self, inner: nn.Linear, rank: int = 8):
        super().__init__()
        self.inner = inner
        like = inner.weight
        self.down = nn.Parameter(torch.randn(rank, inner.in_features, device=like.device, dtype=like.dtype) / rank)
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank, device=like.device, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down.T @ self.up.T


def adapted(model: Decoder) -> Decoder:
    """The model frozen, with adapters on the attention of each block."""
    for p in model.parameters():
        p.requires_grad_(False)
    for block in model.h:
        assert isinstance(block, Block)
        block.qkv = Adapter(block.qkv)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return model
