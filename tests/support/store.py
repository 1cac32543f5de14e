"""A bucket as an independent client (boto3) sees it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

REGION = "us-east-1"


def boto_client(endpoint_url: str | None = None) -> Any:
    """A boto3 client of the endpoint in the environment, or of `endpoint_url`."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
    )


class Store:
    """One bucket. `uri` is a path in it for a checkpoint, `path` the same as a key."""

    def __init__(self, bucket: str, client: Any) -> None:
        self.bucket = bucket
        self.client = client
        self.path = "jobs/run 1/ckpt"
        self.uri = f"s3://{bucket}/{self.path}"

    def listing(self, prefix: str = "") -> dict[str, tuple[int, str]]:
        """Size and ETag of every object, by key."""
        objects = {}
        # Directory buckets list folders only.
        folder = prefix[: prefix.rfind("/") + 1]
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=folder):
            for entry in page.get("Contents", []):
                if entry["Key"].startswith(prefix):
                    objects[entry["Key"]] = (entry["Size"], entry["ETag"])
        return objects

    def all_keys(self, prefix: str = "") -> list[str]:
        """All keys in order."""
        return sorted(self.listing(prefix))

    def names(self) -> list[str]:
        """Keys below `path`, relative to it, in order."""
        return [key.removeprefix(f"{self.path}/") for key in self.all_keys(f"{self.path}/")]

    def shards(self) -> list[str]:
        """Names of all shard files below `path`, relative to it."""
        return [name for name in self.names() if name.endswith(".distcp")]

    def uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [upload["Key"] for upload in answer.get("Uploads", [])]

    def parts(self, name: str) -> int:
        """Of how many parts the object called `name` below `path` was made, as its ETag tells; 0 for one PUT."""
        address = {"Bucket": self.bucket, "Key": f"{self.path}/{name}"}
        if self.bucket.endswith("--x-s3"):
            # ETags of directory buckets tell nothing.
            return int(self.client.head_object(**address, PartNumber=1).get("PartsCount", 0))
        etag = self.client.head_object(**address)["ETag"].strip('"')
        return int(etag.partition("-")[2] or 0)

    def read(self, name: str) -> bytes:
        """The object called `name` below `path`."""
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=f"{self.path}/{name}")["Body"].read()
        return body

    def write(self, name: str, body: bytes) -> None:
        """Put an object called `name` below `path`."""
        self.client.put_object(Bucket=self.bucket, Key=f"{self.path}/{name}", Body=body)

    def delete(self, name: str) -> None:
        """Delete the object called `name` below `path`."""
        self.client.delete_object(Bucket=self.bucket, Key=f"{self.path}/{name}")

    def sweep(self) -> None:
        """Delete what saves that were killed or interrupted left: what the index at `path` does not name."""
        named = {info.relative_path for info in pickle.loads(self.read(".metadata")).storage_data.values()}
        for name in set(self.shards()) - named:
            self.delete(name)
        for upload in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def download(self, folder: Path) -> Path:
        """A copy of everything below `path` in `folder`."""
        for name in self.names():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read(name))
        return folder

    def upload(self, folder: Path) -> None:
        """Copy every file of `folder` to below `path`."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.write(file.relative_to(folder).as_posix(), file.read_bytes())
