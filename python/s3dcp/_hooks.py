"""What may be passed over: the hooks that a user's object has as torch's class defines them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["answers_like"]


def answers_like(default: type, planner: object, hooks: Iterable[str]) -> bool:
    """Whether `planner` has the `hooks` of torch's class `default`: none overridden in a subclass or on the object."""
    return isinstance(planner, default) and all(
        getattr(getattr(planner, hook), "__func__", None) is getattr(default, hook) for hook in hooks
    )
