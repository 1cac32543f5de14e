"""Prefix strategies by name, so that one specification makes ours and the reference's."""

from __future__ import annotations

from typing import Any

Spec = tuple[str, dict[str, Any]]

WITHOUT_EPOCH: list[Spec] = [
    ("Default", {}),
    ("Numeric", {"base": 3}),
    ("Binary", {}),
    ("Hex", {}),
    ("RoundRobin", {"user_prefixes": ["p1", "p2/deep", "p3"]}),
]
WITH_EPOCH: list[Spec] = [
    (name, {**arguments, "epoch_num": 12}) for name, arguments in WITHOUT_EPOCH if name != "Default"
]
ALL = WITHOUT_EPOCH + WITH_EPOCH


def name_of(spec: Spec) -> str:
    """A short name for test ids."""
    return spec[0] + ("-epoch" if "epoch_num" in spec[1] else "")


def ours(spec: Spec) -> Any:
    """Our strategy of this specification."""
    import s3dcp

    name, arguments = spec
    return getattr(s3dcp, f"{name}PrefixStrategy")(**arguments)


def reference(spec: Spec) -> Any:
    """The reference's; its numeric base class cannot be used itself and gets the digits it lacks."""
    from s3torchconnector.dcp import s3_prefix_strategy as peer

    name, arguments = spec
    if name == "Numeric":
        return _reference_numeric()(**arguments)
    return getattr(peer, f"{name}PrefixStrategy")(**arguments)


def _reference_numeric() -> Any:
    from s3torchconnector.dcp import NumericPrefixStrategy

    class Numeric(NumericPrefixStrategy):
        def _format_number(self, number: int, length: int) -> str:
            digits = ""
            while number or not digits:
                digits = "0123456789abcdefghijklmnopqrstuvwxyz"[number % self.base] + digits
                number //= self.base
            return digits.rjust(length, "0")

    return Numeric
