"""Shards written by any Python 3.11: some pickle a member of an enum as getattr(kind, name), and this takes nothing else."""

import io
import pickle

import pytest
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, MetadataIndex

from constrained.core.checkpoint_folder import _Unpickler


class Taken:
    """Pickles as getattr(owner, name)."""

    def __init__(self, owner, name):
        self.pair = owner, name

    def __reduce__(self):
        return getattr, self.pair


def loaded(thing):
    return _Unpickler(io.BytesIO(pickle.dumps(thing))).load()


def test_members_of_an_enum_load_both_ways():
    for member in _MEM_FORMAT_ENCODING:
        assert loaded(Taken(_MEM_FORMAT_ENCODING, member.name)) is member
        assert loaded(member) is member


@pytest.mark.parametrize(
    ("owner", "name"), [(MetadataIndex, "__init__"), (_MEM_FORMAT_ENCODING, "__class__"), ({}, "update"), ("", "format")]
)
def test_other_attributes_are_not_taken(owner, name):
    with pytest.raises(pickle.UnpicklingError, match="does not belong into a checkpoint"):
        loaded(Taken(owner, name))
