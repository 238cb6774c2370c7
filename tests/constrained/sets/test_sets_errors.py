"""What sets refuse and what they say then; repr and docstrings."""

import doctest
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from constrained import sets
from constrained.core.errors import ProblemError
from constrained.core.vec import Vec
from constrained.polyhedron import Polyhedron
from constrained.sets import Affine, Ball, Box, BoxHyperplane, Everywhere, Halfspace, Product, Simplex, base, product, simple

INF = math.inf


# -- what is refused --------------------------------------------------------------------------------------------------------
def refused(make: Callable[[], Any], *words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        make()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_empty_sets_are_refused_when_made():
    refused(lambda: Box(2, 1), "Box", "2", "1", "empty")
    refused(lambda: Box([0, 5], [1, 2]), "5", "2", "empty")
    refused(lambda: Box(np.array([0, 5]), torch.tensor([1.0, 2.0])), "empty")
    refused(lambda: Box(low={"w": 0, "b": 3}, high=2), "empty")
    refused(lambda: Box(low=INF), "empty")
    refused(lambda: Box(high=-INF), "empty")
    refused(lambda: Ball(-0.1), "Ball", "radius", "-0.1")
    refused(lambda: Simplex(0), "Simplex", "total", "0")
    refused(lambda: Affine([[1, 1], [2, 2]], [1, 3]), "Affine", "empty")
    refused(lambda: Affine([[0, 0]], [1e-3]), "Affine", "empty")
    refused(lambda: Halfspace([0.0, 0.0], -1), "Halfspace", "-1", "empty")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Box(math.nan), ["Box: low", "nan"]),
        (lambda: Box(0, [1, math.nan]), ["Box: high", "nan"]),
        (lambda: Box("0"), ["Box: low", "str"]),
        (lambda: Box(None), ["Box: low", "None"]),
        (lambda: Ball(INF), ["Ball: radius", "inf"]),
        (lambda: Ball("1"), ["Ball: radius", "str"]),
        (lambda: Ball([1, 2]), ["Ball: radius", "(2,)"]),
        (lambda: Ball(1, center=INF), ["Ball: center", "inf"]),
        (lambda: Simplex(math.nan), ["Simplex: total", "nan"]),
        (lambda: Simplex(True), ["Simplex: total", "bool"]),
        (lambda: Affine([1, 1], 1), ["Affine", "matrix", "(2,)"]),
        (lambda: Affine([[1, 1]], [1, 2]), ["Affine", "(1, 2)", "(2,)"]),
        (lambda: Affine([[1, INF]], [1]), ["Affine: A", "inf"]),
        (lambda: Affine([[1, 1]], [math.nan]), ["Affine: b", "nan"]),
        (lambda: Halfspace([1, math.nan], 1), ["Halfspace: a", "nan"]),
        (lambda: Halfspace([1, 1], INF), ["Halfspace: b", "inf"]),
        (lambda: Product({"w": 3}), ["Product", "3"]),
        (lambda: Product([Simplex()]), ["Product", "mapping"]),
    ],
)
def test_bad_data_are_refused_when_made(make, words):
    refused(make, *words)


