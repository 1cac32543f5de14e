"""Random sequences of saves that race, overwrite, break off or die: after each step, loads give what a model says.

``S3DCP_SEQUENCES=5000 make test-python PYTEST="-k model"`` tries more. A failure tells its steps, and the
``S3DCP_SEED`` with which, and ``S3DCP_SEQUENCES=1``, it comes first.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException

from s3dcp import ConfigError, Conflict, HexPrefixStrategy, NotFound, S3StorageWriter
from s3dcp._compat import HAS_RANK_INDEXES
from support import chance, steps
from support.model import Model, Planned
from support.states import assert_same
from support.store import REGION, Store

STEPS = 10
EPOCHS = (1, 2)
FOLDERS = ("", *(f"epoch_{epoch}/" for epoch in EPOCHS))
RANKS = 2


class Stop(Exception):
    """Breaks a save off."""


class AtItem(DefaultSavePlanner):
    """Calls `action` when the item of this number is written."""

    def __init__(self, item: int, action: Callable[[], None]) -> None:
        super().__init__()
        self.items_left = item
        self.action = action

    def resolve_data(self, write_item: Any) -> Any:
        if self.items_left == 0:
            self.action()
        self.items_left -= 1
        return super().resolve_data(write_item)


class Sequence:
    """Steps at one path, each checked against the model."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.path = f"sequence {seed}"
        self.uri = f"s3://{store.bucket}/{self.path}"
        # Ranks that commit an index of their own; None: all ranks commit one.
        self.kinds = self.random.choices([[None], [0, 1], [None, None, 0, 1]], [6, 1, 2])[0]
        if not HAS_RANK_INDEXES:
            self.kinds = [None]
        self.model = Model()
        self.trace: list[str] = []
        self.running: list[tuple[Planned, steps.Save]] = []
        self.dead: list[tuple[Planned, steps.Save]] = []
        self.loading: list[tuple[int, steps.Load]] = []

    def run(self) -> None:
        """Some steps."""
        steps = {
            self.save: 4,
            self.begin: 6,
            self.go_on: 10,
            self.die: 2,
            self.write_though_dead: 2,
            self.break_off: 2,
            self.begin_load: 2,
            self.end_load: 2,
            self.lose_an_index: 1,
        }
        for _ in range(STEPS):
            step = self.random.choices(list(steps), list(steps.values()))[0]
            step()
            self.check()

    def check(self) -> None:
        """Everything is as the model says: what loads, and which shard files are there."""
        for folder in FOLDERS:
            ranks = RANKS if any(name.startswith(f"{folder}__") for name in self.model.indexes) else 1
            for rank in range(ranks):
                self.check_load(folder, rank)
        there, known = self.shards(), self.known()
        assert there == known, f"left: {sorted(there - known)}, gone: {sorted(known - there)}"

    def check_load(self, folder: str, rank: int) -> None:
        number = self.model.at(folder, rank)
        want = {} if number is None else self.model.saves[number].state
        load = steps.Load(f"{self.uri}/{folder}", want, rank)
        if number is None:
            with pytest.raises((NotFound, ConfigError), match=r"no checkpoint at|by fewer ranks"):
                load.plan()
        else:
            load.plan()
            assert_same(load.read(), want, f"{folder or 'the path'}, rank {rank}")

    # -- saves

    def draw(self, what: str, *, alone: bool = False) -> tuple[Planned, dict[str, Any]]:
        """A new save of any kind, for the model and as arguments of a writer; `alone`: of rank 0 only."""
        save = Planned(
            number=len(self.model.saves) + 1,
            epoch=self.random.choice([None, *EPOCHS]),
            rank=self.random.choice([rank for rank in self.kinds if not (alone and rank)]),
            ranks=1 if alone else self.random.randint(1, 3),
            overwrite=self.random.random() < 0.9,
        )
        self.trace.append(f"{what} {save}")
        arguments: dict[str, Any] = {
            "prefix_strategy": HexPrefixStrategy(epoch_num=save.epoch),
            "overwrite": save.overwrite,
            "conditional_commit": self.random.choice(["warn", "require", "off"]),
            "thread_count": self.random.randint(1, 2),
        }
        return save, arguments

    def begin(self) -> None:
        """Plan a save; the rest is up to `go_on`."""
        save, arguments = self.draw("plan")
        refused = self.model.plan(save)
        hand = steps.Save(self.uri, save.parts, use_collectives=save.rank is None, rank=save.rank or 0, **arguments)
        self.expect(refused, hand.plan)
        if refused is None:
            self.running.append((save, hand))

    def go_on(self) -> None:
        """One of the saves under way writes some ranks' files, and perhaps commits."""
        if not self.running:
            return
        save, hand = self.random.choice(self.running)
        for _ in range(self.random.randint(1, 3)):
            if hand.is_written:
                self.trace.append(f"commit {save.number}")
                self.running.remove((save, hand))
                self.expect(self.model.commit(save), hand.commit)
                return
            self.trace.append(f"write {save.number}")
            self.model.write(save.number, hand.write())

    def die(self) -> None:
        """A save ends where it is."""
        if self.running:
            self.dead.append(self.running.pop(self.random.randrange(len(self.running))))
            self.trace.append(f"{self.dead[-1][0].number} dies")

    def write_though_dead(self) -> None:
        """An upload of a dead save still arrives."""
        waiting = [(save, hand) for save, hand in self.dead if not hand.is_written]
        if waiting:
            save, hand = self.random.choice(waiting)
            self.trace.append(f"write {save.number}, which is dead")
            self.model.write(save.number, hand.write())

    def save(self) -> None:
        """A whole save by torch, with other steps in its middle or none."""
        steps = [self.begin, self.go_on, self.go_on, self.begin, self.go_on, self.die]
        others = steps[: self.random.choice([0, 0, 2, 4, 5, 6])]

        def in_the_middle() -> None:
            for other in others:
                other()
            self.trace.append(f"{save.number} goes on")

        save, arguments = self.draw("save", alone=True)
        refused = self.model.plan(save)
        error = self.error_of(lambda: self.save_by_torch(save, arguments, in_the_middle))
        if refused is None:
            self.model.write(save.number, self.shards() - self.known())
            refused = self.model.commit(save)
        assert type(error) is (refused or type(None)), f"save {save.number} gave {error!r}, not {refused}"

    def break_off(self) -> None:
        """A save fails at one of its items."""

        def stop() -> None:
            raise Stop

        save, arguments = self.draw("break off", alone=True)
        refused = self.model.plan(save)
        self.expect(refused or Stop, lambda: self.save_by_torch(save, arguments, stop))

    def save_by_torch(self, save: Planned, arguments: dict[str, Any], action: Callable[[], None]) -> None:
        """``dcp.save``, with `action` at one of its items."""
        planner = AtItem(self.random.randrange(3), action)
        writer = S3StorageWriter(REGION, self.uri, **arguments)
        dcp.save(save.state, storage_writer=writer, planner=planner, use_collectives=save.rank is None)

    def lose_an_index(self) -> None:
        """Somebody deletes an index."""
        if self.model.indexes:
            name = self.random.choice(sorted(self.model.indexes))
            self.trace.append(f"delete {name}")
            del self.model.indexes[name]
            self.store.client.delete_object(Bucket=self.store.bucket, Key=f"{self.path}/{name}")

    # -- loads that take their time

    def begin_load(self) -> None:
        """Read an index; the shard files come later."""
        folder, rank = self.random.choice(FOLDERS), self.random.randrange(RANKS)
        number = self.model.at(folder, rank)
        if number is not None:
            self.trace.append(f"begin to load {number}")
            load = steps.Load(f"{self.uri}/{folder}", self.model.saves[number].state, rank)
            load.plan()
            self.loading.append((number, load))

    def end_load(self) -> None:
        """Read the shard files: they are still those of the index, or the load says that they were replaced."""
        if not self.loading:
            return
        number, load = self.loading.pop(self.random.randrange(len(self.loading)))
        self.trace.append(f"go on to load {number}")
        if number in self.model.files:
            assert_same(load.read(), self.model.saves[number].state, f"save {number}")
        else:
            self.expect(Conflict, load.read)

    # -- helpers

    def shards(self) -> set[str]:
        """Names of the shard files at the path."""
        keys = self.store.all_keys(f"{self.path}/")
        return {key.removeprefix(f"{self.path}/") for key in keys if key.endswith(".distcp")}

    def known(self) -> set[str]:
        """Those that the model knows of."""
        return {name for names in self.model.files.values() for name in names}

    def expect(self, kind: type[Exception] | None, function: Callable[[], object]) -> None:
        """The function raises this, or nothing for None."""
        error = self.error_of(function)
        assert type(error) is (kind or type(None)), f"{error!r}, not {kind}"

    @staticmethod
    def error_of(function: Callable[[], object]) -> BaseException | None:
        """What the function raises, out of torch's exception where it is in one."""
        try:
            function()
        except CheckpointException as error:
            return error.failures[0][0]
        except Exception as error:
            return error
        return None


def test_after_any_sequence_of_saves_every_load_gives_what_the_model_says(store: Store) -> None:
    first = chance.new_seed()
    for seed in range(first, first + chance.how_many("SEQUENCES", 150)):
        sequence = Sequence(store, seed)
        try:
            sequence.run()
        except BaseException as error:
            steps = "\n".join(sequence.trace)
            raise AssertionError(f"S3DCP_SEED={seed} S3DCP_SEQUENCES=1: {error}, after\n{steps}") from error
