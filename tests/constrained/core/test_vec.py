"""Vec against numpy on the raveled entries; states and their leaves."""

import collections
import doctest
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import Tensor

from constrained.core import vec
from constrained.core.errors import ProblemError
from constrained.core.states import STATES, solver_state
from constrained.core.vec import Vec, copy, finite, leaves_by_path, map_leaves, tensors


def make(seed: int, dtype: torch.dtype = torch.float64) -> Vec:
    rng = torch.Generator().manual_seed(seed)
    leaf = lambda *shape: torch.randn(shape, dtype=dtype, generator=rng)  # noqa: E731
    return Vec.of({"w": leaf(2, 3), "n": [leaf(4), (leaf(), leaf(1, 2))]})


def same(v: Vec, numbers: np.ndarray) -> None:
    np.testing.assert_allclose(v.ravel().numpy(), numbers, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "tree", [torch.randn(3), {"a": torch.randn(2), "b": {"c": torch.randn(())}}, [torch.randn(2), (torch.randn(1),)]]
)
def test_tree_comes_back_as_it_was(tree):
    back = Vec.of(tree).tree()
    assert type(back) is type(tree)
    assert str(back) == str(tree)


def test_arithmetic_is_that_of_the_raveled_vectors():
    a, b = make(0), make(1)
    x, y = a.ravel().numpy(), b.ravel().numpy()
    same(a + b, x + y)
    same(a - b, x - y)
    same(-a, -x)
    for scale in (2, -0.3, np.float64(1.7), torch.tensor(1.3, dtype=torch.float64)):
        s = float(scale)
        same(a * scale, x * s)
        same(scale * a, x * s)
        same(a / scale, x / s)
        same(a.add(b, scale), x + s * y)
    same(a.lerp(b, 0.3), 0.7 * x + 0.3 * y)
    same(a.zeros(), 0 * x)
    assert float(a @ b) == pytest.approx(x @ y, rel=1e-14)
    assert float(a.norm()) == pytest.approx(np.linalg.norm(x), rel=1e-14)
    assert float(a.max_norm()) == np.abs(x).max()
    assert a.size == len(x)
    for v in (a + b, -a, 2 * a, a.lerp(b, 0.5)):
        assert v.spec == a.spec


def test_a_float32_scalar_does_not_round_a_float64_variable():
    a, scale = make(0), torch.tensor(1.3)
    same(a * scale, a.ravel().numpy() * float(scale))
    same(a / scale, a.ravel().numpy() / float(scale))


@pytest.mark.parametrize("scale", [1e300, -1e300])
def test_numbers_beyond_float32_are_infinite_there(scale):
    """torch raises RuntimeError for a coefficient that float32 does not hold."""
    one = Vec.of(torch.ones(2))
    infinite = torch.full((2,), scale, dtype=torch.float64).float()
    products = one * scale, one.add(one, scale), one.clone().add_(one, scale), one.clone().addcmul_(one, one, scale)
    for found in (*products, one / (1 / scale)):
        assert torch.equal(found.tree(), infinite)
    zero = one * 0.0
    for found in (zero.lerp(one, scale), zero.clone().lerp_(one, scale)):
        assert not found.tree().isfinite().any()
    large = Vec.of(torch.ones(2, dtype=torch.float64)) * scale
    assert torch.equal(large.tree(), torch.full((2,), scale, dtype=torch.float64))


def test_operands_are_not_written_to():
    a, b = make(0), make(1)
    x, y = a.clone().ravel(), b.clone().ravel()
    for act in (lambda: a + b, lambda: a - b, lambda: 3 * a, lambda: a.add(b, 2.0), lambda: a.lerp(b, 0.1), lambda: a @ b):
        act()
    assert torch.equal(a.ravel(), x)
    assert torch.equal(b.ravel(), y)


@pytest.mark.parametrize("tree", [False, True])
def test_float32_accumulates_in_float64_and_stays_float32(tree):
    big = torch.full((1000,), 1e4)
    small = torch.full((1000,), 1e-3)
    v = Vec.of({"a": big, "b": small} if tree else torch.cat([big, small]))
    exact = 1000 * (float(big[0]) ** 2 + float(small[0]) ** 2)
    for scalar in (v @ v, v.norm(), v.max_norm()):
        assert scalar.dtype == torch.float64
        assert scalar.shape == ()
    assert float(v @ v) == pytest.approx(exact, rel=1e-13)
    assert float(v.norm()) == pytest.approx(exact**0.5, rel=1e-13)
    for w in (v * 2.0, v * v.norm(), v / v.norm(), v.add(v, v.norm()), v.lerp(v, 0.5), v - v):
        assert all(leaf.dtype == torch.float32 for leaf in w.leaves)


def test_ravel_and_unravel_are_inverse():
    a = make(0, torch.float32)
    b = a.unravel(a.ravel().double() * 2)
    same(b, 2 * a.ravel().numpy())
    assert b.spec == a.spec
    assert [leaf.shape for leaf in b.leaves] == [leaf.shape for leaf in a.leaves]
    assert b.dtype == torch.float32


