"""The mappings of a large index: nobody can tell them from dicts, and what was not asked for is not unpickled."""

from __future__ import annotations

import collections
import copy
import dataclasses
import io
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from s3dcp import _native
from s3dcp._load import index as index_module
from s3dcp._load.entries import ONE_OF, Entries, expect
from s3dcp._load.index import read_index
from s3dcp.planner import FastLoadPlanner
from support import jobs
from support.store import Store
from test_index import assert_same, random_metadata, written

MAPPINGS = ("state_dict_metadata", "storage_data", "planner_data")


@pytest.fixture(autouse=True)
def every_index_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "LARGE_INDEX_BYTES", 0)


def read(body: bytes) -> Metadata:
    return read_index(_native.StoredIndex(body), "here", frozenset())


def without_checksums(metadata: Metadata) -> Metadata:
    """As others write them: an index of theirs has no trailer to vouch for it."""
    for info in metadata.storage_data.values():
        info.__dict__.pop("crc32", None)
    return metadata


def bodies(metadata: Metadata) -> list[bytes]:
    """The index of `metadata` as we write it, and as Python's picklers do."""
    plain = without_checksums(copy.deepcopy(metadata))
    return [written(metadata), *(pickle.dumps(plain, protocol) for protocol in (2, 3, 4, 5))]


@pytest.mark.parametrize("seed", range(8))
def test_each_entry_is_what_unpickling_the_index_makes_of_it(seed: int) -> None:
    generator = random.Random(seed)
    for body in bodies(random_metadata(generator, 10 * 4 ** (seed % 4))):
        expected = pickle.loads(body)
        found = read(body)
        for name in MAPPINGS:
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert type(ours) is Entries
            keys = list(theirs)
            generator.shuffle(keys)
            for key in keys[:40]:
                assert ours[key] == theirs[key]
                assert ours[key] is ours.get(key)
                assert key in ours
                assert getattr(ours[key], "__dict__", None) == getattr(theirs[key], "__dict__", None)
            assert len(ours) == len(theirs)
        assert_same(found, expected)


def test_what_is_not_there_is_missing_before_and_after_all_was_made() -> None:
    entries = read(written(random_metadata(random.Random(1), 300))).storage_data
    index = next(iter(pickle.loads(written(random_metadata(random.Random(1), 300))).storage_data))
    absent = [
        *(MetadataIndex("nowhere"), MetadataIndex(index.fqn, torch.Size([7] * 9)), MetadataIndex(index.fqn + "x")),
        *(None, 3, "layer", ("a", 1), index.fqn),
    ]
    for key in [*absent, *absent]:
        with pytest.raises(KeyError) as failure:
            entries[key]
        assert failure.value.args == (key,)
        assert key not in entries
        assert entries.get(key) is None
        assert entries.get(key, 5) == 5
    with pytest.raises(TypeError, match="unhashable"):
        entries[[]]


def test_a_key_is_found_by_what_it_equals() -> None:
    metadata = random_metadata(random.Random(2), 300)
    expected = next(iter(metadata.storage_data))

    class Name(str):
        pass

    for key in (
        MetadataIndex(expected.fqn, tuple(expected.offset or ()) if expected.offset is not None else None, 99),
        MetadataIndex(Name(expected.fqn), expected.offset),
    ):
        entries = read(written(metadata)).storage_data
        assert entries[key] == metadata.storage_data[expected]
    name = next(iter(metadata.state_dict_metadata))
    assert read(written(metadata)).state_dict_metadata[Name(name)] == metadata.state_dict_metadata[name]


def updated(entries: dict[Any, Any]) -> dict[Any, Any]:
    entries.update({"new": 1}, newer=2)
    return entries


def deleted(entries: dict[Any, Any]) -> dict[Any, Any]:
    del entries[list(entries)[3]]
    return entries


def replaced(entries: dict[Any, Any]) -> dict[Any, Any]:
    entries[list(entries)[5]] = "other"
    entries["new"] = "new"
    return entries


def or_updated(entries: dict[Any, Any]) -> dict[Any, Any]:
    entries |= {"new": 1}
    return entries


def cleared(entries: dict[Any, Any]) -> dict[Any, Any]:
    entries.clear()
    return entries


