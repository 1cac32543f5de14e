"""Holds docs/rust.md to what the published crates export: every public name, with the first sentence of its rustdoc.

``python checks/api.py`` tells where the page differs and fails if it does; ``--write`` writes the tables anew.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from circles import ROOT, paths, without_tests
from page import hold

PAGE = ROOT / "docs/rust.md"
CRATES = ("prefix", "s3", "checkpoint")
ITEM = re.compile(
    r"((?:^[ \t]*///[^\n]*\n)*)(?:^[ \t]*#\[(?:[^\]]|\][^\n])*\]\n)*"
    r"^[ \t]*pub (?:const |async |unsafe )*(fn|struct|enum|trait|const|type|static) (\w+)",
    re.MULTILINE,
)


def declared(source: Path) -> dict[str, tuple[str, str]]:
    """Kind and first sentence of every public item that stands at the left margin of a file."""
    found = {}
    for docs, kind, name in ITEM.findall(source.read_text()):
        if docs[:1] not in (" ", "\t"):
            lines = [line.strip().removeprefix("///").strip() for line in docs.splitlines()]
            paragraph = " ".join(lines).split("  ")[0]
            sentence = re.split(r"(?<=\.)\s", paragraph + " ")[0]
            found[name] = kind, plain(sentence)
    return found


def plain(sentence: str) -> str:
    """A sentence without links, ready for a table's cell."""
    return re.sub(r"\[(`[^`]+`|[^\]]+)\](\([^)]*\))?", r"\1", sentence).replace("|", r"\|")


def exported(crate: str) -> dict[str, tuple[str, str]]:
    """What a crate's ``lib.rs`` hands out, with what it says of it, by name."""
    sources = ROOT / "crates" / crate / "src"
    found = {}
    for tree in re.findall(r"^pub use ([^;]+);", without_tests((sources / "lib.rs").read_text()), re.MULTILINE):
        for path in paths(re.sub(r"\s+", " ", tree)):
            *modules, name = path.split("::")
            place = sources
            if modules[0].startswith("s3dcp_"):
                place = ROOT / "crates" / modules.pop(0).removeprefix("s3dcp_") / "src"
            candidates = [place.joinpath(*modules).with_suffix(".rs")] if modules else sorted(place.rglob("*.rs"))
            if not candidates[0].is_file():
                candidates = sorted(place.joinpath(*modules).rglob("*.rs"))
            items = {name: item for file in candidates for name, item in declared(file).items()}
            found.update(items if name == "*" else {name: items[name]})
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def table(crate: str) -> str:
    """The page's table of a crate."""
    rows = [f"| `{name}` | {kind} | {sentence} |" for name, (kind, sentence) in exported(crate).items()]
    return "\n".join(["| name | kind | |", "| --- | --- | --- |", *rows])


def written(page: str) -> str:
    """The page with tables that are true."""
    for crate in CRATES:
        head = f"<!-- exports of s3dcp-{crate} -->\n"
        if head not in page:
            raise ValueError(f"{PAGE.name} has no place for the exports of s3dcp-{crate}")
        before, rest = page.split(head)
        after = re.sub(r"\A(?:\|[^\n]*\n)*", "", rest)
        page = f"{before}{head}{table(crate)}\n{after}"
    return page


if __name__ == "__main__":
    sys.exit(hold(PAGE, written))