FOUR = torch.zeros(4)
TWO_LEAVES = {"w": torch.zeros(2), "b": torch.zeros(3)}
MIXED = {"w": torch.zeros(2), "b": torch.zeros(3, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("one", "tree", "words"),
    [
        (Box(torch.zeros(3)), FOUR, ["Box: low", "(3,)", "(4,)"]),
        (Box(high=torch.zeros(2, 4)), FOUR, ["Box: high", "(2, 4)", "(4,)"]),  # would broadcast the variable
        (Box(low={"w": 0}), TWO_LEAVES, ["Box: low", "['b']", "['w']"]),
        (Box(low={"w": 0, "b": 0, "c": 0}), TWO_LEAVES, ["Box: low", "['c']"]),
        (Box(1e300), FOUR, ["Box", "float32", "empty"]),
        (Box(low=[0, 0, 5, 0], high=torch.ones(4)), FOUR, ["Box", "5", "1", "empty"]),
        (Ball(1, center=torch.zeros(3)), FOUR, ["Ball: center", "(3,)", "(4,)"]),
        (Ball(1), MIXED, ["Ball(1.0)", "dtype", "float32", "float64"]),
        (Simplex(), TWO_LEAVES, ["Simplex(1.0)", "one tensor", 'Product({"w": Simplex(), ...})']),
        (Simplex(), torch.tensor(1.0), ["Simplex(1.0)", "last axis", "()"]),
        (Affine([[1, 1]], [1]), FOUR, ["Affine", "2 entries", "4"]),
        (Affine(np.ones((1, 5)), [1]), MIXED, ["Affine", "dtype", "float32", "float64"]),
        (Halfspace([1, 1], 1), FOUR, ["Halfspace", "2 entries", "4"]),
        (Halfspace({"w": [1, 1]}, 1), TWO_LEAVES, ["Halfspace: a", "['b']"]),
        (Product({"q": Box(0)}), TWO_LEAVES, ["Product", "'q'", "'w', 'b'"]),
        (Product({"w": Box(0)}), FOUR, ["Product", "dict", "Tensor"]),
        (Product({"w": Affine([[1, 1, 1]], [1])}), TWO_LEAVES, ["y['w']", "Affine", "3 entries", "2"]),
        (Product({"w": Product({"v": Simplex()})}), TWO_LEAVES, ["y['w']", "dict"]),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_check_names_the_variable_and_what_came(one, tree, words):
    refused(lambda: one.check(Vec.of(tree), "y"), "y", *words)
    refused(lambda: one.project(Vec.of(tree)), *words[1:])


# -- repr and docstrings ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "one",
    [
        *(Everywhere(), Box(), Box(0, 1), Box(low=-2), Box(high=3.5), Ball(2), Ball(2, center=0.5), Simplex(), Simplex(3)),
        *(Product({}), Product({"w": Simplex(), "b": Box(0), "n": Product({0: Ball(1)})})),
    ],
    ids=repr,
)
def test_repr_evaluates(one):
    again = eval(repr(one), vars(sets))
    assert repr(again) == repr(one)
    assert type(again) is type(one)


def test_repr_of_arrays_is_short():
    assert repr(Box(np.zeros(1000))) == "Box(low=<1000>)"
    assert repr(Affine(np.ones((2, 5)), [1, 1])) == "Affine(A=<2 x 5>, b=<2>)"
    assert len(repr(Halfspace(np.ones(1000), 1))) < 60


def test_docstring_examples():
    found = [doctest.testmod(module) for module in (base, product, simple)]
    assert sum(one.failed for one in found) == 0
    assert sum(one.attempted for one in found) >= 7


@pytest.mark.parametrize(
    "make",
    [
        lambda: Halfspace(np.zeros(0), 0.5),
        lambda: Halfspace({"w": np.zeros(0), "b": torch.zeros(0, 2)}, 0.5),
        lambda: BoxHyperplane(torch.zeros(0), 0.0),
        lambda: Affine(np.zeros((1, 0)), [0.0]),
        lambda: Polyhedron(np.zeros((1, 0)), [0.5]),
        lambda: Polyhedron(E=np.zeros((1, 0)), d=[0.0]),
    ],
)
def test_sets_of_variables_without_entries_are_refused_when_made(make):
    refused(make, "entry of the variable", "got none")


def test_numbers_beyond_the_floats_are_refused():
    refused(lambda: Box(10**400), "Box: low", "expected numbers")
    refused(lambda: Ball(10**5000), "Ball: radius", "expected numbers")


@pytest.mark.parametrize("matrix", ["word", [[1.0], [1.0, 2.0]], [[10**400]], None])
def test_a_polyhedron_of_no_matrix_is_refused(matrix):
    refused(lambda: Polyhedron(matrix, [1.0]), "Polyhedron")
