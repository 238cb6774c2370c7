"""The documents: the reference is complete, links and commands lead somewhere, and what the pages promise holds."""

import importlib
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
import bilevel.extend
import bilevel.lm
import constrained
import constrained.extend
from constrained.core import errors
from problems import ZOO
from problems.__main__ import parser
from problems.cli.words import choose, make, pairs

DOCS = ROOT / "docs"
MAKEFILE = (ROOT / "Makefile").read_text()


# -- the reference ----------------------------------------------------------------------------------------------------------
def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings = module_of(DOCS / "docstrings.py")


def generated(directive: re.Match) -> str:
    """The lines that docs/conf.py puts in place of a directive of ours."""
    return "\n".join(docstrings.GENERATED[directive[1]](*map(importlib.import_module, directive[2].split())))


REFERENCE = "\n".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
REFERENCE = re.sub(rf"^\.\. ({'|'.join(docstrings.GENERATED)}):: (.+)$", generated, REFERENCE, flags=re.MULTILINE)
IN_REFERENCE = re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", REFERENCE, re.MULTILINE)
HOMES = docstrings.homes(bilevel, constrained, constrained.extend, bilevel.extend, bilevel.lm)


@pytest.mark.parametrize(("name", "home"), HOMES.items())
def test_the_reference_has_every_public_name_once(name, home):
    """By the first package that exports it: a name of both packages is one of `bilevel`."""
    assert IN_REFERENCE.count(home) == 1, f"add `.. autoclass:: {home}` to a page of docs/reference"


def test_a_public_name_is_one_object_wherever_it_is():
    for package in (constrained, constrained.extend, bilevel.extend):
        for name in set(package.__all__) - {"__version__"}:
            home = importlib.import_module(HOMES[name].rpartition(".")[0])
            assert getattr(home, name) is getattr(package, name), name


def test_the_page_of_constrained_links_the_names_it_shares():
    shared = {name for name in constrained.__all__ if HOMES[name] == f"bilevel.{name}"} - {"__version__"}
    assert shared <= set(re.findall(r":py:obj:`(\w+) <bilevel\.\1>`", REFERENCE))


def test_pages_name_what_is_public_by_its_public_path():
    """`bilevel.OptionError`, not the module that holds it."""
    assert [full for full in IN_REFERENCE if HOMES.get(full.rpartition(".")[2], full) != full] == []


def test_every_exception_is_public():
    tree = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.BilevelError)}
    assert {HOMES.get(one.__name__) for one in tree} == {f"bilevel.{one.__name__}" for one in tree}


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
    assert docstrings.rst(text.splitlines(), {"Box": "bilevel.Box"}, ["tol", "size"]) == wanted


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


def test_the_blocks_of_the_readme_run_on_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in code_in(ROOT / "README.md"):
        execute(ROOT / "README.md", [code])


# -- the workshop -----------------------------------------------------------------------------------------------------------
def test_pre_commit_runs_what_make_check_runs():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    wanted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert re.findall(r"^ +entry: (.*)$", hooks, re.MULTILINE) == wanted
    assert {hooks.count(line) for line in ("language: system", "pass_filenames: false", "always_run: true")} == {len(wanted)}
