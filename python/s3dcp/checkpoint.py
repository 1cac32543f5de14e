"""`S3Checkpoint`: streams for ``torch.save`` and ``torch.load``."""

from __future__ import annotations

import io
import os

from .client_config import S3ClientConfig
from .file_system import ObjectWriter, S3FileSystem, open_reader, split_path

__all__ = ["S3Checkpoint"]


class S3Checkpoint:
    """One file with a whole state, on S3; drop-in for the class of this name in ``s3torchconnector``::

        checkpoint = S3Checkpoint("us-east-1")
        with checkpoint.writer("s3://bucket/model.pt") as writer:
            torch.save(model.state_dict(), writer)
        with checkpoint.reader("s3://bucket/model.pt") as reader:
            model.load_state_dict(torch.load(reader))

    Bytes go up while later ones are still written, and come as they are asked for: neither needs the file in memory.

    Args:
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        endpoint: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        s3client_config: settings of the S3 client.
    """

    def __init__(
        self, region: str | None, endpoint: str | None = None, s3client_config: S3ClientConfig | None = None
    ) -> None:
        self.region = region
        self.endpoint = endpoint
        self._files = S3FileSystem(region, s3client_config=s3client_config, endpoint_url=endpoint)

    def reader(self, s3_uri: str | os.PathLike[str]) -> io.BufferedReader:
        """A seekable stream over the object at `s3_uri`.

        Raises:
            NotFound: there is none.
            ConfigError: `s3_uri` is no S3 URI.
        """
        return open_reader(self._files.client, *split_path(s3_uri, "s3_uri"))

    def writer(self, s3_uri: str | os.PathLike[str]) -> ObjectWriter:
        """A stream whose bytes are the object at `s3_uri` once it is closed.

        When the body of its ``with`` statement raises, nothing is left, and what was there before stays.

        Raises:
            ConfigError: `s3_uri` is no S3 URI.
        """
        return ObjectWriter(self._files.client, *split_path(s3_uri, "s3_uri"))
