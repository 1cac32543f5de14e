"""The states that are saved and loaded: their names, shapes and bytes, the same in every process.

Bytes come from one pattern, shifted for every tensor, so that building a state costs a copy and comparing a loaded one
needs no second state in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

HIDDEN, FFN = 2048, 5632
LAYER = {
    "wq": (HIDDEN, HIDDEN),
    "wk": (HIDDEN, HIDDEN // 4),
    "wv": (HIDDEN, HIDDEN // 4),
    "wo": (HIDDEN, HIDDEN),
    "w1": (FFN, HIDDEN),
    "w2": (HIDDEN, FFN),
    "w3": (FFN, HIDDEN),
    "norm": (HIDDEN,),
}
TINY = (256,)
TINY_NBYTES = 1024
_PATTERN = torch.randint(0, 256, (16 * 1024 * 1024 + 1,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

Layout = list[tuple[str, tuple[int, ...], torch.dtype]]


def llama(gib: float) -> Layout:
    """bf16 matrices of a 2048-wide decoder, cut off at `gib`."""
    layout: Layout = []
    left = int(gib * 2**30)
    while True:
        for name, shape in LAYER.items():
            nbytes = 2 * torch.Size(shape).numel()
            if nbytes > left:
                return layout
            layout.append((f"layers.{len(layout) // len(LAYER)}.{name}", shape, torch.bfloat16))
            left -= nbytes


def tiny(count: int) -> Layout:
    """`count` fp32 tensors of 1 KiB."""
    return [(f"state.{number}", TINY, torch.float32) for number in range(count)]


def layout_of(spec: dict[str, Any]) -> Layout:
    """The layout that a measurement's `gib` or `count` stands for."""
    return tiny(spec["count"]) if spec.get("count") else llama(spec["gib"])


def content(number: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The bytes of tensor `number`."""
    tensor = torch.empty(shape, dtype=dtype)
    raw, position, source = tensor.reshape(-1).view(torch.uint8), 0, number * 40_507 % len(_PATTERN)
    while position < len(raw):
        length = min(len(raw) - position, len(_PATTERN) - source)
        raw[position : position + length] = _PATTERN[source : source + length]
        position, source = position + length, 0
    return tensor


def shard_dim(shape: tuple[int, ...], view: str) -> int:
    """The dimension that a tensor is sharded over: its rows, or its columns where it has any."""
    return min(1, len(shape) - 1) if view == "columns" else 0


def build(spec: dict[str, Any], fill: bool) -> tuple[dict[str, Any], int]:
    """The state dict of a measurement and the bytes this process holds of it; zeros unless `fill`.

    With a `view` ("rows" or "columns") every tensor is a DTensor over all ranks of the process group.
    """
    view = spec.get("view")
    state: dict[str, Any] = {"step": torch.tensor(7.0), "extra": {"lr": 1e-4}}
    total = 0
    for number, (name, shape, dtype) in enumerate(layout_of(spec)):
        full = content(number, shape, dtype) if fill else torch.zeros(shape, dtype=dtype)
        state[name] = _distributed(full, shard_dim(shape, view)) if view else full
        local = _local(state[name])
        total += local.nbytes
    return state, total


def wrong(spec: dict[str, Any], state: dict[str, Any]) -> Iterator[str]:
    """Names of the tensors of `state` that do not have the bytes they should have."""
    view = spec.get("view")
    for number, (name, shape, dtype) in enumerate(layout_of(spec)):
        full = content(number, shape, dtype)
        expected = _local(_distributed(full, shard_dim(shape, view))) if view else full
        # As bytes: the pattern holds NaNs, which equal nothing.
        if not torch.equal(expected.reshape(-1).view(torch.uint8), _local(state[name]).reshape(-1).view(torch.uint8)):
            yield name


def _distributed(full: torch.Tensor, dim: int) -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    world, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (world,))
    local = full.chunk(world, dim)[rank].clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(local, mesh, [Shard(dim)], run_check=False, shape=full.shape, stride=full.stride())


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
