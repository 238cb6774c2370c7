"""Sphinx: `make docs`."""

import dataclasses
import importlib
import inspect
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import docstrings
from sphinx.util.docutils import SphinxDirective

import bilevel
import bilevel.extend
import constrained
import constrained.extend
from constrained.core.options import Options, ranges, words

project = "bilevel"
author = "The bilevel developers"
project_copyright = author
version = release = bilevel.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "papers/*/*"]  # what papers' commands wrote is included by pages
html_theme = "furo"
html_title = f"bilevel {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
smartquotes = False  # formulas hold quotes and dashes
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!bilevel\.|constrained\.).*"),  # a link to a name of the library has to lead somewhere
    ("py:class", r"constrained\.(descent\.curvature_pairs\.Pairs|core\.(derivatives\.objective\.Linearization|solver\.StateT))"),
]

myst_heading_anchors = 3
nb_execution_mode = "force"  # the pages with a kernelspec, at every build
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 120
nb_merge_streams = True
os.environ["OMP_NUM_THREADS"] = "1"  # small problems run faster so

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"

LINKS = docstrings.homes(bilevel, constrained, constrained.extend, bilevel.extend)
LINKS |= {"Sampler": "constrained.core.data.Sampler", "derivatives.Report": "bilevel.certificates.derivatives.Report"}
RETURNED = {bilevel.Event, bilevel.Result, bilevel.Hypergradient, bilevel.Status, bilevel.Feature}
RETURNED |= {constrained.extend.ConstrainedOracle, constrained.extend.Oracle}  # made by the library only
RETURNED |= {constrained.extend.DescentStatus, constrained.extend.LinearStatus}
RETURNED |= {bilevel.extend.BilevelOracle, bilevel.extend.Level, bilevel.extend.LevelAt}

DATA = {  # what has no docstring
    "bilevel.__version__": "The version of the package.",
    "constrained.extend.OptState": "The memory of an optimizer: dicts of tensors, by names that it chooses.",
}


def docstring(app, what, name, value, options, lines):
    """The library's plain docstrings as reStructuredText, and a table of the options where ranges are declared."""
    try:
        parameters = list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        parameters = []
    if what == "data":
        lines[:] = [DATA[name]]
        return
    links = {key: full for key, full in LINKS.items() if key != name.rsplit(".", 1)[-1]}
    lines[:] = docstrings.rst(lines, links, parameters)
    if what == "class" and has_options(value):
        lines += table(value)


def has_options(cls):
    return issubclass(cls, Options) and dataclasses.is_dataclass(cls) and bool(ranges(cls))


def table(cls):
    """Options, what each may be, and its default, read from the annotations that check them."""
    found = [".. list-table::", "   :header-rows: 1", "", "   * - option", "     - must be", "     - default"]
    for field in dataclasses.fields(cls):
        wanted = " or ".join(words(alternative) for alternative in ranges(cls)[field.name])
        default = "" if field.default is dataclasses.MISSING else f"``{field.default!r}``"
        found += [f"   * - ``{field.name}``", f"     - {docstrings.escape(wanted)}", f"     - {default}"]
    return [*found, ""]


def signature(app, what, name, value, options, shown, returned):
    """Classes: names and defaults, since the docstring says what each is. None for what users never make."""
    if what != "class":
        return shown, returned
    if value in RETURNED or getattr(value, "_is_protocol", False):
        return "", None
    if dataclasses.is_dataclass(value) and value.__dataclass_params__.init:
        fields = [field for field in dataclasses.fields(value) if field.init]
        keywords = all(field.kw_only for field in fields)
        if keywords and has_options(value):  # the table shows them
            return "(**options)", None
        return f"({', '.join(['*'] * keywords + [field.name + default(field) for field in fields])})", None
    return shown, returned


def default(field):
    if field.default_factory is not dataclasses.MISSING:
        return f"={field.default_factory()!r}"
    return "" if field.default is dataclasses.MISSING else f"={field.default!r}"


def public(app, env, node, content):
    """Annotations name a class by the module that holds it; its page has it by its public name."""
    target = node.get("reftarget", "")
    full = LINKS.get(target.rsplit(".", 1)[-1])
    if node.get("refdomain") != "py" or full in (None, target):
        return None
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, content)


class Generated(SphinxDirective):
    """What a function of `docstrings` says of packages: `.. solvers:: bilevel`, `.. shared:: constrained bilevel`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        packages = map(importlib.import_module, self.arguments[0].split())
        return self.parse_text_to_nodes("\n".join(docstrings.GENERATED[self.name](*packages)))


def setup(app):
    for name in docstrings.GENERATED:
        app.add_directive(name, Generated)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", public)
