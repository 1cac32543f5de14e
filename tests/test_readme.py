"""What README.md says is so: its snippets run, its trees, tables, commands and links are those of the project."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import s3torchconnector

import s3dcp
from s3dcp import S3ClientConfig, S3StorageReader, S3StorageWriter, testing

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
# Code within a line; the text between two blocks never pairs a backtick of one paragraph with one of the next.
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def rows(heading: str) -> dict[str, str]:
    """First and second column of the table whose first heading is `heading`; several names in a cell share a row."""
    table = README.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    lines = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    return {name: cell.strip() for names, cell in lines for name in re.findall(r"`(\w+)`", names)}


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "s3dcp", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_snippets_run_in_order(s3dcp_server: testing.Server) -> None:
    s3dcp_server.create_bucket("checkpoints")
    namespace: dict[str, object] = {"__name__": "readme"}
    try:
        for number, source in enumerate(blocks("python"), start=1):
            exec(compile(source, f"README.md, python snippet {number}", "exec"), namespace)
    finally:
        s3dcp_server.delete_bucket("checkpoints")
    assert number >= 4
    assert namespace["PerNode"]()(17) == "node-2/__17_"


def test_the_quickstart_is_the_example_and_short() -> None:
    quickstart = blocks("python")[0]
    assert len(quickstart.strip().splitlines()) <= 12
    assert (ROOT / "examples" / "quickstart.py").read_text().endswith(f'"""\n\n{quickstart}')


def test_the_trees_are_what_the_strategies_give() -> None:
    example = [sys.executable, str(ROOT / "examples" / "strategies.py")]
    done = subprocess.run(example, capture_output=True, text=True, timeout=60, check=True)
    given = done.stdout.strip().split("\n\n")
    shown = [text.strip() for text in blocks("text") if "s3://" in text]
    assert [tree for tree in shown if tree not in given] == []
    strategies = {name for name in s3dcp.__all__ if name.endswith("PrefixStrategy")}
    assert {tree.split("(")[0] for tree in shown} == strategies


def test_the_command_shows_the_prefixes_that_the_readme_shows() -> None:
    shown = next(text for text in blocks("text") if text.startswith("rank"))
    arguments = next(code for code in INLINE if code.startswith("s3dcp strategies")).split()[1:]
    assert command(*arguments) == shown


def test_every_command_and_option_exists() -> None:
    lines = [line.split("#")[0].split() for text in blocks("sh") for line in text.splitlines()]
    lines += [code.split() for code in INLINE]
    makefile = (ROOT / "Makefile").read_text()
    seen = set()
    for words in lines:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words
            seen.add(words[1])
        elif words[0] == "s3dcp" and len(words) > 1:
            usage = command(words[1], "--help")
            options = [word for word in words if word.startswith("--")]
            if words[1] == "strategies":
                usage += command(words[1], words[2], "--help")
            assert [option for option in options if option not in usage] == [], words
            seen.add(words[1])
    assert seen >= {"demo", "test", "bench", "serve", "strategies"}
    assert "--data" in command("serve", "--help")


def test_the_settings_are_those_of_the_client_config() -> None:
    told = rows("`S3ClientConfig`")
    fields = dataclasses.fields(S3ClientConfig)
    assert set(told) == {field.name for field in fields}
    peers = {field.name for field in dataclasses.fields(s3torchconnector.S3ClientConfig)}
    assert set(list(told)[:6]) == peers
    numbers = iter(told["deadline"].split(", "))
    for field in fields:
        default = field.default
        if field.name in ("deadline", "connect_timeout", "read_timeout"):
            assert float(next(numbers)) == default, field.name
        else:
            assert told[field.name] == str(default), field.name


@pytest.mark.parametrize(("heading", "cls"), [("writer", S3StorageWriter), ("reader", S3StorageReader)])
def test_the_arguments_are_those_of_the_class(heading: str, cls: type) -> None:
    told = set(rows(heading))
    common = {"self", "region", "path", "s3client_config", "endpoint_url", "progress"}
    own = set(inspect.signature(cls.__init__).parameters) - common - {"kwargs", "reader_constructor"}
    torchs = {
        "overwrite",
        "serialization_format",
        "single_file_per_rank",
        "per_thread_copy_ahead",
        "cache_staged_state_dict",
        "_extensions",
    }
    assert told == own | torchs if heading == "writer" else told == own - {"_extension_registry"}


@pytest.mark.s3("embedded")
def test_the_keys_of_the_server_are_the_ones_everyone_is_told(s3dcp_server: testing.Server) -> None:
    assert f"(`{s3dcp_server.access_key}` and\n`{s3dcp_server.secret_key}`)" in README


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!\w+://)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_versions_are_those_declared() -> None:
    cargo, pyproject = (ROOT / "Cargo.toml").read_text(), (ROOT / "pyproject.toml").read_text()
    rust, python, torch = (
        re.search(pattern, text)[1]
        for pattern, text in [
            (r"Rust ([\d.]+) or newer", README),
            (r"Python ([\d.]+) or newer", README),
            (r"torch ([\d.]+) or newer", README),
        ]
    )
    assert f'rust-version = "{rust}"' in cargo
    assert f'requires-python = ">={python}"' in pyproject
    assert f'"torch>={torch}"' in pyproject
