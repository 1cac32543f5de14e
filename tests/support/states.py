"""States to save, the same in every process, and their comparison bit by bit."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

DTYPES = [
    getattr(torch, name)
    for name in (
        "bool",
        "uint8",
        "int8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex32",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
    if hasattr(torch, name)
]


def values(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of `dtype` filled from `seed`; floating NaN and infinity may occur in float8 types."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).to(torch.bool).reshape(shape)
    if (dtype.is_floating_point or dtype.is_complex) and dtype.itemsize > 1:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(count, generator=generator, dtype=wide).to(dtype).reshape(shape)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The values of `tensor` in row-major order as bytes."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    if plain.numel() == 0:
        return b""
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got: Any, want: Any, name: str = "state") -> None:
    """Equal type by type and, for tensors, bit by bit (so NaN equals itself)."""
    if isinstance(want, DTensor):
        assert isinstance(got, DTensor), f"{name}: {type(got)} is no DTensor"
        assert got.placements == want.placements, name
        got, want = got.to_local(), want.to_local()
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor), f"{name}: {type(got)} is no tensor"
        assert got.dtype == want.dtype, f"{name}: {got.dtype} is not {want.dtype}"
        assert got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}"
        assert raw_bytes(got) == raw_bytes(want), f"{name}: the values differ"
    elif isinstance(want, dict):
        assert list(got) == list(want) or set(got) == set(want), f"{name}: {list(got)} is not {list(want)}"
        for key in want:
            assert_same(got[key], want[key], f"{name}.{key}")
    elif isinstance(want, (list, tuple)):
        assert type(got) is type(want), f"{name}: {type(got)} is not {type(want)}"
        assert len(got) == len(want), name
        for position, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(one, other, f"{name}[{position}]")
    else:
        assert type(got) is type(want), f"{name}: {type(got)} is not {type(want)}"
        assert got == want, f"{name}: {got!r} is not {want!r}"


def blank(state: Any) -> Any:
    """A copy of `state` to load into: the same shapes and dtypes, none of the values."""
    if isinstance(state, DTensor):
        local = state.to_local()
        return DTensor.from_local(
            _other_values(local),
            state.device_mesh,
            state.placements,
            run_check=False,
            shape=state.shape,
            stride=state.stride(),
        )
    if isinstance(state, torch.Tensor):
        return _other_values(state)
    if isinstance(state, dict):
        return {key: blank(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(blank(value) for value in state)
    return "not loaded"


def _other_values(tensor: torch.Tensor) -> torch.Tensor:
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
    if fresh.numel():
        fresh.reshape(-1).view(torch.uint8).fill_(0xA5 if tensor.dtype is not torch.bool else 1)
    return fresh


def layouts() -> dict[str, torch.Tensor]:
    """Views of every kind that are not plain contiguous memory of their own."""
    base = values((12, 10), 7)
    wide = values((4, 6), 8, torch.complex64)
    return {
        "transposed": base.t(),
        "every other row": base[::2],
        "every other column": base[:, 1::3],
        "a column": base[:, 4],
        "a block": base[3:9, 2:7],
        "rows in the middle": base[5:8],
        "expanded": values((1, 5), 9).expand(7, 5),
        "expanded scalar": values((), 10).expand(3, 4),
        "permuted": values((2, 3, 4), 11).permute(2, 0, 1),
        "channels last": values((2, 3, 4, 5), 12).to(memory_format=torch.channels_last),
        "flipped": base.flip(0),
        "conjugate": wide.conj(),
        "conjugate transposed": wide.mH,
        "negative": wide.conj().imag,
        "real part": wide.real,
        "parameter": torch.nn.Parameter(base[2:4].clone()),
        "strided parameter": torch.nn.Parameter(base.t()),
        "needs grad": values((3, 3), 13).requires_grad_() * 2,
        "empty slice": base[5:5],
        "unfolded": base.unfold(0, 4, 2),
    }


def training_state(seed: int = 0, *, objects: bool = True) -> dict[str, Any]:
    """What a job has: sharded by rows and by columns and replicated where there are ranks, plain otherwise.

    Sizes are uneven, so that ranks hold different amounts and some none.
    """
    rows, columns, few = values((10, 7), seed), values((6, 9), seed + 1), values((3, 5), seed + 2)
    half, copied = values((16, 4), seed + 3, torch.bfloat16), values((4, 4), seed + 4)
    state: dict[str, Any] = {
        "model": {"rows": rows, "columns": columns, "few": few, "half": half, "copied": copied},
        "plain": values((5, 3), seed + 5),
        "scalar": values((), seed + 6),
        "nothing": torch.empty(0, 4),
        "counts": values((9,), seed + 7, torch.int64),
    }
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        placements = {"rows": 0, "columns": 1, "few": 0, "half": 0}
        for name, dim in placements.items():
            state["model"][name] = distribute_tensor(state["model"][name], mesh, [Shard(dim)])
        state["model"]["copied"] = distribute_tensor(copied, mesh, [Replicate()])
    if objects:
        state["step"] = 41 + seed
        state["note"] = {
            "text": f"seed {seed}",
            "list": [1, 2.5, None, True],
            "nested": {"tuple": (1, "two")},
        }
    return state
