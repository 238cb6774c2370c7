"""The command line: what it prints, writes, refuses and resumes, and that it evaluates nothing."""

import csv
import json
import os
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from constrained.core.version import VERSION
from problems import ZOO
from problems.__main__ import main
from problems.cleaning.report import CLAIMS
from problems.cli.words import SOLVERS

BASELINES = (
    "no cleaning",
    "clean images only",
    "clean-only filter",
    "clean-only filter, 4 rounds",
    "confident learning",
    "oracle",
)
SMALL = ("--with", "nx=3", "--with", "ny=4")
NOISY = ("run", "quadratic", "--with", "noise=0.01", "--solver", "penalty-sgd")


@dataclass
class Said:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str

    def cells(self, name: str) -> list[str]:
        """The cells of a table's row, by its first."""
        rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in self.out.splitlines() if "│" in line]
        (found,) = [row[1:] for row in rows if row[0] == name]
        return found

    @property
    def words(self) -> str:
        """The output with every run of blanks and line ends as one blank."""
        return " ".join(self.out.split())


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder and returns what it said."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


def refused(said: Said, *words: str) -> None:
    """One line on standard error that names what is wrong, and exit code 1."""
    assert said.code == 1
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("bilevel: ")
    for word in words:
        assert word in said.err


def read(folder: Path) -> dict:
    """result.json, which must be JSON by the standard: no NaN, no Infinity."""

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((folder / "result.json").read_text(), parse_constant=constant)


def history(folder: Path) -> list[dict[str, str]]:
    """history.csv as text, but for the clock."""
    with open(folder / "history.csv", newline="") as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# -- list and show ----------------------------------------------------------------------------------------------------------
def test_list_names_problems_and_solvers(call):
    said = call("list")
    assert (said.code, said.err) == (0, "")
    for name in (*ZOO, *SOLVERS):
        assert said.cells(name)[0]


@pytest.mark.parametrize("name", ZOO)
def test_show_prints_arguments_source_and_solver(call, name):
    said = call("show", name)
    assert (said.code, said.err) == (0, "")
    lines = {line[:13].strip(): line[13:] for line in said.out.splitlines() if line[:1].islower() and line[12:13] == " "}
    assert lines["source"].strip()
    assert "seed=" in lines["arguments"]
    assert "x with" in lines["variables"]
    assert ("y with" in lines["variables"]) == ("a lower level" in lines["features"])
    assert lines["solver"].strip().startswith(("Auto(", *(f"{cls.__name__}(" for cls in SOLVERS.values())))


def test_show_takes_arguments(call):
    assert "x with 7 entries" in call("show", "quadratic", "--with", "nx=7").out


# -- run --------------------------------------------------------------------------------------------------------------------
def test_run_prints_status_residuals_and_costs(call):
    said = call("run", "quadratic")
    assert (said.code, said.err) == (0, "")
    assert said.cells("status") == ["CONVERGED"]
    assert said.cells("seed") == ["0"]
    assert float(said.cells("residual lower")[0]) <= 1e-6
    assert float(said.cells("residual upper")[0]) <= 1e-6
    assert float(said.cells("error of x")[0]) <= 1e-6
    assert int(said.cells("gradients")[0]) <= 10_000
    assert float(said.cells("upper objective")[0]) == pytest.approx(16.2563, abs=1e-4)
    assert not list(Path.cwd().iterdir()), "files without --out"


def test_run_writes_its_files(call):
    said = call("run", "quadratic", "--tol", 1e-3, "--out", "deep/er")
    assert said.code == 0
    assert "files in deep/er" in said.out
    folder = Path("deep/er")
    found = read(folder)
    assert found["problem"] == "quadratic"
    assert found["source"]
    assert found["status"] == "CONVERGED"
    assert set(found["residuals"]) == {"lower", "upper"}
    assert max(found["residuals"].values()) <= 1e-3
    assert found["calls"]["solve"]["upper"]["gradients"] > 0
    assert (len(found["x"]["x"]), len(found["y"]["y"])) == (10, 20)
    assert found["versions"]["bilevel"] == VERSION
    rows = history(folder)
    assert [int(row["k"]) for row in rows] == list(range(found["steps"] + 1))
    gradients = [int(row["gradients"]) for row in rows]
    assert gradients == sorted(gradients)
    assert all(float(text) == float(text) for row in rows for text in row.values())
    assert is_png(folder / "convergence.png")
    assert (folder / "checkpoint.pt").stat().st_size > 0
    assert not list(folder.glob("*.tmp"))


