"""Files that were made to look like checkpoints: a CheckpointError before any step, and nothing of theirs is executed."""

import contextlib
import json
import pickle
import random
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from bilevel import BilevelProblem, EarlyStopping, History, MiniBatches, Penalty, PenaltySGD, StopWhen, solve
from bilevel import Checkpoint as Saver
from constrained.core import checkpoint, checkpoint_folder
from constrained.core.errors import CheckpointError

F64 = torch.float64
SHARDS = Path(__file__).parents[2] / "fixtures" / "0.1.0" / "fsdp.0"


def bowl(**changed):
    options = {
        "upper": lambda x, y: ((y["a"] - 1) ** 2).sum() + (x**2).sum(),
        "lower": lambda x, y, *batch: ((y["a"] - x) ** 2).sum() * (1 + sum(b.mean() for b in batch)),
    }
    return BilevelProblem(**{**options, "x": torch.zeros(2, dtype=F64), "y": {"a": torch.zeros(2, dtype=F64)}, **changed})


def watching():
    return [History(), StopWhen(lambda event: False), EarlyStopping(lambda event: 1.0)]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run.pt"
    solve(bowl(), Penalty(), max_steps=3, callbacks=[*watching(), Saver(path)])
    return path


def forge(path, change):
    """Write a file again with a changed header and tensors, and the digest that belongs to them."""
    content = torch.load(path, weights_only=True)
    header, tensors = json.loads(content["header"]), content["tensors"]
    change(header, tensors)
    text = json.dumps(header)
    torch.save({**content, "header": text, "tensors": tensors, "digest": checkpoint._digest(text, tensors)}, path)


def refused(path, words="run.pt"):
    with pytest.raises(CheckpointError, match=words):
        solve(bowl(), Penalty(), max_steps=4, resume=path, callbacks=watching())


def at(*keys, to):
    def change(header, tensors):
        node = header
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to

    return change


FIELDS = ("structure", "fields")
HEADERS = {
    "k": [at("k", to=value) for value in (-1, 1.5, "3", None, [])],
    "seconds": [at("seconds", to=value) for value in (-1.0, float("nan"), float("inf"), "1")],
    "calls": [
        at("calls", to=value)
        for value in ([], {"solve": 3}, {"solve": {"upper": {"gradients": "x"}}}, {"solve": {"f": {"g": 1}}})
    ],
    "run": [at("run", to=value) for value in ({}, [], "x")]
    + [at("run", "problem", to=None), at("run", "solver", to={"Penalty": 3})],
    "callbacks": [at("callbacks", to=value) for value in ([], {}, [{}, {}, {}], [3, 3, 3])]
    + [at("callbacks", 0, "rows", to=[{}]), at("callbacks", 1, "held", to="x"), at("callbacks", 2, "best", to=None)],
    "samplers": [at("samplers", to={"other": {}}), at("samplers", to=[])],
    "data": [at("data", to=3), at("data", to={"lower_data": 3})],
    "structure": [at("structure", to=value) for value in (None, 3, {}, {"state": "AutoState", "fields": {}}, {"tensor": "no"})],
    "fields": [at(*FIELDS, "k", to=value) for value in (None, "x", True, 10**30)]
    + [at(*FIELDS, "inner", to=value) for value in (None, {"list": []}, {"tuple": [3]}, {"enum": "Status", "member": "x"})]
    + [
        at(*FIELDS, "x", to=value)
        for value in ({"vec": "x", "leaves": []}, {"vec": "z", "leaves": []}, {"vec": {"set": 3}, "leaves": []})
    ],
}


@pytest.mark.parametrize("entry", HEADERS)
def test_headers(saved, entry):
    whole = saved.read_bytes()
    for change in HEADERS[entry]:
        saved.write_bytes(whole)
        forge(saved, change)
        refused(saved)


def test_a_deep_header(saved):
    content = torch.load(saved, weights_only=True)
    text = "[" * 100_000
    torch.save({**content, "header": text, "digest": checkpoint._digest(text, content["tensors"])}, saved)
    refused(saved, "RecursionError")


@pytest.mark.parametrize("tensors", [None, [1], {"a": 3}, {"a": torch.eye(2).to_sparse()}, {"a": torch.zeros(2, device="meta")}])
def test_tensors_that_are_none(saved, tensors):
    content = torch.load(saved, weights_only=True)
    torch.save({**content, "tensors": tensors}, saved)
    refused(saved, "not a checkpoint, or damaged")


