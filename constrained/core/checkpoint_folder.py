"""Checkpoints of sharded variables, by torch.distributed.checkpoint: a folder that every process writes its part of.

`path` is a link to one of two folders beside it, `path.0` and `path.1`: the next checkpoint goes to the other one, and the
link is replaced when it is whole. So a process that is killed leaves the last checkpoint, and the one before it stays; one job at
a time writes to a path. What torch keeps pickled in it is read by an unpickler that knows these few classes and no other, and
changes none of them: loading executes nothing.
"""

# pyright: reportPrivateImportUsage=false, reportUntypedBaseClass=false
from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, OutputError
from .files import fresh, synced
from .processes import Ranks
from .vec import Vec

HEADER, METADATA = "header.json", ".metadata"
KNOWN = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("collections", "OrderedDict"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in ("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "MetadataIndex")
    ),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
}


OWN = re.compile(r"__\d+_\d+\.distcp|\.metadata(\.tmp)?|header\.json")  # files of a checkpoint, whole or cut short


PYTHON: Any = pickle._Unpickler  # the one whose table of opcodes can be changed  # pyright: ignore[reportAttributeAccessIssue]


def _member(kind: Any, name: str) -> Any:
    """A member of an enum, which Python 3.11.2 pickles as `getattr(kind, name)`; nothing else has its attributes taken."""
    if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
        raise pickle.UnpicklingError(f"{name!r:.60} of {kind!r:.60} does not belong into a checkpoint")
    return kind.__members__[name]


class _Unpickler(PYTHON):
    """Knows `KNOWN`; sets attributes of what it made and not, as pickles may, of classes and functions."""

    dispatch = dict(PYTHON.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) in KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a checkpoint")

    def load_build(self) -> None:
        made, state = self.stack[-2:]
        plain = isinstance(state, dict) or hasattr(made, "__setstate__")
        if isinstance(made, type) or not dataclasses.is_dataclass(made) or not plain:
            raise pickle.UnpicklingError(f"attributes of {made!r:.60} do not belong into a checkpoint")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def save(path: Path, content: dict[str, str], flat: dict[str, Tensor], ranks: Ranks) -> None:
    """Write a checkpoint together with the other processes: tensors by all, `content` and the files' digests by the first."""
    import torch.distributed.checkpoint as dcp

    first, folder = ranks.rank == 0, _free(path)
    try:
        if first:
            _remove(folder)
            folder.mkdir(parents=True)
        ranks.wait()
        dcp.save(flat, checkpoint_id=folder)
        own = {file.name: _digest(file) for file in sorted(folder.glob(f"__{ranks.rank}_*"))}
        files = {name: digest for one in ranks.gathered(own) for name, digest in one.items()}
        if first:
            files[METADATA] = _digest(folder / METADATA)
            with open(folder / HEADER, "w") as file:
                json.dump({**content, "files": files}, file)
                file.flush()
                os.fsync(file.fileno())
            synced(folder)
            link = fresh(path)
            link.symlink_to(folder.name)
            try:
                os.replace(link, path)
            except OSError:
                link.unlink()
                raise
            synced(path.parent)
    except (OSError, dcp.CheckpointException) as cause:  # the second is no Exception
        raise OutputError(f"checkpoint {path}: cannot be written: {cause}") from cause
    ranks.wait()


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _free(path: Path) -> Path:
    """The folder of the two that `path` does not name. Raises OutputError where `path` is no link of ours."""
    used = os.readlink(path) if path.is_symlink() else ""
    own = used in (f"{path.name}.0", f"{path.name}.1") or (path / HEADER).is_file()
    if (used and not own) or (path.exists() and not used):
        raise OutputError(f"checkpoint {path}: expected a link that a sharded run made, or nothing, got another file")
    return path.with_name(f"{path.name}.{0 if used.endswith('.1') else 1}")


def _remove(folder: Path) -> None:
    """The checkpoint before the last one, or what a killed run left. Raises OSError for a folder with anything else in it."""
    if not folder.is_symlink() and folder.is_dir():
        other = [file.name for file in folder.iterdir() if not OWN.fullmatch(file.name)]
        if other:
            raise OSError(f"expected the files of a checkpoint in {folder}, got {other[0]}")
        shutil.rmtree(folder)


def load(path: Path, variables: Mapping[str, Vec]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Content and tensors, those of sharded variables and of their optimizers sharded alike. Raises CheckpointError, in all
    processes, also where a file is not the one that was written: each process looks at its share.
    """
    import torch.distributed.checkpoint as dcp

    ranks = Ranks.here(next(iter(variables.values())).device) if variables else None
    rank, world = (0, 1) if ranks is None else (ranks.rank, ranks.world)

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
                found = _Unpickler(file).load()
            found.storage_meta = found.storage_meta or dcp.metadata.StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    try:
        content = json.loads((path / HEADER).read_text())
        files = sorted(content["files"].items())
        there = {file.name for file in path.iterdir()}
        if there - {HEADER, *content["files"]} or not all(OWN.fullmatch(name) for name in content["files"]):
            raise ValueError("files that do not belong there")
        bad = [name for name, digest in files[rank::world] if not (path / name).is_file() or _digest(path / name) != digest]
    except Exception as cause:  # whatever a forged header holds
        content, bad = {}, [f"{type(cause).__name__}: {cause}"]
    if (ranks is None and bad) or (ranks is not None and ranks.any(bool(bad))):
        raise CheckpointError(f"checkpoint {path}: not a checkpoint, or damaged: {', '.join(bad) or 'in another process'}")
    try:
        metadata = Reader(path).read_metadata()
        if not all(info.relative_path in content["files"] for info in metadata.storage_data.values()):
            raise ValueError("parts of other files")
        limit = sum((path / name).stat().st_size for name in content["files"])
        leaves = {leaf: value for vec in variables.values() for leaf, value in zip(vec.paths(), vec.leaves) if leaf}
        flat = {name: _room(name, entry, leaves, limit) for name, entry in metadata.state_dict_metadata.items()}
        dcp.load(flat, storage_reader=Reader(path))
    except (Exception, dcp.CheckpointException) as cause:  # many kinds; the second is no Exception
        raise CheckpointError(f"checkpoint {path}: not a checkpoint, or damaged ({type(cause).__name__}: {cause})") from cause
    return content, flat


def _room(name: str, entry: Any, leaves: dict[str, Tensor], limit: int) -> Tensor:
    """Memory for a saved tensor, at most `limit` bytes, sharded like the leaf of a variable that it belongs to."""
    if math.prod(entry.size) * entry.properties.dtype.itemsize > limit:
        raise ValueError(f"{name} is larger than the files")
    for path, leaf in leaves.items():
        if path in name and leaf.shape == entry.size:
            return torch.empty_like(leaf, dtype=entry.properties.dtype)
    return torch.empty(entry.size, dtype=entry.properties.dtype)
