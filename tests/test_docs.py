"""The documents: the reference is complete, links and commands lead somewhere, and what the pages promise holds."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from conformance import CHECKS
from test_public import DOCUMENTS, ROOT, code_in, execute
from torch import nn

import bilevel
import constrained
from constrained.core import errors
from problems import ZOO
from problems.__main__ import parser
from problems.cli.words import choose, make, pairs

DOCS = ROOT / "docs"
REFERENCE = "\n".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
IN_REFERENCE = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", REFERENCE, re.MULTILINE))
LINKED = set(re.findall(r"\{py:obj\}`constrained\.(\w+) <bilevel\.\1>`", REFERENCE))
MAKEFILE = (ROOT / "Makefile").read_text()


# -- the reference ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", bilevel.__all__)
def test_the_reference_has_every_name_of_bilevel(name):
    assert f"bilevel.{name}" in IN_REFERENCE, f"add `.. autoclass:: bilevel.{name}` to a page of docs/reference"


@pytest.mark.parametrize("name", constrained.__all__)
def test_the_reference_has_every_name_of_constrained(name):
    """A name that `bilevel` exports too is described there, and linked."""
    shared = getattr(bilevel, name, None) is getattr(constrained, name)
    assert (name in LINKED) if shared else (f"constrained.{name}" in IN_REFERENCE)


def test_the_reference_has_every_exception():
    tree = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.BilevelError)}
    assert {f"constrained.core.errors.{one.__name__}" for one in tree} <= IN_REFERENCE


def test_the_reference_has_every_command_and_flag():
    page = (DOCS / "reference" / "command.md").read_text()
    (commands,) = (action.choices for action in parser()._actions if isinstance(action.choices, dict))
    for command, options in commands.items():
        assert f"bilevel {command}" in page
        for flag in (flag for action in options._actions for flag in action.option_strings if flag not in ("-h", "--help")):
            assert f"`{flag}" in page, f"bilevel {command} {flag}"


# -- docstrings as reStructuredText -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("|x - P_X(x)| is f_* or a_", [r"\|x - P\_X(x)\| is f\_\* or a\_", ""]),
        ("`x <- y` and `Box` and `Box()`", ["``x <- y`` and :py:obj:`Box <bilevel.Box>` and :py:obj:`Box() <bilevel.Box>`", ""]),
        ("tol: small. size, tol: both; see: this", ["**tol**: small. **size, tol**: both; see: this", ""]),
        ("tol, ...: some", ["**tol, ...**: some", ""]),
        ("one\ntwo\n\n    a = b\n\n    c\n\nthree", ["one two", "", "::", "", "    a = b", "", "    c", "", "three", ""]),
        (">>> 1\n1\n\nend::", [">>> 1", "1", "", r"end:\:", ""]),
        ("(1) is no list", [r"\ (1) is no list", ""]),
        ("a <- b;  c <- d", ["a <- b;\u2003c <- d", ""]),
    ],
)
def test_docstrings_become_restructured_text(text, wanted):
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.rst(text.splitlines(), {"Box": "bilevel.Box"}, ["tol", "size"]) == wanted


# -- links and commands -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


def commands(document: Path) -> list[str]:
    """Shell commands of the library and of make: in ```bash blocks, in indented blocks, in `code`."""
    text = document.read_text()
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for line in block.splitlines()]
    lines += re.findall(r"^ {4,}((?:bilevel|make|pip) .*)$", text, re.MULTILINE)
    lines += re.findall(r"`((?:bilevel|make|pip) [^`]+)`", text)
    return [line for line in lines if "..." not in line]


def test_commands_in_documents_exist():
    found = [(document, line) for document in DOCUMENTS for line in commands(document)]
    assert len(found) > 10
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for document, line in found:
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert set(words) <= targets, f"{document}: {line}"
        elif program == "pip":
            assert all(extra in extras for extra in re.findall(r"\[(\w+)\]", line)), f"{document}: {line}"
        elif program == "bilevel":
            args = parser().parse_args(words)
            if args.command in ("show", "run"):
                instance = make(ZOO[args.name], args.name, pairs(args.arguments, "--with"))
                choose(instance, getattr(args, "solver", None), pairs(getattr(args, "options", []), "--set"))


# -- what the how-tos promise -----------------------------------------------------------------------------------------------
def test_the_whole_program_is_short_and_gains(tmp_path, monkeypatch):
    """A module, a dict and DataLoaders in at most 20 lines (`make check` sees to their format) that lower the validation loss."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / "howto" / "module-and-loader.md"
    code = code_in(page)[0].lstrip("\n")
    assert len(code.splitlines()) <= 20
    assert max(map(len, code.splitlines())) <= 130
    assert ";" not in code
    assert code.count("bilevel.MiniBatches.of(DataLoader(") == 2
    space = execute(page, [code])
    problem = space["problem"]
    assert isinstance(problem.y, nn.Module)
    assert isinstance(problem.x, dict)
    assert all(isinstance(data, bilevel.MiniBatches) for data in (problem.upper_data, problem.lower_data))
    assert space["after"].fun < 0.5 * space["before"].fun


def test_the_solver_of_the_how_to_passes_the_conformance_suite(monkeypatch):
    page = DOCS / "howto" / "write-a-solver.md"
    space = execute(page, [code for code in code_in(page) if re.search(r"^class |^case = ", code, re.MULTILINE)])
    monkeypatch.setattr(bilevel, "PlainPenalty", space["PlainPenalty"], raising=False)  # repr is code of public names
    for check in CHECKS:
        check(space["case"])


# -- the workshop -----------------------------------------------------------------------------------------------------------
def test_pre_commit_runs_what_make_check_runs():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert re.findall(r"^ +entry: (.*)$", hooks, re.MULTILINE) == wanted
    assert {hooks.count(line) for line in ("language: system", "pass_filenames: false", "always_run: true")} == {len(wanted)}
