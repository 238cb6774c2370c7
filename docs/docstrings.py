"""The library's docstrings as reStructuredText, and the lists of names that pages take from the packages.

Docstrings are plain text: prose, indented formulas and >>> examples. Here prose is escaped, so that |x|, a*b and f_ are what they
look like; `name` becomes code, with a link where `name` is public; "option: ..." gets a bold option.
"""

import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType

MARKS = re.compile(r"([\\*|`_])")
LISTED = re.compile(r"([-+*•]|\(?(\w|\d+|#|[ivxlc]+)[.)]|:\w[^:]*:|\.\.|__)(\s|$)", re.IGNORECASE)  # starts a list, a field, ...


def rst(text: list[str], links: Mapping[str, str], options: Collection[str] = ()) -> list[str]:
    """Lines of a docstring as lines of reStructuredText. links: public name -> its full name. options: names to make bold."""
    out: list[str] = []
    for kind, lines in blocks(text):
        if kind == "prose":
            out += [prose(" ".join(line.strip() for line in lines), links, options), ""]
        elif kind == "example":
            out += [*lines, ""]
        else:
            out += ["::", "", *textwrap.indent(textwrap.dedent("\n".join(lines)), "    ").split("\n"), ""]
    return out


def blocks(text: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Paragraphs by kind: "example" from >>> to the next empty line, "formula" where lines are indented, else "prose"."""
    found: list[tuple[str, list[str]]] = []
    kind = ""
    for line in text:
        if not line.strip():
            if kind == "formula":
                found[-1][1].append("")
            elif kind:
                kind = ""
            continue
        if kind == "example":
            now = kind
        else:
            now = "example" if line.lstrip().startswith(">>>") else "formula" if line[0].isspace() else "prose"
        if now != kind:
            found.append((now, []))
            kind = now
        found[-1][1].append(line.rstrip())
    for name, lines in found:
        while not lines[-1]:
            lines.pop()
        yield name, lines


def prose(text: str, links: Mapping[str, str], options: Collection[str] = ()) -> str:
    """One paragraph."""
    parts = []
    for place, part in enumerate(re.split(r"`([^`]+)`", text)):
        parts.append(code(part, links) if place % 2 else named(part, options, start=place == 0))
    joined = "".join(parts)
    if LISTED.match(text):
        joined = "\\ " + joined
    return joined[:-1] + "\\:" if joined.endswith("::") else joined


def code(text: str, links: Mapping[str, str]) -> str:
    """`text` as code, linked where it is a public name or a call of one without arguments."""
    full = links.get(text.removesuffix("()"))
    return f":py:obj:`{text} <{full}>`" if full else f"``{text}``"


def named(text: str, options: Collection[str], *, start: bool) -> str:
    """Escaped text, in which options that open a sentence and end with a colon are bold."""
    name = "|".join(map(re.escape, sorted(options, key=len, reverse=True)))
    if not name:
        return escape(text)
    opening = r"(?:^|(?<=[.;]\s))" if start else r"(?<=[.;]\s)"
    pieces = re.split(rf"{opening}((?:{name})(?:, (?:{name}|\.\.\. ?))*)(?=:\s)", text)
    return "".join(f"**{escape(piece.strip())}**" if place % 2 else escape(piece) for place, piece in enumerate(pieces))


def escape(text: str) -> str:
    """Text that docutils reads as it stands; several spaces, which part formulas, are kept."""
    return re.sub(r"  +", "\u2003", MARKS.sub(r"\\\1", text))


def homes(*packages: ModuleType) -> dict[str, str]:
    """Public name -> its full name in the first of the packages that exports it: there the reference has it."""
    return {name: f"{package.__name__}.{name}" for package in reversed(packages) for name in package.__all__}


def solvers(package: ModuleType) -> list[str]:
    """The package's solvers in alphabetical order, each with its class methods: those make it as a paper has it."""
    lines: list[str] = []
    for name in sorted(package.solvers.__all__, key=str.casefold):
        made = [key for key, value in vars(getattr(package, name)).items() if isinstance(value, classmethod) and key[0] != "_"]
        lines += [f".. autoclass:: {package.__name__}.{name}", *[f"   :members: {', '.join(made)}" for _ in made[:1]], ""]
    return lines


def shared(package: ModuleType, home: ModuleType) -> list[str]:
    """A paragraph of links: the names that are the same objects in both packages, each to its page as a name of `home`."""
    same = [name for name in package.__all__ if getattr(home, name, None) is getattr(package, name)]
    links = [f":py:obj:`{name} <{home.__name__}.{name}>`" for name in sorted(same, key=str.casefold) if name[0] != "_"]
    return [", ".join(links) + "."]


def ranges(package: ModuleType) -> list[str]:
    """The names that annotations of options use, each with what such an option may be."""
    lines: list[str] = []
    for name in package.__all__:
        words = [mark.words for mark in getattr(getattr(package, name), "__metadata__", ())]
        lines += [f".. py:data:: {package.__name__}.{name}", "", f"   {escape(words[0]).capitalize()}.", ""] if words else []
    return lines


GENERATED = {"solvers": solvers, "shared": shared, "ranges": ranges}  # directives; arguments: packages
