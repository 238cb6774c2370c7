"""What a user's function may do wrong from its k-th call on, or at that call alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from drawn_problems import Calls, Own
from hypothesis import strategies as st


def _other(value: torch.Tensor) -> torch.dtype:
    return torch.float32 if value.dtype == torch.float64 else torch.float64


def _own(value: Any, k: int) -> Any:
    raise Own(f"at call {k}")


def _interrupt(value: Any, k: int) -> Any:
    raise KeyboardInterrupt


WAYS: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "nan": lambda v, k: v * torch.nan,
    "inf": lambda v, k: v + torch.inf,
    "minus inf": lambda v, k: v - torch.inf,
    "nan in the gradient": lambda v, k: v + (0 * v).abs().sqrt(),
    "own exception": _own,
    "interrupt": _interrupt,
    "vector": lambda v, k: torch.stack([v, v]),
    "one entry": lambda v, k: v.reshape(1, -1)[:, :1],
    "dtype": lambda v, k: v.to(_other(v)),
    "half": lambda v, k: v.half(),
    "complex": lambda v, k: v.to(torch.complex128),
    "integer": lambda v, k: v.detach().long(),
    "bool": lambda v, k: v > 0,
    "None": lambda v, k: None,
    "number": lambda v, k: float(v.detach().sum()),
    "list": lambda v, k: [v],
    "word": lambda v, k: "word",
    "meta": lambda v, k: v.to("meta"),
    "detached": lambda v, k: v.detach(),
    "constant": lambda v, k: torch.ones_like(v.detach()),
    "needs grad": lambda v, k: torch.ones_like(v.detach()).requires_grad_(),
    "zero": lambda v, k: 0 * v,
    "huge": lambda v, k: v * (1e200 if v.dtype == torch.float64 else 1e30),
    "tiny": lambda v, k: v * (1e-200 if v.dtype == torch.float64 else 1e-30),
    "drift": lambda v, k: v + 1e-3 * k,
    "sign": lambda v, k: -v,
    "empty": lambda v, k: v.reshape(-1)[:0],
    "rows": lambda v, k: torch.cat([v.reshape(-1), v.reshape(-1)]),
}
CLAIMABLE = ("nan", "inf", "minus inf")  # at one call alone these change no answer


@dataclass
class Hostile:
    """In the `part`-th of the problem's functions, in order of their first calls."""

    way: str
    part: int
    at: int
    once: bool
    fired: bool = False

    def into(self, calls: Calls) -> None:
        def around(name: str, k: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
            value = function(*args)
            mine = list(calls.by).index(name) == self.part % max(1, len(calls.by))
            if mine and (k == self.at if self.once else k >= self.at):
                self.fired = True
                return WAYS[self.way](value, k)
            return value

        calls.around = around


hostiles = st.builds(
    Hostile,
    way=st.sampled_from(sorted(WAYS)),
    part=st.integers(0, 2),
    at=st.sampled_from([1, 2, 3, 5, 10, 20, 40, 80, 160]),
    once=st.booleans(),
)
