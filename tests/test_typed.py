"""The public face as a user's type checker sees it (`py.typed`): tests/typed/program.py, checked and run."""

import importlib.util
import shutil
import site
import subprocess
import sys
import venv

import pytest
from test_public import ROOT, python

PROGRAM = ROOT / "tests" / "typed" / "program.py"


@pytest.mark.skipif(importlib.util.find_spec("basedpyright") is None, reason="needs basedpyright")
def test_a_users_program_is_well_typed(tmp_path):
    """Beside installed packages: there only names of `__all__` or of the file itself are public. Marked lines must be wrong."""
    venv.create(tmp_path / "env", symlinks=True)
    (installed,) = (tmp_path / "env").rglob("site-packages")
    for package in ("constrained", "bilevel"):
        shutil.copytree(ROOT / package, installed / package, ignore=shutil.ignore_patterns("__pycache__"))
    (installed / "others.pth").write_text("\n".join(site.getsitepackages()))  # torch's
    shutil.copy(PROGRAM, tmp_path)
    interpreter = tmp_path / "env" / "bin" / "python3"
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(interpreter), "--level", "warning", PROGRAM.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0 errors, 0 warnings, 0 notes"], done.stdout + done.stderr


def test_a_users_program_runs(tmp_path):
    done = python(PROGRAM.read_text(), tmp_path, ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
