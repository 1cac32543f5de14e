"""What an older torch lacks: a test that asks for it is skipped, by a rule that names it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Set
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.utils import _DistWrapper

from s3dcp._compat import HAS_RANK_INDEXES, SerializationFormat

# Arguments of torch's own functions, and the version that brought each.
ARGUMENTS = {
    "no_dist": "2.8",
    "use_collectives": "2.9",
    "async_checkpointer_type": "2.7",
    "async_stager": "2.9",
    "serialization_format": "2.8",
    "_extensions": "2.7",
    "enable_plan_caching": "2.7",
}
# What failures say of other things that an older torch lacks.
WORDS = {
    "'Stream' object has no attribute 'record_event'": "fully_shard on CPUs works from 2.7 on",
    "has no attribute 'HuggingFaceStorage": "torch has safetensors in Hugging Face's layout from 2.8 on",
    "cannot import name 'AsyncCheckpointerType'": "torch saves in a process of its own from 2.7 on",
}
# What an argument is where it is not given.
DEFAULTS = {
    "no_dist": False,
    "use_collectives": True,
    "serialization_format": SerializationFormat.TORCH_SAVE,
    "_extensions": None,
}
needs_rank_indexes = pytest.mark.skipif(
    not HAS_RANK_INDEXES, reason=f"torch asks for the index of a rank from 2.9 on; this is {torch.__version__}"
)
needs_groups_without_rank_0 = pytest.mark.skipif(
    not hasattr(_DistWrapper(None, False, 0), "global_coordinator_rank"),
    reason=f"torch saves by groups that rank 0 is not in from 2.8 on at the latest; this is {torch.__version__}",
)
_UNEXPECTED = re.compile(r"TypeError(?:: |\(\")[\w.]*\(\) got an unexpected keyword argument '(\w+)'")


def _known() -> set[str]:
    functions = (dcp.save, dcp.load, dcp.async_save, FileSystemWriter.__init__, DefaultSavePlanner.__init__)
    return {name for function in functions for name in inspect.signature(function).parameters}


LACKING = ARGUMENTS.keys() - _known()


def needs(argument: str) -> pytest.MarkDecorator:
    """Skips where torch lacks an argument and a test would end in another way than by a TypeError that says so."""
    return pytest.mark.skipif(argument in LACKING, reason=_lacks(argument))


def _lacks(argument: str) -> str:
    return f"torch has the argument {argument} from {ARGUMENTS[argument]} on; this is {torch.__version__}"


def without_defaults(arguments: dict[str, Any], lacking: Set[str] = LACKING) -> dict[str, Any]:
    """The arguments but for those that torch lacks and that say no more than the default."""
    return {
        name: value
        for name, value in arguments.items()
        if not (name in lacking and name in DEFAULTS and value == DEFAULTS[name])
    }


def _as_ever(function: Callable[..., Any]) -> Callable[..., Any]:
    """Takes what says no more than the default: without a group of processes an older torch is alone unasked."""
    lacking = ARGUMENTS.keys() - inspect.signature(function).parameters

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if "no_dist" in lacking and not dist.is_initialized():
            kwargs.pop("no_dist", None)
        return function(*args, **without_defaults(kwargs, lacking))

    return run


for _name in ("save", "load", "async_save") if LACKING else ():
    setattr(dcp, _name, _as_ever(getattr(dcp, _name)))


def reason(failure: str) -> str | None:
    """Why a test cannot pass with the installed torch, from what its failure says."""
    for name in _UNEXPECTED.findall(failure):
        if name in LACKING:
            return _lacks(name)
    for words, why in WORDS.items() if LACKING else ():
        if words in failure:
            return f"{why}; this is {torch.__version__}"
    return None
