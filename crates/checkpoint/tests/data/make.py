"""Makes the golden files beside it with torch (2.15 when they were committed).

Run it as `python make.py` in this folder. `archives/*.pt` are whole `torch.save` files; `heads.json` holds what is
too large or too many to keep whole: the pickle of every dtype, and the ends of archives around 4 GiB. `index/*` are
pickled `Metadata`. `hostile.json` are pickles that no reader may run.
"""

import io
import itertools
import json
import os
import pathlib
import pickle
import pickletools
import struct
import sys
import zipfile

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


class Reduces:
    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


def hostile():
    def text(value):
        value = value.encode()
        return b"\x8c" + bytes([len(value)]) + value

    def named(module, name):
        return text(module) + text(name) + b"\x93"

    size = b"ctorch\nSize\n"
    info = named("torch.distributed.checkpoint.filesystem", "_StorageInfo")
    start = b"\x80\x04"
    cases = {
        "os.system": pickle.dumps(Reduces(os.system, "exit 1")),
        "builtins.eval": pickle.dumps(Reduces(eval, "1+1")),
        "builtins.eval by GLOBAL": b"\x80\x02cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
        "builtins.getattr": pickle.dumps(Reduces(getattr, dict, "get")),
        "a nested name": start + named("torch", "serialization.load") + b".",
        "a submodule": start + named("torch.serialization", "load") + b".",
        "torch.load by memo": start + text("torch") + b"\x94" + text("load") + b"\x9400h\x00h\x01\x93.",
        "STACK_GLOBAL of a number": start + b"K\x01" + text("load") + b"\x93.",
        "STACK_GLOBAL of bytes": start + b"C\x05torch" + text("load") + b"\x93.",
        "STACK_GLOBAL of an object": start + info + b")\x81" + text("load") + b"\x93.",
        "STACK_GLOBAL on an empty stack": start + b"\x93.",
        "INST": b"\x80\x02(X\x01\x00\x00\x00xios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.",
        "OBJ of an allowed class": b"\x80\x02(" + size + b"o.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "a persistent id": b"\x80\x02X\x01\x00\x00\x00xQ.",
        "a textual persistent id": b"\x80\x02Pabc\n.",
        "protocol 0": pickle.dumps({"a": 1}, 0),
        "protocol 9": b"\x80\x09N.",
        "an out-of-band buffer": b"\x80\x05\x97.",
        "a call of a call": start + size + b")R)R.",
        "a call of text": start + text("torch") + b")R.",
        "a list as arguments": start + size + b"]R.",
        "keyword arguments": start + info + b")}\x92.",
        "the state of a class": start + info + b"}" + text("relative_path") + text("x") + b"sb.",
        "slots of a class": start + info + b"N}" + text("__getstate__") + size + b"s\x86b.",
        "the state of a dtype": start + b"ctorch\nfloat32\n}" + text("a") + b"K\x01sb.",
        "the state of an enum member": start
        + named("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING")
        + b"K\x00\x85R}"
        + text("_value_")
        + b"K\x07sb.",
        "appending to a class": start + info + b"K\x01a.",
        "items of a class": start + info + b"K\x01K\x02s.",
        "a text longer than the rest": start + b"\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "bytes longer than the rest": start + b"\x8e" + struct.pack("<Q", (1 << 64) - 1) + b"x.",
        "a frame longer than the rest": start + b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        "a long integer longer than the rest": start + b"\x8b" + struct.pack("<i", -1) + b".",
        "a memo place far away": start + b"Nr\xff\xff\xff\x7f.",
        "a memo place never set": start + b"h\x05.",
        "tuples nested deep": start + b")" + b"\x85" * 300 + b".",
        "tuples nested deep by memo": start + b")" + b"\x940h\x00\x85" + b"q\x000h\x00\x85" * 300 + b".",
        "lists nested deep by marks": start + b"(" * 1100 + b"t" * 1100 + b".",
        "one large tuple copied often": start
        + b"("
        + b"K\x01" * 500
        + b"t\x94"
        + size
        + b"\x94("
        + b"h\x01h\x00\x85R" * 400
        + b"t.",
        "one large state copied often": start
        + b"}\x94("
        + b"".join(b"M" + struct.pack("<H", key) + b"N" for key in range(500))
        + b"u"
        + info
        + b"\x94("
        + b"h\x01)\x81h\x00b" * 400
        + b"t.",
        "a mutable argument grown later": start + b"]\x94" + size + b"h\x00\x85R.",
        "no STOP": start + b"N",
        "nothing at all": b"",
        "two items": start + b"NN.",
        "no item": start + b".",
        "an open mark": start + b"(N.",
        "POP below a mark": start + b"N(00.",
        "odd items": start + b"}(Nu.",
        "APPENDS without a list": start + b"(Ne.",
        "an unknown opcode": start + b"\xff.",
        "a name without an end": start + b"ctorch" + b"x" * 1100,
    }
    # pickletools agrees that these are what they say
    pickletools.dis(cases["os.system"], io.StringIO())
    cases = {name: value.hex() for name, value in cases.items()}
    (HERE / "hostile.json").write_text(json.dumps(cases, indent=0) + "\n")


def main():
    archives()
    heads()
    indexes()
    hostile()


if __name__ == "__main__":
    main()
