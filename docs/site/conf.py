"""Sphinx's settings. ``make docs`` builds the pages that ``lay_out.py`` lays into the source folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import inspect

import s3dcp

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import lay_out  # noqa: E402

project = "s3dcp"
version = release = s3dcp.__version__
copyright = "the authors of s3dcp, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"s3dcp {version}"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "native"
copybutton_prompt_text, copybutton_only_copy_prompt_lines = "$ ", True
copybutton_selector = "div.highlight-python pre, div.highlight-sh pre, div.highlight-console pre"

myst_heading_anchors = 4
smartquotes = False

autodoc_mock_imports = lay_out.ABSENT
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
add_module_names = False
toc_object_entries_show_parents = "hide"
# In docstrings `a` is an argument or a name of this package; the second must be there.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", r"[a-z_]\w*(=.*)?"),
    # Other projects' names: their pages are not at hand.
    ("py:.*", r"(?!s3dcp)\w+\..+"),
    ("py:class", r"Path|ReadArgs"),
    # Names of ours that are in a signature and are not public.
    ("py:class", r"s3dcp\.(_native\.|.*\._)\w+"),
    ("py:class", r"s3dcp\.(file_system\.(ObjectWriter|AnyPath)|errors\.AnyError)"),
]


def shown_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Errors take what their base takes; a class over a stand-in takes what it says itself."""
    if what == "exception" and "__init__" not in vars(thing):
        return "", None
    if what == "class" and signature and signature.startswith("(*args") and "__init__" in vars(thing):
        own = inspect.signature(thing.__init__, bound_method=True)
        return inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True), None
    return None


def public_bases(app: Sphinx, name: str, thing: Any, options: Any, bases: list[Any]) -> None:
    """What a class inherits from that nobody else is to know of goes unsaid."""
    bases[:] = [base for base in bases if not getattr(base, "__name__", "").startswith("_")] or [object]


def stub_for_source(app: Sphinx, module: str) -> tuple[str, dict[str, tuple[str, int, int]]] | None:
    """The source of the native module is its stub."""
    if module != "s3dcp._native":
        return None
    stub = (Path(s3dcp.__path__[0]) / "_native.pyi").read_text()
    return stub, ModuleAnalyzer.for_string(stub, module).find_tags()


def of_the_package(app: Sphinx, env: Any, reference: Any, shown: nodes.Node) -> nodes.Node | None:
    """A name without its module is one that the package exports."""
    target = reference.get("reftarget", "")
    if reference.get("refdomain") != "py" or target not in s3dcp.__all__:
        return None
    found: nodes.Node | None = env.domains.python_domain.resolve_xref(
        env, reference["refdoc"], app.builder, reference["reftype"], f"s3dcp.{target}", reference, shown
    )
    return found


def set_prose(app: Sphinx, document: nodes.document) -> None:
    """Sphinx sets two hyphens between an argument and what it is, and says of a class that it is an object."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))
    for paragraph in list(document.findall(nodes.paragraph)):
        if paragraph.astext() == "Bases: object":
            paragraph.parent.remove(paragraph)


def setup(app: Sphinx) -> None:
    app.connect("config-inited", lambda app, config: lay_out.lay_out(Path(app.srcdir)))
    app.connect("autodoc-process-signature", shown_signature)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("viewcode-find-source", stub_for_source)
    app.connect("missing-reference", of_the_package)
    app.connect("doctree-read", set_prose)
