"""Holds docs/command.md to what the command says of itself: every subcommand with its options and examples.

``python checks/command.py`` tells where the page differs and fails if it does; ``--write`` writes it anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from page import hold

PAGE = Path(__file__).parents[1] / "docs/command.md"
BEGIN = "<!-- what the command says of itself -->\n"
SECTION = re.compile(r"^(Usage|Arguments|Options|Commands|Examples?):[ \n]", re.MULTILINE)
# `      --json` or `  -h, --help`, `  <URI>`, `  [NAME]...`, with what it means behind it or below.
ENTRY = re.compile(r"^ {2,6}((?:-\w, )?--[\w-]+(?: \S+)?|<[^>]+>|\[[^\]]+\]\.\.\.|[a-z][a-z-]*)(?: {2,}(.*))?$")
EVERYWHERE = ("-h, --help", "-V, --version", "help")


def say(*arguments: str) -> str:
    """The help of a subcommand, or of the command."""
    done = [sys.executable, "-m", "s3dcp", *arguments, "--help"]
    return subprocess.run(done, check=True, capture_output=True, text=True).stdout


def sections(text: str) -> dict[str, str]:
    """A help's text by the headings of its parts; what it is about stands under the empty one."""
    about, *rest = SECTION.split(text)
    return {"": about} | dict(zip(rest[::2], rest[1::2], strict=True))


def entries(text: str) -> list[tuple[str, str]]:
    """What a part lists: each name with the paragraphs that say what it means."""
    found: list[tuple[str, list[str]]] = []
    for line in text.rstrip().splitlines():
        if match := ENTRY.match(line):
            found.append((match[1], [match[2] or ""]))
        elif found:
            found[-1][1].append(line.strip())
    return [(name, "\n".join(lines)) for name, lines in found if name not in EVERYWHERE]


def prose(text: str) -> str:
    """A text of the help as one line of Markdown."""
    text = " ".join(text.split())
    text = re.sub(r"\[default: ((?:[^\[\]])+)\]", r"Default: \1.", text)
    text = re.sub(r"\[possible values: ([^\]]+)\]", lambda found: f"One of {found[1]}.", text)
    text = re.sub(r"([^.\s:])( (?:Default:|One of) )", r"\1.\2", text)
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else escaped(piece) for piece in pieces).replace("|", r"\|")


def escaped(text: str) -> str:
    return re.sub(r"([*\[\]])", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))


def described(*names: str) -> str:
    """The part of the page on one subcommand."""
    told = sections(say(*names))
    lines = [f"{'#' * (len(names) + 1)} s3dcp {' '.join(names)}", ""]
    for paragraph in told[""].strip().split("\n\n"):
        lines += [prose(paragraph) + ("" if paragraph.endswith(".") else "."), ""]
    lines += ["```text", told["Usage"].strip(), "```", ""]
    for heading in ("Arguments", "Options"):
        if rows := entries(told.get(heading, "")):
            lines += [f"| {heading.lower().removesuffix('s')} | |", "| --- | --- |"]
            lines += [f"| `{name}` | {prose(meaning)} |" for name, meaning in rows] + [""]
    for heading in ("Example", "Examples"):
        if heading in told:
            lines += ["```sh", *(line.strip() for line in told[heading].strip().splitlines()), "```", ""]
    lines += [described(*names, name) for name, _ in entries(told.get("Commands", ""))]
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with what is true."""
    head, found, _ = page.partition(BEGIN)
    if not found:
        raise ValueError(f"{PAGE.name} has no place for what the command says of itself")
    commands = [name for name, _ in entries(sections(say())["Commands"])]
    return head + BEGIN + "\n" + "\n".join(described(name) for name in commands).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(hold(PAGE, written))
