"""Fixtures: a bucket for every test on the embedded server or another, and groups of ranks that tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from s3dcp import testing
from support import real, torch_versions
from support.ranks import Alone, Ranks
from support.real import departures
from support.store import Store, boto_client

# What ``--s3`` is for directory buckets of the embedded server, how they are called, and how long their sessions last.
DIRECTORY = "directory"
DIRECTORY_SUFFIX = "--use1-az4--x-s3"
SESSION_SECONDS = 5.0

torch.set_num_threads(1)
# Processes that tests start import `support` as well.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--s3",
        choices=["embedded", DIRECTORY, *real.SERVERS],
        default="embedded",
        help=f"run the tests that talk to the embedded server, on this one; {DIRECTORY}: there, on directory buckets",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that talk to no server run with the embedded one; those of one server with that one."""
    name = config.getoption("--s3")
    wanted, others = [], []
    for item in items:
        only = item.get_closest_marker("s3")
        talks = "s3dcp_server" in getattr(item, "fixturenames", ()) or _parameters(item).get("server") == name
        fits = name in only.args if only else name == "embedded" or talks
        (wanted if fits else others).append(item)
        if name in real.SERVERS and not real.SERVERS[name].HONOURS_CONDITIONS:
            item.add_marker(pytest.mark.filterwarnings("ignore:the server ignores conditional writes:UserWarning"))
        if reason := departures.reason(name, item):
            strict = not isinstance(reason, departures.Sometimes)
            # A plain text: workers send it.
            item.add_marker(pytest.mark.xfail(reason=str(reason), strict=strict))
    items[:] = wanted
    config.hook.pytest_deselected(items=others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test that asks an older torch for what it lacks is skipped."""
    report = yield
    if report.failed and (reason := torch_versions.reason(str(report.longrepr))):
        report.outcome, report.longrepr = "skipped", (*item.location[:2], reason)
    return report


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(scope="session")
def s3dcp_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server under test, in the AWS environment variables."""
    name = request.config.getoption("--s3")
    if name == "embedded":
        yield request.getfixturevalue("s3dcp_server")
        return
    if name == DIRECTORY:
        with testing.server(buckets=(), session_lifetime=SESSION_SECONDS) as server:
            yield server
        return
    if absent := real.SERVERS[name].absent():
        pytest.exit(absent, returncode=1)
    with real.SERVERS[name].start(tmp_path_factory.mktemp(name)) as server, testing.environment(server):
        yield server


@pytest.fixture(scope="session")
def _s3dcp_bucket_names(request: pytest.FixtureRequest, _s3dcp_bucket_names: Callable[[], str]) -> Callable[[], str]:
    if request.config.getoption("--s3") == DIRECTORY:
        return lambda: f"{_s3dcp_bucket_names()}{DIRECTORY_SUFFIX}"
    return _s3dcp_bucket_names


@pytest.fixture
def store(s3dcp_bucket: str) -> Store:
    """An empty bucket, seen by an independent client."""
    return Store(s3dcp_bucket, boto_client())


@pytest.fixture(scope="session")
def groups() -> Iterator[Callable[[int], Any]]:
    """``groups(4)``: four ranks, started at first use and shared by all tests of this process."""
    running: dict[int, Ranks] = {}

    def group(count: int) -> Any:
        if count not in running or not running[count].alive:
            running[count] = Ranks(count)
        return running[count]

    yield group
    for ranks in running.values():
        if ranks.alive:
            ranks.stop()


@pytest.fixture(params=[1, pytest.param(4, marks=pytest.mark.distributed)], ids=["one-rank", "four-ranks"])
def ranks(request: pytest.FixtureRequest, groups: Callable[[int], Any]) -> Any:
    """One process without a group, then four ranks."""
    return Alone() if request.param == 1 else groups(request.param)


@pytest.fixture
def failure() -> Callable[..., BaseException]:
    """Runs what must fail; gives the error, out of torch's CheckpointException where it is in one."""
    from torch.distributed.checkpoint.api import CheckpointException

    from support.ranks import RankFailed

    def run(function: Callable[..., Any], *args: Any, rank: int = 0, **kwargs: Any) -> BaseException:
        try:
            function(*args, **kwargs)
        except RankFailed as error:
            raised = error.error
        except BaseException as error:
            raised = error
        else:
            pytest.fail(f"{function.__name__} raised nothing")
        if isinstance(raised, CheckpointException):
            assert rank in raised.failures, f"failed on ranks {list(raised.failures)}, not on {rank}: {raised}"
            return raised.failures[rank][0]
        return raised

    return run


@pytest.fixture
def fresh_plan_cache() -> Iterator[None]:
    """torch keeps cached plans on the planner's class: start and leave with none."""
    _clear_plan_cache()
    yield
    _clear_plan_cache()


def _clear_plan_cache() -> None:
    from torch.distributed.checkpoint.planner import SavePlanner

    for name in vars(SavePlanner):
        if name.startswith("_cached") and isinstance(getattr(SavePlanner, name), dict):
            getattr(SavePlanner, name).clear()
