"""Checkpoints and Results that version 0.1.0 wrote: they load, hold the same bits, and go on to the same end."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cases import CASES
from fixtures.make import SETS
from harness import run, same

from bilevel import Status, iterate
from constrained import Product
from constrained.core import checkpoint
from constrained.core.vec import Vec, leaves_by_path

ROOT = Path(__file__).parents[3]
FILES = ROOT / "tests" / "fixtures" / "0.1.0"
NAMES = sorted(path.stem for path in FILES.glob("*.pt"))
OLD = [case for case in CASES if case.name in NAMES]
MADE = {"lv-hba-toy": (".outer", ".path", ".guess")}  # put together from what 0.1.0 kept apart
old = pytest.mark.parametrize("case", OLD, ids=lambda case: case.name)


def result_of(name: str):
    with warnings.catch_warnings():  # of torch's private tree, which 0.1.0 pickled, and of the paths of moved modules
        warnings.simplefilter("ignore")
        return pickle.loads((FILES / f"{name}.pickle").read_bytes())


def test_every_file_has_its_case():
    assert {case.name for case in OLD} == set(NAMES)


@old
def test_a_checkpoint_holds_the_same_bits(case):
    first = next(iterate(case.instance().problem, case.solver, resume=FILES / f"{case.name}.pt", seed=case.seed, max_steps=10**6))
    _, saved = checkpoint.load(FILES / f"{case.name}.pt")
    parts = leaves_by_path(first.state).items()
    now = [leaf for path, leaf in parts if isinstance(leaf, torch.Tensor) and not path.startswith(MADE.get(case.name, ()))]
    assert now
    known = [leaf for leaf in now if not leaf.isnan().any() and leaf.count_nonzero()]  # an upgraded state may begin with zeros
    assert all(any(torch.equal(leaf, kept) for kept in saved.values()) for leaf in known)


@old
def test_a_checkpoint_goes_on_to_the_same_end(case):
    """Two runs from one file are equal to the bit. Other kernels round in another way than those that wrote the file: 100 steps
    of Adam grow that to 5e-9, and a method may converge a step sooner (both under MKL_CBWR=COMPATIBLE), within the tolerance.
    """
    before = result_of(case.name)
    limit = before.steps if before.status is Status.MAX_STEPS else None
    ends = [run(case, resume=FILES / f"{case.name}.pt", max_steps=limit) for _ in range(2)]
    assert same(ends[0].state, ends[1].state)
    assert abs(ends[0].steps - before.steps) <= 2
    assert ends[0].status is before.status
    for name in ("x", "y"):
        tree = getattr(before, name)
        if tree is not None:
            wanted, found = Vec.of(tree), Vec.of(getattr(ends[0], name))
            tolerance = 1e-7 if limit and wanted.dtype == torch.float64 else 1e-5
            assert float((found - wanted).norm()) <= tolerance * (1 + float(wanted.norm()))


@old
def test_a_pickled_result_loads(case):
    result = result_of(case.name)
    assert type(result.status) is Status
    if case.name != "penalty-fixed-adam":  # 0.1.0's Penalty with an Optimizer, now PenaltyDescent
        assert type(result.solver) is type(case.solver)
    assert result.on(case.instance().problem).residuals()
    again = pickle.loads(pickle.dumps(result))
    assert same(again.state, result.state)
    assert same((again.x, again.y), (result.x, result.y))


def test_pickled_sets_load():
    for one, fresh in zip(result_of("sets"), SETS, strict=True):
        assert repr(one) == repr(fresh)
        v = torch.tensor([-0.3, 2.7])
        v = Vec.of(list(v) if isinstance(one, Product) else v)
        assert same(one.project(v), fresh.project(v))


def test_a_new_pickle_says_nothing_under_warnings_as_errors(tmp_path):
    case = next(case for case in OLD if case.name == "implicit-dict-module")
    (tmp_path / "result.pickle").write_bytes(pickle.dumps(run(case)))
    code = "import copy, pickle, sys; from pathlib import Path; found = pickle.loads(Path(sys.argv[1]).read_bytes())"
    code += "; print(copy.deepcopy(pickle.loads(pickle.dumps(found))).status.name)"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "result.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "MAX_STEPS"


def test_a_folder_of_shards_goes_on_to_the_same_end(tmp_path):
    shutil.copytree(FILES / "fsdp.0", tmp_path / "fsdp.0")
    (tmp_path / "fsdp").symlink_to("fsdp.0")
    options = {"kind": "fsdp", "lisa": True, "steps": 6, "checkpoint": str(tmp_path / "fsdp"), "resume": True}
    worker = [sys.executable, str(ROOT / "tests" / "workers" / "reweighting.py"), json.dumps({"run": options}), str(tmp_path)]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run(worker, check=True, env={**os.environ, **alone}, timeout=300)
    found, wanted = json.loads((tmp_path / "0.json").read_text())["run"], json.loads((FILES / "fsdp.json").read_text())
    for name in ("x", "weights"):  # float32
        assert found[name] == pytest.approx(wanted[name], abs=1e-5)
    assert found["norm"] == pytest.approx(wanted["norm"], rel=1e-5)


RESUME = """
import pickle, sys
from pathlib import Path
from cases import CASES
import bilevel, renamed_module_check
from bilevel import iterate
files = Path(sys.argv[1])
case = next(case for case in CASES if case.name == "penalty-dict-module")
first = next(iterate(case.instance().problem, case.solver, resume=files / f"{case.name}.pt", max_steps=10**6))
result = pickle.loads((files / f"{case.name}.pickle").read_bytes())
fresh = pickle.loads(pickle.dumps(result))
print(type(first.state.inner[0]).__module__, type(result.state.inner[0]).__module__, fresh.status.name)
"""


def test_renamed_modules_still_load_them(tmp_path):
    """In a copy of the tree two modules get other names, as an editor would rename them."""
    for package in ("constrained", "bilevel", "problems", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    renamed = {"nested_penalty": "any_other_name", "curvature_pairs": "one_more_name"}
    for path in tmp_path.rglob("*.py"):
        text = path.read_text()
        for old, new in renamed.items():
            text = re.sub(rf"\b{old}\b", new, text)
        path.write_text(text)
        if path.stem in renamed:
            path.rename(path.with_stem(renamed[path.stem]))
    (tmp_path / "renamed_module_check.py").write_text("import bilevel.reformulations.any_other_name\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tmp_path / part) for part in ("", "tests", "tests/helpers"))}
    command = [sys.executable, "-W", "ignore", "-c", RESUME, str(FILES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["bilevel.reformulations.any_other_name"] * 2 + ["CONVERGED"]
