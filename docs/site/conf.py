"""Sphinx's settings. ``make docs`` builds the pages that ``lay_out.py`` lays into the source folder."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

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
    ("py:.*", r"(?!s3dcp)[\w.]+"),
    # Names of ours that are in a signature and are not public.
    ("py:class", r"s3dcp\.(_native\.|.*\._)\w+"),
    ("py:class", r"s3dcp\.(file_system\.(ObjectWriter|AnyPath)|errors\.AnyError)"),
]


def set_dashes(app: Sphinx, document: nodes.document) -> None:
    """Sphinx sets two hyphens between an argument and what it is."""
    for text in list(document.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> None:
    app.connect("config-inited", lambda app, config: lay_out.lay_out(Path(app.srcdir)))
    app.connect("doctree-read", set_dashes)
