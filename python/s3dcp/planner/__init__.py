"""`FastSavePlanner` and `FastLoadPlanner`: torch's default planners, several times faster, with the same plans.

torch's default planners spend tens of microseconds on every tensor of a state, most of it in ``isinstance`` checks
against runtime protocols and in full garbage collections. These planners are subclasses whose methods are torch's
own, run with faster functions where torch's call a helper (`_flatten`, `_save_plan`, `_load_plan`). Nothing of torch
is changed, and what its methods do around the helpers, such as caching plans, stays what the installed version does.
Where a helper of the installed torch differs from what is known here (`_check`), torch's own is used and a warning is
logged. What these planners do beyond torch's, on demand, stands in `_replicas`.
"""

from __future__ import annotations

import dis
import functools
import logging
import types
from typing import Any, TypeVar

from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from .. import _replicas
from .._compat import PLANS_IN_TWO_STEPS
from ._check import replacements

__all__ = ["FastLoadPlanner", "FastSavePlanner"]

logger = logging.getLogger(__name__)

_helpers, _unfit = replacements()
if _unfit:
    logger.warning(
        "this version of torch plans differently: its own %s will be used, which is slower", ", ".join(_unfit)
    )
_namespace: dict[str, Any] = {**vars(default_planner), **_helpers}

Planner = TypeVar("Planner", bound=type)


def _globals_of(function: types.FunctionType) -> set[str]:
    return {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}


def _with_helpers(cls: Planner) -> Planner:
    """Gives `cls` those methods of its base that name a helper, run with the faster ones."""
    for name, method in vars(cls.__base__).items():
        if isinstance(method, types.FunctionType) and not _helpers.keys().isdisjoint(_globals_of(method)):
            faster = types.FunctionType(
                method.__code__, _namespace, method.__name__, method.__defaults__, method.__closure__
            )
            faster.__kwdefaults__ = method.__kwdefaults__
            setattr(cls, name, functools.update_wrapper(faster, method))
    return cls


@_with_helpers
class _FasterSavePlanner(DefaultSavePlanner):
    """torch's ``DefaultSavePlanner``, with the faster helpers."""


class FastSavePlanner(_FasterSavePlanner):
    """torch's ``DefaultSavePlanner``, several times faster for states of many tensors.

    Takes the same arguments and makes the same plans and the same index; other ranks may use torch's planner in the
    same save. Subclasses override what they would override there. Pass one to ``dcp.save`` or ``dcp.async_save`` as
    ``planner``.

    Args:
        split_replicated: whether the ranks that have all of a large tensor, as those of ``DistributedDataParallel`` do,
            each write some of its rows, so that all ranks write as much; otherwise one writes it while the others wait.
            True for tensors of 64 MiB and more, a number for tensors of so many bytes. The checkpoint is plain DCP. All
            ranks of a save use this planner then, with the same value.
        args, kwargs: those of ``DefaultSavePlanner``.

    Raises:
        ConfigError: `split_replicated` is neither a bool nor a number of bytes.
    """

    def __init__(self, *args: Any, split_replicated: bool | int = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._split_from = _replicas.split_from(split_replicated)
        if self._split_from is not None:
            # Plans that were made otherwise are no use.
            self._cached_plans_key = f"{type(self).__name__}, split from {self._split_from}"

    resolve_data = _replicas.resolve_data

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """As torch's, with replicated tensors split."""
        return super().create_global_plan(all_plans if PLANS_IN_TWO_STEPS else self._split(all_plans))

    def _create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return super()._create_global_plan(self._split(all_plans))

    def _split(self, all_plans: list[SavePlan]) -> list[SavePlan]:
        if self._split_from is None:
            return all_plans
        dedup = functools.partial(_namespace["dedup_save_plans"], save_to_lowest_rank=self.dedup_save_to_lowest_rank)
        return _replicas.split_replicated(all_plans, self._split_from, dedup)


@_with_helpers
class FastLoadPlanner(DefaultLoadPlanner):
    """torch's ``DefaultLoadPlanner``, several times faster for states of many tensors.

    Takes the same arguments, makes the same plans and refuses the same states with the same errors; other ranks may
    use torch's planner in the same load. Subclasses override what they would override there. Pass one to
    ``dcp.load`` as ``planner``.
    """
