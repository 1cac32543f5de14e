"""From a plan's item to its data, checked: the tensor or the pickled object that a save stores.

A planner's ``resolve_data`` costs more than a small tensor does. Where the planner is torch's own in this, the
plain tensors of its state dict are looked up here instead; all else, and all of any other planner, goes through it.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType

from .._hooks import answers_like
from .._replicas import resolve_data
from .._tensors import PLAIN_TENSORS
from .._trust import WAY_OUT, refusal
from ..errors import shown

_TENSOR = WriteItemType.TENSOR
_SCALARS = frozenset((bool, int, float, str, type(None)))
_HOOKS = ("resolve_data", "lookup_object", "transform_object")


class Resolver:
    """Gives the data of the items of `planner`'s plan."""

    def __init__(self, planner: SavePlanner) -> None:
        self._planner = planner
        self._state: dict[str, Any] = {}
        self._is_default = answers_like(DefaultSavePlanner, planner, _HOOKS, {"resolve_data": resolve_data})
        if self._is_default:
            state = getattr(planner, "state_dict", None)
            self._state = state if isinstance(state, dict) else {}

    def tensor(self, item: WriteItem) -> torch.Tensor:
        """The tensor of `item`, checked against the plan, which may be a cached one of an earlier save.

        A planner with a ``resolve_data`` of its own may give another dtype than it planned.

        Raises:
            ValueError: the planner gave something else than its plan says.
        """
        index, planned = item.index, item.tensor_data
        assert planned is not None
        chunk = planned.chunk
        tensor: Any = self._state.get(index.fqn)
        if (
            type(tensor) not in PLAIN_TENSORS
            or item.type is not _TENSOR
            or (index.offset is not None and (any(index.offset) or len(index.offset) != tensor.dim()))
            or hasattr(tensor, "global_shape")
        ):
            tensor = self._planner.resolve_data(item)
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{shown(index.fqn)}: the planner gave {type(tensor).__name__} for a tensor")
            tensor = tensor.detach()
        is_planned = tensor.dtype == planned.properties.dtype or not self._is_default
        if not is_planned or tensor.shape != tuple(chunk.sizes):
            raise ValueError(
                f"{shown(index.fqn)}: the tensor is {tensor.dtype} {tuple(tensor.size())}, but the save plan says "
                f"{planned.properties.dtype} {tuple(chunk.sizes)}; a planner with enable_plan_caching=True must not "
                "be used for another state"
            )
        found: torch.Tensor = tensor
        return found

    def object(self, item: WriteItem) -> io.BytesIO:
        """The pickled object of `item`; warns of one that readers refuse unless made with ``weights_only=False``.

        Raises:
            ValueError: the planner gave something else.
        """
        data = self._planner.resolve_data(item)
        if not isinstance(data, io.BytesIO):
            raise ValueError(
                f"{shown(item.index.fqn)}: the planner gave {type(data).__name__} for an object, not BytesIO"
            )
        if item.index.fqn in self._state and _is_harmless(self._state[item.index.fqn]):
            return data
        warn_if_refused(item.index.fqn, "object", data)
        return data


def warn_if_refused(name: str, what: str, stream: io.BytesIO) -> None:
    """Warn of what readers will refuse to load from `stream` unless told otherwise."""
    if refusal(stream) is not None:
        warnings.warn(
            f"{shown(name)}: loading this {what} runs code from the checkpoint; it will need {WAY_OUT}", stacklevel=2
        )


def _is_harmless(value: Any) -> bool:
    """Whether any unpickler takes `value`: a number, a text or None, exactly of these types."""
    return type(value) in _SCALARS and (type(value) is not int or value.bit_length() < 64)
