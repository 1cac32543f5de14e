"""How S3 is reached: what the arguments say, else what `s3dcp.configure` was told, else the environment."""

from __future__ import annotations

import os

from .. import _native
from .._client import client_for
from ..checkpoint_id import client_settings
from ..client_config import S3ClientConfig

Path = str | os.PathLike[str]


def reached(
    path: Path, region: str | None, endpoint_url: str | None, s3client_config: S3ClientConfig | None
) -> tuple[_native.Client, str]:
    """A place as native code takes it."""
    given = {"region": region, "endpoint_url": endpoint_url, "s3client_config": s3client_config}
    settings = {**client_settings(), **{name: value for name, value in given.items() if value is not None}}
    client = client_for(settings.get("region"), settings.get("endpoint_url"), settings.get("s3client_config"))
    return client, os.fspath(path)
