"""Names of states in files, and what a state may hold."""

import pickle

import pytest
import torch

from constrained.core import checkpoint
from constrained.core.errors import CheckpointError, OptionError
from constrained.core.states import STATES, changed, rebuilt, solver_state
from constrained.core.status import Status
from constrained.core.vec import Vec, leaves_by_path

X = Vec.of({"u": torch.arange(2.0, dtype=torch.float64)})
Y = Vec.of(torch.arange(3.0, dtype=torch.float64))
HEADER = {"run": {}, "k": 0, "seconds": 0.0, "calls": {}, "callbacks": []}


@solver_state("tests Everything")
class Everything:
    pair: Vec
    nested: Vec
    status: Status
    ended: tuple[Status, ...]


def everything() -> Everything:
    nested = Vec.of([{"a": Y.leaves[0] + 1}, X.tree(), Vec.of((X, Y))])
    return Everything(Vec.of((X.tree(), Y.tree())), nested, Status.STALLED, (Status.RUNNING, Status.PRECISION))


def test_enums_and_vecs_of_pairs_come_back_from_a_checkpoint(tmp_path):
    state, known = everything(), {"x": X, "y": Y}
    checkpoint.save(tmp_path / "run.pt", HEADER, state, known)
    found = checkpoint.restore(tmp_path / "run.pt", *checkpoint.load(tmp_path / "run.pt"), known)
    assert (found.status, found.ended) == (state.status, state.ended)
    for one, other in ((found.pair, state.pair), (found.nested, state.nested)):
        assert one.spec == other.spec
        assert all(torch.equal(a, b) for a, b in zip(one.leaves, other.leaves))


def test_they_come_back_from_a_pickle():
    state = everything()
    found = pickle.loads(pickle.dumps(state))
    assert leaves_by_path(found).keys() == leaves_by_path(state).keys()
    assert found.status is Status.STALLED
    assert "_pytree" not in str(pickle.dumps(state))


def test_the_words_of_0_1_become_members():
    state = everything()
    found = rebuilt("tests.some.module.tests Everything", {**vars(state), "status": "STALLED"})
    assert found.status is Status.STALLED


def test_a_name_belongs_to_one_class():
    def again() -> None:
        @solver_state("tests Everything")
        class Other:
            k: int

    with pytest.raises(OptionError, match="expected one that no other class has, got 'tests Everything'"):
        again()
    assert STATES["tests Everything"] is Everything


@pytest.mark.parametrize("name", ["", None, Everything])
def test_a_name_is_a_word(name):
    with pytest.raises(OptionError, match="solver_state: name"):
        solver_state(name)


def test_a_class_may_be_defined_again():
    def define() -> type:
        @solver_state("tests Again")
        class Again:
            k: int

        return Again

    define()
    again = define()
    assert STATES["tests Again"] is again


def test_an_unknown_name_is_an_error_of_the_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "run.pt", HEADER, everything(), {"x": X, "y": Y})
    header, tensors = checkpoint.load(tmp_path / "run.pt")
    header["structure"]["state"] = "nothing of this name"
    with pytest.raises(CheckpointError, match="nothing of this name"):
        checkpoint.restore(tmp_path / "run.pt", header, tensors, {"x": X, "y": Y})


def test_changed_is_replace_and_knows_the_fields():
    @solver_state("Pair of the test of changed")
    class Pair:
        k: int
        x: Vec

    one = Pair(1, Vec.of(torch.zeros(2)))
    other = changed(one, k=2)
    assert (other.k, other.x, one.k) == (2, one.x, 1)
    with pytest.raises(TypeError, match="has no field z"):
        changed(one, z=3)
