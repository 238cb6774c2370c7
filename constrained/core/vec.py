"""Vec: a variable of any shape (tensor, dict, tuple, module parameters) as one vector.

A *tree* is a tensor, or a dict, list, tuple or registered dataclass of trees. `Vec` keeps its leaves in order and acts on
all of them at once, on torch's `_foreach` kernels. This is the only file that uses `torch.utils._pytree`.
"""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
from __future__ import annotations

import enum
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import ProblemError, shown
from .moved import forward_names

Tree = Any
Scalar = float | Tensor
LARGEST = torch.finfo(torch.float32).max
LEAF = pytree.tree_structure(None)  # of a tensor alone
SMALL = 10_000  # entries of a state up to which one look at a copy costs less than one at each tensor
TINY = 100  # the same up to which Python looks at each number sooner


class Vec:
    """A pytree of tensors with the operations of a vector space.

    `+`, `-`, unary `-`, `*` and `/` by a number or a 0-dim tensor, `@` the inner product, `norm()` the 2-norm over all
    leaves. Inner products and norms accumulate in float64 and come back as 0-dim float64 tensors on the leaves' device,
    so that no step forces a synchronisation.

    >>> v = Vec.of({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0)})
    >>> float(v.norm()), float(v @ v)
    (5.0, 25.0)
    >>> (2 * v).tree()["b"]
    tensor(8.)
    """

    __slots__ = ("leaves", "spec")

    def __init__(self, leaves: Sequence[Tensor], spec: Any):
        self.leaves = list(leaves)
        self.spec = spec

    @classmethod
    def of(cls, tree: Tree, name: str = "the variable") -> Vec:
        """Read a tree. numpy arrays and Python floats become float64 tensors; any other leaf is refused, by its path."""
        if isinstance(tree, Vec):
            return tree
        if type(tree) is Tensor:
            return cls([_leaf(tree, name)], LEAF)
        pairs, spec = pytree.tree_flatten_with_path(tree)
        if not pairs:
            raise ProblemError(f"{name}: expected a tensor or a tree of tensors, got {tree!r}, which holds none")
        return cls([_leaf(leaf, f"{name}{pytree.keystr(path)}") for path, leaf in pairs], spec)

    def tree(self) -> Tree:
        """The same values in the user's structure."""
        return pytree.tree_unflatten(self.leaves, self.spec)

    def like(self, leaves: Iterable[Tensor]) -> Vec:
        """A vector of this structure with other leaves."""
        return Vec(list(leaves), self.spec)

    def map(self, function: Callable[[Tensor], Tensor]) -> Vec:
        return self.like(function(leaf) for leaf in self.leaves)

    def paths(self) -> list[str]:
        """One name a leaf: '' for a bare tensor, "['w']" for a dict entry."""
        return list(_paths(_Same(self.spec)))

    # -- vector space ---------------------------------------------------------------------------------------------------
    def __add__(self, other: Vec) -> Vec:
        return self.like(torch._foreach_add(self.leaves, other.leaves))

    def __sub__(self, other: Vec) -> Vec:
        return self.like(torch._foreach_sub(self.leaves, other.leaves))

    def __neg__(self) -> Vec:
        return self.like(torch._foreach_neg(self.leaves))

    def __mul__(self, scale: Scalar) -> Vec:
        if isinstance(scale, Tensor):
            # One cast a dtype, so that a float64 coefficient does not lift a float32 variable.
            return self.like([leaf * scale.to(leaf.dtype) for leaf in self.leaves])
        return self.like(torch._foreach_mul(self.leaves, self._held(scale)))

    __rmul__ = __mul__

    def __truediv__(self, scale: Scalar) -> Vec:
        return self * (1.0 / (scale.double() if isinstance(scale, Tensor) else scale))

    def add(self, other: Vec, scale: Scalar) -> Vec:
        """self + scale * other, in one pass where `scale` is a number."""
        if isinstance(scale, Tensor):
            return self + other * scale
        return self.like(torch._foreach_add(self.leaves, other.leaves, alpha=self._held(scale)))

    def lerp(self, other: Vec, weight: float) -> Vec:
        """(1 - weight) self + weight other."""
        return self.like(torch._foreach_lerp(self.leaves, other.leaves, self._held(weight)))

    def times(self, other: Vec) -> Vec:
        """Entry by entry."""
        return self.like(torch._foreach_mul(self.leaves, other.leaves))

    # In place, for the solver that owns the memory: a step on a large variable then allocates nothing but its gradients.
    def add_(self, other: Vec, scale: float = 1.0) -> Vec:
        """self <- self + scale other."""
        torch._foreach_add_(self.leaves, other.leaves, alpha=self._held(scale))
        return self

    def addcmul_(self, a: Vec, b: Vec, scale: float = 1.0) -> Vec:
        """self <- self + scale a * b, entry by entry."""
        torch._foreach_addcmul_(self.leaves, a.leaves, b.leaves, self._held(scale))
        return self

    def lerp_(self, other: Vec, weight: float) -> Vec:
        """self <- (1 - weight) self + weight other."""
        torch._foreach_lerp_(self.leaves, other.leaves, self._held(weight))
        return self

    def take(self, other: Vec) -> Vec:
        """self <- other."""
        for leaf, value in zip(self.leaves, other.leaves):
            leaf.copy_(value)
        return self

    def _held(self, scale: float) -> float:
        """The number, infinite where float32 entries cannot hold it: torch raises there."""
        return math.copysign(math.inf, scale) if abs(scale) > LARGEST and self.dtype != torch.float64 else scale

    def __matmul__(self, other: Vec) -> Tensor:
        parts = [torch.dot(a.reshape(-1).double(), b.reshape(-1).double()) for a, b in zip(self.leaves, other.leaves)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    def norm(self) -> Tensor:
        parts = [torch.linalg.vector_norm(leaf, dtype=torch.float64) for leaf in self.leaves]
        return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))

    def max_norm(self) -> Tensor:
        """Largest absolute entry, 0-dim float64."""
        parts = [leaf.abs().max().double() if leaf.numel() else leaf.new_zeros((), dtype=torch.float64) for leaf in self.leaves]
        return parts[0] if len(parts) == 1 else torch.stack(parts).max()

    # -- copies and shapes ----------------------------------------------------------------------------------------------
    def clone(self) -> Vec:
        return self.map(torch.clone)

    def zeros(self) -> Vec:
        return self.map(torch.zeros_like)

    def detach(self) -> Vec:
        return self.map(torch.detach)

    def plain(self) -> Vec:
        """The vector itself; of a live variable the vector of its entries, on the same memory."""
        return self

    def ravel(self) -> Tensor:
        """All entries as one 1-D tensor."""
        return self.leaves[0].reshape(-1) if len(self.leaves) == 1 else torch.cat([leaf.reshape(-1) for leaf in self.leaves])

    def unravel(self, flat: Tensor) -> Vec:
        """The inverse of `ravel`, with this vector's structure."""
        parts = [flat] if len(self.leaves) == 1 else flat.split([leaf.numel() for leaf in self.leaves])
        return self.like([part.reshape(leaf.shape).to(leaf.dtype) for part, leaf in zip(parts, self.leaves)])

    @property
    def size(self) -> int:
        return sum(leaf.numel() for leaf in self.leaves)

    @property
    def dtype(self) -> torch.dtype:
        return self.leaves[0].dtype

    @property
    def device(self) -> torch.device:
        return self.leaves[0].device

    def finite(self) -> Tensor:
        """0-dim bool: every entry is finite."""
        parts = [leaf.isfinite().all() for leaf in self.leaves]
        return parts[0] if len(parts) == 1 else torch.stack(parts).all()

    def __repr__(self) -> str:
        return f"Vec({self.tree()!r})"

    def __reduce__(self) -> Any:
        return of_tree, (pytree.tree_unflatten(self.leaves, self.spec),)  # torch's spec is private and changes


