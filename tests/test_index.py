"""The index as it is written: what it unpickles to, for us, for torch and for plain pickle."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import pathlib
import pickle
import pickletools
import random
import weakref
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from s3dcp import _native
from s3dcp._gc import GcPause
from s3dcp._load.index import read_index
from s3dcp.errors import Corrupt


def written(metadata: Metadata, prefix: str = "") -> bytes:
    return _native.write_index(metadata, "save").seal(prefix)


def random_metadata(generator: random.Random, tensors: int) -> Metadata:
    """Metadata as planners and ranks make it: objects and strings equal to each other, but rarely the same."""
    state: dict[str, Any] = {}
    planner_data: dict[str, Any] = {}
    storage: dict[Any, Any] = {}

    def store(index: MetadataIndex) -> None:
        length = generator.choice([0, 1, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**40])
        info = _StorageInfo(f"p{generator.randrange(4)}/__{generator.randrange(3)}_0.distcp", length * 3, length)
        if generator.random() < 0.7:
            info.crc32 = generator.randbytes(generator.choice([4, 8, 300]))  # type: ignore[attr-defined]
            info.data_offset = 704  # type: ignore[attr-defined]
        if generator.random() < 0.1:
            info.transform_descriptors = ["zstd"]
        storage[index] = info

    for number in range(tensors):
        name = generator.choice(["layer", "größe", "x" * 300, "名"]) + f".{number}"
        planner_data[copy.copy(name)] = (*name.split("."), number) if number % 3 else ("state", (number, name))
        if generator.random() < 0.1:
            state[name] = BytesStorageMetadata()
            store(MetadataIndex(str(name)))
            continue
        dims = [generator.randrange(5) for _ in range(generator.randrange(6))]
        chunks = [
            ChunkStorageMetadata(torch.Size([place, *dims]), torch.Size([1, *dims]))
            for place in range(generator.randrange(1, 4))
        ]
        properties = TensorProperties(
            dtype=generator.choice([torch.bfloat16, torch.float32, torch.int8]),
            requires_grad=generator.random() < 0.5,
            memory_format=generator.choice([torch.contiguous_format, torch.channels_last]),
        )
        if "strides" in {field.name for field in dataclasses.fields(TensorProperties)} and number % 2:
            properties.strides = tuple(dims)  # type: ignore[attr-defined]
        state[name] = TensorStorageMetadata(properties, torch.Size([len(chunks), *dims]), chunks)
        for place, chunk in enumerate(chunks):
            store(MetadataIndex("".join(name), chunk.offsets, place if number % 2 else None))
    meta = StorageMeta(checkpoint_id=pathlib.PurePosixPath("/x"), save_id="save")
    meta.s3dcp = {"format": 1, "ranks": 2, "epoch": None}  # type: ignore[attr-defined]
    return Metadata(state, planner_data=planner_data, storage_data=storage, storage_meta=meta)


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal in what dataclasses compare, in order, and in the attributes they do not compare."""
    assert ours == theirs
    assert list(ours.state_dict_metadata) == list(theirs.state_dict_metadata)
    assert list(ours.planner_data) == list(theirs.planner_data)
    for (index, info), (their_index, their_info) in zip(
        ours.storage_data.items(), theirs.storage_data.items(), strict=True
    ):
        assert (index.fqn, index.offset, index.index) == (their_index.fqn, their_index.offset, their_index.index)
        assert type(index.offset) is type(their_index.offset)
        assert info.__dict__ == their_info.__dict__
    assert ours.storage_meta.__dict__ == theirs.storage_meta.__dict__


@pytest.mark.parametrize("seed", range(12))
def test_an_index_unpickles_to_what_pickle_makes_of_the_same_metadata(seed: int) -> None:
    metadata = random_metadata(random.Random(seed), 10 * 3 ** (seed % 5))
    expected = pickle.loads(pickle.dumps(metadata))
    body = written(metadata)
    assert_same(pickle.loads(body), expected)
    # without frames, through Python's own unpickler, and by our reader
    assert_same(pickle._loads(body), expected)  # type: ignore[attr-defined]
    assert_same(read_index(_native.StoredIndex(body), "here", frozenset()), expected)
    assert len(body) < len(pickle.dumps(metadata))


@pytest.mark.parametrize("seed", range(4))
def test_seen_from_an_epoch_only_the_names_of_shard_files_differ(seed: int) -> None:
    metadata = random_metadata(random.Random(seed), 200)
    # at the limit between the opcodes for short and long text
    for info, length in zip(metadata.storage_data.values(), (250, 252, 253, 255, 256), strict=False):
        info.relative_path = "n" * length
    below = copy.deepcopy(metadata)
    for info in below.storage_data.values():
        info.relative_path = f"../{info.relative_path}"
    expected = pickle.loads(pickle.dumps(below))
    index = _native.write_index(metadata, "save")
    assert_same(pickle.loads(index.seal("../")), expected)
    assert_same(read_index(_native.StoredIndex(index.seal("../")), "here", frozenset()), expected)
    assert_same(pickle.loads(index.seal("")), pickle.loads(pickle.dumps(metadata)))


