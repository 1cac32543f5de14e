"""Whatever fails while ranks share a load: no hang, no wrong value, and all ranks say on which rank it was.

``S3DCP_KILLS=1000 make test-python PYTEST="-k share_failures -rP --show-capture=stdout"`` kills more
often, and has as many corrupt slices and storms of SlowDowns.
"""

from __future__ import annotations

import os
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from s3dcp import testing
from support import chance, share_jobs
from support.store import Store
from support.zygote import Kill, Zygote

pytestmark = pytest.mark.distributed

RANKS = 4
BUCKET = "checkpoints"
URI = f"s3://{BUCKET}/run"
USUAL_KILLS = 4
USUAL_FAULTS = 1
# How long an exchange waits for a rank in these tests, in seconds.
DEADLINE = 3.0


@pytest.fixture
def four(groups: Callable[[int], Any]) -> Any:
    return groups(RANKS)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    if not os.path.exists("/proc/self/task"):
        pytest.skip("counts threads in /proc")
    warm = Zygote()
    yield warm
    warm.stop()


def test_of_a_corrupt_slice_all_ranks_know_the_owner(store: Store, four: Any) -> None:
    generator = random.Random(chance.new_seed())
    state = share_jobs.replicated()
    share_jobs.save(store.uri)
    (name,) = store.shards()
    whole = store.read(name)
    stored = {index.fqn: info for index, info in pickle.loads(store.read(".metadata")).storage_data.items()}
    for _ in range(chance.how_many("KILLS", USUAL_FAULTS)):
        item = generator.choice(["large", "second", "flags"])
        place = stored[item].offset + stored[item].data_offset + generator.randrange(share_jobs.nbytes(state[item]))
        body = bytearray(whole)
        body[place] ^= 1 << generator.randrange(8)
        store.write(name, bytes(body))
        for failures in four.run(share_jobs.how_it_failed, store.uri):
            assert set(failures) == set(range(RANKS))
            assert {kind for kind, _ in failures.values()} == {"Corrupt"}
            owners = {
                found[1] for _, text in failures.values() if (found := re.match(r"rank (\d), which fetches", text))
            }
            assert len(owners) == 1, failures
            assert "checksum" in failures[int(owners.pop())][1]
    store.write(name, whole)
    four.run(share_jobs.check, store.uri, share=True)


@pytest.mark.parametrize("hook", ["resolve_tensor", "commit_tensor", "load_bytes"])
def test_a_planner_that_fails_on_one_rank_holds_nobody_up(store: Store, four: Any, hook: str) -> None:
    share_jobs.save(store.uri)
    for failures in four.run(share_jobs.how_it_failed, store.uri, hook):
        assert failures[1] == ("RuntimeError", "a planner that fails")
        for rank in set(failures) - {1}:
            assert failures[rank][1].startswith("rank 1, which fetches for others, failed: a planner that fails")
    four.run(share_jobs.check, store.uri, share=True)


def test_a_rank_that_never_comes_is_waited_for_a_while_only(store: Store, four: Any) -> None:
    share_jobs.save(store.uri)
    for failures in four.run(share_jobs.how_it_failed, store.uri, "finish_plan"):
        assert failures == {1: ("RuntimeError", "a planner that fails")}


def test_a_shard_file_that_is_gone_is_told_of_by_every_rank(store: Store, four: Any) -> None:
    share_jobs.save(store.uri)
    store.delete(store.shards()[0])
    for failures in four.run(share_jobs.how_it_failed, store.uri):
        assert set(failures) == set(range(RANKS))
        assert all(kind == "NotFound" for kind, _ in failures.values()), failures


def test_a_storm_of_slowdowns_is_lived_through(four: Any) -> None:
    with testing.server([BUCKET], fault_seed=chance.new_seed()) as server:
        share_jobs.save(URI)
        for _ in range(chance.how_many("KILLS", USUAL_FAULTS)):
            server.inject("error:SlowDown on=GetObject key=*.distcp chance=0.5 times=40")
            four.run(share_jobs.check, URI, share=True)
            server.clear_faults()  # else what is left of it comes on top of the next


def test_one_that_does_not_end_fails_on_all_ranks(four: Any) -> None:
    with testing.server([BUCKET]) as server:
        share_jobs.save(URI)
        server.inject("error:SlowDown on=GetObject key=*.distcp")
        for failures in four.run(share_jobs.how_it_failed, URI):
            assert {kind for kind, _ in failures.values()} == {"Throttled"}
            assert set(failures) == set(range(RANKS))


def test_a_killed_rank_ends_the_load_of_the_others_within_the_deadline(zygote: Zygote) -> None:
    generator = random.Random(chance.new_seed())
    ended: Counter[str] = Counter()
    with testing.server([BUCKET]) as server:
        share_jobs.save(URI)
        server.inject("delay:100ms on=GetObject key=*.distcp")
        took = 0.0
        for each in zygote.run(RANKS, None, share_jobs.load_until_killed, URI, DEADLINE):
            assert each is not None
            assert each.result == "loaded", each
            took = max(took, each.seconds)
        for _ in range(chance.how_many("KILLS", USUAL_KILLS)):
            killed = generator.randrange(RANKS)
            kill = Kill([killed], generator.uniform(0, took), 60)
            outcome = zygote.run(RANKS, kill, share_jobs.load_until_killed, URI, DEADLINE)
            for rank, each in enumerate(outcome):
                if rank == killed and each is None:
                    continue
                assert each is not None, f"rank {rank} hangs after rank {killed} was killed at {kill.seconds:.2f} s"
                assert not each.error, each
                told = re.search(r"rank \d, which fetches for", each.result)
                assert told or each.result == "loaded", each
                ended["told" if told else "loaded"] += 1
                assert each.seconds < 4 * DEADLINE + 20, each
    print(f"kills within {took:.3f} s left {dict(ended)}")
