"""The project's pages, taken apart: code, tables, links, headings; and constants of the code that pages repeat."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TOP = ("README.md", "DESIGN.md", "BENCHMARKS.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = (*_TOP, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@functools.cache
def text(page: str) -> str:
    """A page."""
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [source for name, source in _FENCED.findall(text(page)) if name == language]


def block(page: str, holding: str) -> str:
    """The one Python block with `holding` in it."""
    (found,) = [source for source in blocks(page, "python") if holding in source]
    return found


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", text(page))


def inline(page: str) -> list[str]:
    """Code within a line; the text between two blocks never pairs a backtick of one paragraph with one of the next."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first heading is `heading`."""
    rows = text(page).split(f"\n| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def names(cell: str) -> list[str]:
    """The code in a cell of a table."""
    return re.findall(r"`([^`]+)`", cell)


def links(page: str) -> list[str]:
    """Where a page leads to within the project."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\((?!\w+:)([^)\s]+)\)", without_code)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and others make them."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-"))
    return found


@functools.cache
def command(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "s3dcp", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def options(*subcommand: str) -> frozenset[str]:
    """The options of a subcommand, as its help lists them."""
    lines = command(*subcommand, "--help").splitlines()
    found = {word for line in lines for word in re.findall(r"^\s+(?:-\w, )?(--[a-z][a-z0-9-]*)", line)}
    return frozenset(found - {"--help", "--version"})


def constant(place: str, name: str) -> float:
    """A constant of a file, or of the one file of a folder that has it; a duration in seconds."""
    files = [ROOT / place] if Path(place).suffix else sorted((ROOT / place).rglob("*.rs"))
    pattern = rf"^ *(?:pub(?:\(\w+\))? )?(?:const )?{name}(?:: \w+)? = (.+?);?$"
    found = [match for path in files for match in re.findall(pattern, code(path), re.MULTILINE)]
    assert len(found) == 1, f"{place} has {len(found)} of {name}"
    return value(found[0])


def default(file: str, name: str) -> float:
    """The value of a field in a file's first `Default` of Rust; a duration in seconds."""
    body = re.split(r"fn default\(\) -> \w+ \{", (ROOT / file).read_text())
    found = [match for part in body[1:] for match in re.findall(rf"^ +{name}: (.+),$", part, re.MULTILINE)]
    assert found, f"{file} has no default of {name}"
    return value(found[0])


def value(expression: str) -> float:
    """What a constant's expression comes to."""
    python = re.sub(r" as \w+|(?<=\d)_(?=\d)", "", expression)
    python = re.sub(r"Duration::from_secs\((.*?)\)", r"(\1)", python)
    python = re.sub(r"Duration::from_hours\((.*?)\)", r"((\1) * 3600)", python)
    python = re.sub(r"Duration::from_millis\((.*?)\)", r"((\1) / 1000)", python)
    assert re.fullmatch(r"[\d\s.*<()/e]+", python), f"not a number: {expression}"
    return float(eval(python))


def code(path: Path) -> str:
    """The code of a Rust or Python file without its comments and its tests."""
    source = path.read_text()
    if path.suffix == ".rs":
        source = re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", source)[0]
        return re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)
    return re.sub(r"^\s*#.*$", "", source, flags=re.MULTILINE)
