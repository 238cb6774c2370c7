"""Checkpoints: {format, JSON header, flat dict path -> tensor}, written atomically, read without executing anything.

The header holds versions, the solver, the problem's signature, the seed, the counters and the state's structure. A state is
rebuilt from classes the library registered (`states.STATES`), never from names that the file brings along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint_folder, files
from .errors import BilevelError, CheckpointError, OutputError
from .live import sharded as is_sharded
from .processes import Ranks
from .states import ENUMS, misfit, name_of, rebuilt
from .upgrade import upgraded
from .vec import Vec, filled, of_tree, structure

FORMAT, OLDER = "bilevel-checkpoint/2", ("bilevel-checkpoint/1",)
NEWER = r"bilevel-checkpoint/([3-9]|\d{2,9})"
LARGEST = 2**28  # bytes of a tensor that a file may describe with fewer, as an expanded one


def save(
    path: Path,
    header: dict[str, Any],
    state: Any,
    variables: dict[str, Vec],
    ranks: Ranks | None = None,
    *,
    accepted: Any = None,
) -> None:
    """Replace the file at `path`, or at the end of the links there; the one before stays beside it as NAME.previous. Of several
    processes the first writes; all of them where variables are sharded (`checkpoint_folder.py`). Raises OutputError.
    """
    flat: dict[str, Tensor] = {}
    header = {**header, "structure": _encode(state, "state", flat, variables)}
    header["accepted"] = _encode(accepted, "accepted", flat, variables)
    text = json.dumps(header)
    if is_sharded(flat.values()):  # over one process too
        content = {"format": FORMAT, "header": text, "digest": _digest(text, {})}
        checkpoint_folder.save(Path(path), content, flat, ranks or Ranks(next(iter(flat.values())).device))
        return
    if ranks is not None:
        if ranks.rank == 0:
            save(path, header, state, variables, accepted=accepted)
        ranks.wait()
        return
    content = {"format": FORMAT, "header": text, "tensors": flat, "digest": _digest(text, flat)}
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, keep=True) as file:
            torch.save(content, file)
    except (OSError, RuntimeError, ValueError) as cause:  # of torch's zip writer; of a name with a null character
        raise OutputError(f"checkpoint {path}: cannot be written: {files.reason(cause)}") from cause


def load(path: Path, variables: Mapping[str, Vec] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors. Raises CheckpointError where the file is missing, damaged or of another format."""
    path = Path(path)
    try:
        sharded, there = (path / checkpoint_folder.HEADER).is_file(), path.is_file()
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"checkpoint {path!s:.200}: cannot be read: {cause!s:.200}") from cause
    if sharded:
        content, tensors = checkpoint_folder.load(path, variables or {})
        return _header(path, content, {}), tensors
    if not there:
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        _small(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # torch raises many kinds on a file that is not its own
        raise CheckpointError(f"checkpoint {path}: {_damaged(path)} ({type(cause).__name__})") from cause
    header = _header(path, content, content.get("tensors") if isinstance(content, dict) else None)
    return header, content["tensors"]


def _small(path: Path) -> None:
    """Raise ValueError for a file that says it holds more than its own size: torch writes zips without compression."""
    with zipfile.ZipFile(path) as parts:
        kinds = {part.compress_type for part in parts.infolist()}
        if kinds != {zipfile.ZIP_STORED} or sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
            raise ValueError("compressed, or larger than the file")


def _header(path: Path, content: Any, hashed: Any) -> dict[str, Any]:
    """The header of a checkpoint's content, whose digest is that of the header and of the tensors `hashed`."""
    found = content.get("format") if isinstance(content, dict) else None
    if found not in (FORMAT, *OLDER):
        newer = ", which a newer version writes" if isinstance(found, str) and re.fullmatch(NEWER, found) else ""
        raise CheckpointError(f"checkpoint {path}: expected format {FORMAT!r}, got {found!r:.60}{newer}")
    try:
        if any(tensor.numel() * tensor.element_size() > max(LARGEST, path.stat().st_size) for tensor in hashed.values()):
            raise ValueError("a tensor is larger than the file")
        if content["digest"] != _digest(content["header"], hashed):
            raise ValueError("the digest differs")
        header = json.loads(content["header"] if found == FORMAT else upgraded(content["header"]))
        _complete(header)
    except Exception as cause:  # whatever a forged file holds
        raise CheckpointError(f"checkpoint {path}: {_damaged(path)} ({type(cause).__name__}: {cause!s:.200})") from cause
    return header


def _complete(header: Any) -> None:
    """Raise ValueError where entries are absent or of another kind."""
    kinds = {"run": dict, "k": int, "seconds": (int, float), "calls": dict, "callbacks": list}
    kinds |= {name: dict for name in ("samplers", "data") if name in header}  # absent in files of before there were any
    bad = [name for name, kind in kinds.items() if not isinstance(header.get(name), kind)]
    if bad or "structure" not in header or not (header["k"] >= 0 and 0 <= header["seconds"] < math.inf):
        raise ValueError(f"the header lacks entries: {', '.join(bad)}")


def _damaged(path: Path) -> str:
    with contextlib.suppress(OSError):
        previous = Path(os.path.realpath(path) + files.PREVIOUS)
        if previous.exists():
            return f"not a checkpoint, or damaged; {previous.name} beside it is the one before"
    return "not a checkpoint, or damaged"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a file brings about is a CheckpointError, whatever it is; the library's own errors pass."""
    try:
        yield
    except BilevelError:
        raise
    except Exception as cause:
        raise CheckpointError(f"checkpoint {path}: its state does not fit ({type(cause).__name__}: {cause!s:.200})") from cause


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the header and of every tensor's name and bytes: a damaged file is refused, not resumed."""
    found = hashlib.sha256(header.encode())
    for path, tensor in tensors.items():
        found.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def compare(path: Path, saved: dict[str, Any], now: dict[str, Any], within: str = "") -> None:
    """Raise CheckpointError naming the first entry in which a checkpoint and the run at hand differ."""
    for key in sorted(set(saved) | set(now)):
        then, here = saved.get(key), now.get(key)
        if _same(then, here):
            continue
        if isinstance(then, dict) and isinstance(here, dict):
            if set(then) != set(here):  # other kinds of things altogether
                raise CheckpointError(f"checkpoint {path}: it is of another {within}{key}: saved {[*then]}, here {[*here]}")
            compare(path, then, here, f"{within}{key}: ")  # the entry in which they differ
        if isinstance(then, list) and isinstance(here, list) and any(isinstance(value, float) for value in then):
            raise CheckpointError(f"checkpoint {path}: it is of another {within}{key}: the functions, sets or data differ")
        raise CheckpointError(f"checkpoint {path}: it is of another {within}{key}: saved {then!r:.200}, here {here!r:.200}")


def _same(saved: Any, now: Any) -> bool:
    """Equal; lists of floats to what another number of threads may change, as far as older files have them."""
    floats = isinstance(saved, list) and isinstance(now, list) and 0 < len(saved) <= len(now)
    if floats and all(isinstance(value, float) for value in (*saved, *now)):
        return all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-12) or a != a != b for a, b in zip(saved, now))
    return saved == now


