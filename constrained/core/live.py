"""Live variables: the leaves are the parameters of a module, steps write into them, gradients come from `backward()`.

For models too large to be passed through `functional_call`, and for sharded ones (FSDP2, DDP), where `functional_call` and
`torch.autograd.grad` raise or give the gradient of one process alone. With several processes (torchrun) each takes its share of
the rows of every batch, and values and gradients are means over the processes: a run has the iterates of one process, to
rounding. The only file that calls `backward()`.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import CheckpointError, NonFiniteGradient, ProblemError
from .processes import Ranks
from .vec import Tree, Vec, register_node

Wrap = Callable[[torch.nn.Module], torch.nn.Module]


class Live:
    """An nn.Module as lower variable whose parameters are the variable: they move in place, and hold the answer at the end.

    `BilevelProblem(y=Live(model), ...)`: the functions receive the module itself. Its trainable parameters are the variable;
    frozen ones stay, shared by the copies that a solver makes: a LoRA model is one base with several adapters. For solvers with
    `Feature.LIVE` in `supports` (`ScaleBiO`, `F2SA`, `KwonDoubleLoop`), which use first derivatives only.

    wrap: what shards or wraps a module, `fully_shard(...)` or `DistributedDataParallel(...)`, given the module, returning it or
    another. It is applied here, and to each copy: so hand over the module unwrapped. Without it, processes of a torchrun keep
    whole copies and average gradients. Copies are made from an unwrapped module kept aside, one more on its device.

    A run moves x from where the problem says, the module from where it stands: a second `solve` goes on with the parameters of
    the first. Gradients that the parameters hold are dropped. What is trainable is fixed here.

    Raises ProblemError for what is no module or already sharded, for one without trainable parameters, a `wrap` that returns no
    module or shards a part only.

    >>> y = Live(torch.nn.Linear(2, 1))
    >>> y.vec().size
    3
    """

    def __init__(self, module: torch.nn.Module, *, wrap: Wrap | None = None):
        if not isinstance(module, torch.nn.Module):
            raise ProblemError(f"Live: module: expected an nn.Module, got {type(module).__name__}")
        if wrap is not None and not callable(wrap):
            raise ProblemError(f"Live: wrap: expected a function of a module, got {type(wrap).__name__}")
        if sharded(module.parameters()) or isinstance(module, torch.nn.parallel.DistributedDataParallel):
            raise ProblemError("Live: module: expected a module that is not yet sharded or wrapped: give what wraps it as wrap=")
        if not any(p.requires_grad for p in module.parameters()):
            raise ProblemError("Live: module: expected trainable parameters, got none")
        self.wrap = wrap
        self.module = module
        self.spare = copy.deepcopy(module) if wrap is not None else None
        if wrap is not None:
            self.module = self._wrapped(module)
        self.names = [name for name, p in bare(self.module).named_parameters() if p.requires_grad]
        self._vec = LiveVec(self.module, self)
        if len({sharded([p]) for p in self._vec.parameters}) > 1:
            raise ProblemError(
                "Live: wrap: expected all parameters sharded or none, got some: call fully_shard on the whole module last"
            )

    def vec(self) -> LiveVec:
        """The module's parameters as a vector, always the same one."""
        return self._vec

    def twin(self) -> torch.nn.Module:
        """Another module like it, frozen parameters shared where it is not wrapped."""
        if self.spare is not None:
            return self._wrapped(copy.deepcopy(self.spare))
        moving = {id(p) for p in self._vec.parameters}
        return copy.deepcopy(self.module, {id(p): p for p in self.module.parameters() if id(p) not in moving})

    def _wrapped(self, module: torch.nn.Module) -> torch.nn.Module:
        assert self.wrap is not None
        found = self.wrap(module)
        if not isinstance(found, torch.nn.Module):
            raise ProblemError(f"Live: wrap: expected a function that returns the module, got {type(found).__name__}")
        return found

    def __repr__(self) -> str:
        return f"Live({type(self.module).__name__}, {self._vec.size} parameters)"


class LiveVec(Vec):
    """The trainable parameters of a module as a Vec. `tree()` is the module; `plain()` a Vec on the same memory.

    In-place operations move the module; all others give plain Vecs. `clone()` is another module.
    """

    __slots__ = ("live", "module", "parameters")

    def __init__(self, module: torch.nn.Module, live: Live):
        every = dict(bare(module).named_parameters())
        named = {name: every[name] for name in live.names}
        plain = Vec.of({name: p.detach() for name, p in named.items()})
        super().__init__(plain.leaves, plain.spec)
        self.module, self.live, self.parameters = module, live, list(named.values())

    def tree(self) -> Tree:
        return self.module

    def plain(self) -> Vec:
        return Vec(self.leaves, self.spec)

    def detach(self) -> LiveVec:
        return self

    def clone(self) -> LiveVec:
        twin = LiveVec(self.live.twin(), self.live)
        twin.take(self)
        return twin

    def is_held_by(self, other: Vec) -> bool:
        """The other vector's entries are these, in the same memory."""
        pairs = zip(_local(self.leaves), _local(other.leaves))
        return len(self.leaves) == len(other.leaves) and all(a.data_ptr() == b.data_ptr() for a, b in pairs)

    def move(self, moving: Sequence[bool] | None) -> None:
        """Freeze the leaves that do not move: nothing is differentiated or stored for them."""
        for i, p in enumerate(self.parameters):
            p.requires_grad_(moving is None or moving[i])

    def norm(self) -> Tensor:
        return norm(self.leaves)

    def finite(self) -> Tensor:
        return self.norm().isfinite()

    @property
    def reduces(self) -> bool:
        """Its backward averages gradients over processes by itself."""
        return sharded(self.parameters) or isinstance(self.module, torch.nn.parallel.DistributedDataParallel)


