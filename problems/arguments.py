"""What the makers of instances ask of their arguments, in one wording. Everything raises OptionError."""

from __future__ import annotations

import math
from typing import Any

import torch

from constrained.core.errors import OptionError


def whole(where: str, value: Any, low: int, high: float = math.inf) -> None:
    """An integer in low..high; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(f"{where}: expected an integer {_span(low, high)}, got {value!r}")


def number(where: str, value: Any, low: float) -> None:
    """A finite number >= low; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < math.inf:
        raise OptionError(f"{where}: expected a finite number >= {low:g}, got {value!r}")


def placed(maker: str, dtype: Any, device: Any) -> torch.device:
    """The device, and a floating-point dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"{maker}(dtype=...): expected a floating-point torch.dtype, got {dtype!r}")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as cause:
        raise OptionError(f"{maker}(device=...): expected a torch device such as 'cpu', got {device!r}") from cause


def _span(low: int, high: float) -> str:
    return f">= {low}" if high == math.inf else f"in {low}..{high:g}"
