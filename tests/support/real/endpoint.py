"""An S3 server that runs elsewhere, with the interface of ``s3dcp.testing.Server`` as far as tests use it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and keys that may do everything there."""

    endpoint_url: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    authority: None = None

    @cached_property
    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}),
        )

    def create_bucket(self, name: str) -> None:
        """Make a bucket."""
        self._client.create_bucket(Bucket=name)

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with everything in it."""
        try:
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=name):
                for upload in page.get("Uploads", []):
                    self._client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
        except self._client.exceptions.ClientError as error:
            # Where uploads are not listed, none keeps a bucket.
            if error.response["Error"]["Code"] not in ("MethodNotAllowed", "NotImplemented"):
                raise
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=name):
            if objects := [{"Key": entry["Key"]} for entry in page.get("Contents", [])]:
                self._client.delete_objects(Bucket=name, Delete={"Objects": objects, "Quiet": True})
        self._client.delete_bucket(Bucket=name)