register_node(LiveVec, lambda v: (v.leaves, v.spec), lambda leaves, spec: Vec(leaves, spec))


def bare(module: torch.nn.Module) -> torch.nn.Module:
    """Without the wrapper of DDP, which puts a word before the user's names."""
    return module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module


def reloaded(saved: Any, made: Any) -> Any:
    """A saved state with the live variables of a new one, which take the saved values. Raises CheckpointError."""
    if isinstance(made, LiveVec):
        if sharded(made.leaves) and not sharded(saved.leaves):
            raise CheckpointError(
                "checkpoint: expected one of a sharded run, got one that was written without shards: resume without wrap"
            )
        made.take(saved)
        return made
    if dataclasses.is_dataclass(made) and type(made) is type(saved):
        parts = {f.name: reloaded(getattr(saved, f.name), getattr(made, f.name)) for f in dataclasses.fields(made)}
        return type(made)(**parts)
    return saved


# -- derivatives --------------------------------------------------------------------------------------------------------------
def gradients(
    terms: Sequence[Callable[[list[Tree]], Tensor]],
    args: Sequence[Vec],
    wrt: Sequence[int],
    moving: Sequence[bool] | None,
    ranks: Ranks | None,
) -> list[Tensor | None]:
    """The gradient of a sum of scalars in the leaves of the arguments `wrt`, some of them live: one backward a term, each before
    the next forward. None for what does not move. Raises NonFiniteGradient, in all processes.
    """
    lives = [vec for vec in args if isinstance(vec, LiveVec)]
    inputs = [_input(vec, i in wrt) for i, vec in enumerate(args)]
    trees = [vec.tree() if isinstance(vec, LiveVec) else vec.like(leaves).tree() for vec, leaves in zip(args, inputs)]
    places = dict(zip(wrt, itertools.accumulate((len(args[i].leaves) for i in wrt), initial=0)))
    for i, vec in enumerate(args):
        if isinstance(vec, LiveVec):
            vec.move(None if moving is None or i not in wrt else moving[places[i] :])
    for p in (p for vec in lives for p in vec.parameters):
        p.grad = None  # of the user's own training, or of a callback
    total = torch.zeros((), dtype=torch.float64, device=args[0].device)
    try:
        with torch.enable_grad():
            for term in terms:
                out = term(trees)
                total += out.detach()
                if out.requires_grad:
                    out.backward()
        found: list[Tensor | None] = []
        summed = [total]
        for i in wrt:
            vec = args[i]
            grads = [p.grad for p in inputs[i]]
            if ranks is not None:  # what this process's rows leave out, another's may use: all must send the same tensors
                grads = [torch.zeros_like(p) if g is None and p.requires_grad else g for g, p in zip(grads, inputs[i])]
            found += grads
            if not (isinstance(vec, LiveVec) and vec.reduces):
                summed += [grad for grad in grads if grad is not None]
    finally:
        for vec in lives:
            vec.move(None)
            for p in vec.parameters:
                p.grad = None
    if ranks is not None:
        ranks.mean_(summed)
    kinds = [[g for g in found if g is not None and sharded([g]) == kind] for kind in (False, True)]
    if not all(bool(size.isfinite()) for size in (total, *(norm(grads) for grads in kinds if grads))):
        raise NonFiniteGradient("a value or its gradient is NaN or infinite")
    return found


def _input(vec: Vec, differentiated: bool) -> Sequence[Tensor]:
    if isinstance(vec, LiveVec):
        return vec.parameters
    return [leaf.detach().requires_grad_(differentiated) for leaf in vec.leaves]


def resharded(trees: Sequence[Tree]) -> None:
    """After a forward without backward, sharded modules give back the gathered parameters: steps would not reach these."""
    for tree in trees:
        for part in tree.modules() if isinstance(tree, torch.nn.Module) else ():
            if hasattr(part, "reshard"):
                part.reshard()  # pyright: ignore[reportCallIssue]


def norm(leaves: Sequence[Tensor]) -> Tensor:
    """The 2-norm over leaves, whole though they be sharded; 0-dim float64."""
    if sharded(leaves):
        total: Any = torch.nn.utils.get_total_norm(leaves)
        return total.full_tensor().double()
    return Vec(leaves, None).norm()


def _local(leaves: Iterable[Any]) -> list[Tensor]:
    """Each leaf's part in this process."""
    return [leaf.to_local() if sharded([leaf]) else leaf for leaf in leaves]


def sharded(leaves: Iterable[Tensor]) -> bool:
    """Some leaf lives on several processes."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(leaf, DTensor) for leaf in leaves)
