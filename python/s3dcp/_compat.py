"""What the versions of torch that are supported do not share; 2.6 is the oldest.

Where a version lacks something, what stands here does nothing: no item of that torch asks for it.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

from torch.distributed.checkpoint import filesystem, state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

__all__ = [
    "HAS_RANK_INDEXES",
    "INDEX_VERSION",
    "PLANS_IN_TWO_STEPS",
    "ExtensionRegistry",
    "ReaderTransforms",
    "SerializationFormat",
    "WriterTransforms",
    "own_connection",
    "takes_no_dist",
]

# From 2.9 on ranks save without collectives, and a load asks for a rank's index where there is none of all ranks.
HAS_RANK_INDEXES = "use_collectives" in inspect.signature(state_dict_saver.save).parameters

# Written into the index from 2.9 on.
INDEX_VERSION: str | None = getattr(filesystem, "CURRENT_DCP_VERSION", None)

# From 2.7 on the default planner makes global plans in a method of its own, beneath the one that caches them.
PLANS_IN_TWO_STEPS = hasattr(DefaultSavePlanner, "_create_global_plan")

try:  # 2.7
    from torch.distributed.checkpoint._extension import ExtensionRegistry
    from torch.distributed.checkpoint.filesystem import (
        _StorageReaderTransforms as ReaderTransforms,
    )
    from torch.distributed.checkpoint.filesystem import (
        _StorageWriterTransforms as WriterTransforms,
    )
except ImportError:

    class ExtensionRegistry:  # type: ignore[no-redef]
        """What knows the stream extensions, which this torch does not have."""

    class WriterTransforms:  # type: ignore[no-redef]
        """A save without stream extensions."""

        extensions = ()

    class ReaderTransforms:  # type: ignore[no-redef]
        """A load without stream extensions."""

        def __init__(self, registry: ExtensionRegistry | None = None) -> None:
            if registry is not None:
                raise ValueError("_extension_registry: torch has stream extensions from 2.7 on")

        def transform_load_stream(self, item: Any, descriptors: Any, stream: Any) -> Any:
            """Refuse what an extension wrote."""
            raise ValueError(
                f"{item.storage_index.fqn}: was written through the stream extensions {', '.join(descriptors)}, which "
                "torch has from 2.7 on"
            )


try:  # 2.8
    from torch.distributed.checkpoint.filesystem import SerializationFormat
except ImportError:

    class SerializationFormat(enum.Enum):  # type: ignore[no-redef]
        """The one format of this torch."""

        TORCH_SAVE = "torch_save"
        SAFETENSORS = "safetensors"


def takes_no_dist(function: Callable[..., Any]) -> bool:
    """Whether a save or load of torch is told that there is no process group: from 2.8 on, `async_save` from 2.9 on."""
    return "no_dist" in inspect.signature(function).parameters


def own_connection(store: Any) -> Any:
    """A connection to a store that nobody else waits on; where this torch can make none, the store itself."""
    return store.clone() if hasattr(store, "clone") else store
