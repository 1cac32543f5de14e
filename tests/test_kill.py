"""Ranks killed by SIGKILL at a random instant of a save: the path has the old checkpoint or the new one, whole.

``S3DCP_KILLS=1000 make test-python PYTEST="-k kill -rP --show-capture=stdout"`` kills more often and counts.
"""

from __future__ import annotations

import os
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import chance, kill_jobs
from support.store import Store
from support.torch_versions import needs_rank_indexes
from support.zygote import Kill, Zygote

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts threads in /proc"),
]

RANKS = 4
USUAL_KILLS = 50
# How many of a hundred kills go to each kind of save.
SHARES = {
    "overwriting": 26,
    "in parts": 10,
    "epochs": 16,
    "first": 10,
    "async": 10,
    "without collectives": 10,
    "incremental": 18,
}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    warm = Zygote()
    yield warm
    warm.stop()


class Killer:
    """Kills saves of one kind."""

    def __init__(self, zygote: Zygote, kind: str, save: Callable[..., Any]) -> None:
        self.zygote = zygote
        self.kind = kind
        self.save = save
        self.random = random.Random(f"{chance.new_seed()} {kind}")
        self.seconds = 0.0
        self.left: Counter[str] = Counter()

    def saves(self) -> Iterator[int]:
        """Numbers of the saves to kill; prints in the end what they left."""
        yield from range(1, 1 + -(-chance.how_many("KILLS", USUAL_KILLS) * SHARES[self.kind] // 100))
        print(f"{self.kind}: {sum(self.left.values())} kills within {1.5 * self.seconds:.3f} s left {dict(self.left)}")

    def time(self, *args: Any) -> None:
        """Save three times without a kill; what that takes is what kills are spread over."""
        took = []
        for _ in range(3):
            ended = self.zygote.run(RANKS, None, self.save, *args)
            assert all(each is not None and not each.error for each in ended), ended
            took.append(max(each.seconds for each in ended if each is not None))
        self.seconds = statistics.median(took)

    def kill(self, *args: Any) -> list[bool]:
        """Save, and kill one rank, the coordinator or all; which ranks could still report success."""
        ranks = self.random.choice([[self.random.randrange(RANKS)], [0], list(range(RANKS))])
        kill = Kill(ranks, self.random.uniform(0, 1.5 * self.seconds), 0.1 + self.seconds)
        ended = self.zygote.run(RANKS, kill, self.save, *args)
        return [each is not None and not each.error for each in ended]

    def count(self, found: int | None, new: int) -> None:
        """Note which checkpoint a kill left."""
        self.left["new" if found == new else "none" if found is None else "old"] += 1


def kill_overwrites(killer: Killer, uri: str, find: Callable[[str], int | None]) -> None:
    """Overwrite one path again and again; after each kill it has the old checkpoint or the new one."""
    killer.time(uri, 0)
    possible: set[int | None] = {0}
    for new in killer.saves():
        old = find(uri)  # a request of a killed rank may have been carried out since
        assert old in possible
        saved = any(killer.kill(uri, new))
        found = find(uri)
        possible = {new} if saved else {old, new}
        assert found in possible, f"save {new} over {old}, reported: {saved}"
        killer.count(found, new)


def test_a_killed_save_leaves_the_old_checkpoint_or_the_new_one(store: Store, zygote: Zygote) -> None:
    kill_overwrites(Killer(zygote, "overwriting", kill_jobs.save), store.uri, kill_jobs.find)


def test_a_killed_async_save_leaves_the_old_checkpoint_or_the_new_one(store: Store, zygote: Zygote) -> None:
    kill_overwrites(Killer(zygote, "async", kill_jobs.save_async), store.uri, kill_jobs.find)


def test_a_save_killed_between_parts_leaves_the_old_checkpoint_or_the_new_one(store: Store, zygote: Zygote) -> None:
    def find(uri: str) -> int | None:
        store.sweep()
        return kill_jobs.find(uri, kill_jobs.large_state)

    kill_overwrites(Killer(zygote, "in parts", kill_jobs.save_in_parts), store.uri, find)


def test_a_killed_first_save_leaves_nothing_to_load_or_all_of_it(store: Store, zygote: Zygote) -> None:
    killer = Killer(zygote, "first", kill_jobs.save)
    killer.time(f"{store.uri}/timed", 0)
    for new in killer.saves():
        uri = f"{store.uri}/{new}"
        saved = any(killer.kill(uri, new))
        found = kill_jobs.find(uri)
        assert found == new if saved else found in (None, new)
        killer.count(found, new)


def test_a_killed_save_of_an_epoch_leaves_every_epoch_and_the_path_whole(store: Store, zygote: Zygote) -> None:
    killer = Killer(zygote, "epochs", kill_jobs.save)
    killer.time(store.uri, 0, ("Hex", {"epoch_num": 1}))
    places = [store.uri, *(f"{store.uri}/epoch_{epoch}" for epoch in (1, 2, 3))]
    possible: dict[str, set[int | None]] = {place: {0} if place in places[:2] else {None} for place in places}
    for new in killer.saves():
        old = {place: kill_jobs.find(place) for place in places}
        assert all(old[place] in possible[place] for place in places)
        epoch = killer.random.randint(1, 3)
        saved = any(killer.kill(store.uri, new, ("Hex", {"epoch_num": epoch})))
        found = {place: kill_jobs.find(place) for place in places}
        for place in places:
            touched = place in (store.uri, f"{store.uri}/epoch_{epoch}")
            possible[place] = {old[place]} if not touched else {new} if saved else {old[place], new}
            assert found[place] in possible[place], f"save {new} of epoch {epoch} over {old}, reported: {saved}"
        assert found[store.uri] != new or found[f"{store.uri}/epoch_{epoch}"] == new
        killer.count(found[store.uri], new)


@needs_rank_indexes
def test_without_collectives_a_killed_save_leaves_each_rank_its_old_part_or_its_new_one(
    store: Store, zygote: Zygote
) -> None:
    killer = Killer(zygote, "without collectives", kill_jobs.save_own)
    killer.time(store.uri, 0)
    old = [0] * RANKS
    for new in killer.saves():
        reported = killer.kill(store.uri, new)
        found = zygote.results(RANKS, kill_jobs.find_own, store.uri)
        for rank in range(RANKS):
            possible = (new,) if reported[rank] else (old[rank], new)
            assert found[rank] in possible, f"save {new} over {old}, reported: {reported}, found: {found}"
            killer.count(found[rank], new)
        old = found


def test_killed_incremental_saves_overwrites_keeps_and_prunes_leave_every_index_whole(
    store: Store, zygote: Zygote
) -> None:
    killer = Killer(zygote, "incremental", kill_jobs.change)
    killer.time(store.uri, 0, 0, "save", None)
    found = {0: 0}
    for new in killer.saves():
        how = killer.random.choice(["save", "save", "save all", "nothing"])
        beside = killer.random.choice([None, "keep", "keep", "prune" if how == "nothing" else None])
        epoch = killer.random.randint(0, 4)
        reported = killer.kill(store.uri, new, epoch, how, beside)
        left = kill_jobs.seeds(store.uri, killer.seconds)
        for number, seed in left.items():
            possible = {found.get(number), new} if number == epoch and how != "nothing" else {found.get(number)}
            assert seed in possible, f"{how} {new} of epoch {epoch} beside {beside} over {found}, {reported}: {left}"
        killer.count(left.get(epoch), new)
        found = left
    kill_jobs.seeds(store.uri, 0)
    kill_jobs.prune_all(store.uri)
    unnamed, intents = kill_jobs.leftovers(store)
    assert not unnamed - intents
    for key in store.all_keys():
        if ".s3dcp-intent-" in key:  # as after a day
            store.client.delete_object(Bucket=store.bucket, Key=key)
    kill_jobs.prune_all(store.uri)
    assert kill_jobs.leftovers(store) == (set(), set())
    assert kill_jobs.seeds(store.uri, 0) == found
