"""Which paths are ours, where a framework takes local ones too."""

from __future__ import annotations

import os
from typing import Any

from .file_system import split_path

__all__ = ["is_on_s3"]


def is_on_s3(path: Any, argument: str) -> bool:
    """Whether `path` is an S3 URI; one that was meant to be is refused, for it would become a local folder ``s3:``.

    Raises:
        ConfigError: it begins as an S3 URI does, and is none; the message names `argument`.
    """
    if not isinstance(path, (str, os.PathLike)):
        return False
    text = os.fspath(path)
    if not isinstance(text, str) or not text.lower().startswith(("s3:/", "s3dcp:/")):
        return False
    split_path(path, argument)
    return True