WAYS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "dict": dict,
    "stars": lambda entries: {**entries},
    "list": list,
    "reversed": lambda entries: list(reversed(entries)),
    "keys": lambda entries: list(entries.keys()),
    "set of keys": lambda entries: set(entries.keys()) | {1},
    "values": lambda entries: list(entries.values()),
    "items": lambda entries: list(entries.items()),
    "len": len,
    "bool": bool,
    "str": str,
    "equal": lambda entries: (entries == dict(entries), entries == {}, entries != {}, dict(entries) == entries),
    "in": lambda entries: (list(dict(entries))[7] in entries, "nowhere" in entries),
    "copy": lambda entries: entries.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda entries: pickle.loads(pickle.dumps(entries)),
    "python's pickle": lambda entries: pickle.loads(pickle._dumps(entries)),  # type: ignore[attr-defined]
    "update": updated,
    "update another": lambda entries: updated(dict.fromkeys([1])) | entries,
    "plain.update": lambda entries: (lambda plain: plain.update(entries) or plain)({}),
    "or": lambda entries: entries | {"new": 1},
    "or from the right": lambda entries: {"new": 1} | entries,
    "or in place": or_updated,
    "delete": deleted,
    "assign": replaced,
    "clear": cleared,
    "setdefault": lambda entries: (entries.setdefault("new", 1), entries),
    "pop": lambda entries: (entries.pop(list(entries)[2]), entries.pop("nowhere", 3), entries),
    "popitem": lambda entries: (entries.popitem(), entries),
    "ChainMap": lambda entries: dict(collections.ChainMap({"new": 1}, entries)),
    "sorted": lambda entries: sorted(map(str, entries)),
    "instance": lambda entries: isinstance(entries, dict),
    "match": lambda entries: _matched(entries),
}


def _matched(entries: dict[Any, Any]) -> Any:
    match entries:
        case {**everything}:
            return everything


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_nobody_can_tell(way: str, asked_before: bool) -> None:
    body = written(random_metadata(random.Random(3), 60))
    for name in MAPPINGS:
        entries, plain = getattr(read(body), name), getattr(pickle.loads(body), name)
        if asked_before:
            for key in list(plain)[20:23]:
                assert key in entries
        expected, found = WAYS[way](plain), WAYS[way](entries)
        assert found == expected
        assert expected == found
        if isinstance(expected, dict):
            assert list(found) == list(expected)
            assert list(found.items()) == list(expected.items())
            assert len(found) == len(expected)


def test_an_entry_stays_the_object_that_it_was_and_so_does_a_change_to_it() -> None:
    metadata = read(written(random_metadata(random.Random(4), 200)))
    keys = list(pickle.loads(written(random_metadata(random.Random(4), 200))).storage_data)
    info = metadata.storage_data[keys[50]]
    info.relative_path = "elsewhere"
    assert metadata.storage_data[keys[50]] is info
    assert list(metadata.storage_data) == keys
    assert metadata.storage_data[keys[50]] is info
    assert [found for found in metadata.storage_data.values() if found.relative_path == "elsewhere"] == [info]


def test_pickles_and_copies_hold_plain_dicts_and_nothing_of_ours() -> None:
    body = written(random_metadata(random.Random(5), 100))
    for made in (
        *(pickle.loads(pickle.dumps(read(body), protocol)) for protocol in range(2, 6)),
        copy.deepcopy(read(body)),
    ):
        assert_same(made, pickle.loads(body))
        assert [type(getattr(made, name)) for name in MAPPINGS] == [dict, dict, dict]
    assert b"s3dcp._load" not in pickle.dumps(read(body))
    # and an index that somebody pickles anew is one that we read
    assert_same(read(pickle.dumps(without_checksums(read(body)))), without_checksums(pickle.loads(body)))
    replaced = dataclasses.replace(read(body), planner_data=None)
    assert replaced.planner_data is None
    assert replaced.storage_data == pickle.loads(body).storage_data