def test_the_opcodes_are_those_of_pythons_pickler() -> None:
    body = written(random_metadata(random.Random(0), 5000))
    names = [(opcode.name, argument, position) for opcode, argument, position in pickletools.genops(body)]
    assert names[0][:2] == ("PROTO", 4)
    frames = [argument for name, argument, _ in names if name == "FRAME"]
    assert len(frames) > 3
    assert all(0 < length < 2 * 65_536 for length in frames)  # type: ignore[operator]


class Opaque:
    """A class that only Python's pickler knows."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return (Opaque, (self.value,))


def test_planner_data_of_any_kind_is_kept() -> None:
    shared: list[Any] = [1, 2.5, math.inf, -1, 2**31, -(2**31) - 1, 2**63, -(2**63), 2**64, -(2**64), 2**5000]
    cycle: dict[Any, Any] = {"shared": shared, "again": shared, b"bytes": b"x" * 70_000, "flags": (True, False, None)}
    cycle["self"] = cycle
    opaque = Opaque({"names": ["a", "b", "a"], "deep": ({1, 2}, frozenset("ab"), bytearray(b"q"))})
    doubled: Any = (1,)
    for _ in range(60):
        doubled = (doubled, doubled)
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    planner_data = {"cycle": cycle, "one": opaque, "two": [opaque, "a"], "deep": deep, "empty": ((), [], {}, "")}
    planner_data.update({f"k{number}": number for number in range(3000)}, many=list(range(2500)))
    metadata = Metadata({}, planner_data={**planner_data, "doubled": doubled}, storage_data={})
    body = written(metadata)
    assert len(body) < 200_000
    back = pickle.loads(body).planner_data
    assert back["cycle"]["self"] is back["cycle"]
    assert back["cycle"]["shared"] is back["cycle"]["again"]
    assert back["cycle"]["shared"] == shared
    assert back["cycle"]["flags"] == (True, False, None)
    assert back["cycle"][b"bytes"] == b"x" * 70_000
    assert back["one"] is back["two"][0]
    assert back["one"].value == opaque.value
    assert back["deep"] == deep
    assert back["empty"] == planner_data["empty"]
    assert [back[f"k{number}"] for number in range(3000)] == list(range(3000))
    assert back["many"] == planner_data["many"]
    while len(doubled) == 2:
        doubled, back["doubled"] = doubled[0], back["doubled"][0]
    assert back["doubled"] == (1,)


def test_a_class_the_reader_was_not_told_of_is_refused_there() -> None:
    body = written(Metadata({}, planner_data=Opaque(1), storage_data={}))
    with pytest.raises(Corrupt, match="Opaque"):
        read_index(_native.StoredIndex(body), "here", frozenset())
    assert read_index(_native.StoredIndex(body), "here", frozenset({(__name__, "Opaque")})).planner_data.value == 1


def test_storage_data_that_names_no_shard_file_is_refused() -> None:
    index = MetadataIndex("weights")
    for info, error in (
        (object(), TypeError),
        ({"relative_path": "x"}, TypeError),
        (_StorageInfo(None, 0, 1), ValueError),  # type: ignore[arg-type]
        (_StorageInfo("lone \ud800", 0, 1), ValueError),
    ):
        with pytest.raises(error, match=r"weights|surrogates"):
            _native.write_index(Metadata({}, storage_data={index: info}), "save")


class Extended(_StorageInfo):
    """A storage information with more to say."""


def test_a_subclass_of_storage_info_keeps_its_class() -> None:
    info = Extended("x/__0_0.distcp", 0, 1)
    info.more = [1]  # type: ignore[attr-defined]
    body = written(Metadata({}, storage_data={MetadataIndex("a"): info}), "../")
    (back,) = pickle.loads(body).storage_data.values()
    assert type(back) is Extended
    assert (back.relative_path, back.more) == ("../x/__0_0.distcp", [1])


def test_what_is_made_without_gc_is_not_looked_through_by_the_next_collections() -> None:
    assert gc.isenabled()
    with GcPause(old_at_once=True):
        assert not gc.isenabled()
        made = [[number] for number in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    young = {id(one) for generation in (0, 1) for one in gc.get_objects(generation)}
    assert not any(id(one) in young for one in made)


def test_garbage_is_not_made_old_with_a_few_new_objects() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    gone = weakref.ref(Cycle())
    with GcPause(old_at_once=True):
        made = [[number] for number in range(1000)]
    gc.collect(1)
    assert gone() is None
    assert len(made) == 1000


def test_what_others_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with GcPause(old_at_once=True):
            pass
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()
