"""S3 requests by hand, as boto3 sends them."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from s3dcp import testing

MIB = 1 << 20
BUCKET = "checkpoints"


def connect(server: testing.Server, **changes: Any) -> Any:
    """A boto3 client of `server` that tries each request once."""
    config: dict[str, Any] = {"retries": {"total_max_attempts": 1}, **changes.pop("config", {})}
    arguments: dict[str, Any] = {
        "endpoint_url": server.endpoint_url,
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
        "region_name": "us-east-1",
        "config": Config(**config),
        **changes,
    }
    return boto3.client("s3", **arguments)


def refusal(call: Callable[..., Any], **arguments: Any) -> tuple[str, int]:
    """The error code and status with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def put(s3: Any, key: str, body: bytes = b"", **arguments: Any) -> Any:
    return s3.put_object(Bucket=BUCKET, Key=key, Body=body, **arguments)


def get(s3: Any, key: str, **arguments: Any) -> bytes:
    body: bytes = s3.get_object(Bucket=BUCKET, Key=key, **arguments)["Body"].read()
    return body


def crc32(body: bytes) -> str:
    return checksum_of("CRC32", body)


class Upload:
    """A multipart upload made by hand."""

    def __init__(self, s3: Any, key: str, **arguments: Any) -> None:
        self.s3 = s3
        self.checked = "ChecksumAlgorithm" in arguments
        created = s3.create_multipart_upload(Bucket=BUCKET, Key=key, **arguments)
        self.names = {"Bucket": BUCKET, "Key": key, "UploadId": created["UploadId"]}

    def part(self, number: int, body: bytes, **arguments: Any) -> dict[str, Any]:
        answer = self.s3.upload_part(**self.names, PartNumber=number, Body=body, **arguments)
        checksums = {name: value for name, value in answer.items() if self.checked and name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def complete(self, parts: list[dict[str, Any]], **arguments: Any) -> Any:
        return self.s3.complete_multipart_upload(**self.names, MultipartUpload={"Parts": parts}, **arguments)


KEYS = [
    "plain",
    "a//b",
    "/leading",
    "trailing/",
    "..",
    "../../../etc/passwd",
    "./x",
    "with space+plus&amp;<tag>",
    "grüße/雪/🎉",
    "percent%2Fencoded",
]


def reflected_crc(polynomial: int, width: int) -> Callable[[bytes], bytes]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    ones = (1 << width) - 1

    def checksum(body: bytes) -> bytes:
        crc = ones
        for byte in body:
            crc = table[(crc ^ byte) & 255] ^ crc >> 8
        return (crc ^ ones).to_bytes(width // 8, "big")

    return checksum


CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "CRC32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "CRC32C": reflected_crc(0x82F63B78, 32),
    "CRC64NVME": reflected_crc(0x9A6C9329AC4BC9B5, 64),
    "SHA1": lambda body: hashlib.sha1(body).digest(),
    "SHA256": lambda body: hashlib.sha256(body).digest(),
}


def checksum_of(algorithm: str, body: bytes) -> str:
    return base64.b64encode(CHECKSUMS[algorithm](body)).decode()
