"""What the makers of instances ask of their arguments, in one wording. Everything raises OptionError."""

from __future__ import annotations

import math
from typing import Any

import torch

from constrained.core.arguments import expect
from constrained.core.errors import OptionError
from constrained.core.options import Range


def whole(where: str, value: Any, low: int, high: float = math.inf) -> int:
    """An integer in low..high; a bool is none."""
    span = f">= {low}" if high == math.inf else f"in {low}..{high:g}"
    return expect(where, value, Range(low, high, f"an integer {span}", whole=True))


def number(where: str, value: Any, low: float) -> float:
    """A finite number >= low; a bool is none."""
    return expect(where, value, Range(low, math.inf, f"a finite number >= {low:g}", open_high=True))


def placed(maker: str, dtype: Any, device: Any) -> torch.device:
    """The device, and a floating-point dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"{maker}(dtype=...): expected a floating-point torch.dtype, got {dtype!r}")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise OptionError(f"{maker}(device=...): expected a torch device such as 'cpu', got {device!r}") from cause
