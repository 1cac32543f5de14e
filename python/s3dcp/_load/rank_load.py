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
from ..errors import ConfigError, Corrupt, shown
from .entries import expect
from .exchange import Exchange, Group
from .objects import Objects
from .share import Share
from .shared_items import SharedItems
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

    def expected_bytes(self, plan: LoadPlan, share: Share | None = None) -> int:
        """About how many bytes the load will fetch."""
        total = -share.received if share is not None else 0
        for item in plan.items:
            tensor = self._metadata.state_dict_metadata.get(item.storage_index.fqn)
            if isinstance(tensor, TensorStorageMetadata):
                total += math.prod(item.lengths) * tensor.properties.dtype.itemsize
            elif item.storage_index in self._metadata.storage_data:
                total += self._metadata.storage_data[item.storage_index].length
        return total

    def run(self, plan: LoadPlan, planner: LoadPlanner, share: Share | None = None, deadline: float = 0.0) -> None:
        """Load every item of `plan`; returns when all bytes are in place and verified.

        All that is wanted is judged before any of it is loaded. What is shared with other ranks comes first; `deadline`
        is that of their requests.
        """
        group = Group.connect(share, deadline) if share is not None else None
        failure: Exception | None = None
        items: list[_native.StoredItem] = []
        try:
            items = self._judged(plan, planner)
        except Exception as error:
            if group is None:
                raise
            failure = error  # the others are told
        targets = _plain_targets(planner)
        with self._transfer.load:
            if share is not None and group is not None:
                items = self._load_shared(share, group, plan, planner, items, failure)
            self._load_alone(items, planner, targets)
            self._transfer.finish()

    def _judged(self, plan: LoadPlan, planner: LoadPlanner) -> list[_native.StoredItem]:
        """Where the items of a plan are stored, file by file."""
        load = self._transfer.load
        state = _state(planner)
        expect(self._metadata.storage_data, len(plan.items))
        found = load.find(self._metadata, list(plan.items), state)
        for name in found.with_holes:
            self._must_hold_all(name, state.get(name))
        load.read_heads(found.items)
        return found.items

    def _load_shared(
        self,
        share: Share,
        group: Group,
        plan: LoadPlan,
        planner: LoadPlanner,
        items: list[_native.StoredItem],
        failure: Exception | None,
    ) -> list[_native.StoredItem]:
        """Load what is shared with other ranks; the items that are not."""
        shared = share.numbers
        if failure is None and len(plan.items) != share.items:
            failure = ConfigError(
                f"the planner made {len(plan.items)} items of {share.items}, which ranks were to share"
            )
        numbers = {id(plan.items[number]): number for number in shared} if failure is None else {}
        by_number = {numbers[id(each.item)]: each for each in items if id(each.item) in numbers}
        targets = Targets(planner)
        portions = SharedItems(by_number, targets, self._objects, planner, self._transfer)
        Exchange(share, group, portions, failure).run()
        return [each for each in items if id(each.item) not in numbers]

    def _load_alone(self, items: list[_native.StoredItem], planner: LoadPlanner, targets: dict[str, Any]) -> None:
        """Start to load what no other rank fetches for this one."""
        transfer = self._transfer
        for stored in items:
            target: Any = targets.get(stored.item.dest_index.fqn) if stored.is_whole else None
            if _takes_all(target, stored):
                transfer.direct(stored, target)
            elif stored.dtype is None:
                self._objects.load(stored, planner, transfer)
            else:
                self._tensor(stored, planner)

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
        target = _resolved(stored, planner)
        after = transfer.at_last
        if 0 in item.lengths or (_is_of_its_kind(target, stored) and stored.fits(target.stride())):
            transfer.direct(stored, target, None if target.is_contiguous() else target.stride())
        else:
            copy_through_slots(stored, target, transfer)
            after = transfer.then
        after(lambda: planner.commit_tensor(item, target))


class Targets:
    """The tensors of a load: see `shared_items.Tensors`."""

    def __init__(self, planner: LoadPlanner) -> None:
        self._planner = planner
        self._plain = _plain_targets(planner)

    def target(self, stored: _native.StoredItem) -> tuple[torch.Tensor, bool]:
        """The tensor that an item is loaded into, and whether bytes go there as they are, one element after another."""
        target: Any = self._plain.get(stored.item.dest_index.fqn) if stored.is_whole else None
        if _takes_all(target, stored):
            return target.detach(), True
        target = _resolved(stored, self._planner)
        return target, _is_of_its_kind(target, stored) and target.is_contiguous()

    def commit(self, stored: _native.StoredItem, target: torch.Tensor) -> None:
        """All of an item is in its tensor."""
        self._planner.commit_tensor(stored.item, target)


def _takes_all(target: Any, stored: _native.StoredItem) -> bool:
    """Whether a tensor takes the bytes of an item as they are, one after another, without asking the planner."""
    return (
        type(target) in PLAIN_TENSORS
        and target.dtype is stored.dtype
        and target.shape == stored.item.lengths
        and target.is_contiguous()
        and is_plain(target)
        and is_direct(target)
        and not hasattr(target, "__get_tensor_shard__")
    )


def _is_of_its_kind(target: torch.Tensor, stored: _native.StoredItem) -> bool:
    """Whether the elements of an item are those of the tensor in host memory."""
    return type(target) is torch.Tensor and target.dtype is stored.dtype and is_plain(target) and is_direct(target)


def _resolved(stored: _native.StoredItem, planner: LoadPlanner) -> torch.Tensor:
    """The planner's tensor for an item.

    Raises:
        ValueError: it is of another shape.
        RuntimeError: torch's, of one that repeats elements.
    """
    target = planner.resolve_tensor(stored.item).detach()
    lengths = tuple(stored.item.lengths)
    if tuple(target.size()) != lengths:
        raise ValueError(
            f"{shown(stored.name)}: the tensor to load into is {tuple(target.size())}, the plan wants {lengths}"
        )
    _refuse_repeated(target)
    return target


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
