"""What the pages say is so: settings, variables, errors, options, numbers and links are those of the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3torchconnector
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemWriter

import s3dcp
from s3dcp import S3ClientConfig, S3StorageReader, S3StorageWriter, checkpoint_id
from s3dcp.planner._check import replacements
from support import fault_matrix, pages, torch_versions
from support.pages import ROOT, constant
from upstream import ON_S3, OURS, SUITES

SETTINGS = "docs/settings.md"
TROUBLESHOOTING = "docs/troubleshooting.md"
MIB, GIB = 1 << 20, 1 << 30


# -- links


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert [link for link in pages.links(page) if not leads_somewhere(page, link)] == []


def leads_somewhere(page: str, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    return target.exists() and (not anchor or anchor in pages.anchors(str(target.relative_to(ROOT))))


def test_every_page_is_linked_to() -> None:
    linked = {
        str(((ROOT / page).parent / link.partition("#")[0]).resolve().relative_to(ROOT))
        for page in pages.PAGES
        for link in pages.links(page)
        if not link.startswith("#")
    }
    # A folder that is linked to shows its pages.
    unlinked = [page for page in pages.PAGES if page not in linked and str(Path(page).parent) not in linked]
    assert set(unlinked) <= {"README.md", "CHANGELOG.md"}


# -- settings


def defaults(heading: str) -> dict[str, str]:
    """Name and default of every setting of a table; several names in a cell share a row."""
    rows = pages.table(SETTINGS, heading)
    return {name: default.strip("`") for names, default, _ in rows for name in pages.names(names)}


def shown(default: Any) -> str:
    """A default as the page has it."""
    if default is inspect.Parameter.empty:
        return "required"
    return f'"{default}"' if isinstance(default, str) else str(default)


def test_the_settings_are_those_of_the_client_config() -> None:
    fields = dataclasses.fields(S3ClientConfig)
    assert defaults("`S3ClientConfig`") == {field.name: shown(field.default) for field in fields}
    peers = {field.name for field in dataclasses.fields(s3torchconnector.S3ClientConfig)}
    assert set(list(defaults("`S3ClientConfig`"))[:6]) == peers


@pytest.mark.parametrize(
    "name", ["max_attempts", "deadline", "connect_timeout", "read_timeout", "throughput_target_gbps"]
)
def test_the_engines_defaults_are_the_ones_of_python(name: str) -> None:
    assert pages.default("crates/s3/src/config/mod.rs", name) == getattr(S3ClientConfig(), name)


@pytest.mark.parametrize(("heading", "cls"), [("writer", S3StorageWriter), ("reader", S3StorageReader)])
def test_the_arguments_are_those_of_the_class(heading: str, cls: type) -> None:
    told = defaults("both") | defaults(heading)
    own = {
        name: shown(parameter.default)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    torchs = inspect.signature(FileSystemWriter).parameters if heading == "writer" else {}
    assert {name: default for name, default in told.items() if name in own} == own
    others = {name: default for name, default in told.items() if name not in own}
    lacking = set(others) & torch_versions.LACKING
    assert set(others) - lacking == set(torchs) - set(own) - {"sync_files"}
    for name in set(others) - lacking:
        assert others[name] in ("torch's", shown(torchs[name].default)), name


def test_what_strategies_take_is_what_the_page_says() -> None:
    told = {pages.names(name)[0]: arguments for name, arguments in pages.table(SETTINGS, "strategy")}
    exported = {name for name in s3dcp.__all__ if "PrefixStrategy" in name}
    assert set(told) == exported
    for name, arguments in told.items():
        if name == "S3PrefixStrategyBase":
            continue
        assert arguments == (f"`{signature(getattr(s3dcp, name))}`" if name != "DefaultPrefixStrategy" else "none")
    described = signature(s3dcp.S3PrefixStrategyBase.describe)
    assert f"`describe({described})`" in pages.text(SETTINGS)


def signature(function: Any) -> str:
    """Arguments and defaults, without types."""
    parameters = inspect.signature(function).parameters.values()
    told = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters if parameter.name != "self"
    ]
    return str(inspect.Signature(told)).strip("()")


def test_the_planners_take_torchs_arguments() -> None:
    for ours, torchs in ((s3dcp.FastSavePlanner, DefaultSavePlanner), (s3dcp.FastLoadPlanner, DefaultLoadPlanner)):
        parameters = inspect.signature(torchs).parameters
        given = {name: object() for name in parameters}
        made = vars(torchs(**given))
        assert vars(ours(**given)).items() >= {**made, **_plans_key(made, ours)}.items()
        assert f"`{ours.__name__}`" in pages.text(SETTINGS)
    own = inspect.signature(s3dcp.FastSavePlanner).parameters
    told = defaults("`FastSavePlanner`")
    assert told == {name: shown(own[name].default) for name in own if name not in ("args", "kwargs")}


def _plans_key(made: dict[str, Any], ours: type) -> dict[str, str]:
    """Under which name torch caches the plans of a planner: its class's."""
    return {"_cached_plans_key": ours.__name__} if "_cached_plans_key" in made else {}