def test_budgets_end_with_exit_code_0(call):
    said = call("run", "quadratic", "--solver", "implicit", "--max-steps", 2, "--set", "theta=0.2")
    assert (said.code, said.cells("status"), said.cells("steps")) == (0, ["MAX_STEPS"], ["2"])
    said = call("run", "quadratic", "--max-seconds", 0)
    assert (said.code, said.cells("status")) == (0, ["MAX_SECONDS"])


@pytest.mark.parametrize("solver", [name for name, cls in SOLVERS.items() if cls.requires])  # of bilevel problems
@pytest.mark.parametrize("steps", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_shortest_runs_write_their_files_too(call, solver, steps):
    problem = ("reweighting-logistic",) if solver == "scale-bio" else ("quadratic", *SMALL)
    said = call("run", *problem, "--solver", solver, "--max-steps", steps, "--out", "out")
    assert (said.code, said.err) == (0, "")
    assert said.cells("status") == ["MAX_STEPS"]
    assert read(Path("out"))["steps"] == steps
    assert [int(row["k"]) for row in history(Path("out"))] == list(range(steps + 1))


def test_options_and_arguments_reach_solver_and_problem(call):
    options = ("--solver", "penalty", "--set", "max-outer=3", "--set", "inner=lbfgs(memory=7)", "--with", "nx=3")
    assert call("run", "quadratic", *options, "--out", "out").code == 0
    found = read(Path("out"))
    assert (found["status"], found["steps"], len(found["x"]["x"])) == ("MAX_STEPS", 3, 3)
    assert "inner=LBFGS(memory=7" in found["solver"]


def test_float32(call):
    said = call("run", "quadratic", "--dtype", "float32", "--tol", 1e-2, "--out", "out")
    assert (said.code, said.cells("status")) == (0, ["CONVERGED"])
    x = read(Path("out"))["x"]["x"]
    assert np.array_equal(np.float32(x).astype(np.float64), x)
    assert "tol=0.01" in read(Path("out"))["solver"]


def test_device(call):
    assert call("run", "quadratic", *SMALL, "--device", "cpu", "--tol", 1e-2).cells("status") == ["CONVERGED"]


def test_seeds_are_runs_of_their_own(call):
    said = call("run", "quadratic", *SMALL, "--seed", 4, "--seeds", 2, "--tol", 1e-2, "--out", "out")
    assert (said.code, said.cells("seed"), said.cells("status")) == (0, ["4", "5"], ["CONVERGED"] * 2)
    four, five = (read(Path("out", f"seed-{seed}")) for seed in (4, 5))
    assert (four["seed"], five["seed"]) == (4, 5)
    assert four["x"] != five["x"]
    call("run", "quadratic", *SMALL, "--seed", 5, "--tol", 1e-2, "--out", "alone")
    assert read(Path("alone"))["x"] == five["x"]


def test_many_seeds_are_lines_of_the_table(call):
    said = call("run", "quadratic", *SMALL, "--seeds", 4, "--tol", 1e-2)
    assert [said.cells(str(seed))[0] for seed in range(4)] == ["CONVERGED"] * 4


def test_a_failing_status_is_exit_code_1(call):
    said = call("run", "quadratic", "--solver", "penalty-sgd", "--set", "gamma=100", "--max-steps", 50, "--out", "out")
    assert (said.code, said.err, said.cells("status")) == (1, "", ["DIVERGED"])
    assert read(Path("out"))["status"] == "DIVERGED"


def test_figures_that_are_not_finite_are_still_json(call):
    said = call("run", "quadratic", "--solver", "penalty-sgd", "--set", "gamma=1e200", "--max-steps", 50, "--out", "out")
    assert (said.code, said.err) == (1, "")
    assert read(Path("out"))["status"] in ("DIVERGED", "NONFINITE")


# -- hyper-cleaning ---------------------------------------------------------------------------------------------------------
def test_hyper_cleaning_prints_baselines_and_claims(call):
    said = call("run", "hyper-cleaning", "--with", "model=linear", "--with", "clean=50", "--max-steps", 3, "--out", "out")
    assert (said.code, said.err) == (0, "")
    assert said.cells("status") == ["MAX_STEPS"]
    for name in ("PenaltyDescent", *BASELINES):
        assert len(said.cells(name)) == 4
    assert "50 clean images" in said.out
    assert all(claim in said.words for claim in CLAIMS)
    assert "surrogate" in next(line for line in said.out.splitlines() if line.startswith("note: "))
    found = read(Path("out"))
    assert [row["name"] for row in found["rows"]] == ["PenaltyDescent", *BASELINES]
    assert len(found["x"]["x"]) == 1000
    assert is_png(Path("out/convergence.png"))
    assert is_png(Path("out/distrusted.png"))


def test_hyper_cleaning_over_seeds_pairs_the_differences(call):
    words = ("--with", "clean=50", "--solver", "penalty-sgd", "--max-steps", 60, "--seeds", 2, "--out", "out")
    said = call("run", "hyper-cleaning", *words)
    assert (said.code, said.err) == (0, "")
    assert "PenaltySGD minus ..., paired" in said.words
    found = json.loads(Path("out/summary.json").read_text())
    assert [row["name"] for row in found["means"]] == ["PenaltySGD", *BASELINES]
    assert found["means"][0]["f1"]["of"] == 2
    assert list(found["ours minus theirs, paired"]) == list(BASELINES)
    assert found["ours minus theirs, paired"]["oracle"]["accuracy"]["seeds"] == 2


# -- resume -----------------------------------------------------------------------------------------------------------------
def test_a_resumed_run_equals_the_uninterrupted_one(call):
    assert call(*NOISY, "--max-steps", 200, "--out", "whole").code == 0
    assert call(*NOISY, "--max-steps", 100, "--out", "parts").code == 0
    assert read(Path("parts"))["steps"] == 100
    assert call(*NOISY, "--max-steps", 200, "--out", "parts", "--resume").code == 0
    whole, parts = read(Path("whole")), read(Path("parts"))
    assert whole["steps"] == parts["steps"] == 200
    for name in ("x", "y", "status", "upper_objective", "residuals"):
        assert whole[name] == parts[name]
    assert whole["calls"]["solve"] == parts["calls"]["solve"]
    assert history(Path("whole")) == history(Path("parts"))
    assert len(history(Path("whole"))) == 201


def test_seeds_resume_each_from_its_own_checkpoint(call):
    call(*NOISY, "--max-steps", 20, "--seeds", 2, "--out", "out")
    said = call(*NOISY, "--max-steps", 30, "--seeds", 2, "--out", "out", "--resume")
    assert (said.code, said.cells("steps")) == (0, ["30", "30"])
    assert len(history(Path("out/seed-1"))) == 31


OTHERS = {
    "problem": ("run", "pl-toy", "--solver", "penalty-sgd"),
    "argument": (*NOISY[:2], "--with", "noise=0.5", *NOISY[4:]),
    "problem of the same shape": (*NOISY, "--with", "cond=1000"),
    "solver": (*NOISY[:4], "--solver", "penalty"),
    "option": (*NOISY, "--set", "sigma=2.0"),
    "seed": (*NOISY, "--seed", "1"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_refused(call, other):
    call(*NOISY, "--max-steps", 3, "--out", "out")
    before = Path("out/result.json").read_bytes(), Path("out/checkpoint.pt").read_bytes()
    refused(call(*OTHERS[other], "--max-steps", 6, "--out", "out", "--resume"), "CheckpointError", "out/checkpoint.pt")
    assert (Path("out/result.json").read_bytes(), Path("out/checkpoint.pt").read_bytes()) == before


def test_a_damaged_checkpoint_is_refused(call):
    Path("checkpoint.pt").write_bytes(b"no checkpoint")
    refused(call(*NOISY, "--max-steps", 6, "--out", ".", "--resume"), "CheckpointError", "checkpoint.pt")


# -- what is refused --------------------------------------------------------------------------------------------------------
ERRORS = [
    ("quadratic --solver penalty --set sigmma=1", ["OptionError", "sigmma", "did you mean sigma"]),
    ("quadratic --solver penalty --set sigma=-1", ["OptionError", "sigma", "-1"]),
    ("quadratic --solver penalty --set sigma=abc", ["OptionError", "sigma", "'abc'"]),
    ("quadratic --set sigma", ["OptionError", "--set sigma", "name=value"]),
    ("quadratic --set outer=scalar-adam(lrr=1)", ["OptionError", "lrr"]),
    ("quadratic --set outer=scalar-adam(1,2)", ["OptionError", "scalar-adam(1,2)"]),
    ("quadratic --set outer=scalar-adam(lr=power(1))", ["OptionError", "power(1)"]),
    ("quadratic --set sigma={[1]:2}", ["OptionError", "sigma"]),
    ("quadratic --with bogus=1", ["OptionError", "bogus", "noise"]),
    ("quadratic --with nx", ["OptionError", "--with nx", "name=value"]),
    ("quadratic --with nx=0", ["nx", "0"]),
    ("quadratic --with nx=many", ["nx", "many"]),
    ("quadratic --with nx=2.5", ["nx", "2.5"]),
    ("quadratic --with noise=loud", ["noise", "loud"]),
    ("quadratic --with dtype=int64", ["dtype", "int64"]),
    ("quadratic --with device=nowhere", ["device", "nowhere"]),
    ("pl-toy --seed -1", ["seed", "-1"]),
    ("quadratic --seed -1", ["seed", "-1"]),
    ("quadratic --seeds 0", ["OptionError", "--seeds", "0"]),
    ("quadratic --tol 1e-20", ["OptionError", "tol", "1e-20"]),
    ("quadratic --tol nan", ["OptionError", "tol", "nan"]),
    ("quadratic --max-steps -1", ["OptionError", "max_steps", "-1"]),
    ("quadratic --max-seconds -1", ["OptionError", "max_seconds", "-1"]),
    ("quadratic --solver penalty-sgd", ["OptionError", "max_steps"]),
    ("quadratic --device nowhere", ["OptionError", "--device", "nowhere"]),
    ("quadratic --device meta", ["meta"]),
    ("quadratic --resume", ["OptionError", "--resume", "--out"]),
    ("quadratic --resume --out nothing", ["CheckpointError", "--resume", "nothing"]),
    ("quadratic --out file/below", ["OutputError", "file/below"]),
    ("hyper-cleaning --with model=cnn", ["OptionError", "model", "cnn"]),
    ("hyper-cleaning --with clean=5", ["OptionError", "clean", "5"]),
    ("hyper-cleaning --with batch=0", ["0"]),
]


@pytest.mark.parametrize(("words", "named"), ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_errors_are_one_line_and_exit_code_1(call, words, named):
    Path("file").write_text("not a folder\n")
    said = call("run", *words.split())
    refused(said, *named)
    assert said.out == ""


def test_show_refuses_too(call):
    refused(call("show", "quadratic", "--with", "bogus=1"), "bogus")


def test_an_output_that_cannot_be_written_is_named(call):
    Path("out/result.json").mkdir(parents=True)
    refused(call("run", "quadratic", *SMALL, "--max-steps", 2, "--out", "out"), "OutputError", "result.json")


@pytest.mark.parametrize(
    "words",
    [
        *(
            "",
            "solve",
            "show",
            "run",
            "show nothing",
            "run nothing",
            "run quadratic --solver newton",
            "run quadratic --seedling 1",
        ),
        *("run quadratic --tol small", "run quadratic --max-steps 1.5", "run quadratic --dtype float16", "list quadratic"),
    ],
)
def test_usage_errors_are_exit_code_2(call, capsys, words):
    with pytest.raises(SystemExit) as ended:
        call(*words.split())
    assert ended.value.code == 2
    assert "usage: bilevel" in capsys.readouterr().err


def test_version(call, capsys):
    with pytest.raises(SystemExit) as ended:
        call("--version")
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == VERSION


@pytest.mark.parametrize("form", ["{}", "power({}, 1)", "power(scale={}, exponent=1)", "power(*[{}], 1)", "scalar-adam(lr={})"])
def test_nothing_is_evaluated(call, form):
    text = form.format("__import__('pathlib').Path('touched').touch()")
    refused(call("run", "quadratic", "--max-steps", 1, "--set", f"sigma={text}"), "OptionError")
    refused(call("run", "quadratic", "--max-steps", 1, "--set", "sigma=__import__('os')"), "OptionError", "sigma")
    assert not Path("touched").exists()


# -- the console script -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("own", [None, "problems.py"])
def test_the_console_script_works_from_any_folder(tmp_path, own):
    if own:
        (tmp_path / own).write_text("raise RuntimeError('the file of the user was imported')\n")
    script = Path(sysconfig.get_path("scripts")) / "bilevel"
    environment = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "FORCE_COLOR")}
    command = [script, "run", "pl-toy", "--tol", "1e-3", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Said(0, done.stdout, "").cells("status") == ["CONVERGED"]
    assert read(tmp_path / "out")["status"] == "CONVERGED"
