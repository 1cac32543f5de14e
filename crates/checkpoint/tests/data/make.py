"""Makes the golden files beside it with torch (2.15 when they were committed).

Run it as `python make.py` in this folder. `archives/*.pt` are whole `torch.save` files; `heads.json` holds what is
too large or too many to keep whole: the pickle of every dtype, and the ends of archives around 4 GiB. `index/*` are
pickled `Metadata`, `checkpoints/*` whole checkpoints. `hostile.py` makes the pickles that no reader may run.
"""

import dataclasses
import io
import itertools
import json
import pathlib
import pickle
import shutil
import struct
import sys
import zipfile

import hostile
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
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
from torch.distributed.checkpoint.planner import WriteItemType

from s3dcp import S3FileSystem, S3StorageWriter, testing

HERE = pathlib.Path(__file__).parent
DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex32",
    "complex64",
    "complex128",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]


def saved(value, **settings):
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def archives():
    folder = HERE / "archives"
    folder.mkdir(exist_ok=True)
    base = torch.arange(60, dtype=torch.float32)
    tensors = {
        "float32_2x3": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "bfloat16_scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "float8_e4m3fn_3": torch.tensor([1.0, 2.0, -3.0]).to(torch.float8_e4m3fn),
        "float64_0x3": torch.zeros((0, 3), dtype=torch.float64),
        "int64_5d": torch.arange(48).reshape(2, 1, 3, 2, 4),
        "bool_300": torch.arange(300) % 7 == 0,
    }
    for name, tensor in tensors.items():
        (folder / f"{name}.pt").write_bytes(saved(tensor))
    (folder / "view.pt").write_bytes(saved(base[7:].reshape(53)[:50].reshape(5, 10).t()[1:, ::2]))
    gradient = torch.ones(3, dtype=torch.float16, requires_grad=True)
    (folder / "requires_grad.pt").write_bytes(saved(gradient))
    (folder / "parameter.pt").write_bytes(saved(torch.nn.Parameter(torch.ones(2))))
    (folder / "conjugate.pt").write_bytes(saved(torch.ones(2, dtype=torch.complex64).conj()))
    (folder / "sparse.pt").write_bytes(saved(torch.eye(2).to_sparse()))
    (folder / "dict.pt").write_bytes(saved({"a": torch.ones(2)}))
    (folder / "legacy.pt").write_bytes(saved(torch.ones(2), _use_new_zipfile_serialization=False))
    from torch.utils.serialization import config

    config.save.compute_crc32 = False
    (folder / "no_crc.pt").write_bytes(saved(tensors["float32_2x3"]))
    config.save.compute_crc32 = True
    config.save.storage_alignment = 512
    (folder / "aligned_512.pt").write_bytes(saved(torch.ones(1)))
    config.save.storage_alignment = 64
    older(folder, tensors["float32_2x3"])


def older(folder, tensor):
    """What torch 1.6 wrote: another folder name, no byte order, and (here) big-endian data."""
    source = zipfile.ZipFile(io.BytesIO(saved(tensor)))
    for name, order in (("torch_1_6", None), ("big_endian", b"big")):
        writer = torch._C.PyTorchFileWriter(str(folder / f"{name}.pt"))
        for record in ("data.pkl", "byteorder", "data/0"):
            content = source.read(f"archive/{record}")
            if record == "byteorder":
                if order is None:
                    continue
                content = order
            elif record == "data/0" and order:
                content = struct.pack(">6f", *range(6))
            writer.write_record(record, content, len(content))
        writer.write_end_of_file()


class Ends(io.RawIOBase):
    """Keeps the first and the last bytes of what is written."""

    def __init__(self):
        self.head = b""
        self.tail = b""

    def writable(self):
        return True

    def write(self, data):
        data = memoryview(data).cast("B")
        if len(self.head) < 4096:
            self.head += bytes(data[:4096])
        self.tail = (self.tail + bytes(data[-4096:]))[-4096:]
        return len(data)


def heads():
    result = {"pickles": {}, "large": []}
    shapes = itertools.cycle(([], [3], [0, 2], [2, 3, 1, 2], [300, 1, 7]))
    for name, shape in zip(DTYPES, shapes, strict=False):
        tensor = torch.zeros(shape, dtype=getattr(torch, name))
        content = zipfile.ZipFile(io.BytesIO(saved(tensor))).read("archive/data.pkl")
        result["pickles"][name] = {"shape": shape, "pickle": content.hex()}
    if "--large" in sys.argv or not (HERE / "heads.json").exists():
        for size in (70_000, 0xFFFF_FFFE, 0xFFFF_FFFF, (1 << 32) + 5):
            ends = Ends()
            torch.save(torch.zeros(size, dtype=torch.uint8), ends)
            head = 704  # of this dtype and shape
            # zero bytes around the ends belong to the data
            tail = ends.tail[ends.tail.index(b"PK\x07\x08") :]
            result["large"].append({"bytes": size, "head": ends.head[:head].hex(), "tail": tail.hex()})
    else:
        result["large"] = json.loads((HERE / "heads.json").read_text())["large"]
    (HERE / "heads.json").write_text(json.dumps(result, indent=0) + "\n")