def test_numbers_that_take_no_room(saved):
    """A terabyte of one number in a file of a kilobyte, and a zip that unpacks to more than its size, are not unpacked."""
    forge(saved, lambda header, tensors: None)
    content = torch.load(saved, weights_only=True)
    torch.save({**content, "tensors": {"a": torch.zeros(1).expand(2**38)}}, saved)
    refused(saved, "larger than the file")
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(saved.with_name("packed"), "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(saved.with_name("packed"), "not a checkpoint, or damaged")


def test_a_newer_format(saved):
    content = torch.load(saved, weights_only=True)
    torch.save({**content, "format": "bilevel-checkpoint/3"}, saved)
    refused(saved, "got 'bilevel-checkpoint/3', which a newer version writes")


@pytest.mark.parametrize("version", ["99.0", None, 3])
def test_another_version_is_noted(saved, version):
    assert not solve(bowl(), Penalty(), resume=saved, callbacks=watching()).notes
    forge(saved, at("version", to=version))
    (note,) = solve(bowl(), Penalty(), resume=saved, callbacks=watching()).notes
    assert f"a checkpoint of version {version}, this is " in note


def test_the_position_of_a_sampler(tmp_path):
    class Placed(MiniBatches):
        exact = False

        def state_dict(self):
            return {"position": 1}

        def load_state_dict(self, state):
            raise AssertionError("not this one's")

    data = {"lower_data": Placed(torch.linspace(0, 1, 10, dtype=F64), 3)}
    path = tmp_path / "run.pt"
    solve(bowl(**data), PenaltySGD(), max_steps=2, callbacks=[Saver(path)])
    forge(path, at("samplers", to={"upper_data": {"position": 3}}))
    with pytest.raises(CheckpointError, match=r"expected states of \['lower_data'\], got one of 'upper_data'"):
        solve(bowl(**data), PenaltySGD(), max_steps=3, resume=path)


# -- folders of shards --------------------------------------------------------------------------------------------------------
@pytest.fixture
def shards(tmp_path):
    shutil.copytree(SHARDS, tmp_path / "run.0")
    (tmp_path / "run").symlink_to("run.0")
    with warnings.catch_warnings():  # of torch, that the process is alone
        warnings.simplefilter("ignore")
        assert checkpoint.load(tmp_path / "run")[1]
        yield tmp_path / "run"


def refused_folder(path):
    with pytest.raises(CheckpointError, match=r"not a checkpoint, or damaged|no such file|expected format"):
        checkpoint.load(path)


def signed(path):
    """The files' digests in the header as the files are now."""
    header = json.loads((path / checkpoint_folder.HEADER).read_text())
    header["files"] = {
        file.name: checkpoint_folder._digest(file) for file in path.iterdir() if file.name != checkpoint_folder.HEADER
    }
    (path / checkpoint_folder.HEADER).write_text(json.dumps(header))


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "header.json"])
def test_damaged_shards(shards, name):
    whole, rng = (shards / name).read_bytes(), random.Random(1)
    for _ in range(15):
        place = rng.randrange(len(whole))
        (shards / name).write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        refused_folder(shards)
    for part in (0.0, 0.5, 0.999):
        (shards / name).write_bytes(whole[: int(part * len(whole))])
        refused_folder(shards)
    (shards / name).unlink()
    refused_folder(shards)


def test_shards_of_any_bits(shards):
    """Damaged with digests that fit: refused, or tensors of other numbers; nothing else is raised."""
    for name in ("__0_0.distcp", ".metadata"):
        whole, rng = (shards / name).read_bytes(), random.Random(2)
        for _ in range(12):
            place = rng.randrange(len(whole))
            (shards / name).write_bytes(whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :])
            signed(shards)
            with contextlib.suppress(CheckpointError):
                checkpoint.load(shards)
        (shards / name).write_bytes(whole)


def test_headers_of_shards(shards):
    header = json.loads((shards / checkpoint_folder.HEADER).read_text())
    files = header["files"]
    for bad in (
        None,
        [],
        3,
        {**files, "../run.0/.metadata": files[".metadata"]},
        {**files, "more": "0"},
        {name: 3 for name in files},
    ):
        (shards / checkpoint_folder.HEADER).write_text(json.dumps({**header, "files": bad}))
        refused_folder(shards)
    for text in ("[]", "3", '"x"', "[" * 100_000, json.dumps({**header, "header": 3}), json.dumps({**header, "format": None})):
        (shards / checkpoint_folder.HEADER).write_text(text)
        refused_folder(shards)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


class Attributes:
    """Pickled as what sets an attribute of a class that the folder may name."""

    def __reduce__(self):
        return (Metadata, (), (None, {"planner_data": 3}))


def test_nothing_in_shards_is_executed(shards, tmp_path):
    for value in (Payload(tmp_path / "executed"), {"a": [Payload(tmp_path / "executed")]}, Metadata, {}, 3, Attributes()):
        (shards / ".metadata").write_bytes(pickle.dumps(value))
        signed(shards)
        refused_folder(shards)
    assert not (tmp_path / "executed").exists()


def test_no_attribute_of_a_class_is_set(shards):
    """BUILD on the class itself, with a state of slots."""
    own = dict(vars(Metadata))
    code = pickle.PROTO + b"\x02" + pickle.GLOBAL + b"torch.distributed.checkpoint.metadata\nMetadata\n"
    code += (
        pickle.NONE + pickle.EMPTY_DICT + pickle.BINUNICODE + b"\x03\x00\x00\x00odd" + pickle.BININT1 + b"\x01" + pickle.SETITEM
    )
    (shards / ".metadata").write_bytes(code + pickle.TUPLE2 + pickle.BUILD + pickle.STOP)
    signed(shards)
    refused_folder(shards)
    assert vars(Metadata) == own


def test_shards_of_other_files(shards):
    metadata = pickle.loads((shards / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere"
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))
    signed(shards)
    refused_folder(shards)


def test_shards_larger_than_their_files(shards):
    metadata = pickle.loads((shards / ".metadata").read_bytes())
    entry = next(iter(metadata.state_dict_metadata.values()))
    entry.size = torch.Size([2**40])
    (shards / ".metadata").write_bytes(pickle.dumps(metadata))
    signed(shards)
    refused_folder(shards)


def test_a_folder_that_is_not_ours_is_not_removed(tmp_path):
    (tmp_path / "run.0").mkdir()
    (tmp_path / "run.0" / "thesis.tex").write_text("precious")
    with pytest.raises(OSError, match=r"expected the files of a checkpoint in .*, got thesis\.tex"):
        checkpoint_folder._remove(tmp_path / "run.0")
    assert (tmp_path / "run.0" / "thesis.tex").exists()
    shutil.copytree(SHARDS, tmp_path / "run.1")
    checkpoint_folder._remove(tmp_path / "run.1")
    assert not (tmp_path / "run.1").exists()
