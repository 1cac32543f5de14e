"""Single bits flipped in what is stored: `Corrupt` wherever a load reads, and the right values where it does not.

What a load reads is the whole index, and of each wanted item every 4 MiB slice with a wanted byte. Everything else is
harmless to it: other items and slices, tensors without elements, and the header of a safetensors file, which the index
makes unnecessary.

``S3DCP_FLIPS=10000 make test-python PYTEST="-k flip -rP --show-capture=stdout"`` flips more and prints what came of it.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from s3dcp import Corrupt, S3ClientConfig
from s3dcp._compat import HAS_RANK_INDEXES, SerializationFormat
from s3dcp._native import SLICE_BYTES
from support import chance, jobs
from support.indexes import pickle_length
from support.ranks import RankFailed
from support.states import DTYPES, assert_same, blank, layouts, values
from support.store import Store
from support.torch_versions import LACKING

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")

USUAL_FLIPS = 300
SAFETENSORS = {"serialization_format": SerializationFormat.SAFETENSORS}


@dataclasses.dataclass(frozen=True)
class Region:
    """Some bytes of a stored object, of one item or of none."""

    object: str
    kind: str
    start: int
    end: int
    item: str | None = None


class Rows(DefaultLoadPlanner):
    """Loads some rows of one tensor only."""

    def __init__(self, start: int, count: int) -> None:
        super().__init__()
        self.start, self.count = start, count

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()
        (item,) = plan.items
        at = torch.Size((self.start, *item.storage_offsets[1:]))
        lengths = torch.Size((self.count, *item.lengths[1:]))
        rows = dataclasses.replace(item, storage_offsets=at, dest_offsets=at, lengths=lengths)
        return dataclasses.replace(plan, items=[rows])


class Kept:
    """A checkpoint of one rank, and what each of its bytes is."""

    def __init__(
        self, store: Store, path: str, state: dict[str, Any], index: str = ".metadata", *, weight: int
    ) -> None:
        self.weight = weight  # how often it is chosen
        self.store = store
        self.path = path
        self.uri = f"s3://{store.bucket}/{store.path}/{path}"
        self.state = state
        names = [name.removeprefix(f"{path}/") for name in store.names() if name.startswith(f"{path}/")]
        self.objects = {name: store.read(f"{path}/{name}") for name in names if name.endswith((index, ".distcp"))}
        self.metadata = pickle.loads(self.objects[index])
        self.items = {where.fqn: info for where, info in self.metadata.storage_data.items()}
        self.regions = [*self._index_regions(index), *self._shard_regions()]

    def _index_regions(self, name: str) -> list[Region]:
        body = self.objects[name]
        end = pickle_length(body)
        return [Region(name, "index pickle", 0, end), Region(name, "index trailer", end, len(body))]

    def _shard_regions(self) -> list[Region]:
        regions, ends = [], dict.fromkeys(self.objects, 0)
        for item, info in sorted(self.items.items(), key=lambda entry: entry[1].offset):
            name, start, end = info.relative_path, info.offset, info.offset + info.length
            regions.append(Region(name, "header of the file", ends[name], start))
            ends[name] = end
            data = self.data(item)
            if data is None:
                regions.append(Region(name, "object", start, end, item))
            else:
                regions.append(Region(name, "head", start, start + data.start, item))
                regions.append(Region(name, "data", start + data.start, start + data.stop, item))
                regions.append(Region(name, "tail", start + data.stop, end, item))
        assert all(ends[name] == len(self.objects[name]) for name in ends if name.endswith(".distcp"))
        return regions

    def data(self, item: str) -> range | None:
        """Where a tensor's raw bytes lie in its item; None for an object."""
        tensor = self.metadata.state_dict_metadata[item]
        if not isinstance(tensor, TensorStorageMetadata):
            return None
        start = self.items[item].data_offset
        return range(start, start + tensor.size.numel() * tensor.properties.dtype.itemsize)

    def draw(self, random: random.Random) -> Region:
        """A region; each kind is as likely as the others, however small."""
        kinds: dict[str, list[Region]] = {}
        for region in self.regions:
            if region.start < region.end:
                kinds.setdefault(region.kind, []).append(region)
        return random.choice(random.choice(list(kinds.values())))

    def write(self, name: str, flipped_bit: int | None = None) -> None:
        """Put an object as it was, or with this bit flipped."""
        body = bytearray(self.objects[name])
        if flipped_bit is not None:
            body[flipped_bit // 8] ^= 1 << flipped_bit % 8
        self.store.write(f"{self.path}/{name}", bytes(body))


class Load:
    """A load of some of a checkpoint: everything, one item, or some rows of one; into targets of any kind."""

    def __init__(self, kept: Kept, region: Region, random: random.Random) -> None:
        self.kept = kept
        item = region.item if region.item and random.random() < 0.8 else random.choice(list(kept.state))
        self.wanted = kept.state if random.random() < 0.4 else {item: kept.state[item]}
        self.rows: tuple[int, int] | None = None
        (item, tensor), *others = self.wanted.items()
        if (
            not others
            and isinstance(tensor, torch.Tensor)
            and tensor.dim()
            and tensor.numel()
            and random.random() < 0.7
        ):
            start = random.randrange(tensor.shape[0])
            self.rows = (start, random.randint(1, tensor.shape[0] - start))
        self.target = random.choice([blank, transposed, converted])
        self.config = S3ClientConfig(max_attempts=random.choice([1, 1, 1, 2]))

    def __str__(self) -> str:
        what = "everything" if len(self.wanted) > 1 else f"{next(iter(self.wanted))}, rows {self.rows}"
        return f"{what} into {self.target.__name__} targets"

    def reads(self, region: Region, position: int) -> bool:
        """Whether this byte is among those that are read, and hence verified."""
        if region.kind.startswith("index"):
            return True
        if region.item not in self.wanted:
            return False
        data = self.kept.data(region.item)
        if data is None:
            return True
        if self.rows is not None:
            row = len(data) // self.wanted[region.item].shape[0]
            data = data[self.rows[0] * row : sum(self.rows) * row]
        at = position - self.kept.items[region.item].offset
        return len(data) > 0 and data[0] // SLICE_BYTES <= at // SLICE_BYTES <= data[-1] // SLICE_BYTES

    def error(self) -> BaseException | None:
        """Load; what that raises, or None where all that was wanted came and is right."""
        loaded = {name: self.target(value) for name, value in self.wanted.items()}
        planner = None if self.rows is None else Rows(*self.rows)
        error = error_of(
            lambda: jobs.load(loaded, self.kept.uri, planner=planner, no_dist=True, s3client_config=self.config)
        )
        if error is not None:
            return error
        for name, want in self.wanted.items():
            got = loaded[name]
            if self.rows is not None:
                some = slice(self.rows[0], sum(self.rows))
                got, want = got[some], want[some]
            assert_same(got, want.to(got.dtype) if isinstance(want, torch.Tensor) else want, name)
        return None


def error_of(function: Callable[[], object]) -> BaseException | None:
    """What the function raises; in ranks, on the first that failed."""
    try:
        function()
    except (Exception, CheckpointException) as error:
        raised = error.error if isinstance(error, RankFailed) else error
        return min(raised.failures.items())[1][0] if isinstance(raised, CheckpointException) else raised
    return None


def transposed(value: Any) -> Any:
    """What to load into: a view that is not contiguous, where `value` has columns."""
    is_matrix = isinstance(value, torch.Tensor) and value.dim() == 2
    return blank(value.t().contiguous()).t() if is_matrix else blank(value)


def converted(value: Any) -> Any:
    """What to load into: the same in another dtype, where `value` is of floats."""
    is_float = isinstance(value, torch.Tensor) and value.dtype in (torch.float32, torch.bfloat16)
    return torch.zeros(value.shape, dtype=torch.float64) if is_float else blank(value)


def small() -> dict[str, Any]:
    """Tensors of every dtype, without dimensions and without elements, views, and objects."""
    dtypes = {str(dtype): values((3, 5), 1, dtype) for dtype in DTYPES}
    views = {name: view.detach() for name, view in layouts().items()}
    objects = {"text": "of some length " * 20, "number": 41, "pair": (1, 2.5)}
    return {**dtypes, **views, **objects, "scalar": values((), 2), "nothing": torch.empty(0, 4)}


def many() -> dict[str, Any]:
    """Small tensors by the hundred, which are handed over in batches."""
    return {f"t{number}": values((number % 7, 6), number) for number in range(300)}


def large() -> dict[str, Any]:
    """A tensor of three slices and a bit, one of a slice's length to the byte, and a small one."""
    return {
        "three slices": values((3200, 1024), 1),
        "one slice": values((1024, 1024), 2),
        "small": values((10, 3), 3, torch.bfloat16),
    }


@pytest.fixture
def kept(store: Store) -> list[Kept]:
    """Checkpoints of every kind."""
    at = lambda path: f"{store.uri}/{path}"  # noqa: E731
    jobs.save(small(), at("small"), thread_count=2)
    jobs.save(many(), at("many"))
    jobs.save(large(), at("large"))
    tensors = {name: value for name, value in small().items() if name in ("torch.float32", "torch.int16", "a block")}
    jobs.save(small(), at("epoch"), ("Hex", {"epoch_num": 1}))
    checkpoints = [
        Kept(store, "small", small(), weight=5),
        Kept(store, "many", many(), weight=5),
        Kept(store, "large", large(), weight=1),
        Kept(store, "epoch", small(), weight=2),
    ]
    if "serialization_format" not in LACKING:
        jobs.save({**tensors, "text": "beside them"}, at("safetensors"), **SAFETENSORS)
        checkpoints.append(Kept(store, "safetensors", {**tensors, "text": "beside them"}, weight=2))
    if HAS_RANK_INDEXES:
        jobs.save(small(), at("rank"), use_collectives=False)
        checkpoints.append(Kept(store, "rank", small(), "__0.metadata", weight=2))
    return checkpoints


def table(outcomes: Counter[tuple[str, str]]) -> str:
    """The outcomes as text, a line for each kind of region."""
    kinds = {kind for kind, _ in outcomes}
    columns = sorted({outcome for _, outcome in outcomes})
    return "\n".join(
        f"{kind:20}" + "".join(f"{outcomes[kind, column]:8} {column}" for column in columns) for kind in sorted(kinds)
    )


def test_a_flipped_bit_is_corrupt_wherever_it_is_read_and_harmless_elsewhere(kept: list[Kept]) -> None:
    draw = random.Random(chance.new_seed())
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(chance.how_many("FLIPS", USUAL_FLIPS)):
        (one,) = draw.choices(kept, [each.weight for each in kept])
        region = one.draw(draw)
        load = Load(one, region, draw)
        bit = draw.randrange(8 * region.start, 8 * region.end)
        case = f"flip {number}: bit {bit} of {one.path}/{region.object}, {region}, loading {load}"
        one.write(region.object, bit)
        try:
            error = load.error()
        except AssertionError as wrong:
            raise AssertionError(f"{case}: {wrong}") from wrong
        one.write(region.object)
        if load.reads(region, bit // 8):
            assert isinstance(error, Corrupt), f"{case}: {error!r}"
        else:
            assert error is None, f"{case}: {error!r}"
        outcomes[region.kind, "detected" if error else "not read" if region.item in load.wanted else "not wanted"] += 1
        if number % 20 == 0:
            assert load.error() is None, f"{case}: restored, but {load.error()!r}"
    print(table(outcomes))


def test_a_bit_flipped_beside_the_values_that_torch_wrote_is_corrupt_or_harmless(store: Store, tmp_path: Path) -> None:
    """torch keeps no checksum of values that would be looked at, but of the records that say what they are."""
    draw = random.Random(chance.new_seed())
    state = {name: value for name, value in small().items() if isinstance(value, torch.Tensor)}
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path))
    store.upload(tmp_path)
    (shard,) = store.shards()
    body = store.read(shard)
    items = {index.fqn: info for index, info in pickle.loads(store.read(".metadata")).storage_data.items()}
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(-(-chance.how_many("FLIPS", USUAL_FLIPS) // 6)):
        name, info = draw.choice(list(items.items()))
        archive = body[info.offset : info.offset + info.length]
        (values_record,) = (entry for entry in ZipFile(io.BytesIO(archive)).infolist() if "/data/" in entry.filename)
        before = values_record.header_offset
        after = before + 30 + sum(struct.unpack_from("<2H", archive, before + 26)) + values_record.file_size
        kind, span = draw.choice([("head", range(before)), ("tail", range(after, len(archive)))])
        bit = 8 * (info.offset + draw.choice(span)) + draw.randrange(8)
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        store.write(shard, bytes(flipped))
        case = f"flip {number}: bit {bit}, in the {kind} of {name}"
        loaded = {name: blank(state[name])}
        error = error_of(lambda: jobs.load(loaded, store.uri, s3client_config=S3ClientConfig(max_attempts=1)))  # noqa: B023
        if error is None:
            assert_same(loaded[name], state[name], case)
        else:
            assert isinstance(error, Corrupt), f"{case}: {error!r}"
        outcomes[kind, "detected" if error else "harmless"] += 1
    print(table(outcomes))


@pytest.mark.distributed
def test_a_bit_flipped_in_what_two_ranks_saved_is_corrupt_to_both(store: Store, groups) -> None:
    two, draw = groups(2), random.Random(chance.new_seed())
    two.run(jobs.save_training_state, store.uri)
    entries = pickle.loads(store.read(".metadata")).storage_data
    (nothing,) = [info for index, info in entries.items() if index.fqn == "nothing"]
    for number in range(-(-chance.how_many("FLIPS", USUAL_FLIPS) // 30)):
        name = draw.choice([".metadata", *store.shards()])
        body = store.read(name)
        bit = draw.randrange(8 * len(body))
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        store.write(name, bytes(flipped))
        harmless = name == nothing.relative_path and 0 <= bit // 8 - nothing.offset < nothing.length
        error = error_of(lambda: two.run(jobs.check_training_state, store.uri))
        assert (error is None) == harmless, f"flip {number}: bit {bit} of {name}: {error!r}"
        assert harmless or isinstance(error, Corrupt), error
        store.write(name, body)
    two.run(jobs.check_training_state, store.uri)
