"""What README.md says is so: its snippets run, its trees, commands and versions are those of the project.

`test_docs.py` holds the other pages, and tables, numbers and links of all.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

import s3dcp
from s3dcp import testing
from support import pages
from support.pages import ROOT

README = pages.text("README.md")
PREFIXES = pages.text("docs/prefixes.md")
# A screen has some fifty lines.
SCREEN = 50
# Pages whose snippets go on from the README's, with the fewest that each must have.
GO_ON = {
    "docs/README.md": 1,
    "docs/async.md": 2,
    "docs/export.md": 1,
    "docs/first-steps.md": 2,
    "docs/operations.md": 1,
    "docs/prefixes.md": 2,
    "docs/reshard.md": 1,
    "docs/resume.md": 2,
    "docs/retention.md": 1,
    "docs/reuse.md": 1,
    "docs/save.md": 6,
    "docs/share.md": 2,
    "docs/testing.md": 1,
    "docs/tools.md": 1,
    "docs/troubleshooting.md": 1,
}


def test_the_readme_fits_in_three_screens() -> None:
    lines = README.splitlines()
    assert len(lines) <= 3 * SCREEN
    first = "\n".join(lines[:SCREEN])
    assert [line for line in ("make demo", "make test", "dcp.save(", "dcp.load(") if line not in first] == []


@pytest.fixture
def namespace(s3dcp_server: testing.Server) -> Any:
    """The names of the README's snippets, after they ran."""
    s3dcp_server.create_bucket("checkpoints")
    names: dict[str, Any] = {"__name__": "readme"}
    try:
        run("README.md", names)
        yield names
    finally:
        s3dcp_server.delete_bucket("checkpoints")


def run(page: str, names: dict[str, Any]) -> int:
    """Runs the Python snippets of a page in order; how many there are."""
    snippets = pages.blocks(page, "python")
    for number, source in enumerate(snippets, start=1):
        exec(compile(source, f"{page}, python snippet {number}", "exec"), names)
    return len(snippets)


@pytest.mark.parametrize("page", GO_ON)
def test_the_python_snippets_run_in_order(namespace: dict[str, Any], page: str) -> None:
    assert run(page, namespace) >= GO_ON[page]
    if "PerNode" in namespace:
        assert namespace["PerNode"]()(17) == "node-2/__17_"


def test_the_commands_of_the_first_steps_find_what_its_snippets_saved(namespace: dict[str, Any]) -> None:
    run("docs/first-steps.md", namespace)
    lines = [
        line.split("#")[0].split() for text in pages.blocks("docs/first-steps.md", "sh") for line in text.splitlines()
    ]
    looks = [words[1:] for words in lines if words[0] == "s3dcp" and words[1] != "serve"]
    assert len(looks) >= 3
    for words in looks:
        assert pages.command(*words)


@pytest.mark.slow
@pytest.mark.distributed
def test_the_example_of_resharding_loads_with_other_ranks(s3dcp_bucket: str) -> None:
    for what, ranks in (("save", 4), ("load", 2)):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        job = [*torchrun, str(ROOT / "examples/reshard.py"), what, f"s3://{s3dcp_bucket}/sharded"]
        done = subprocess.run(job, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"of {ranks}: {what} of") == ranks


def test_no_page_has_snippets_that_do_not_run() -> None:
    having = {page for page in pages.PAGES if pages.blocks(page, "python")}
    # tests/frameworks has what the last one needs.
    assert having == {"README.md", *GO_ON, "docs/frameworks.md"}


def test_the_quickstart_is_the_example_and_short() -> None:
    [quickstart] = pages.blocks("README.md", "python")
    assert len(quickstart.strip().splitlines()) <= 12
    assert (ROOT / "examples" / "quickstart.py").read_text().endswith(f'"""\n\n{quickstart}')


def test_the_trees_are_what_the_strategies_give() -> None:
    example = [sys.executable, str(ROOT / "examples" / "strategies.py")]
    done = subprocess.run(example, capture_output=True, text=True, timeout=60, check=True)
    given = done.stdout.strip().split("\n\n")
    strategies = {name for name in s3dcp.__all__ if name.endswith("PrefixStrategy")}
    for page, expected in (("README.md", {"HexPrefixStrategy"}), ("docs/prefixes.md", strategies)):
        shown = [text.strip() for text in pages.blocks(page, "text") if "s3://" in text]
        assert [tree for tree in shown if tree not in given] == []
        assert {tree.split("(")[0] for tree in shown} == expected


def test_the_command_shows_the_prefixes_that_the_page_shows() -> None:
    shown = next(text for text in pages.blocks("docs/prefixes.md", "text") if text.startswith("rank"))
    arguments = next(code for code in pages.inline("docs/prefixes.md") if code.startswith("s3dcp strategies"))
    assert pages.command(*arguments.split()[1:]) == shown


@pytest.mark.s3("embedded")
def test_the_keys_of_the_server_are_the_ones_everyone_is_told(s3dcp_server: testing.Server) -> None:
    told = f"(`{s3dcp_server.access_key}` and\n`{s3dcp_server.secret_key}`)"
    assert told in pages.text("docs/testing.md")


def test_versions_are_those_declared() -> None:
    cargo, pyproject = (ROOT / "Cargo.toml").read_text(), (ROOT / "pyproject.toml").read_text()
    rust, python, torch = (
        re.search(rf"{name} ([\d.]+) (?:or newer|is declared)", README)[1]  # type: ignore[index]
        for name in ("Rust", "Python", "torch")
    )
    assert f'rust-version = "{rust}"' in cargo
    assert f'requires-python = ">={python}"' in pyproject
    assert f'"torch>={torch}"' in pyproject
