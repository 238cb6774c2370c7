"""Files written whole or not at all: to a fresh name beside the target, then moved over it.

A fresh name is NAME.<16 hex digits>.tmp: no two writers share one, and a killed writer leaves its own. Nothing here removes such
a file: on a shared disk none can tell whether a writer on another machine still needs it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
PREVIOUS = ".previous"


def fresh(path: Path) -> Path:
    """A name beside `path` that no other writer has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")


def target(path: Path | str) -> Path:
    """The file that `path` names, at the end of its links; it need not exist. Raises OSError for what is no regular file."""
    try:
        end = Path(os.path.realpath(path))
        _regular(end)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(fresh(end.with_name(end.name + PREVIOUS)))  # the longest name beside it, where that is too long
    except ValueError as cause:  # a name with a null character
        raise OSError(str(cause)) from cause
    return end


@contextlib.contextmanager
def replacing(path: Path | str, *, keep: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end of the block; where the block raises, nothing is left of it.

    Links stay links: the file that they name is replaced. keep: the file before stays as NAME.previous. Raises OSError.
    """
    end = target(path)
    name = fresh(end)
    file = open(name, "xb")  # noqa: SIM115  # exclusive: it follows no link, and fails, before `try`, at the file of another
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep:
            _keep_previous(end)
        _regular(end)
        os.replace(name, end)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    synced(end.parent)


def _keep_previous(path: Path) -> None:
    """A second name for the file about to be replaced: `path` itself exists at every moment."""
    if not path.exists():
        return
    previous = path.with_name(path.name + PREVIOUS)
    _regular(previous)
    spare = fresh(previous)
    try:
        try:
            os.link(path, spare)
        except OSError:  # a file system without hard links
            with open(path, "rb") as old, open(spare, "xb") as copy:
                shutil.copyfileobj(old, copy)
                copy.flush()
                os.fsync(copy.fileno())
        os.replace(spare, previous)
    except BaseException:
        spare.unlink(missing_ok=True)
        raise


def _regular(path: Path) -> None:
    """Raise OSError where something other than a regular file is at `path`."""
    with contextlib.suppress(FileNotFoundError):
        kind = stat.S_IFMT(os.lstat(path).st_mode)
        if kind != stat.S_IFREG:
            raise OSError(f"expected a regular file or nothing at {path}, got {KINDS.get(kind, 'a device')}")


def synced(folder: Path) -> None:
    """Names in the folder are on the disk, where its file system can tell."""
    if os.name == "nt":  # folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def reason(cause: BaseException) -> str:
    """What went wrong on the disk: torch's zip writer raises a RuntimeError of its own over the error of the file."""
    found: BaseException | None = cause
    while found is not None and not isinstance(found, OSError):
        found = found.__context__
    return str(found or cause)
