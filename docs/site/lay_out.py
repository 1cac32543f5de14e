"""Lays the project's pages into the folder that Sphinx reads: those of docs/, those beside it, and one for each module.

Pages are plain Markdown whose links lead to files of the project, so that they read well wherever files are shown. Here
links between pages follow the pages to where the site has them; of a link to a file of the source its path stays. What
the site's sidebar shows is what ``docs/README.md`` lists.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sphinx.ext.autodoc.mock import mock

import s3dcp

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
CONTENTS = "index.md"
PICTURES = (".png", ".svg")
# What the frameworks' modules import, which is not installed with the site's tools.
ABSENT = ["accelerate", "lightning", "pytorch_lightning", "torch_checkpointing", "torchtitan", "transformers"]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^)\s#]*)(#[^)\s]*)?\)")
MODULE = r"^\| `(s3dcp[.\w]*)` \|"


def pages() -> dict[Path, str]:
    """The project's pages and where the site has them."""
    found = {path: path.name.lower() for path in ROOT.glob("*.md")}
    for path in DOCS.rglob("*.md"):
        place = path.relative_to(DOCS)
        found[path] = f"{place.parent}.md" if place.name == "README.md" else str(place)
    return found | {DOCS / "README.md": CONTENTS}


def lay_out(source: Path) -> None:
    """Writes the site's pages into `source`; what is the same stays untouched, and what is no page any more goes."""
    places = pages()
    written = {}
    for path, place in places.items():
        text = outside_of_code(path.read_text(), lambda text, page=path: relinked(text, page, places))
        written[place] = text
    written[CONTENTS] += contents(written[CONTENTS])
    written["decisions.md"] += toctree(listed(written["decisions.md"]))
    written["python.md"] = re.sub(MODULE, r"| [`\1`](python/\1.rst) |", written["python.md"], flags=re.MULTILINE)
    written["python.md"] += toctree([(name, f"python/{name}") for name in modules()])
    written["rust.md"] = re.sub(r"^\| `(s3dcp-\w+)` \|", rustdoc, written["rust.md"], flags=re.MULTILINE)
    written |= {f"python/{name}.rst": module_page(name) for name in modules()}
    for path in source.rglob("*"):
        if path.suffix in (".md", ".rst") and str(path.relative_to(source)) not in written:
            path.unlink()
    for place, text in written.items():
        target = source / place
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
    for picture in (path for path in DOCS.rglob("*") if path.suffix in PICTURES):
        target = source / picture.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(picture, target)


# -- links


def outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` made between its fenced blocks."""
    parts, end = [], 0
    for block in FENCED.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def relinked(text: str, page: Path, places: dict[Path, str]) -> str:
    """The text of `page` with links that lead where the site has what they lead to."""
    here = Path(places[page]).parent

    def link(found: re.Match[str]) -> str:
        picture, shown, path, anchor = found[1], found[2], found[3], found[4] or ""
        if not path:
            return found[0]
        target = (page.parent / path).resolve()
        if target.is_dir() and (target / "README.md") in places:
            target /= "README.md"
        if target in places:
            return f"{picture}[{shown}]({os.path.relpath(places[target], here)}{anchor})"
        if target.suffix in PICTURES:
            return f"{picture}[{shown}]({os.path.relpath(target.relative_to(DOCS), here)})"
        # A file or folder of the source, which the site has not.
        if shown.startswith("`"):
            return shown
        named = f"`{target.relative_to(ROOT)}`"
        return named if Path(shown).name == target.name else f"{shown} ({named})"

    return LINK.sub(link, text)


def listed(page: str) -> list[tuple[str, str]]:
    """What a page's lists begin with: pages, and what they are called there."""
    found = re.findall(r"^- \[([^\]]*)\]\(([^)\s#:]+)\.md\)", page, re.MULTILINE)
    return [(title.replace("`", ""), name) for title, name in found]


# -- the sidebar


def contents(page: str) -> str:
    """A hidden table of contents for each section of the contents' page: the pages that its list begins with."""
    sections = [section.partition("\n") for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]]
    return "".join(toctree(listed(text), heading) for heading, _, text in sections)


def toctree(entries: list[tuple[str, str]], caption: str = "") -> str:
    """What puts pages into the sidebar, by title and name."""
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *(f"{title} <{name}>" for title, name in entries), "```", ""])


# -- the references of Rust and Python


def rustdoc(found: re.Match[str]) -> str:
    """A crate's name in a table, with a link to its rustdoc, which lies beside the pages."""
    return f'| <a href="rust/{found[1].replace("-", "_")}/index.html"><code>{found[1]}</code></a> |'


def modules() -> list[str]:
    """The public modules, in the order of the page that lists them."""
    return re.findall(MODULE, (DOCS / "python.md").read_text(), re.MULTILINE)


def module_page(name: str) -> str:
    """The page of a module: what it says of itself, then its public names, each under the name that users import."""
    lines = [name, "=" * len(name), "", f".. automodule:: {name}", "   :no-members:", ""]
    if name == "s3dcp":
        lines += [".. list-table::", "   :widths: auto", ""]
        for public in (public for public in s3dcp.__all__ if public != "__version__"):
            told = first_sentence(getattr(s3dcp, public))
            lines += [f"   * - :py:obj:`~s3dcp.{public}`", f"     - {told}"]
        return "\n".join([*lines, "", ".. autofunction:: s3dcp.register", ""])
    with mock(ABSENT):
        module = importlib.import_module(name)
        for public in module.__all__:
            exported = f"s3dcp.{public}" if public in s3dcp.__all__ and name != "s3dcp.fsspec" else f"{name}.{public}"
            if kind := directive(getattr(module, public)):
                lines += [f".. {kind}:: {exported}", ""]
    return "\n".join(lines)


def directive(thing: object) -> str | None:
    """How autodoc shows it; what is neither class nor function, a fixture of pytest, is told of by its module."""
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, Exception) else "autoclass"
    return "autofunction" if inspect.isfunction(thing) else None


def first_sentence(thing: object) -> str:
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.sub(r"::$", ".", re.split(r"(?<=\.)\s", paragraph)[0])
