"""What an index says of tensors against what is stored: the right values come, or an error that names the tensor.

Nothing is written anywhere before that is known.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from s3dcp import Corrupt, FastLoadPlanner, S3StorageReader
from s3dcp._compat import SerializationFormat
from support import jobs
from support.indexes import sealed
from support.states import assert_same, values
from support.store import REGION, Store
from support.torch_versions import needs_rank_indexes

Change = Callable[[Any], object]


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


class InChunks(DefaultSavePlanner):
    """Saves every tensor of two dimensions in the chunks that `cut` makes of its shape."""

    def __init__(self, cut: Callable[[torch.Size], list[ChunkStorageMetadata]]) -> None:
        super().__init__()
        self.cut = cut

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        items: list[WriteItem] = []
        for item in plan.items:
            if item.tensor_data is None or len(item.tensor_data.size) != 2:
                items.append(item)
                continue
            for piece in self.cut(item.tensor_data.size):
                items.append(
                    dataclasses.replace(
                        item,
                        index=MetadataIndex(item.index.fqn, piece.offsets),
                        type=WriteItemType.SHARD,
                        tensor_data=dataclasses.replace(item.tensor_data, chunk=piece),
                    )
                )
        return dataclasses.replace(plan, items=items)

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type is not WriteItemType.SHARD:
            return super().resolve_data(write_item)
        tensor = self.state_dict[write_item.index.fqn]
        piece = write_item.tensor_data.chunk
        for dimension, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            tensor = tensor.narrow(dimension, offset, size)
        return tensor.contiguous()


def by_rows(size: torch.Size) -> list[ChunkStorageMetadata]:
    rows, columns = size
    return [chunk((row, 0), (min(3, rows - row), columns)) for row in range(0, max(rows, 1), 3)]


def in_a_pinwheel(size: torch.Size) -> list[ChunkStorageMetadata]:
    rows, columns = size
    if rows < 5:
        return by_rows(size)
    return [
        chunk((0, 0), (2, columns - 3)),
        chunk((0, columns - 3), (rows - 2, 3)),
        chunk((rows - 2, 3), (2, columns - 3)),
        chunk((2, 0), (rows - 2, 3)),
        chunk((2, 3), (rows - 4, columns - 6)),
    ]


def state() -> dict[str, Any]:
    return {
        "w": values((9, 7), 1),
        "b": values((9,), 2),
        "other": values((9, 8), 3),
        "same bytes": values((7, 9), 4),
        "ints": values((9,), 5, torch.int32),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "text": "x",
    }


def marked() -> dict[str, Any]:
    return {
        name: torch.full_like(value, -77) if isinstance(value, torch.Tensor) else None
        for name, value in state().items()
    }


@pytest.fixture(params=["ours", "ours without checksums", "torch's"])
def checkpoint(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Callable[[Change | None], None]:
    """Saves `state` in rows, and lets an index be changed."""
    if request.param == "torch's":
        dcp.save(state(), storage_writer=FileSystemWriter(tmp_path), planner=InChunks(by_rows), no_dist=True)
        store.upload(tmp_path)
    else:
        jobs.save(state(), store.uri, planner=InChunks(by_rows))
    body = store.read(".metadata")

    def change(change: Change | None = None) -> None:
        metadata = pickle.loads(body)
        if change is not None:
            change(metadata)
        if request.param == "ours":
            store.write(".metadata", sealed(metadata))
            return
        if request.param == "ours without checksums":
            for info in metadata.storage_data.values():
                vars(info).pop("crc32")
        store.write(".metadata", pickle.dumps(metadata))

    return change


def refused(store: Store, failure: Any, name: str, **arguments: Any) -> str:
    """The refusal of a load, which names the tensor and has written nothing."""
    target = marked()
    error = failure(jobs.load, target, store.uri, **arguments)
    assert isinstance(error, Corrupt), repr(error)
    assert name in str(error)
    assert_same(target, marked())
    return str(error)


# -- chunks


def entry(metadata: Any, name: str) -> Any:
    return metadata.state_dict_metadata[name]


CHUNKS: dict[str, tuple[str, Change]] = {
    "no chunk": ("w", lambda m: entry(m, "w").chunks.clear()),
    "no first chunk": ("w", lambda m: entry(m, "w").chunks.pop(0)),
    "no last chunk": ("w", lambda m: entry(m, "w").chunks.pop()),
    "a chunk too short": ("w", lambda m: entry(m, "w").chunks.__setitem__(1, chunk((3, 0), (2, 7)))),
    "a chunk too narrow": ("w", lambda m: entry(m, "w").chunks.__setitem__(1, chunk((3, 0), (3, 6)))),
    "a chunk outside": ("w", lambda m: entry(m, "w").chunks.__setitem__(2, chunk((7, 0), (3, 7)))),
    "a chunk far outside": ("w", lambda m: entry(m, "w").chunks.__setitem__(2, chunk((2**62, 0), (3, 7)))),
    "a chunk before the first": ("w", lambda m: entry(m, "w").chunks.__setitem__(0, chunk((-1, 0), (4, 7)))),
    "a negative size": ("w", lambda m: entry(m, "w").chunks.append(chunk((3, 0), (-3, 7)))),
    "a chunk over another": ("w", lambda m: entry(m, "w").chunks.__setitem__(2, chunk((5, 0), (3, 7)))),
    "a chunk twice": ("w", lambda m: entry(m, "w").chunks.append(chunk((3, 0), (3, 7)))),
    "a chunk of other dimensions": ("w", lambda m: entry(m, "w").chunks.__setitem__(0, chunk((0,), (3,)))),
    "a chunk without dimensions": ("w", lambda m: entry(m, "w").chunks.append(chunk((), ()))),
    "no chunk of a whole tensor": ("b", lambda m: entry(m, "b").chunks.clear()),
    "a whole tensor at an offset": ("b", lambda m: entry(m, "b").chunks.__setitem__(0, chunk((1,), (9,)))),
    "a whole tensor cut short": ("b", lambda m: entry(m, "b").chunks.__setitem__(0, chunk((0,), (8,)))),
    "no chunk of a scalar": ("scalar", lambda m: entry(m, "scalar").chunks.clear()),
    "a scalar twice": ("scalar", lambda m: entry(m, "scalar").chunks.append(chunk((), ()))),
    "a list of something else": ("w", lambda m: entry(m, "w").chunks.append("chunk")),
    "no list": ("w", lambda m: setattr(entry(m, "w"), "chunks", None)),
}


@pytest.mark.parametrize("case", CHUNKS, ids=str)
@pytest.mark.parametrize("planner", [DefaultLoadPlanner, FastLoadPlanner])
def test_chunks_that_do_not_tile_their_tensor_are_refused(
    checkpoint: Any, store: Store, failure: Any, case: str, planner: Any
) -> None:
    name, change = CHUNKS[case]
    checkpoint(change)
    target = marked()
    error = failure(jobs.load, target, store.uri, planner=planner())
    # with some of them torch's planner cannot do anything
    assert isinstance(error, (Corrupt, TypeError, AttributeError, IndexError)), repr(error)
    if "list" not in case and "dimensions" not in case:
        assert isinstance(error, Corrupt), repr(error)
        assert name in str(error)
    assert_same(target, marked())


@pytest.mark.parametrize("cut", [by_rows, in_a_pinwheel, lambda size: by_rows(size)[::-1]])
def test_chunks_that_tile_their_tensor_are_loaded(store: Store, cut: Any) -> None:
    jobs.save(state(), store.uri, planner=InChunks(cut))
    jobs.check(store.uri, state())


def test_hints_at_other_chunks_do_not_mislead(checkpoint: Any, store: Store) -> None:
    def shuffle(metadata: Any) -> None:
        chunks = entry(metadata, "w").chunks
        chunks.append(chunk((9, 0), (0, 7)))
        chunks.reverse()

    checkpoint(shuffle)
    jobs.check(store.uri, state())


def test_a_tensor_that_is_not_wanted_is_not_judged(checkpoint: Any, store: Store) -> None:
    checkpoint(CHUNKS["no chunk"][1])
    wanted = state()
    del wanted["w"]
    jobs.check(store.uri, wanted)


class Rows(torch.Tensor):
    """The rows from `first` on of a tensor of `whole` rows, as a rank has them."""

    first: int
    whole: int

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [chunk((self.first, 0), tuple(self.shape))]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def size(self, dim: int | None = None) -> Any:
        return torch.Size((self.whole, 7)) if dim is None else super().size(dim)


def rows(first: int, count: int) -> Any:
    part = torch.full((count, 7), -77.0).as_subclass(Rows)
    part.first, part.whole = first, 9
    return part


class LoadsRows(DefaultLoadPlanner):
    """Loads `Rows` without asking for the size of the whole."""

    def create_local_plan(self) -> Any:
        from torch.distributed.checkpoint.planner import LoadPlan
        from torch.distributed.checkpoint.planner_helpers import _create_read_items

        return LoadPlan(
            [
                item
                for name, part in self.state_dict.items()
                for item in _create_read_items(name, self.metadata.state_dict_metadata[name], part)
            ]
        )

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].as_subclass(torch.Tensor)


@needs_rank_indexes
@pytest.mark.parametrize(
    ("first", "count", "held"), [(0, 3, True), (1, 2, True), (3, 3, False), (2, 2, False), (0, 9, False)]
)
def test_of_a_part_that_one_rank_saved_that_part_can_be_loaded(
    store: Store, failure: Any, first: int, count: int, held: bool
) -> None:
    """As a process does that saves what it has of a tensor under a path of its own."""
    jobs.save(state(), store.uri, planner=InChunks(lambda size: by_rows(size)[:1]), no_dist=True)
    part = rows(first, count)
    if held:
        jobs.load({"w": part}, store.uri, planner=LoadsRows(flatten_state_dict=False), no_dist=True)
        assert torch.equal(part.as_subclass(torch.Tensor), state()["w"][first : first + count])
    else:
        planner = LoadsRows(flatten_state_dict=False)
        error = failure(jobs.load, {"w": part}, store.uri, planner=planner, no_dist=True)
        assert isinstance(error, Corrupt)
        assert "w: " in str(error)


# -- items


def info(metadata: Any, name: str, row: int | None = None) -> Any:
    for index, found in metadata.storage_data.items():
        if index.fqn == name and (row is None or index.offset[0] == row):
            return found
    raise KeyError(name)


def point(metadata: Any, name: str, other: str) -> None:
    """Gives the entry of `name` what that of `other` has."""
    for attribute, value in vars(info(metadata, other)).items():
        object.__setattr__(info(metadata, name), attribute, value)


def put(metadata: Any, name: str, **attributes: Any) -> None:
    for attribute, value in attributes.items():
        object.__setattr__(info(metadata, name), attribute, value)


def longer(metadata: Any, name: str, by: int) -> None:
    put(metadata, name, length=info(metadata, name).length + by)


ITEMS: dict[str, tuple[str, Change]] = {
    "another tensor's entry": ("b", lambda m: point(m, "b", "other")),
    "a longer tensor's entry": ("scalar", lambda m: point(m, "scalar", "other")),
    "a scalar's entry": ("b", lambda m: point(m, "b", "scalar")),
    "an object's entry": ("b", lambda m: point(m, "b", "text")),
    "half of its bytes": ("b", lambda m: longer(m, "b", -info(m, "b").length // 2)),
    "no bytes": ("b", lambda m: put(m, "b", length=0)),
    "one byte less": ("b", lambda m: longer(m, "b", -1)),
    "one byte more": ("b", lambda m: longer(m, "b", 1)),
    "a byte further on": ("b", lambda m: put(m, "b", offset=info(m, "b").offset + 1)),
    "another shape": ("w", lambda m: point(m, "w", "other")),
}


@pytest.mark.parametrize("case", ITEMS, ids=str)
def test_an_item_of_other_bytes_than_its_tensor_has_is_refused(
    checkpoint: Any, store: Store, failure: Any, case: str, request: pytest.FixtureRequest
) -> None:
    name, change = ITEMS[case]
    checkpoint(change)
    refused(store, failure, name)
    error = failure(jobs.load, marked(), store.uri, verify=False)
    assert isinstance(error, Corrupt), "also without checksums"


def test_an_item_of_as_many_bytes_in_another_shape_or_dtype_is_refused(
    checkpoint: Any, store: Store, failure: Any, request: pytest.FixtureRequest
) -> None:
    """Its length tells nothing then, its first bytes do."""
    wide = {"w": values((4, 6), 1), "v": values((6, 4), 2), "f": values((9,), 3), "i": values((9,), 4, torch.int32)}
    is_ours = "ours]" in request.node.name
    jobs.save(wide, f"{store.uri}")
    body = store.read(".metadata")
    for name, other in [("w", "v"), ("f", "i"), ("i", "f")]:
        metadata = pickle.loads(body)
        point(metadata, name, other)
        if not is_ours:
            metadata = without_checksums_of(metadata)
        store.write(".metadata", sealed(metadata))
        for verify in (True, False):
            target = {name: torch.full_like(wide[name], -77)}
            if not is_ours and name != "w":
                # as of what others saved: torch converts it
                jobs.load(target, store.uri, verify=verify)
                assert_same(target, {name: wide[other].to(wide[name].dtype)})
                continue
            error = failure(jobs.load, target, store.uri, verify=verify)
            assert isinstance(error, Corrupt), (name, verify)
            assert f"{name}: " in str(error)
            assert (target[name] == -77).all(), "nothing was written"


def without_checksums_of(metadata: Any) -> Any:
    for found in metadata.storage_data.values():
        vars(found).pop("crc32")
    return metadata


def test_an_entry_with_another_dtype_in_the_index_is_refused_or_converted(
    checkpoint: Any, store: Store, failure: Any, request: pytest.FixtureRequest
) -> None:
    """Ours has the dtype from the index; of what others saved the archive tells, as torch does it."""

    def change(metadata: Any) -> None:
        entry(metadata, "b").properties.dtype = torch.int32

    checkpoint(change)
    if "ours]" in request.node.name:
        error = failure(jobs.load, marked(), store.uri)
        assert isinstance(error, Corrupt)
        assert "b: " in str(error)
    else:
        jobs.check(store.uri, state())


def test_an_object_where_the_index_says_a_tensor_is_refused(checkpoint: Any, store: Store, failure: Any) -> None:
    def change(metadata: Any) -> None:
        metadata.state_dict_metadata["text"] = copy.deepcopy(entry(metadata, "scalar"))
        (index,) = (index for index in metadata.storage_data if index.fqn == "text")
        metadata.storage_data[MetadataIndex("text", torch.Size(()), 0)] = metadata.storage_data.pop(index)

    checkpoint(change)
    target = {**marked(), "text": torch.tensor(-77.0)}
    error = failure(jobs.load, target, store.uri)
    assert isinstance(error, Corrupt)
    assert "text: " in str(error)
    assert target["text"] == -77


def test_a_tensor_where_the_index_says_an_object_is_refused(
    checkpoint: Any, store: Store, failure: Any, request: pytest.FixtureRequest
) -> None:
    def change(metadata: Any) -> None:
        metadata.state_dict_metadata["b"] = BytesStorageMetadata()
        (index,) = (index for index in metadata.storage_data if index.fqn == "b")
        metadata.storage_data[MetadataIndex("b")] = metadata.storage_data.pop(index)

    checkpoint(change)
    if "torch's" in request.node.name:
        assert_same(jobs.load({"b": None}, store.uri), {"b": state()["b"]})
    else:
        error = failure(jobs.load, {"b": None}, store.uri)
        assert isinstance(error, Corrupt)
        assert "b: " in str(error)


def test_safetensors_items_need_their_own_place_in_their_file(store: Store, failure: Any) -> None:
    tensors = {"a": values((3, 4), 1), "b": values((5,), 2), "c": values((4, 3), 3)}
    jobs.save(tensors, store.uri, serialization_format=SerializationFormat.SAFETENSORS)
    body = store.read(".metadata")
    store.write(".metadata", pickle.dumps(without_checksums_of(pickle.loads(body))))
    jobs.check(store.uri, tensors)
    for name, other in [("a", "b"), ("b", "a"), ("a", "c")]:
        for strip in (False, True):
            metadata = pickle.loads(body)
            point(metadata, name, other)
            if strip:
                metadata = without_checksums_of(metadata)
            store.write(".metadata", sealed(metadata))
            target = {name: torch.zeros_like(tensors[name])}
            if (name, other, strip) == ("a", "c", False):
                continue  # as many bytes: nothing in the index tells
            error = failure(jobs.load, target, store.uri)
            assert isinstance(error, Corrupt), (name, other, strip)
            assert f"{name}: " in str(error)


def test_views_that_other_writers_stored_with_all_of_their_storage_are_loaded(store: Store, tmp_path: Path) -> None:
    """torch's own writer copies views; what a planner hands it as something else it stores as it is."""
    whole = values((20, 6), 1)

    views = {"rows": whole[3:9], "columns": whole[:, 2:5], "turned": whole.t(), "all": whole}
    writer = FileSystemWriter(tmp_path)
    dcp.save({name: view.clone() for name, view in views.items()}, storage_writer=writer, no_dist=True)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    (file,) = {found.relative_path for found in metadata.storage_data.values()}
    with open(tmp_path / file, "wb") as stream:
        for index, found in metadata.storage_data.items():
            start = stream.tell()
            torch.save(views[index.fqn], stream)
            object.__setattr__(found, "offset", start)
            object.__setattr__(found, "length", stream.tell() - start)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    store.upload(tmp_path)
    jobs.check(store.uri, views)


def test_a_custom_planner_may_read_what_it_likes_of_whole_chunks(store: Store) -> None:
    class Half(DefaultLoadPlanner):
        def create_local_plan(self) -> Any:
            plan = super().create_local_plan()
            plan.items = [item for item in plan.items if item.storage_index.offset[0] < 3]
            return plan

    jobs.save({"w": values((9, 7), 1)}, store.uri, planner=InChunks(by_rows))
    target = {"w": torch.full((9, 7), -77.0)}
    dcp.load(target, storage_reader=S3StorageReader(REGION, store.uri), planner=Half())
    assert torch.equal(target["w"][:3], values((9, 7), 1)[:3])
    assert (target["w"][3:] == -77).all()
