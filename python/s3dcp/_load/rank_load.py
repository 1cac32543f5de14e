"""One rank's load: from the items of a plan to bytes in tensors.

Stored bytes of the tensor's own dtype go straight into the tensor's memory, in whatever runs they lie there.
Everything else (other dtype, other device, odd layouts, objects) passes through the slots of a `Transfer`, out of which
torch copies it.

The most usual item by far, a whole plain tensor in memory of its own kind, has a path of its own: torch's default
planner is not asked for what it would answer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list

from .. import _native
from .._compat import ReaderTransforms
from .._hooks import answers_like
from .._tensors import PLAIN_TENSORS, is_direct, is_plain
from ..errors import Corrupt, shown
from .objects import Objects
from .staged import copy_through_slots
from .transfer import Transfer

# What a planner must not have overridden for its targets to be known without asking it.
PLANNER_HOOKS = ("resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor")


class RankLoad:
    """One rank's load.

    Args:
        client: the native client.
        bucket, path_key: where the index is; its relative paths start there.
        metadata: the index.
        transforms: torch's stream extensions.
        verify: compare with the checksums in the index.
        weights_only: refuse objects that ``torch.load(weights_only=True)`` refuses.
        is_part: the index may be that of one rank alone, whose tensors may lie in others' indexes too.
    """

    def __init__(
        self,
        client: _native.Client,
        bucket: str,
        path_key: str,
        metadata: Metadata,
        transforms: ReaderTransforms,
        verify: bool,
        weights_only: bool,
        is_part: bool = False,
    ) -> None:
        self._metadata = metadata
        self._is_part = is_part
        self._transfer = Transfer(client, bucket, path_key, verify)
        self._objects = Objects(transforms, weights_only)

    def expected_bytes(self, plan: LoadPlan) -> int:
        """About how many bytes the load will move."""
        total = 0
        for item in plan.items:
            tensor = self._metadata.state_dict_metadata.get(item.storage_index.fqn)
            if isinstance(tensor, TensorStorageMetadata):
                total += math.prod(item.lengths) * tensor.properties.dtype.itemsize
            elif item.storage_index in self._metadata.storage_data:
                total += self._metadata.storage_data[item.storage_index].length
        return total

    def run(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Load every item of `plan`; returns when all bytes are in place and verified.

        All that is wanted is judged before any of it is loaded.
        """
        transfer = self._transfer
        state = _state(planner)
        found = transfer.load.find(self._metadata, list(plan.items), state)
        for name in found.with_holes:
            self._must_hold_all(name, state.get(name))
        transfer.load.read_heads(found.items)
        targets = _plain_targets(planner)
        with transfer.load:
            for stored in found.items:
                target: Any = targets.get(stored.item.dest_index.fqn) if stored.is_whole else None
                if (
                    type(target) in PLAIN_TENSORS
                    and target.dtype is stored.dtype
                    and target.shape == stored.item.lengths
                    and target.is_contiguous()
                    and is_plain(target)
                    and is_direct(target)
                    and not hasattr(target, "__get_tensor_shard__")
                ):
                    transfer.direct(stored, target)
                elif stored.dtype is None:
                    self._objects.load(stored, planner, transfer)
                else:
                    self._tensor(stored, planner)
            transfer.finish()

    def _must_hold_all(self, name: str, wanted: Any) -> None:
        """Refuse a tensor with holes, unless a rank saved its part alone and no more than that is wanted."""
        tensor: Any = self._metadata.state_dict_metadata[name]
        if self._is_part:
            try:
                if _native.chunks_hold(tensor, _create_chunk_list(wanted)):
                    return
            except ValueError:
                pass  # not a tensor of a kind that torch can take apart
        raise Corrupt(
            f"{name}: its {len(tensor.chunks)} chunks in the index do not fill its shape {tuple(tensor.size)}: "
            "parts of this tensor are missing"
        )

    def _tensor(self, stored: _native.StoredItem, planner: LoadPlanner) -> None:
        item, transfer = stored.item, self._transfer
        target = planner.resolve_tensor(item).detach()
        lengths = tuple(item.lengths)
        if tuple(target.size()) != lengths:
            raise ValueError(
                f"{shown(stored.name)}: the tensor to load into is {tuple(target.size())}, the plan wants {lengths}"
            )
        _refuse_repeated(target)
        after = transfer.at_last
        if 0 in lengths or (
            type(target) is torch.Tensor
            and target.dtype is stored.dtype
            and is_plain(target)
            and is_direct(target)
            and stored.fits(target.stride())
        ):
            transfer.direct(stored, target, None if target.is_contiguous() else target.stride())
        else:
            copy_through_slots(stored, target, transfer)
            after = transfer.then
        after(lambda: planner.commit_tensor(item, target))


def _state(planner: LoadPlanner) -> dict[str, Any]:
    """What a load wants, by name, where `planner` shows it as torch's default planner does."""
    state = getattr(planner, "state_dict", None)
    return state if isinstance(state, dict) else {}


def _plain_targets(planner: LoadPlanner) -> dict[str, Any]:
    """The state by name, where `planner` answers with what is in it, as torch's default planner does; else nothing."""
    if not answers_like(DefaultLoadPlanner, planner, PLANNER_HOOKS):
        return {}
    state = planner.state_dict  # type: ignore[attr-defined]
    return state if type(state) is dict else {}


def _refuse_repeated(target: torch.Tensor) -> None:
    """Let torch refuse a tensor that repeats elements, as an expanded one does: pieces of it might not be seen to.

    Raises:
        RuntimeError: torch's own.
    """
    if target.layout is torch.strided and any(
        step == 0 and size > 1 for size, step in zip(target.shape, target.stride(), strict=True)
    ):
        target.copy_(target.new_empty(()).expand(target.shape))