def metadata(checkpoint_id, ours=None, relative=""):
    def tensor(*shape, dtype=torch.float32):
        chunks = [ChunkStorageMetadata(torch.Size([0] * len(shape)), torch.Size(shape))]
        properties = TensorProperties.create_from_tensor(torch.empty(shape, dtype=dtype))
        return TensorStorageMetadata(properties, torch.Size(shape), chunks)

    def info(path, offset, length):
        result = _StorageInfo(relative + path, offset, length)
        if ours:
            result.crc32 = bytes(range(4))
            result.data_offset = 704
        return result

    result = Metadata(
        state_dict_metadata={
            "model.weight": tensor(4, 3),
            "model.bias": tensor(4, dtype=torch.bfloat16),
            "step": BytesStorageMetadata(),
        },
        planner_data={"model.weight": ("model", "weight"), "model.bias": ("model", "bias"), "step": ("step",)},
        version="1.0.0",
    )
    result.storage_data = {
        MetadataIndex("model.weight", [0, 0], 0): info("__0_0.distcp", 0, 1600),
        MetadataIndex("model.bias", [0], 0): info("__0_0.distcp", 1600, 1577),
        MetadataIndex("step"): info("x/__1_0.distcp", 0, 25),
    }
    result.storage_meta = StorageMeta(checkpoint_id=checkpoint_id, save_id="save-1")
    if ours:
        result.storage_meta.s3dcp = ours
    return result


def indexes():
    folder = HERE / "index"
    folder.mkdir(exist_ok=True)
    for name, value, protocol in (
        ("torch", metadata(pathlib.PosixPath("/tmp/checkpoint")), 4),
        ("torch_protocol_2", metadata(pathlib.PosixPath("/tmp/checkpoint")), 2),
        ("torch_protocol_5", metadata("/tmp/checkpoint"), 5),
        ("s3torchconnector", metadata("s3://bucket/checkpoint"), 4),
        ("s3dcp_epoch", metadata("s3://bucket/run", {"format": 1, "ranks": 2, "epoch": 5}, "../"), 4),
        ("s3dcp_plain", metadata("s3://bucket/run", {"format": 1, "ranks": 2, "epoch": None}), 4),
    ):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(value, protocol))


class InQuarters(DefaultSavePlanner):
    """Saves every matrix in four chunks."""

    def create_local_plan(self):
        plan = super().create_local_plan()
        items = []
        for item in plan.items:
            if item.tensor_data is None or len(item.tensor_data.size) != 2 or 0 in item.tensor_data.size:
                items.append(item)
                continue
            rows, columns = item.tensor_data.size
            for (top, bottom), (left, right) in itertools.product(
                ((0, rows // 2), (rows // 2, rows)), ((0, columns // 2), (columns // 2, columns))
            ):
                chunk = ChunkStorageMetadata(torch.Size((top, left)), torch.Size((bottom - top, right - left)))
                data = dataclasses.replace(item.tensor_data, chunk=chunk)
                index = MetadataIndex(item.index.fqn, chunk.offsets)
                items.append(dataclasses.replace(item, index=index, type=WriteItemType.SHARD, tensor_data=data))
        return dataclasses.replace(plan, items=items)

    def resolve_data(self, write_item):
        if write_item.type is not WriteItemType.SHARD:
            return super().resolve_data(write_item)
        (top, left), (rows, columns) = write_item.tensor_data.chunk.offsets, write_item.tensor_data.chunk.sizes
        return self.state_dict[write_item.index.fqn][top : top + rows, left : left + columns].contiguous()


def checkpoints():
    """Two whole checkpoints of one state: what torch's writer leaves, and ours."""
    state = {
        "matrix": torch.arange(35, dtype=torch.float32).reshape(5, 7),
        "transposed": torch.arange(5000, dtype=torch.int16).reshape(100, 50).t(),
        "half": torch.arange(4, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros((0, 3)),
        "text": "x",
    }
    folder = HERE / "checkpoints"
    torchs, ours = folder / "torch", folder / "s3dcp"
    shutil.rmtree(folder, ignore_errors=True)
    dcp.save(state, storage_writer=FileSystemWriter(torchs), planner=InQuarters(), no_dist=True)
    with testing.server(buckets=["bucket"]):
        uri = "s3://bucket/run"
        dcp.save(state, storage_writer=S3StorageWriter("us-east-1", uri), planner=InQuarters(), no_dist=True)
        fs = S3FileSystem("us-east-1")
        for found in fs.client.list_objects("bucket", "run/"):
            path = ours / found.key.removeprefix("run/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fs.client.read_ranges("bucket", [(found.key, 0, found.size)])[0])


def main():
    archives()
    heads()
    indexes()
    checkpoints()
    hostile.main()


if __name__ == "__main__":
    main()