# -- variables


def variables_read() -> set[str]:
    """The environment variables that the product reads by name."""
    found = set()
    for path in [*ROOT.glob("crates/*/src/**/*.rs"), *ROOT.glob("python/**/*.py")]:
        if path.name != "testing.py":  # which sets them
            found |= set(
                re.findall(r'"((?:AWS|S3DCP)_[A-Z0-9_]+|HOME|LOCAL_WORLD_SIZE|[A-Z]+_PROXY)"', pages.code(path))
            )
    return found


def test_the_variables_on_the_page_are_those_that_are_read() -> None:
    told = [name for names, _ in pages.table(SETTINGS, "variable") for name in pages.names(names)]
    assert len(told) == len(set(told))
    assert set(told) == variables_read()


def test_the_settings_without_a_writer_are_those_of_configure() -> None:
    whole = pages.text(SETTINGS).partition("## Without a writer or reader")[2].partition("\n## ")[0]
    arguments, variables = whole.split("\n\n")[1:3]
    named = re.findall(r"`(\w+)`", arguments.partition(", for\n")[0])
    assert set(named) == {*inspect.signature(s3dcp.configure).parameters}
    told = set(re.findall(r"`([a-z_]+)`", variables)) - {"default", "binary", "hex"}
    assert told == set(checkpoint_id.PARSERS)


@pytest.mark.parametrize("page", pages.PAGES)
def test_no_page_names_a_variable_that_nobody_reads(page: str) -> None:
    named = set(re.findall(r"\b(?:AWS|S3DCP)_[A-Z][A-Z0-9_]*[A-Z0-9]\b", pages.text(page)))
    read = variables_read() | {f"S3DCP_{name.upper()}" for name in checkpoint_id.PARSERS}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    tests += (ROOT / "crates/cli/tests/docs.rs").read_text()
    assert [name for name in named if name not in read and not (name.startswith("S3DCP_") and name in tests)] == []


# -- errors


def test_the_errors_are_those_of_the_module() -> None:
    told = {pages.names(row[0])[0]: row[1:3] for row in pages.table(TROUBLESHOOTING, "class")}
    assert set(told) == error_classes()
    for name, (kind, bases) in told.items():
        cls = getattr(s3dcp, name)
        assert kind == f'`"{cls.kind}"`'
        assert pages.names(bases) == [base.__name__ for base in cls.__bases__ if base is not s3dcp.S3DcpError]


def error_classes() -> set[str]:
    return {name for name in s3dcp.errors.__all__ if name != "S3DcpError"}


def test_every_error_has_a_section_that_says_what_to_do() -> None:
    sections = re.split(r"^## ", pages.text(TROUBLESHOOTING), flags=re.MULTILINE)[1:]
    told = {heading: text.split() for heading, _, text in (section.partition("\n") for section in sections)}
    assert error_classes() <= set(told)
    assert [name for name in error_classes() if len(told[name]) < 20] == []


def test_what_an_error_carries_is_what_the_page_says() -> None:
    sentence = pages.text(TROUBLESHOOTING).split("An error has", 1)[1].split(". ", 1)[0]
    carried = {*inspect.signature(s3dcp.S3DcpError).parameters, "kind"}
    assert set(pages.names(sentence)) == carried


# -- the command