def test_numpy_and_floats_become_float64():
    v = Vec.of({"a": np.ones(2, np.float32), "b": 1.5, "c": np.float32(2), "d": np.arange(2)})
    assert [leaf.dtype for leaf in v.leaves] == [torch.float64] * 4
    assert v.ravel().tolist() == [1, 1, 1.5, 2, 0, 1]


def test_numpy_memory_is_not_shared():
    array = np.ones(2)
    v = Vec.of(array)
    array += 1
    assert v.ravel().tolist() == [1, 1]


def test_leaves_are_detached():
    assert not Vec.of(torch.ones(2, requires_grad=True)).leaves[0].requires_grad


def test_vec_of_a_vec_is_itself():
    v = make(0)
    assert Vec.of(v) is v


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": {"b": 3}}, ["y['a']['b']", "int", "3"]),
        ({"a": [1.0, None]}, ["y['a'][1]", "NoneType"]),
        ({"a": "x"}, ["y['a']", "str", "'x'"]),
        (True, ["y", "bool"]),
        (torch.arange(3), ["y", "torch.int64"]),
        ([torch.zeros(2, dtype=torch.complex64)], ["y[0]", "complex64"]),
        ({}, ["y", "{}"]),
        ([], ["y", "[]"]),
        ({"a": object}, ["y['a']", "type"]),
    ],
)
def test_other_leaves_are_refused_by_their_path(tree, words):
    with pytest.raises(ProblemError) as caught:
        Vec.of(tree, "y")
    for word in words:
        assert word in str(caught.value)


def test_paths_name_the_leaves():
    assert Vec.of(torch.ones(1)).paths() == [""]
    assert make(0).paths() == ["['w']", "['n'][0]", "['n'][1][0]", "['n'][1][1]"]


def test_finite_sees_one_bad_entry():
    v = make(0)
    assert bool(v.finite())
    for bad in (float("nan"), float("inf")):
        w = v.clone()
        w.leaves[1][2] = bad
        assert not bool(w.finite())


def test_empty_leaves():
    v = Vec.of({"a": torch.zeros(0), "b": torch.tensor([-3.0])})
    assert float(v.norm()) == float(v.max_norm()) == 3.0
    assert float(Vec.of(torch.zeros(0)).max_norm()) == 0.0
    assert (2 * v).ravel().tolist() == [-6.0]


def test_clone_and_detach():
    v = make(0)
    w = v.clone()
    w.leaves[0].add_(1)
    assert not torch.equal(v.leaves[0], w.leaves[0])
    assert repr(v).startswith("Vec({'w': tensor(")


# -- states -----------------------------------------------------------------------------------------------------------------
@solver_state("tests Inner")
class Inner:
    """Part of a state."""

    v: Vec
    memory: tuple[Vec, ...]


@solver_state("tests Outer")
class Outer:
    """A state."""

    k: int
    x: Vec
    inner: Inner
    scale: Tensor
    slots: dict[str, Tensor]


def outer() -> Outer:
    return Outer(3, make(0), Inner(Vec.of(torch.ones(2)), (Vec.of(torch.zeros(1)),)), torch.tensor(2.0), {"m": torch.arange(2)})


def test_a_state_is_frozen_and_registered():
    s = outer()
    with pytest.raises(FrozenInstanceError):
        s.k = 4  # pyright: ignore
    assert STATES["tests Outer"] is Outer


def test_leaves_of_a_state_have_paths_and_rebuild_it():
    s = outer()
    paths = leaves_by_path(s)
    assert len(paths) == 9
    assert paths[".k"] == 3
    assert paths[".slots['m']"].tolist() == [0, 1]
    assert len({*paths}) == len(paths)
    assert len(tensors(s)) == 8
    doubled = map_leaves(lambda leaf: leaf * 2, s)
    assert isinstance(doubled, Outer)
    assert doubled.k == 6
    assert doubled.x.tree().keys() == s.x.tree().keys()
    assert torch.equal(doubled.inner.v.ravel(), torch.full((2,), 2.0))


def test_copy_has_memory_of_its_own():
    s = outer()
    twin = copy(s)
    for a, b in zip(tensors(s), tensors(twin)):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    assert (twin.k, type(twin.inner)) == (3, Inner)


def test_finite_looks_at_every_tensor_of_a_state():
    s = outer()
    assert finite(s)
    s.inner.memory[0].leaves[0][0] = float("inf")
    assert not finite(s)
    assert finite({"only": torch.arange(3)})


def test_tensors_are_pytrees_in_its_order():
    pair = collections.namedtuple("pair", "a b")
    one, two, three, four = (torch.full((1,), float(i)) for i in range(4))
    tree = {"v": Vec.of({"a": one}), "n": (pair(two, None), [1.0, "word"]), "o": collections.OrderedDict(z=three, y=four)}
    assert [float(t) for t in tensors(tree)] == [0, 1, 2, 3]


def test_vecs_pickle():
    v = make(0)
    w = pickle.loads(pickle.dumps(v))
    assert w.spec == v.spec
    assert torch.equal(w.ravel(), v.ravel())


def test_docstring_examples():
    assert doctest.testmod(vec).failed == 0


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([None])], ids=["complex", "text", "objects"])
def test_arrays_of_no_real_numbers_are_refused(array):
    with pytest.raises(ProblemError, match=r"^x: expected a floating-point tensor or array, got an array of"):
        Vec.of(array, "x")
