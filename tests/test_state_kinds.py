"""Every kind of state in one process: dtypes, layouts, sizes, objects, partial loads, extensions."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from random import Random
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner

from s3dcp import S3ClientConfig, S3StorageReader, S3StorageWriter, _native
from s3dcp._compat import SerializationFormat
from s3dcp._load import transfer
from s3dcp._save import staging
from s3dcp._tensors import host_buffer
from support import jobs
from support.states import DTYPES, assert_same, blank, layouts, training_state, values
from support.store import REGION

MIB = 1024 * 1024


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_by_bit(store, dtype: torch.dtype) -> None:
    state = {
        "matrix": values((33, 5), 1, dtype),
        "row": values((257,), 2, dtype),
        "scalar": values((), 3, dtype),
        "one": values((1, 1, 1), 4, dtype),
        "none": values((0, 3), 5, dtype),
    }
    jobs.save(state, store.uri)
    jobs.check(store.uri, state)


SAFETENSORS_DTYPES = [
    dtype
    for dtype in DTYPES
    if str(dtype).removeprefix("torch.") not in ("complex32", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz")
]


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES, ids=str)
def test_every_dtype_that_safetensors_has_comes_back_in_that_format(store, dtype: torch.dtype) -> None:
    state = {
        "matrix": values((33, 5), 1, dtype),
        "scalar": values((), 3, dtype),
        "none": values((0, 3), 5, dtype),
    }
    jobs.save(state, store.uri, serialization_format=SerializationFormat.SAFETENSORS)
    jobs.check(store.uri, state)


def test_a_dtype_that_safetensors_lacks_is_refused_by_name(store, failure) -> None:
    state = {"odd": values((3,), 1, torch.complex128)}
    error = failure(jobs.save, state, store.uri, serialization_format=SerializationFormat.SAFETENSORS)
    assert isinstance(error, ValueError)
    assert "odd" in str(error)
    assert "complex128" in str(error)
    assert store.all_keys() == []


def test_views_of_every_layout_are_saved_by_their_values(store) -> None:
    state = layouts()
    jobs.save(state, store.uri, thread_count=2)
    jobs.check(store.uri, state)


@pytest.mark.parametrize("format", list(SerializationFormat), ids=lambda format: format.name.lower())
def test_tensors_that_share_memory_are_saved_apart(store, format: SerializationFormat) -> None:
    base = values((8, 8), 3)
    state = {"all": base, "same": base, "top": base[:4], "bottom": base[4:], "columns": base[:, 2:5]}
    jobs.save(state, store.uri, serialization_format=format)
    stored = sum(size for key, (size, _) in store.listing().items() if key.endswith(".distcp"))
    assert stored < 20_000
    jobs.check(store.uri, state)


def test_many_views_of_middling_size_are_saved(store) -> None:
    """Each needs a copy, and together they need more buffers than there are, in one part."""
    state = {f"t{number}": values((64, 64), number).t() for number in range(100)}
    state |= {f"direct{number}": values((64, 64), number) for number in range(20)}
    jobs.save(state, store.uri)
    jobs.check(store.uri, state)


@pytest.fixture
def tiny_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers so small that every tensor takes several, and few of them."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 128)
    monkeypatch.setattr(staging, "_pool", _native.StagingPool(host_buffer, 256, count=3, patience=0.01))
    monkeypatch.setattr(transfer, "SLOT_BYTES", 320)
    monkeypatch.setattr(transfer, "SLOTS", 3)
    monkeypatch.setattr(transfer, "BATCH_READS", 5)


class Block(DefaultLoadPlanner):
    """Loads the block at `offsets` of size `lengths` of every tensor."""

    def __init__(self, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> None:
        super().__init__()
        self.offsets, self.lengths = torch.Size(offsets), torch.Size(lengths)

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        items = [
            dataclasses.replace(item, storage_offsets=self.offsets, dest_offsets=self.offsets, lengths=self.lengths)
            for item in plan.items
        ]
        return dataclasses.replace(plan, items=items)


@pytest.mark.usefixtures("tiny_buffers")
@pytest.mark.parametrize("seed", range(40))
def test_any_block_of_any_tensor_loads_through_buffers_of_any_size(store, seed: int) -> None:
    random = Random(seed)
    shape = tuple(random.randint(1, 12) for _ in range(random.randint(0, 4)))
    dtype = random.choice([torch.float32, torch.uint8, torch.bfloat16, torch.complex128])
    order = random.sample(range(len(shape)), len(shape))
    source = values(tuple(shape[dim] for dim in order), seed, dtype)
    saved = source.permute([order.index(dim) for dim in range(len(shape))])
    assert tuple(saved.shape) == shape
    jobs.save({"x": saved, "y": saved.contiguous()}, store.uri)
    for _ in range(3):
        offsets = tuple(random.randint(0, size - 1) for size in shape)
        lengths = tuple(random.randint(1, size - offset) for size, offset in zip(shape, offsets, strict=True))
        block = tuple(slice(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True))
        target = random.choice([dtype, torch.complex128])
        wide = torch.zeros((*shape, 2), dtype=target)
        state = {"x": torch.zeros(shape, dtype=target), "y": wide[..., 0]}
        jobs.load(state, store.uri, planner=Block(offsets, lengths))
        want = torch.zeros(shape, dtype=target)
        want[block] = saved[block].to(target)
        assert_same(state["x"], want, f"{shape} {block}")
        assert_same(state["y"], want, f"{shape} {block}")
        assert not wide[..., 1].any()


def test_values_go_into_targets_of_every_layout(store) -> None:
    want = values((12, 10), 21)
    jobs.save({"x": want}, store.uri)
    targets = {
        "transposed": torch.zeros(10, 12).t(),
        "spread rows": torch.zeros(24, 10)[::2],
        "spread columns": torch.zeros(12, 20)[:, ::2],
        "inside another": torch.zeros(14, 14)[1:13, 2:12],
        "parameter": torch.nn.Parameter(torch.zeros(12, 10)),
        "strided parameter": torch.nn.Parameter(torch.zeros(10, 12).t()),
    }
    for name, target in targets.items():
        loaded = jobs.load({"x": target}, store.uri)
        assert loaded["x"] is target
        assert_same(target.detach(), want, name)


def test_values_go_into_lazily_conjugated_and_negated_targets(store) -> None:
    want = values((4, 6), 2, torch.complex64)
    jobs.save({"x": want, "y": want.imag}, store.uri)
    conjugate, negative = torch.zeros(4, 6, dtype=torch.complex64), torch.zeros(4, 6, dtype=torch.complex64)
    jobs.load({"x": conjugate.conj(), "y": negative.conj().imag}, store.uri)
    assert_same(conjugate, want.conj())
    assert_same(negative.imag, -want.imag)


def test_a_load_changes_nothing_beside_its_target(store) -> None:
    jobs.save({"x": torch.ones(4, 4), "y": torch.ones(64)}, store.uri)
    around, line = torch.full((8, 8), 7.0), torch.full((192,), 7.0)
    jobs.load({"x": around[2:6, 2:6], "y": line[64:128]}, store.uri)
    assert around.sum() == 16 + 48 * 7
    assert line.sum() == 64 + 128 * 7


@pytest.mark.parametrize(
    ("saved", "target"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
        (torch.int32, torch.int64),
        (torch.float8_e4m3fn, torch.float32),
    ],
    ids=str,
)
def test_values_are_converted_to_the_dtype_of_the_target(store, saved: torch.dtype, target: torch.dtype) -> None:
    stored = {
        "x": values((17, 9), 5, saved),
        "strided": values((9, 17), 6, saved).t(),
        "s": values((), 7, saved),
    }
    jobs.save(stored, store.uri)
    loaded = jobs.load({name: torch.zeros(x.shape, dtype=target) for name, x in stored.items()}, store.uri)
    assert_same(loaded, {name: x.to(target) for name, x in stored.items()})


def test_tensors_larger_than_a_part_go_up_in_parts(store) -> None:
    state = {
        "large": values((3 * MIB + 17,), 1),
        "large strided": values((1500, 1400), 2).t(),
        "small": values((5,), 3),
        "large bytes": values((7 * MIB + 1,), 4, torch.uint8),
    }
    jobs.save(state, store.uri, s3client_config=S3ClientConfig(part_size=5 * MIB))
    (shard,) = store.shards()
    assert store.parts(shard) >= 5
    assert store.uploads() == []
    jobs.check(store.uri, state)
    jobs.check(store.uri, state, s3client_config=S3ClientConfig(part_size=5 * MIB))


@pytest.mark.parametrize("thread_count", [1, 2, 3, 4])
def test_each_thread_count_makes_that_many_files(store, thread_count: int) -> None:
    state = {f"t{number}": values((40 + number,), number) for number in range(10)}
    jobs.save(state, store.uri, thread_count=thread_count)
    numbers = sorted(name.split("-")[0] for name in store.shards())
    assert numbers == [f"__0_{number}" for number in range(thread_count)]
    jobs.check(store.uri, state)


def test_one_file_per_item_when_asked_for(store) -> None:
    state = {f"t{number}": values((4,), number) for number in range(5)} | {"object": "text"}
    jobs.save(state, store.uri, single_file_per_rank=False)
    assert len(store.shards()) == 6
    jobs.check(store.uri, state)


def test_an_empty_state_is_a_checkpoint_too(store) -> None:
    jobs.save({}, store.uri)
    assert store.names() == [".metadata"]
    assert jobs.load({}, store.uri) == {}


def test_thousands_of_small_tensors_come_back(store) -> None:
    state = {f"layer{number}.weight": torch.full((number % 5, 3), float(number)) for number in range(3000)}
    jobs.save(state, store.uri, thread_count=2)
    jobs.check(store.uri, state)


def test_python_objects_come_back(store) -> None:
    state = {
        "nested": {"dict": {"deep": {"er": 1}}, "list": [1, [2, {"three": 4}]], "tuple": (1, ("two", 3.0))},
        "tensors": [torch.ones(2), {"inner": torch.zeros(3)}],
        "none": None,
        "flag": True,
        "text": "ähm \u2603",
        "bytes": b"\x00\xff",
        "big": 2**100,
        "float": float("inf"),
        "ordered": OrderedDict(b=1, a=2),
        "set": {1, 2, 3},
        "complex": 1 + 2j,
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
    }
    jobs.save(state, store.uri)
    jobs.check(store.uri, state)


def test_optimizer_state_comes_back(store) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(values((4, 7), 1)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
    jobs.save(state, store.uri)
    jobs.check(store.uri, state)


def test_stateful_objects_are_saved_and_loaded_by_their_own_methods(store) -> None:
    saved, target = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    jobs.save({"model": saved}, store.uri)
    jobs.load({"model": target}, store.uri)
    assert_same(dict(target.state_dict()), dict(saved.state_dict()))


def test_a_subset_of_the_keys_is_loaded_alone(store) -> None:
    state = training_state()
    jobs.save(state, store.uri)
    some = {"model": {"rows": blank(state["model"]["rows"])}, "step": "not loaded"}
    jobs.load(some, store.uri)
    assert_same(some, {"model": {"rows": state["model"]["rows"]}, "step": state["step"]})


def test_a_partial_load_leaves_unknown_keys_alone(store) -> None:
    jobs.save({"known": torch.ones(3)}, store.uri)
    state = {"known": torch.zeros(3), "new": torch.full((2,), 5.0)}
    jobs.load(state, store.uri, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert_same(state, {"known": torch.ones(3), "new": torch.full((2,), 5.0)})


def test_an_unknown_key_is_refused_by_name(store, failure) -> None:
    jobs.save({"known": torch.ones(3)}, store.uri)
    error = failure(jobs.load, {"known": torch.zeros(3), "new": torch.zeros(2)}, store.uri)
    assert "new" in str(error)


def test_a_state_of_any_shape_is_rebuilt_from_the_index_alone(store) -> None:
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state = training_state()
    jobs.save(state, store.uri)
    loaded: dict[str, Any] = {}
    reader = S3StorageReader(REGION, store.uri)
    _load_state_dict(loaded, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    assert_same(loaded, state)


def test_a_planner_that_does_not_flatten_works(store) -> None:
    state = {"weights": torch.ones(3), "config": {"depth": 2}}
    jobs.save(state, store.uri, planner=DefaultSavePlanner(flatten_state_dict=False))
    loaded = {"weights": torch.zeros(3), "config": {}}
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    jobs.load(loaded, store.uri, planner=planner)
    assert_same(loaded, state)


@pytest.mark.filterwarnings("ignore:BComplex32 support is experimental:UserWarning")
@pytest.mark.parametrize("name", ["float4_e2m1fn_x2", "bcomplex32"])
def test_a_dtype_that_only_torch_can_serialise_comes_back(store, name: str) -> None:
    if not hasattr(torch, name):
        pytest.skip(f"this torch has no {name}")
    raw = values((4096,), 1, torch.uint8)
    try:
        raw.view(getattr(torch, name)).clone()
    except NotImplementedError as error:
        pytest.skip(f"this torch cannot copy {name}, so that its own writer and reader fail as well: {error}")
    state = {"whole": raw.view(getattr(torch, name)), "few": raw.view(getattr(torch, name))[8:16]}
    jobs.save(state, store.uri)
    assert sum(size for size, _ in store.listing(f"{store.path}/__").values()) < 8192
    jobs.check(store.uri, state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_quantized_tensors_are_saved_as_torch_saves_them(store) -> None:
    quantized = torch.quantize_per_tensor(values((3, 2), 1), 0.5, 3, torch.quint8)
    jobs.save({"x": quantized}, store.uri)
    target = torch.quantize_per_tensor(torch.zeros(3, 2), 0.5, 3, torch.quint8)
    jobs.load({"x": target}, store.uri)
    assert torch.equal(target.int_repr(), quantized.int_repr())


def test_the_checkpoint_id_given_to_a_call_overrides_the_path(store) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    reader = S3StorageReader(REGION, store.uri)
    for number in (1, 2):
        dcp.save(
            {"x": torch.full((3,), float(number))},
            checkpoint_id=f"{store.uri}/{number}",
            storage_writer=writer,
        )
    for number in (1, 2):
        state = {"x": torch.zeros(3)}
        dcp.load(state, checkpoint_id=f"{store.uri}/{number}", storage_reader=reader)
        assert_same(state, {"x": torch.full((3,), float(number))})
    assert [name for name in store.names() if name.endswith(".metadata")] == ["1/.metadata", "2/.metadata"]


def test_one_writer_and_one_reader_serve_many_saves_and_loads(store) -> None:
    writer, reader = S3StorageWriter(REGION, store.uri), S3StorageReader(REGION, store.uri)
    for number in range(4):
        state = {"x": torch.full((3,), float(number)), "step": number}
        dcp.save(state, storage_writer=writer)
        loaded = blank(state)
        dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, state)
    assert len(store.shards()) == 1


def test_every_argument_of_torchs_writer_is_taken(store) -> None:
    jobs.save(
        training_state(),
        store.uri,
        single_file_per_rank=True,
        sync_files=True,
        per_thread_copy_ahead=1_000_000,
        cache_staged_state_dict=False,
        overwrite=True,
        _extensions=None,
        serialization_format=SerializationFormat.TORCH_SAVE,
    )
    jobs.check(store.uri, training_state())


@pytest.mark.parametrize("region", [None, ""], ids=repr)
def test_the_region_may_come_from_the_environment(store, region: str | None) -> None:
    state = {"x": torch.ones(3)}
    dcp.save(state, storage_writer=S3StorageWriter(region, store.uri))
    loaded = blank(state)
    dcp.load(loaded, storage_reader=S3StorageReader(region, store.uri))
    assert_same(loaded, state)


def test_a_progress_bar_is_drawn_on_standard_error(store, capsys) -> None:
    state = {"x": values((MIB,), 1)}
    jobs.save(state, store.uri, progress=True)
    assert "4.0 of 4.0 MiB" in capsys.readouterr().err
    jobs.check(store.uri, state, progress=True)
    assert "4.0 of 4.0 MiB" in capsys.readouterr().err


def test_the_progress_callback_sees_all_bytes(store) -> None:
    seen: list[tuple[int, int]] = []
    state = {"x": values((3 * MIB,), 1)}
    jobs.save(state, store.uri, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    done, total = seen[-1]
    assert total == 12 * MIB
    assert done >= total
    seen.clear()
    jobs.load(blank(state), store.uri, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][1] == 12 * MIB
    assert seen[-1][0] >= 12 * MIB


class TestCachedPlans:
    """torch may keep the plan of one save for the next (``enable_plan_caching``)."""

    pytestmark = pytest.mark.usefixtures("fresh_plan_cache")

    def test_a_second_epoch_with_a_cached_plan_does_not_touch_the_first(self, store) -> None:
        for epoch in (1, 2, 3):
            state = training_state(epoch)
            planner = DefaultSavePlanner(enable_plan_caching=True)
            jobs.save(state, store.uri, ("Hex", {"epoch_num": epoch}), planner=planner)
        for epoch in (1, 2, 3):
            jobs.check(f"{store.uri}/epoch_{epoch}", training_state(epoch))
        jobs.check(store.uri, training_state(3))

    def test_one_writer_with_a_cached_plan_writes_new_files_each_time(self, store) -> None:
        writer = S3StorageWriter(REGION, store.uri)
        seen = set()
        for number in range(3):
            state = training_state(number)
            dcp.save(state, storage_writer=writer, planner=DefaultSavePlanner(enable_plan_caching=True))
            (shard,) = store.shards()
            assert shard not in seen
            seen.add(shard)
            jobs.check(store.uri, state)

    @pytest.mark.parametrize("change", ["shape", "dtype"])
    def test_a_tensor_unlike_its_cached_plan_is_refused_by_name(self, store, failure, change: str) -> None:
        """Only a planner that wrongly calls its plan unchanged can bring this about."""

        class Careless(DefaultSavePlanner):
            def create_local_plan(self) -> Any:
                from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

                if self._cached_plans_key in SavePlanner._cached_save_plan:
                    return SavePlan([], usable=False)
                return super().create_local_plan()

        jobs.save({"w": torch.ones(4, 3)}, store.uri, planner=Careless(enable_plan_caching=True))
        before = store.listing()
        other = torch.ones(5, 3) if change == "shape" else torch.ones(4, 3, dtype=torch.float64)
        error = failure(jobs.save, {"w": other}, store.uri, planner=Careless(enable_plan_caching=True))
        assert isinstance(error, ValueError)
        assert "w:" in str(error)
        assert store.listing() == before
