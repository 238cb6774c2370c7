"""Where and how checkpoints are written: links, what is no file, names of others, full disks, two writers."""

import os
import socket
import stat

import pytest
import torch

from bilevel import BilevelProblem, Checkpoint, EarlyStopping, History, Penalty, solve
from constrained.core import checkpoint, files
from constrained.core.callbacks import write_text
from constrained.core.errors import CheckpointError, OptionError, OutputError

F64 = torch.float64


def bowl():
    f, g = lambda x, y: ((y - 1) ** 2).sum() + (x**2).sum(), lambda x, y: ((y - x) ** 2).sum()
    return BilevelProblem(upper=f, lower=g, x=torch.zeros(2, dtype=F64), y=torch.zeros(2, dtype=F64))


def saved(path, steps=2):
    solve(bowl(), Penalty(), max_steps=steps, callbacks=[Checkpoint(path)])
    return path


def names(folder):
    return sorted(file.name for file in folder.iterdir())


# -- links and what is no file ----------------------------------------------------------------------------------------------
def test_a_link_stays_one(tmp_path):
    """The file that it names is replaced, with the one before beside it, whether it was there or not."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.pt").symlink_to("disk/run.pt")
    for steps in (1, 3):
        saved(tmp_path / "run.pt", steps)
        assert os.readlink(tmp_path / "run.pt") == "disk/run.pt"
        assert checkpoint.load(tmp_path / "run.pt")[0]["k"] == steps
    assert names(tmp_path) == ["disk", "run.pt"]
    assert names(tmp_path / "disk") == ["run.pt", "run.pt.previous"]
    (tmp_path / "disk" / "run.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"run\.pt\.previous beside it"):
        checkpoint.load(tmp_path / "run.pt")


def make(kind, path):
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a socket"])
def test_only_files_are_replaced(tmp_path, monkeypatch, kind, linked):
    """Refused when the callback is made, or at the moment of writing; what is there stays."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = tmp_path / "run.pt"
    thing = path.with_name("thing") if linked else path
    if linked:
        path.symlink_to("thing")
    callback = Checkpoint(path)
    make(kind, thing.relative_to(tmp_path))
    before = os.lstat(thing)
    for call in (lambda: Checkpoint(path), lambda: EarlyStopping(len, path=path), lambda: write_text(path, "words")):
        with pytest.raises(OutputError, match=f"expected a regular file or nothing at .*, got {kind}"):
            call()
    with pytest.raises(OutputError, match=rf"checkpoint .*run\.pt: .*got {kind}"):
        solve(bowl(), Penalty(), max_steps=1, callbacks=[callback])
    assert os.lstat(thing).st_ino == before.st_ino
    assert len(names(tmp_path)) == 1 + linked


def test_what_is_in_the_place_of_the_one_before(tmp_path):
    path = saved(tmp_path / "run.pt")
    (tmp_path / "run.pt.previous").unlink()
    os.mkfifo(tmp_path / "run.pt.previous")
    before = path.read_bytes()
    with pytest.raises(OutputError, match="got a FIFO"):
        saved(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["run.pt", "run.pt.previous"]


@pytest.mark.parametrize("target", ["missing/run.pt", "run.pt"], ids=["no folder", "a circle"])
def test_links_that_lead_nowhere(tmp_path, target):
    (tmp_path / "run.pt").symlink_to(target)
    with pytest.raises(OutputError):
        Checkpoint(tmp_path / "run.pt")
    assert names(tmp_path) == ["run.pt"]


@pytest.mark.parametrize("name", ["", ".", "/", "a\0b", "a\0b/c", "a" * 240, "a" * 5000])
def test_odd_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: Checkpoint(name), lambda: History().write(name)):
        with pytest.raises(OutputError):
            call()
    with pytest.raises(CheckpointError):
        solve(bowl(), Penalty(), resume=name)
    assert not names(tmp_path)


@pytest.mark.parametrize("path", [None, 3, b"run.pt", ["run.pt"]])
def test_what_is_no_path(path):
    with pytest.raises(OptionError, match="Checkpoint: path: expected the path of a file, got"):
        Checkpoint(path)


# -- temporary files --------------------------------------------------------------------------------------------------------
def test_a_name_that_is_taken_is_not_followed(tmp_path, monkeypatch):
    """A link that was put where the temporary file will be: refused, its target as it was."""
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f"run.pt.{'0' * 16}.tmp").symlink_to("victim")
    with pytest.raises(OutputError, match="File exists"):
        saved(tmp_path / "run.pt")
    assert (tmp_path / "victim").read_text() == "precious"
    assert len(names(tmp_path)) == 2


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "run.pt"
    with files.replacing(path, keep=True) as one:
        one.write(b"first, ")
        with files.replacing(path, keep=True) as other:
            other.write(b"second")
        assert path.read_bytes() == b"second"
        one.write(b"to the end")
    assert path.read_bytes() == b"first, to the end"
    assert path.with_name("run.pt.previous").read_bytes() == b"second"
    assert len(names(tmp_path)) == 2


def test_the_disk_has_the_file_before_its_name_and_the_folder_after(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def moved(old, new):
        done.append(os.path.basename(new))
        replace(old, new)

    with files.replacing(tmp_path / "run", keep=True) as file:
        file.write(b"old")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    with files.replacing(tmp_path / "run", keep=True) as file:
        file.write(b"new")
    assert done == ["file", "run.previous", "run", "folder"]


class Full:
    """A file on a disk with room for some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return self.file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 1500, 3000])
def test_a_full_disk_under_the_zip_writer(tmp_path, monkeypatch, room):
    """torch raises a RuntimeError of its own: an OutputError that says what the disk said, the last checkpoint stands."""
    path = saved(tmp_path / "run.pt")
    before = path.read_bytes()
    monkeypatch.setattr(files, "open", lambda *args: Full(open(*args), room), raising=False)  # noqa: SIM115
    with pytest.raises(OutputError, match=r"run\.pt: cannot be written: .*No space left"):
        saved(path, 4)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["run.pt", "run.pt.previous"]
