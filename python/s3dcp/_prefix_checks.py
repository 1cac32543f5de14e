"""Checks of what prefix strategies are given: each error names the argument, its value and the limit."""

from __future__ import annotations

import operator

from . import _native


def integer(argument: str, value: object, low: int, high: int) -> int:
    """`value` as an int; other integer types such as numpy's count, bool does not."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{argument} must be an integer from {low} to {high}, got {_shown(value)}")
    return number


def epoch(epoch_num: object) -> int | None:
    """`epoch_num` if it is an integer of any size or None; a bool stays one and prints as such."""
    if epoch_num is None:
        return None
    try:
        number = operator.index(epoch_num)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"epoch_num must be an integer or None, got {_shown(epoch_num)}") from None
    _fits_a_key("epoch_num", number)
    return epoch_num if isinstance(epoch_num, int) else number


def epoch_part(epoch_num: int | None) -> str:
    return "" if epoch_num is None else f"epoch_{epoch_num}/"


def rank_text(rank: int) -> str:
    _fits_a_key("rank", operator.index(rank))
    return f"{rank}"


def _fits_a_key(argument: str, number: int) -> None:
    """Refuse numbers with more digits than a key has bytes before Python's own limit on digits does."""
    if number.bit_length() > 8 * _native.MAX_KEY_BYTES:
        raise ValueError(
            f"{argument} has too many digits for a key on S3 of at most {_native.MAX_KEY_BYTES} bytes, "
            f"got {_shown(number)}"
        )


def user_prefix_list(argument: str, prefixes: object) -> list[str] | tuple[str, ...]:
    """`prefixes`, checked; a list is copied, so that the caller's may change without the strategy."""
    if not isinstance(prefixes, (list, tuple)):
        raise ValueError(f"{argument} must be a list or tuple of strings, got {_shown(prefixes)}")
    if not prefixes:
        raise ValueError(f"{argument} must have at least 1 prefix, got {_shown(prefixes)}")
    checked = [user_prefix(argument, position, prefix) for position, prefix in enumerate(prefixes)]
    return checked if isinstance(prefixes, list) else tuple(checked)


def user_prefix(argument: str, position: int, prefix: object) -> str:
    if not isinstance(prefix, str):
        raise ValueError(f"{argument}[{position}] must be a string, got {_shown(prefix)}")
    text = f"{prefix}"
    try:
        _native.check_user_prefix(f"{argument}[{position}]", text)
    except UnicodeEncodeError:
        raise ValueError(f"{argument}[{position}] is not valid Unicode, got {_shown(prefix)}") from None
    return text


def within_key(argument: str, value: object, prefix: str) -> str:
    """`prefix`, unless S3 could not even take it as a whole key; `argument` is what makes it long."""
    size = len(prefix) if prefix.isascii() else len(prefix.encode())
    if size > _native.MAX_KEY_BYTES:
        raise ValueError(
            f"{argument} makes a prefix of {size} bytes; a whole key on S3 has at most "
            f"{_native.MAX_KEY_BYTES} bytes, got {_shown(value)}"
        )
    return prefix


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python is willing to print
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 100 else f"{text[:100]}..."