def restore(
    path: Path, header: dict[str, Any], tensors: dict[str, Tensor], variables: dict[str, Vec], *, part: str = "structure"
) -> Any:
    """The state, or what else was saved under `part`, on the variables' device; None where there is none."""
    with reading(path):
        return _decode(header.get(part), tensors, variables)


def _encode(value: Any, path: str, flat: dict[str, Tensor], variables: dict[str, Vec]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        flat[path] = _kept(value)
        return {"tensor": path, "host": value.device.type == "cpu"}
    if isinstance(value, Vec):
        like = structure(value.plain().tree(), variables)
        paths = [f"{path}{leaf or '.value'}" for leaf in value.paths()]
        flat.update(zip(paths, map(_kept, value.leaves)))
        return {"vec": like, "leaves": paths}
    if isinstance(value, dict):
        return {"dict": {key: _encode(v, f"{path}[{key!r}]", flat, variables) for key, v in value.items()}}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(v, f"{path}[{i}]", flat, variables) for i, v in enumerate(value)]}
    if ENUMS.get(type(value).__name__) is type(value):
        return {"enum": type(value).__name__, "member": value.name}
    key = name_of(type(value))
    if key is not None:
        parts = {f.name: _encode(getattr(value, f.name), f"{path}.{f.name}", flat, variables) for f in dataclasses.fields(value)}
        return {"state": key, "fields": parts}
    held = "tensors, Vecs, numbers, strings, enums and solver_state classes"
    raise TypeError(f"{path}: a state holds {held}, not {type(value).__name__}")


def _kept(tensor: Tensor) -> Tensor:
    """On the CPU, where it is not sharded."""
    return tensor.detach() if is_sharded([tensor]) else tensor.detach().cpu()


def _decode(spec: Any, flat: dict[str, Tensor], variables: dict[str, Vec]) -> Any:
    if not isinstance(spec, dict):
        return spec
    if "tensor" in spec:
        return flat[spec["tensor"]] if spec["host"] else flat[spec["tensor"]].to(next(iter(variables.values())).device)
    if "vec" in spec:
        like, leaves = spec["vec"], [flat[path] for path in spec["leaves"]]
        if not all(leaf.is_floating_point() for leaf in leaves):
            raise TypeError(f"{spec['leaves']}: expected floating-point entries")
        if isinstance(like, str):
            pairs = zip(leaves, variables[like].leaves, strict=True)
            return variables[like].like(found.to(leaf.device) for found, leaf in pairs)
        device = next(iter(variables.values())).device
        return of_tree(filled(like, (leaf.to(device) for leaf in leaves), variables))
    if "dict" in spec:
        return {key: _decode(v, flat, variables) for key, v in spec["dict"].items()}
    if "tuple" in spec:
        return tuple(_decode(v, flat, variables) for v in spec["tuple"])
    if "list" in spec:
        return [_decode(v, flat, variables) for v in spec["list"]]
    if "enum" in spec:
        return ENUMS[spec["enum"]][spec["member"]]
    found = rebuilt(spec["state"], {name: _decode(v, flat, variables) for name, v in spec["fields"].items()})
    if (bad := misfit(found)) is not None:
        raise TypeError(f"{spec['state']}: {bad} is of another kind")
    return found
