"""What users see: the exported names, the examples in docstrings and documents, the wheel, and names that clash with a user's."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bilevel
import constrained
import problems

ROOT = Path(__file__).parents[1]
PACKAGES = ("constrained", "bilevel", "problems")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS += [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]

PUBLIC = {  # and each package's solvers
    bilevel: """
        CG LBFGS LISA SGD SPG AdamW AdjointMethod Affine AllBlocks Attempt Auto Ball BilevelError BilevelProblem Box
        BoxHyperplane Checkpoint CheckpointError ConvexSet Cosine CvxpySet Cyclic Direct EarlyStopping Event
        Everywhere FaceLBFGS Feature FixedPoint FullBatch Function Halfspace History Hypergradient Live MemoryReport
        MemoryWatch MiniBatches Minres MissingExtra Mixture Multipliers Neumann NewtonCG NoData NonFiniteGradient
        NonFiniteStart OptionError OutputError Point Polyhedron Power ProblemError Product Progress ProjectedCG
        ProjectedLBFGS Recommendation Result Retrained ScalarAdam Simplex SolveFailed SourceBatches Status
        StochasticNeumann StopWhen Stream TensorBoard TorchOptimizer Unrolled Unsuitable Vec __version__ hypergradient
        iterate memory multistart per_source plot_weights recommend retrain softmax solve
    """,
    constrained: """
        CG LBFGS SGD SPG AdamW Affine Attempt Auto AutoLinear Ball BilevelError Box BoxHyperplane Checkpoint
        CheckpointError ConstrainedProblem ConvexSet Cosine CvxpySet Direct EarlyStopping EstimatedAccuracy Event
        Everywhere FaceLBFGS Feature FullBatch Function Gaussian Halfspace History Kaczmarz MiniBatches Minres
        MissingExtra Multipliers Neumann NewtonCG NoData NonFiniteGradient NonFiniteStart OptionError OutputError
        PaperAccuracy Point Polyhedron Power ProblemError Product Progress ProjectedCG ProjectedLBFGS Result
        Results ScalarAdam Simplex Sketch SolveFailed SourceBatches Status StopWhen Stream System TensorBoard TorchOptimizer
        Unsuitable Vec __version__ iterate minimize multistart solve solve_many
    """,
}
PUBLIC = {package: [*names.split(), *package.solvers.__all__] for package, names in PUBLIC.items()}
EXTRAS = {  # examples that need an optional package
    "bilevel.lm.models": "peft",
    "constrained.solvers.ipopt": "cyipopt",
    "constrained.solvers.pounce": "pounce",
    "constrained.solvers.uno": "unopy",
    "docs/howto/language-model.md": "peft",
}
NAMES = [pytest.param(package, name, id=f"{package.__name__}.{name}") for package, names in PUBLIC.items() for name in names]


def modules():
    for package in PACKAGES:
        yield package
        found = pkgutil.walk_packages([str(ROOT / package)], package + ".")
        yield from (module.name for module in found if not module.name.endswith("__main__"))


# -- names ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("package", list(PUBLIC), ids=lambda package: package.__name__)
def test_the_exported_names_are_these(package):
    assert sorted(package.__all__) == sorted(PUBLIC[package])


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_every_name_exists_and_is_documented(package, name):
    value = getattr(package, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        own = (value.__doc__ or "").strip()
        assert own
        assert not own.startswith(f"{value.__name__}("), "a docstring that dataclass made"
    else:
        assert isinstance(value, str)


def test_there_is_one_solve():
    assert bilevel.solve is constrained.solve
    assert bilevel.iterate is constrained.iterate


@pytest.mark.parametrize("package", [constrained, bilevel, problems])
def test_paths_of_modules_that_moved_lead_to_their_names(package):
    """With a warning that says where they are; a public name of the package that bears a module's old name stays what it is."""
    for old, now in package.moved.MODULES.items():
        parent, _, name = old.rpartition(".")
        names = {key: module for key, module in package.moved.NAMES.items() if key.rpartition(".")[0] == old}
        module, known = importlib.import_module(old), importlib.import_module(now)
        assert getattr(importlib.import_module(parent), name) is (getattr(package, name) if name in package.__all__ else module)
        defined = (key for key, value in vars(known).items() if getattr(value, "__module__", "") == now)
        for key, where in ({f"{old}.{key}": now for key in defined} | names).items():
            home, _, renamed = where.partition(":")
            renamed = renamed or key.rpartition(".")[2]
            with pytest.warns(DeprecationWarning, match=f"{key} is now {home}.{renamed}$"):
                found = getattr(module, key.rpartition(".")[2])
            assert found is getattr(importlib.import_module(home), renamed)


def test_star_import_gives_the_exported_names():
    space: dict = {}
    exec("from bilevel import *", space)
    assert set(bilevel.__all__) <= set(space)


# -- examples ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    module = importlib.import_module(name)
    assert doctest.testmod(module, verbose=False).failed == 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_in_documents(document, tmp_path, monkeypatch):
    """The ```python and ```{code-cell} blocks of a file run one after another, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    page = str(document.relative_to(ROOT))
    if page in EXTRAS:
        pytest.importorskip(EXTRAS[page])
    execute(document, code_in(document))


def code_in(document: Path) -> list[str]:
    """The blocks, each after as many empty lines as the document has before it, so that a traceback shows the right line."""
    text = document.read_text()
    found = re.finditer(r"^```(?:python|\{code-cell\})[^\n]*\n((?::[^\n]*\n)*)(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text.count("\n", 0, block.start(2)) + block[2] for block in found]


def execute(document: Path, blocks: list[str]) -> dict:
    """Run blocks of a document; their namespace."""
    space: dict = {"__name__": "__document__"}
    for code in blocks:
        exec(compile(code, str(document), "exec"), space)
    return space


# -- the wheel, and clashing names ------------------------------------------------------------------------------------------
def python(code: str, folder: Path, path: Path) -> subprocess.CompletedProcess:
    """Run code in a folder with `path` as PYTHONPATH."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": str(path)}, capture_output=True, text=True
    )


def test_the_wheel_holds_the_three_packages_and_imports_from_anywhere(tmp_path):
    source, empty, unpacked = tmp_path / "source", tmp_path / "empty", tmp_path / "unpacked"
    empty.mkdir()
    keep = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "__pycache__")
    shutil.copytree(ROOT, source, ignore=keep)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(empty),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = empty.iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/")]
        file.extractall(unpacked)
    wheel.unlink()
    info = f"bilevel-{bilevel.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "bilevel = problems.__main__:main" in (unpacked / info / "entry_points.txt").read_text()
    done = python(
        "import bilevel, constrained, problems\nfor m in (bilevel, constrained, problems): print(m.__file__)", empty, unpacked
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(unpacked) for line in done.stdout.split())
    assert bilevel.__version__ in wheel.name


@pytest.mark.parametrize("own", ["constrained.py", "constrained/__init__.py"])
def test_a_users_own_constrained_is_named_in_the_error(tmp_path, own):
    shadow = tmp_path / own
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("ANSWER = 42\n")
    done = python("import bilevel", tmp_path, ROOT)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError")
    assert str(shadow) in last
    assert "rename" in last