def test_what_is_written_of_it_is_the_same_index() -> None:
    body = written(random_metadata(random.Random(6), 100))
    assert_same(pickle.loads(written(read(body))), pickle.loads(body))


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each pickle that is unpickled."""
    lengths: list[int] = []
    load = index_module.Unpickling.load

    def counted(self: Any, body: bytes, persistent: Any = None) -> Any:
        lengths.append(len(body))
        return load(self, body, persistent)

    monkeypatch.setattr(index_module.Unpickling, "load", counted)
    return lengths


def test_what_was_not_asked_for_is_not_unpickled(unpickled: list[int]) -> None:
    body = written(random_metadata(random.Random(7), 3000))
    plain = pickle.loads(body)
    metadata = read(body)
    assert sum(unpickled) < 2000
    for key in list(plain.storage_data)[1000:1010]:
        assert metadata.storage_data[key] == plain.storage_data[key]
    assert "nowhere" not in metadata.state_dict_metadata
    assert len(metadata.storage_data) == len(plain.storage_data)
    assert sum(unpickled) < 40_000 < len(body) // 10
    # whoever asks for many gets all
    for key in plain.storage_data:
        assert key in metadata.storage_data
    assert sum(unpickled) < 1.5 * len(body)


def test_tensors_that_are_stored_as_one_item_each_are_made_with_their_items(unpickled: list[int]) -> None:
    size = torch.Size([7])
    chunk = ChunkStorageMetadata(torch.Size([0]), size)
    names = [f"layer.{number}" for number in range(400)]
    plain = Metadata(
        {name: TensorStorageMetadata(TensorProperties(dtype=torch.float32), size, [chunk]) for name in names},
        storage_data={MetadataIndex(name, chunk.offsets): _StorageInfo("__0_0.distcp", 0, 9) for name in names},
    )
    for body in bodies(plain):
        metadata = read(body)
        del unpickled[:]
        asked = metadata.state_dict_metadata["layer.5"]
        expect(metadata.storage_data, len(names) // ONE_OF)
        assert sum(unpickled) < len(body) // 4
        del unpickled[:]
        expect(metadata.storage_data, len(names) // ONE_OF + 1)
        expect(metadata.state_dict_metadata, len(names))
        assert len(unpickled) == 1
        assert metadata.state_dict_metadata["layer.5"] is asked
        expect(plain.storage_data, 5)  # a dict
        assert metadata == pickle.loads(body)
        assert len(unpickled) == 1


def test_a_load_that_wants_all_unpickles_all_at_once(store: Store, unpickled: list[int]) -> None:
    state = {f"layer.{number}": torch.full((3,), float(number)) for number in range(300)}
    jobs.save(state, store.uri)
    loaded = {name: torch.zeros(3) for name in state}
    jobs.load(loaded, store.uri, planner=FastLoadPlanner())
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert len(unpickled) <= 3


def test_values_that_the_index_refers_to_from_outside_of_its_mappings() -> None:
    metadata = random_metadata(random.Random(10), 40)
    inner = ("inner", (1, 2))
    outer = ("outer", inner, [inner])
    metadata.planner_data["outer"] = outer
    metadata.storage_meta.after = [inner, inner[1], outer, inner, "last", outer[2], ("last",)]  # type: ignore[union-attr]
    for body in bodies(metadata):
        assert_same(read(body), pickle.loads(body))


def test_threads_that_ask_for_one_entry_get_one_object() -> None:
    body = written(random_metadata(random.Random(8), 400))
    keys = list(pickle.loads(body).storage_data)
    for _ in range(20):
        entries = read(body).storage_data
        found: list[list[Any]] = []
        together = threading.Barrier(4)

        def ask(entries: Any = entries, together: threading.Barrier = together, found: list[list[Any]] = found) -> None:
            together.wait()
            found.append([entries[key] for key in keys])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for infos in zip(*found, strict=True):
            assert len({id(info) for info in infos}) == 1


def unusual() -> dict[str, bytes]:
    """Indexes whose entries cannot be told apart one by one, or mean more than they say."""
    index = MetadataIndex("w")
    info = _StorageInfo("__0_0.distcp", 0, 1)
    cycle: dict[str, Any] = {"a": 1}
    cycle["self"] = cycle
    shared: dict[str, Any] = {"w": BytesStorageMetadata()}
    twice = io.BytesIO()
    pickler = pickle.Pickler(twice, 4)
    pickler.dump(Metadata({"w": BytesStorageMetadata()}, planner_data={"k": 1}, storage_data={index: info}))
    # the second of two equal keys wins, where a dict is made of them
    doubled = twice.getvalue().replace(b"}\x94\x8c\x01k\x94K\x01s", b"}\x94(\x8c\x01k\x94K\x01\x8c\x01k\x94K\x02u")
    assert doubled != twice.getvalue()

    class Called(MetadataIndex):
        def __reduce__(self) -> Any:
            return MetadataIndex, ("w", None, None)

    entry = {"w": BytesStorageMetadata()}
    return {
        "cycle": pickle.dumps(Metadata(entry, planner_data=cycle, storage_data={index: info})),
        "one dict twice": pickle.dumps(Metadata(shared, planner_data=shared, storage_data={index: info})),
        "keys made by a call": pickle.dumps(Metadata(entry, planner_data=None, storage_data={Called("w"): info})),
        "empty": pickle.dumps(Metadata({}, planner_data=None, storage_data={})),
        "equal keys": _without_frames(doubled),
    }


def _without_frames(body: bytes) -> bytes:
    """A pickle of protocol 4 whose one frame's length does not matter."""
    assert body[2:3] == b"\x95"
    return body[:2] + body[11:]


@pytest.mark.parametrize("case", unusual())
def test_an_unusual_index_is_read_as_by_pickle(case: str) -> None:
    body = unusual()[case]
    found, expected = read(body), pickle.loads(body)
    index = MetadataIndex("w")
    for name, key in (("state_dict_metadata", "w"), ("storage_data", index), ("planner_data", "k")):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if case != "cycle" and theirs is not None:
            assert ours.get(key) == theirs.get(key)
            assert len(ours) == len(theirs)
            assert ours == theirs
    if case == "cycle":
        assert found.planner_data["self"] is found.planner_data
    if case == "one dict twice":
        assert found.planner_data is found.state_dict_metadata


def test_numbers_that_are_none_are_refused() -> None:
    index = _native.StoredIndex(written(random_metadata(random.Random(9), 10)))
    with pytest.raises(RuntimeError, match="no outline"):
        index.count(0)
    assert index.check_and_outline("here")
    with pytest.raises(ValueError, match="mapping must be below 3, not 3"):
        index.count(3)
    with pytest.raises(ValueError, match="number=10"):
        index.entry(0, 10)
    with pytest.raises(ValueError, match="number=4000000000"):
        index.value(4_000_000_000)