def test_the_page_of_the_command_is_what_the_command_says_of_itself() -> None:
    done = subprocess.run([sys.executable, "checks/command.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_subcommand_is_on_its_page_with_all_its_options() -> None:
    sections = re.split(r"^## s3dcp ", pages.text("docs/command.md"), flags=re.MULTILINE)[1:]
    told = {name: text for name, _, text in (section.partition("\n") for section in sections)}
    listed = re.findall(r"^  ([a-z]+)  ", pages.command("--help"), re.MULTILINE)
    assert set(told) == set(listed) - {"help"}
    for name, text in told.items():
        rows = re.findall(r"^\| `(--[a-z0-9-]+)[ `]", text, re.MULTILINE)
        assert pages.options(name) <= set(rows), name
        assert "```sh\ns3dcp " in text, name


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_command_and_option_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    lines = [line.split("#")[0] for text in pages.blocks(page, "sh") for line in text.splitlines()]
    lines += [line[2:] for text in pages.blocks(page, "console") for line in text.splitlines() if line[:2] == "$ "]
    lines += pages.inline(page)
    for words in (line.split() for line in lines if line.strip()):
        if words[0] == "make" and len(words) > 1:
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words
        elif words[0] == "s3dcp" and len(words) > 1 and not words[1].startswith(("-", "<")):
            options = pages.options(*words[1 : 3 if words[1] == "strategies" and len(words) > 2 else 2])
            given = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--help"]
            assert [option for option in given if option not in options] == [], words


# -- numbers


S3, CHECKPOINT, PACING, PREFIX, SERVER = (
    f"crates/{crate}/src" for crate in ("s3", "checkpoint", "pacing", "prefix", "server")
)
ADDRESSES, HEDGING = f"{S3}/http/addresses.rs", f"{S3}/admission/hedging.rs"
CLI, PYTHON, LOAD = "crates/cli/src", "python/s3dcp", "python/s3dcp/_load"


# Page, what it says with the number in brackets, where the code has it, its name there, and what to multiply that by.
NUMBERS = [
    (SETTINGS, r"multipart upload, (\d+) MiB", S3, "MIN_PART_SIZE", 1 / MIB),
    (SETTINGS, r"5 MiB to (\d+) GiB", S3, "MAX_PART_SIZE", 1 / GIB),
    (SETTINGS, r"nothing else \| (\d+) MiB", S3, "DEFAULT_PART_SIZE", 1 / MIB),
    (SETTINGS, r"without `part_size`, about \| ([\d,]+)", S3, "USUAL_PARTS", 1),
    (SETTINGS, r"parts of one upload \| ([\d,]+)", S3, "MAX_PARTS", 1),
    (SETTINGS, r"latency alone \| (\d+) MiB", S3, "MAX_FOR_LATENCY", 1 / MIB),
    (SETTINGS, r"climbs to (twice) that", S3, "CONNECTIONS_AT_MOST", 1),
    (SETTINGS, r"doubles \| (\d+) ms", S3, "SHORTEST_BOUND", 1000),
    (SETTINGS, r"at first, (\d+) s at most", S3, "LONGEST_PAUSE", 1),
    (SETTINGS, r"`Retry-After`\) \| (\d+) s at most", S3, "LONGEST_ASKED", 1),
    (SETTINGS, r"of a rank alone (half) as many", PACING, "FIRST_SHARE", 1),
    (SETTINGS, r"half as many, at least (\d+) a second", PACING, "FIRST_LEAST", 1),
    (SETTINGS, r"slowest rate of a folder of keys \| ([\d.]+) a second", PACING, "SLOWEST", 1),
    (SETTINGS, r"of a save or load (\d+) a second", PACING, "SLOWEST_OF_JOB", 1),
    (SETTINGS, r"ranks together, (\d+) of each", PACING, "SLOWEST_OF_ITS_CLIENTS", 1),
    (SETTINGS, r"ranks \| every (\d+) ms", PACING, "PERIOD", 1000),
    (SETTINGS, r"rates, up to ([\d,]+) ranks", PACING, "LOOKS_PER_SECOND", 1 / 2),
    (SETTINGS, r"neighbouring folders for \| (\d+) minutes", PACING, "SAID_FOR", 1 / 60),
    (SETTINGS, r"checksum of its own \| (\d+) MiB", CHECKPOINT, "SLICE_SIZE", 1 / MIB),
    (SETTINGS, r"before they expire \| (\d+) s", S3, "REFRESH_BEFORE_EXPIRY", 1),
    (SETTINGS, r"after a failed save \| (\d+) s", CHECKPOINT, "DISCARD_LIMIT", 1),
    (SETTINGS, r"commits within \| (\d+) h", CHECKPOINT, "COMMITS_WITHIN", 1 / 3600),
    ("docs/reuse.md", r"older than (\d+) hours", CHECKPOINT, "COMMITS_WITHIN", 1 / 3600),
    ("docs/decisions/reuse.md", r"(\d+) hours lie", CHECKPOINT, "COMMITS_WITHIN", 1 / 3600),
    (SETTINGS, r"spared for \| (\d+) h", CHECKPOINT, "COUNTS_FOR", 1 / 3600),
    ("docs/reuse.md", r"counts for (\d+) hours", CHECKPOINT, "COUNTS_FOR", 1 / 3600),
    (SETTINGS, r"that has none \| (\d+) s", CHECKPOINT, "LIMIT", 1),
    (SETTINGS, r"size of an index \| (\d+) GiB", CHECKPOINT, "MAX_INDEX_BYTES", 1 / GIB),
    (SETTINGS, r"when they are asked for \| (\d+) MiB", f"{LOAD}/index.py", "LARGE_INDEX_BYTES", 1 / MIB),
    (SETTINGS, r"shared by itself \| from (\d+) GiB", f"{LOAD}/share.py", "AUTO_BYTES", 1 / GIB),
    ("docs/share.md", r"share (\d+) GiB or more", f"{LOAD}/share.py", "AUTO_BYTES", 1 / GIB),
    (SETTINGS, r"among (\d+) ranks", f"{LOAD}/share.py", "AUTO_RANKS", 1),
    ("docs/share.md", r"of at most (\d+) ranks", f"{LOAD}/share.py", "AUTO_RANKS", 1),
    (SETTINGS, r"to connect \| (\d+) s", f"{LOAD}/exchange.py", "CONNECT_SECONDS", 1),
    ("docs/share.md", r"for them, (\d+) MiB a rank", f"{LOAD}/exchange.py", "UNDER_WAY", 4),
    ("docs/share.md", r"connect within (\d+) s", f"{LOAD}/exchange.py", "CONNECT_SECONDS", 1),
    ("docs/share.md", r"or (\d+) s after the deadline", f"{LOAD}/exchange.py", "GRACE_SECONDS", 1),
    (SETTINGS, r"share in memory \| (\d+) MiB", "crates/python/src/shared_index.rs", "SHARED_FROM", 1 / MIB),
    ("docs/decisions/index.md", r"an index of (\d+) MiB and more", f"{LOAD}/index.py", "LARGE_INDEX_BYTES", 1 / MIB),
    ("docs/decisions/index.md", r"one in (\d+) entries", f"{LOAD}/entries.py", "ONE_OF", 1),
    (SETTINGS, r"next caller \| (\d+)", f"{PYTHON}/_client.py", "_CLIENTS_KEPT", 1),
    (SETTINGS, r"The latest (\d+) are kept", f"{PYTHON}/_client.py", "_CLIENTS_KEPT", 1),
    (SETTINGS, r"`base` is (\d+) to 36", PREFIX, "MIN_BASE", 1),
    (SETTINGS, r"`base` is 2 to (\d+)", PREFIX, "MAX_BASE", 1),
    (SETTINGS, r"within (\d+) s", S3, "IDLE", 1),
    (SETTINGS, r"late-answers\) \| (\d+) %", HEDGING, "SHARE", 100),
    (SETTINGS, r"is silent for longer than (\d+) %", HEDGING, "USUAL", 100),
    (SETTINGS, r"of its operation \| ([\d.]+) times", HEDGING, "TIMES", 1),
    (SETTINGS, r"times, and (\d+) ms at least", HEDGING, "NEVER_LATE", 1000),
    (SETTINGS, r"before one can be late \| (\d+)", HEDGING, "ENOUGH", 1),
    (SETTINGS, r"once more for \| (\d+) s", HEDGING, "OFF", 1),
    (SETTINGS, r"looked up again \| every (\d+) s", ADDRESSES, "FRESH", 1),
    (SETTINGS, r"address beside \| after (\d+) ms", f"{S3}/http/resolver.rs", "STAGGER", 1000),
    (SETTINGS, r"is left out for \| (\d+) s", ADDRESSES, "LEFT_OUT", 1),
    (SETTINGS, r"those of the others \| (\d+) times", ADDRESSES, "SLOW", 1),
    (SETTINGS, r"in all, \[([\d,]+) writes", "crates/partition/src/limits.rs", "DIRECTORY_WRITES", 1),
    (SETTINGS, r"writes and ([\d,]+) reads a second\]", "crates/partition/src/limits.rs", "DIRECTORY_READS", 1),
    ("docs/partitions.md", r"speaks of up to ([\d,]+) writes", "crates/partition/src/limits.rs", "DIRECTORY_WRITES", 1),
    (
        "docs/partitions.md",
        r"writes and ([\d,]+) reads a second",
        "crates/partition/src/limits.rs",
        "DIRECTORY_READS",
        1,
    ),
    ("DESIGN.md", r"share of the bucket's ([\d,]+)", "crates/partition/src/limits.rs", "DIRECTORY_WRITES", 1),
    ("README.md", r"about ([\d,]+) writes a second", "crates/partition/src/limits.rs", "writes_per_second", 1),
    ("README.md", r"every (\d+) MiB of a large one", CHECKPOINT, "SLICE_SIZE", 1 / MIB),
    ("DESIGN.md", r"slice \| (\d+) MiB of an item", CHECKPOINT, "SLICE_SIZE", 1 / MIB),
    ("DESIGN.md", r"partition's ([\d,]+)\s+a second", "crates/partition/src/limits.rs", "writes_per_second", 1),
    ("DESIGN.md", r"takes (\d+) seconds at most", CHECKPOINT, "DISCARD_LIMIT", 1),
    ("DESIGN.md", r"HEADs, (\d+) seconds at most", CHECKPOINT, "LIMIT", 1),
    ("DESIGN.md", r"\(([\d,]+) shard files, or a tenth\)", CHECKPOINT, "ROUND", 1),
    ("DESIGN.md", r"of (\d+) settings at most", f"{PYTHON}/_client.py", "_CLIENTS_KEPT", 1),
    ("DESIGN.md", r"S3's\s+([\d,]+) bytes", PREFIX, "MAX_KEY_BYTES", 1),
    ("DESIGN.md", r"for any base 2 to (\d+)", PREFIX, "MAX_BASE", 1),
    ("docs/concepts.md", r"every (\d+) MiB of a", CHECKPOINT, "SLICE_SIZE", 1 / MIB),
    ("docs/resume.md", r"again every (\d+) s", CHECKPOINT, "LEASE_BEAT", 1),
    ("docs/resume.md", r"after (three) times that", CHECKPOINT, "SILENT_BEATS", 1),
    ("docs/save.md", r"JSON can hold, (\d+) KiB", CHECKPOINT, "MAX_NOTES_BYTES", 1 / 1024),
    ("docs/save.md", r"splits tensors of (\d+) MiB", f"{PYTHON}/_replicas.py", "SPLIT_FROM", 1 / MIB),
    (SETTINGS, r"True: from (\d+) MiB on", f"{PYTHON}/_replicas.py", "SPLIT_FROM", 1 / MIB),
    ("docs/operations.md", r"younger than (\d+) hours", CLI, "USUAL_LIMIT", 1 / 3600),
    ("docs/prefixes.md", r"more than ([\d,]+) bytes", PREFIX, "MAX_KEY_BYTES", 1),
    ("docs/servers.md", r"waits (\d+) s, or a quarter", S3, "LONGEST_ASKED", 1),
    ("docs/servers.md", r"one by one, (\d+) at a time", S3, "CONCURRENT_DELETES", 1),
    ("docs/decisions/archive.md", r"below (\d+) KiB", CHECKPOINT, "GATHER_BELOW", 1 / 1024),
    ("docs/decisions/credentials.md", r"expire within (five) minutes", S3, "REFRESH_BEFORE_EXPIRY", 1 / 60),
    ("docs/decisions/credentials.md", r"every (ten) seconds", S3, "REFRESH_PAUSE", 1),
    ("docs/decisions/credentials.md", r"nobody knows: (six) loads", S3, "DOUBTFUL_LOADS", 1),
    ("docs/decisions/index.md", r"nested deeper than (\d+)", CHECKPOINT, "MAX_DEPTH", 1),
    ("docs/decisions/index.md", r"of (\d+) elements per byte", CHECKPOINT, "COPIES_PER_BYTE", 1),
    ("docs/decisions/pacing.md", r"the ([\d.]+)th power", PACING, "EXPECTED_POWER", 1),
    ("docs/decisions/pacing.md", r"every (half) second each", PACING, "PERIOD", 1),
    ("docs/decisions/pacing.md", r"beyond ([\d,]+) ranks", PACING, "LOOKS_PER_SECOND", 1 / 2),
    ("docs/decisions/prefix.md", r"key, ([\d,]+); whoever", PREFIX, "MAX_KEY_BYTES", 1),
    ("docs/decisions/server.md", r"chunks of (\d+) MiB", SERVER, "CHUNK_BYTES", 1 / MIB),
    ("docs/decisions/server.md", r"read, up to (\d+) MiB", SERVER, "COURTESY_BYTES", 1 / MIB),
    ("docs/decisions/storage-classes.md", r"up to ([\d,]+) tensors", f"{PYTHON}/_save/shards.py", "BATCH_TENSORS", 1),
    (
        "docs/decisions/storage-classes.md",
        r"once they have (\d+) MiB",
        f"{PYTHON}/_save/shards.py",
        "BATCH_BYTES",
        1 / MIB,
    ),
    ("docs/decisions/storage-classes.md", r"through (ten) slots", f"{PYTHON}/_load/transfer.py", "SLOTS", 1),
    ("docs/decisions/storage-classes.md", r"slice \((\d+) MiB\)", CHECKPOINT, "SLICE_SIZE", 1 / MIB),
    ("docs/decisions/storage-classes.md", r"shorter than (\d+) bytes", CHECKPOINT, "MIN_RUN_BYTES", 1),
    ("docs/decisions/storage-classes.md", r"(\d+) KiB or more of the file", CHECKPOINT, "GAP_BYTES", 1 / 1024),
    ("docs/decisions/transport.md", r"frame is up to (\d+) KiB", S3, "FRAME_BYTES", 1 / 1024),
    ("docs/decisions/transport.md", r"up to (\d+) slices", S3, "FRAME_SLICES", 1),
    ("docs/decisions/transport.md", r"at most (\d+) MiB at a time", S3, "READ_BYTES", 1 / MIB),
    ("docs/decisions/transport.md", r"buffer of (\d+) MiB per thread", S3, "COPY_BYTES", 1 / MIB),
    ("docs/decisions/transport.md", r"below (\d+) KiB", CHECKPOINT, "DIRECT", 1 / 1024),
]
# The same with a value that has no name of its own.
DERIVED: list[tuple[str, str, Callable[[], float]]] = [
    (SETTINGS, r"that 10 Gbit/s ask for \| (\d+)", lambda: 10 / constant(S3, "GBPS_PER_CONNECTION")),
    (SETTINGS, r"and a (quarter) of the time left", lambda: 1 / constant(S3, "ASKED_OF_THE_REST")),
    ("docs/servers.md", r"or a (quarter) of the time left", lambda: 1 / constant(S3, "ASKED_OF_THE_REST")),
    ("DESIGN.md", r"1,000 shard files, or a (tenth)\)", lambda: 1 / constant(CHECKPOINT, "ROUNDS")),
    ("docs/decisions/pacing.md", r"first (two) refusals", lambda: constant(PACING, "FEW") - 1),
    ("SECURITY.md", r"good for a second to a (week)", lambda: constant(SERVER, "MAX_EXPIRES") / 604_800),
    ("docs/decisions/planners.md", r"in which (\w+) helper functions are ours", lambda: sum(map(len, replacements()))),
    ("docs/faults.md", r"the defaults are (ten) and", lambda: S3ClientConfig().max_attempts),
    ("docs/faults.md", r"the defaults are ten and (\d+) s", lambda: S3ClientConfig().read_timeout),
    ("docs/faults.md", r"The tests use (three) attempts", lambda: fault_matrix.CONFIG.max_attempts),
    ("docs/faults.md", r"a read timeout of ([\d.]+) s", lambda: fault_matrix.CONFIG.read_timeout),
    ("docs/faults.md", r"deadline ends it, (\d+) s in these tests", lambda: fault_matrix.CONFIG.deadline),
    ("docs/faults.md", r"in these tests and (\d+) s by default", lambda: S3ClientConfig().deadline),
]
WORDS = {
    "half": 0.5,
    "quarter": 0.25,
    "tenth": 0.1,
    "week": 1,
    "two": 2,
    "twice": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
}
WORDS |= {"nine": 9, "ten": 10}


def number(page: str, pattern: str) -> float:
    """What a page says."""
    found = re.search(pattern, pages.text(page))
    assert found, f"{page} does not say {pattern!r} any more"
    told = found[1].replace(",", "")
    return WORDS[told] if told in WORDS else float(told)


@pytest.mark.parametrize(("page", "pattern", "place", "name", "unit"), NUMBERS)
def test_a_number_on_a_page_is_the_codes(page: str, pattern: str, place: str, name: str, unit: float) -> None:
    held = pages.default if name.islower() else constant
    assert number(page, pattern) == pytest.approx(unit * held(place, name))


def test_what_the_page_says_of_pacing_is_what_its_tests_hold() -> None:
    tests = (ROOT / "crates/pacing/tests/convergence.rs").read_text()
    fleets = re.findall(r"\((\d+), ([\d_.]+), ([\d.]+), ([\d.]+)\),", tests.split("const FLEETS", 1)[1])
    held = [[float(cell.replace("_", "")) for cell in fleet] for fleet in fleets]
    told = " ".join(pages.text("docs/partitions.md").split())
    ample = [fleet for fleet in held if fleet[1] / fleet[0] >= 12]
    [scarce, scarcest] = [fleet for fleet in held if fleet[1] / fleet[0] < 12]
    eight, many = ([fleet[1] for fleet in held if fleet[0] == clients] for clients in (8, 64))
    for claim in (
        f"8 clients on {min(eight):.0f} to {max(eight):.0f} requests a second",
        f"and 64 on {min(many):.0f} to {max(many):,.0f} use at least",
        f"at most {100 * max(fleet[2] for fleet in ample):.0f} % are refused where each has 12 requests",
        f"and {100 * scarce[2]:.0f} % at {scarce[1] // scarce[0]:.0f} a second",
        f"it is {100 * scarcest[2]:.0f} %, with a fairness of {scarcest[3]}",
        f"fairness at least {min(fleet[3] for fleet in [*ample, scarce])})",
    ):
        assert claim in told
    assert "least 95 % of the budget from the first" in told
    assert "admitted >= 0.95 * budget" in tests
    assert "use at least 90 % of it" in told
    assert "used >= 0.9," in tests


def test_the_parts_that_the_page_speaks_of_are_those_of_its_simulations() -> None:
    told = re.search(r"with parts of (\d+) MiB, and go on with up to (\d+) MiB", pages.text("docs/partitions.md"))
    assert told
    printed = "".join(pages.blocks("docs/partitions.md", "console"))
    assert [size for size in told.groups() if f" {size}.0 MiB " not in printed] == []


@pytest.mark.parametrize(("page", "pattern", "expected"), DERIVED)
def test_a_number_on_a_page_follows_from_the_code(page: str, pattern: str, expected: Callable[[], float]) -> None:
    assert number(page, pattern) == pytest.approx(expected())


def test_every_number_of_the_sizes_is_held() -> None:
    """A row without an entry in `NUMBERS` would be a claim that nothing checks."""
    patterns = [row[1] for row in (*NUMBERS, *DERIVED) if row[0] == SETTINGS]
    unchecked = [
        row[0]
        for row in pages.table(SETTINGS, "what")
        if not any(re.search(pattern, f"| {row[0]} | {row[1]} |") for pattern in patterns)
    ]
    assert unchecked == ["connections that any `throughput_target_gbps` asks for"]
    source = (ROOT / S3 / "config/mod.rs").read_text()
    low, high = map(int, re.search(r"asks for \| (\d+) to (\d+)", pages.text(SETTINGS)).groups())  # type: ignore[union-attr]
    assert f".clamp({low}.0, {high}.0)" in source


MODEL = [
    ("writes and reads per partition", r"([\d,]+) and", "crates/partition/src/limits.rs", "writes_per_second", 1),
    ("writes and reads per partition", r"and ([\d,]+)", "crates/partition/src/limits.rs", "reads_per_second", 1),
    ("budget saved up while idle", r"(\d+) second", "crates/partition/src/limits.rs", "burst", 1),
    ("heat", r"over (\d+) s", "crates/partition/src/limits.rs", "heat_window", 1),
    ("hot", r"(\d+) %", "crates/partition/src/limits.rs", "hot", 100),
    ("split", r"after (\d+) minutes", "crates/partition/src/limits.rs", "split_after", 1 / 60),
    ("merge", r"below (\d+) %", "crates/partition/src/limits.rs", "cold", 100),
    ("merge", r"for (\d+) hours", "crates/partition/src/limits.rs", "merge_after", 1 / 3600),
    ("one connection", r"(\d+) MB/s", "crates/sim/src/scenario.rs", "connection_bytes_per_second", 1e-6),
    ("first byte", r"(\d+) ms", "crates/sim/src/scenario.rs", "latency", 1000),
]


@pytest.mark.parametrize(("what", "pattern", "path", "name", "unit"), MODEL)
def test_the_assumptions_of_the_model_are_its_constants(
    what: str, pattern: str, path: str, name: str, unit: float
) -> None:
    told = next(row[1] for row in pages.table("docs/partitions.md", "assumption") if row[0] == what)
    found = re.search(pattern, told)
    assert found
    assert float(found[1].replace(",", "")) == pytest.approx(unit * pages.default(path, name))


# -- others


def test_the_releases_that_are_compared_with_are_those_that_are_measured_and_tested() -> None:
    pins = "\n".join(
        (ROOT / place).read_text()
        for place in ("requirements-dev.txt", "bench/requirements.txt", "tests/frameworks/requirements.txt")
    )
    told = {row[0].split()[-1]: row[1] for row in pages.table("docs/comparison.md", "project")}
    pinned = {name: re.search(rf"^{name}(?:\[\w+\])?==([\w.]+)", pins, re.MULTILINE) for name in told}
    assert {name for name, pin in pinned.items() if pin is None} == {"s3dcp", "Orbax"}
    assert {name: told[name] for name, pin in pinned.items() if pin} == {n: pin[1] for n, pin in pinned.items() if pin}


WITH = {ON_S3: "either, on S3", OURS: f"`{OURS}`"}


@pytest.mark.parametrize(
    ("page", "name"), [("docs/moving.md", "s3torchconnector"), ("docs/frameworks.md", "torchtitan")]
)
def test_the_tests_of_others_that_cannot_pass_are_those_that_are_expected_to_fail(page: str, name: str) -> None:
    suite = SUITES[name]
    rows = [[f"`{each.test}`", *filter(None, [WITH.get(each.variant)]), each.reason] for each in suite.failing]
    assert pages.table(page, "test") == rows
    told = " ".join(pages.text(page).partition("\n\n| test |")[0].rpartition("\n\n")[2].split())
    assert f"`make test-upstream {name.upper()}=<clone>`" in told
    assert f"at commit {suite.commit}" in told
    assert f"Of {suite.count} all pass but these" in told
    assert [path for path in suite.paths if Path(path).name not in told] == []


# -- the house


def test_the_arrows_of_the_design_are_the_dependencies() -> None:
    arrows = next(block for block in pages.blocks("DESIGN.md", "text") if "→" in block)
    told = {}
    for line in arrows.splitlines():
        crate, used = line.split("→")
        told[crate.strip()] = {name.strip() for name in used.split(",")}
    found = {}
    for manifest in (ROOT / "crates").glob("*/Cargo.toml"):
        dependencies = manifest.read_text().partition("\n[dependencies]")[2].split("\n[", 1)[0]
        if used := set(re.findall(r"^s3dcp-(\w+)\b", dependencies, re.MULTILINE)):
            found[manifest.parent.name] = used
    assert told == found


def test_the_house_has_the_crates_of_the_workspace() -> None:
    house = pages.text("DESIGN.md").split("crates/\n", 1)[1].split("python/s3dcp/", 1)[0]
    told = re.findall(r"^  (\w+)/ +s3dcp-(\w+) ", house, re.MULTILINE)
    assert {crate for crate, _ in told} == {path.parent.name for path in (ROOT / "crates").glob("*/Cargo.toml")}
    assert [crate for crate, package in told if crate != package] == []


def test_unsafe_code_is_where_the_page_says() -> None:
    told = set(re.findall(r"`((?:crates/python/src/)?\w+\.rs)`", section("CONTRIBUTING.md", "`unsafe` lives in")))
    found = {
        path.name
        for path in ROOT.glob("crates/*/src/**/*.rs")
        if re.search(r"\bunsafe (?:\{|impl|fn)", pages.code(path))
    }
    assert {Path(name).name for name in told} == found


def section(page: str, beginning: str) -> str:
    """The line that begins with these words after its bullet."""
    return next(line for line in pages.text(page).splitlines() if beginning in line)