def of_tree(tree: Tree) -> Vec:
    """What a pickled Vec becomes: any tensors, as they are."""
    return Vec(*pytree.tree_flatten(tree))


def structure(tree: Tree, known: Mapping[str, Vec]) -> Any:
    """A tree's nesting as plain data: the name of a known variable of that structure, or lists, tuples, dicts and Vecs of such.

    Raises TypeError for anything else.
    """
    spec = pytree.tree_structure(tree)
    name = next((name for name, vec in known.items() if vec.spec == spec), None)
    if name is not None:
        return name
    if isinstance(tree, Tensor):
        return None
    if isinstance(tree, Vec):
        return {"vec": structure(tree.plain().tree(), known)}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [structure(part, known) for part in tree]}
    if type(tree) is dict:
        return {"dict": {key: structure(part, known) for key, part in tree.items()}}
    raise TypeError(f"a Vec in a state must be structured like a variable ({', '.join(known)}), or nest such, not {type(tree)!r}")


def filled(structure: Any, leaves: Iterator[Tensor], known: Mapping[str, Vec]) -> Tree:
    """The inverse of `structure`: the tree with leaves taken in order."""
    if structure is None:
        return next(leaves)
    if isinstance(structure, str):
        like = known[structure]
        return pytree.tree_unflatten([next(leaves) for _ in like.leaves], like.spec)
    ((kind, parts),) = structure.items()
    if kind == "vec":
        return of_tree(filled(parts, leaves, known))
    if kind == "dict":
        return {key: filled(part, leaves, known) for key, part in parts.items()}
    found = [filled(part, leaves, known) for part in parts]
    return tuple(found) if kind == "tuple" else found


