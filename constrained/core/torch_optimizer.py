"""Any optimizer of torch as one of ours."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from .errors import OptionError
from .optimizers import OptState, on_copies
from .options import Positive, Schedule, at
from .shared_state import generators_kept
from .vec import Vec

NUMBERS = {"bool": bool, "int": int, "float": float}  # kinds of Python numbers in the state of a torch optimizer
TRIAL = 12  # steps after which rebuilding must have changed nothing


@dataclass(frozen=True, init=False, repr=False)
class TorchOptimizer:
    """A class of `torch.optim`, or another like it, as an optimizer here: bit-equal to running it on the variable itself.

    `TorchOptimizer(torch.optim.Adam, lr=0.1, betas=(0.5, 0.9))`: the options of the class, all its blocks in one group. `lr`, a
    number > 0 or a `Schedule`, defaults to that of the class. The torch optimizer is made anew at every step, on
    the blocks that have a gradient, and given its state, which is kept as plain tensors: a Python number `step` under the
    name `step:int` as a 0-dim tensor, entries that are None not at all.

    Raises OptionError for what is no subclass of torch.optim.Optimizer, for options that it does not take, and for optimizers
    whose steps depend on more than a gradient and such tensors: LBFGS (a closure), SparseAdam (sparse gradients), those that
    count in their groups or draw random numbers. They are told by a trial of 12 steps, with and without rebuilding. `init`
    raises it for variables that the optimizer refuses, such as vectors by Muon.

    >>> optimizer = TorchOptimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
    >>> optimizer.update(Vec.of(torch.tensor([1.0])), [torch.tensor([2.0])], {}, 0.1)[0].tree()
    tensor([0.8000])
    """

    cls: type[torch.optim.Optimizer]
    lr: float | Schedule
    options: tuple[tuple[str, Any], ...]

    def __init__(self, cls: type[torch.optim.Optimizer], **options: Any):
        if not (inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)):
            got = cls.__name__ if inspect.isclass(cls) else f"an object: {type(cls).__name__}"
            raise OptionError(f"TorchOptimizer: cls: expected a class such as torch.optim.Adam, got {got}")
        parameters = list(inspect.signature(cls).parameters.values())[1:]  # the first takes the blocks
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        for name in options:
            if name not in names and len(names) == len(parameters):
                near = difflib.get_close_matches(name, names, 1)
                hint = f": did you mean {near[0]}?" if near else "."
                raise OptionError(f"TorchOptimizer: {cls.__name__} has no option {name!r}{hint} It has: {', '.join(names)}")
        default = next((p.default for p in parameters if p.name == "lr" and p.default is not p.empty), None)
        lr = options.pop("lr", default)
        (positive,) = get_args(Positive)[1:]
        if not (isinstance(lr, Schedule) or positive.holds(lr)):
            raise OptionError(f"TorchOptimizer({cls.__name__}, lr={lr!r}): lr must be {positive.words} or a Schedule, got {lr!r}")
        object.__setattr__(self, "cls", cls)
        object.__setattr__(self, "lr", lr if isinstance(lr, Schedule) else float(lr))
        object.__setattr__(self, "options", tuple((name, _constant(name, options[name])) for name in sorted(options)))
        self._try()

    def init(self, params: Vec) -> OptState:
        one = params.map(lambda leaf: leaf.new_zeros([1] * leaf.ndim))  # of its dtype, device and number of dimensions
        try:
            self.update(one, one.leaves, {}, at(self.lr, 0))
        except Exception as cause:  # torch raises many kinds
            like = ", ".join(f"{leaf.ndim}-dim {leaf.dtype} on {leaf.device}" for leaf in params.leaves)
            raise OptionError(f"{self!r}: expected an optimizer for variables that are {like}, got {_said(cause)}") from cause
        return {}

    def update(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> tuple[Vec, OptState]:
        return on_copies(self, params, grads, state, lr)

    def update_(self, params: Vec, grads: Sequence[Tensor | None], state: OptState, lr: float) -> OptState:
        given = [(path, x, d) for path, x, d in zip(params.paths(), params.leaves, grads) if d is not None]
        if not given:
            return {}
        blocks = {path: x.detach().requires_grad_() for path, x, _ in given}
        optimizer = self._made(list(blocks.values()))
        for path, _, d in given:
            blocks[path].grad = d.detach().clone()  # some optimizers write into gradients
            if path in state:
                optimizer.state[blocks[path]] = _restored(state[path])
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        if set(optimizer.state) - set(blocks.values()):
            raise OptionError(self._words("state that belongs to no parameter"))
        new = {path: self._plain(optimizer.state[block]) for path, block in blocks.items()}
        return {path: entries for path, entries in new.items() if entries}

    def __repr__(self) -> str:
        known = getattr(torch.optim, self.cls.__name__, None) is self.cls
        name = f"torch.optim.{self.cls.__name__}" if known else f"{self.cls.__module__}.{self.cls.__qualname__}"
        return f"TorchOptimizer({', '.join([name, f'lr={self.lr!r}', *(f'{key}={value!r}' for key, value in self.options)])})"

    # -- helpers --------------------------------------------------------------------------------------------------------
    def _made(self, blocks: list[Tensor]) -> torch.optim.Optimizer:
        return self.cls(blocks, lr=at(self.lr, 0), **dict(self.options))  # pyright: ignore[reportCallIssue]

    def _try(self) -> None:
        """Refuse what rebuilding would change: on a small variable, step with and without it and compare the bits."""
        if dict(self.options).get("capturable"):  # it asks for a variable on a GPU: try it without, `init` tries it there
            TorchOptimizer(self.cls, lr=self.lr, **{**dict(self.options), "capturable": False})
            return
        start = [torch.linspace(-1, 1, n, dtype=torch.float64, device="cpu").reshape(-1, 2) for n in (4, 2)]
        # Not seeded again for the second: an optimizer that draws random numbers steps apart from itself.
        with torch.inference_mode(False), generators_kept():
            theirs, ours, state = [leaf.clone().requires_grad_() for leaf in start], Vec.of(start), {}
            try:
                optimizer = self._made(theirs)
            except Exception as cause:  # torch raises many kinds
                raise OptionError(f"{self!r}: expected options of {self.cls.__name__}, got {_said(cause)}") from cause
            for k in range(TRIAL):
                grads = [torch.cos(leaf + k) for leaf in start]
                for block, d in zip(theirs, grads):
                    block.grad = d.clone()
                for group in optimizer.param_groups:
                    group["lr"] = at(self.lr, k)
                try:
                    optimizer.step()
                    ours, state = self.update(ours, grads, state, at(self.lr, k))
                except OptionError:
                    raise
                except Exception as cause:
                    raise OptionError(self._words(_said(cause))) from cause
                bits = [(a.detach().view(torch.int64), b.view(torch.int64)) for a, b in zip(theirs, ours.leaves)]
                if not all(torch.equal(a, b) for a, b in bits):
                    raise OptionError(self._words("steps that depend on something else"))

    def _words(self, got: str) -> str:
        return f"{self!r}: expected an optimizer that steps from gradients and from tensors of each parameter alone, got {got}"

    def _plain(self, entries: dict[str, Any]) -> dict[str, Tensor]:
        plain = {}
        for name, value in entries.items():
            kind = next((kind for kind, number in NUMBERS.items() if isinstance(value, number)), None)
            if isinstance(value, Tensor):
                plain[name] = value.detach()
            elif kind is not None:
                plain[f"{name}:{kind}"] = torch.tensor(value, dtype=torch.float64 if kind == "float" else None, device="cpu")
            elif value is not None:
                raise OptionError(self._words(f"a {type(value).__name__} as its state {name!r}"))
        return plain


def _restored(entries: dict[str, Tensor]) -> dict[str, Any]:
    """State as the torch optimizer keeps it."""
    found = {}
    for name, value in entries.items():
        plain, _, kind = name.rpartition(":")
        found |= {plain: NUMBERS[kind](value.item())} if kind in NUMBERS else {name: value}
    return found


def _constant(name: str, value: Any) -> Any:
    """An option that can be compared and hashed, so that optimizers can."""
    value = tuple(value) if isinstance(value, list) else value
    try:
        hash(value)
        plain = not isinstance(value, Tensor)  # they compare entry by entry
    except TypeError:
        plain = False
    if not plain:
        raise OptionError(f"TorchOptimizer: {name}: expected a number or another constant, got {type(value).__name__}")
    return value


def _said(cause: Exception) -> str:
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
