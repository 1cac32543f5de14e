"""The documentation's site: all pages, public modules and names are on it, and it builds without a warning."""

from __future__ import annotations

import ast
import importlib.util
import os
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import s3dcp
from support import pages
from support.pages import ROOT

TOOLS = ROOT / ".cache/docs"


def listed(page: str) -> set[str]:
    """The pages that the lists of a page begin with, which is what the site's sidebar shows."""
    links = re.findall(r"^- \[[^\]]*\]\(([^)\s#:]+)\)", pages.text(page), re.MULTILINE)
    return {str(((ROOT / page).parent / link).resolve().relative_to(ROOT)) for link in links}


def test_every_page_is_in_the_sidebar() -> None:
    contents = listed("docs/README.md") | listed("docs/decisions/README.md")
    assert set(pages.PAGES) - contents == {"docs/README.md"}
    assert contents <= set(pages.PAGES)


def public_modules() -> set[str]:
    names = {module.name for module in pkgutil.iter_modules(s3dcp.__path__)}
    return {"s3dcp", *(f"s3dcp.{name}" for name in names if not name.startswith("_"))}


def test_every_public_module_is_in_the_reference() -> None:
    told = {pages.names(module)[0] for module, _ in pages.table("docs/python.md", "module")}
    assert told == public_modules()


def public_names(module: str) -> list[str]:
    """What is in ``__all__`` of a module, which may import what is not installed."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for statement in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and "__all__" in ast.unparse(statement):
            return ast.literal_eval(statement.value)
    raise AssertionError(f"{module} has no __all__, of which the reference is made")


@pytest.mark.parametrize("module", sorted(public_modules()))
def test_every_public_module_says_what_is_public_in_it(module: str) -> None:
    assert all(isinstance(name, str) for name in public_names(module))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_all_that_it_leads_to(tmp_path: Path) -> None:
    if not (TOOLS / "ready").exists():
        pytest.skip("no tools for the site (make docs installs them)")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    sphinx = [str(TOOLS / "bin/python"), "-m", "sphinx", "-c", "docs/site", "-W", "--keep-going", "-n", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run(
        [*sphinx, str(source), str(site)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    written = {page: page.read_text() for page in site.rglob("*.html")}
    shown = {name for text in written.values() for name in re.findall(r' id="(s3dcp[\w.]+)"', text)}
    assert {f"s3dcp.{name}" for name in s3dcp.__all__} - shown == {"s3dcp.__version__"}
    # The module tells of its fixtures, which autodoc does not know.
    for module in public_modules() - {"s3dcp", "s3dcp.pytest_plugin"}:
        names = public_names(module)
        assert [name for name in names if not {f"{module}.{name}", f"s3dcp.{name}"} & shown] == [], module
    # rustdoc is made by cargo, beside the pages.
    links = {(page, link) for page, text in written.items() for link in re.findall(r'href="([^"#?:]+)[?#"]', text)}
    assert [link for page, link in links if not (page.parent / link).exists() and not link.startswith("rust/")] == []