class _Same:
    """A key that is equal to those of the very same structure: to compare structures takes as long as to name their leaves."""

    __slots__ = ("spec",)

    def __init__(self, spec: Any):
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.spec is other.spec


@functools.lru_cache(maxsize=64)
def _paths(same: _Same) -> list[str]:
    marks = pytree.tree_unflatten(list(range(same.spec.num_leaves)), same.spec)
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(marks)[0]]


def _leaf(leaf: Any, name: str) -> Tensor:
    if isinstance(leaf, (bool, int)) or not isinstance(leaf, (Tensor, np.ndarray, np.floating, float)):
        raise ProblemError(f"{name}: expected a floating-point tensor or array, got {type(leaf).__name__} {shown(leaf, 80)}")
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "fiub":  # complex ones would lose a part
        raise ProblemError(f"{name}: expected a floating-point tensor or array, got an array of {leaf.dtype}")
    if isinstance(leaf, Tensor) and (unfit := _unfit(leaf)):
        raise ProblemError(f"{name}: expected a dense tensor, got {unfit}")
    tensor = leaf.detach() if isinstance(leaf, Tensor) else torch.as_tensor(np.array(leaf, dtype=np.float64))
    if not tensor.is_floating_point():
        raise ProblemError(f"{name}: expected floating-point entries, got dtype {tensor.dtype}")
    return tensor


def _unfit(leaf: Tensor) -> str:
    """What kind of tensor it is whose entries are not to be had one by one; '' where they are."""
    if torch.nn.parameter.is_lazy(leaf):
        return "a lazy parameter: call the module once before"
    if leaf.is_nested:
        return "a nested one"
    return "" if leaf.layout == torch.strided else str(leaf.layout)


# -- what pytree knows -----------------------------------------------------------------------------------------------------
_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {tuple: iter, list: iter, dict: dict.values}  # of what states are made of


def register_node(cls: type, flatten: Callable, unflatten: Callable, names: list[str] | None = None) -> None:
    """Make a class known: its leaves are found under `names` (numbers if None), and how copies of it are made."""

    def with_keys(value: Any) -> tuple[list, Any]:
        children, context = flatten(value)
        keys = names if names is not None else [str(i) for i in range(len(children))]
        return [(pytree.GetAttrKey(key), child) for key, child in zip(keys, children)], context

    pytree.register_pytree_node(cls, flatten, unflatten, flatten_with_keys_fn=with_keys)
    _PARTS[cls] = lambda value: flatten(value)[0]


register_node(Vec, lambda v: (v.leaves, v.spec), lambda leaves, spec: Vec(leaves, spec))


def tensors(tree: Tree) -> list[Tensor]:
    """Every tensor of a state, in order. By a walk of our own: pytree's takes ten times as long."""
    found: list[Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Tree, found: list[Tensor]) -> None:
    if isinstance(tree, (int, float, str, enum.Enum, type(None))):
        return
    if isinstance(tree, Tensor):
        found.append(tree)
    elif (parts := _PARTS.get(type(tree))) is not None:
        for part in parts(tree):
            _gather(part, found)
    else:
        found += [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def leaves_by_path(tree: Tree) -> dict[str, Any]:
    """Every leaf of a state under its path, as checkpoints name them."""
    return {pytree.keystr(path): leaf for path, leaf in pytree.tree_flatten_with_path(tree)[0]}


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The tree with `function` applied to every leaf."""
    return pytree.tree_map(function, tree)


def zipped(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """The tree of `function(leaf, ...)` over the leaves of trees of one structure."""
    return pytree.tree_map(function, tree, *others)


def copy(tree: Tree) -> Tree:
    """A state with memory of its own."""
    if tree is None or type(tree) is Vec:
        return tree and tree.like([leaf.detach().clone() for leaf in tree.leaves])
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, tree)


def finite(tree: Tree) -> bool:
    """Every tensor of the state is finite. Synchronises once."""
    floats = [leaf for leaf in tensors(tree) if leaf.is_floating_point()]
    entries = sum([leaf.numel() for leaf in floats])
    if entries <= TINY and all([leaf.device.type == "cpu" for leaf in floats]):
        return all([math.isfinite(number) for leaf in floats for number in leaf.flatten().tolist()])
    if entries <= SMALL and len({(leaf.dtype, leaf.device) for leaf in floats}) == 1:
        return bool(torch.cat([leaf.reshape(-1) for leaf in floats]).isfinite().all())
    return not floats or bool(torch.stack([leaf.isfinite().all() for leaf in floats]).all())


forward_names(__name__, {"state": "constrained.core.states:named_by_module", "STATES": "constrained.core.states"})
