"""What may be passed over: the hooks that a user's object has as torch's class defines them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

__all__ = ["answers_like"]


def answers_like(
    default: type, planner: object, hooks: Iterable[str], ours: Mapping[str, Callable[..., object]] | None = None
) -> bool:
    """Whether `planner` has the `hooks` of torch's class `default`: none overridden in a subclass or on the object.

    Those of `ours`, by the hook's name, are as good: they answer the same where it matters to the caller.
    """

    def is_known(hook: str) -> bool:
        found = getattr(getattr(planner, hook), "__func__", None)
        return found is not None and found in (getattr(default, hook), (ours or {}).get(hook))

    return isinstance(planner, default) and all(map(is_known, hooks))
