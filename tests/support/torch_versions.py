"""What an older torch lacks: a test that asks for it is skipped, by a rule that names it."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter

from s3dcp._compat import HAS_RANK_INDEXES

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
    "cannot import name 'AsyncCheckpointerType'": "torch saves in a process of its own from 2.7 on",
}
needs_rank_indexes = pytest.mark.skipif(
    not HAS_RANK_INDEXES, reason=f"torch asks for the index of a rank from 2.9 on; this is {torch.__version__}"
)
_UNEXPECTED = re.compile(r"TypeError(?:: |\(\")[\w.]*\(\) got an unexpected keyword argument '(\w+)'")


def _known() -> set[str]:
    functions = (dcp.save, dcp.load, dcp.async_save, FileSystemWriter.__init__, DefaultSavePlanner.__init__)
    return {name for function in functions for name in inspect.signature(function).parameters}


LACKING = ARGUMENTS.keys() - _known()


def _as_ever(function: Callable[..., Any]) -> Callable[..., Any]:
    """Takes what says no more than the default: without a group of processes an older torch is alone unasked."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if "no_dist" in LACKING and not (kwargs.get("no_dist") and dist.is_initialized()):
            kwargs.pop("no_dist", None)
        if "use_collectives" in LACKING and kwargs.get("use_collectives"):
            del kwargs["use_collectives"]
        return function(*args, **kwargs)

    return run


for _name in ("save", "load", "async_save") if LACKING else ():
    setattr(dcp, _name, _as_ever(getattr(dcp, _name)))


def reason(failure: str) -> str | None:
    """Why a test cannot pass with the installed torch, from what its failure says."""
    for name in _UNEXPECTED.findall(failure):
        if name in LACKING:
            return f"torch has the argument {name} from {ARGUMENTS[name]} on; this is {torch.__version__}"
    for words, why in WORDS.items() if LACKING else ():
        if words in failure:
            return f"{why}; this is {torch.__version__}"
    return None
