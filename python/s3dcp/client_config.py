"""Settings of the S3 client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["S3ClientConfig"]

MIB = 1024 * 1024
GIB = 1024 * MIB


def refuse_password(endpoint_url: str | None) -> None:
    """Refuse a URL with ``user:password@`` where it is given, before it can be printed, pickled or logged.

    Raises:
        ValueError: there is one; the message does not repeat it.
    """
    if isinstance(endpoint_url, str) and "@" in endpoint_url:
        raise ValueError("endpoint_url: must have no user or password; credentials come from the AWS chain")


@dataclass(frozen=True)
class S3ClientConfig:
    """Settings of the S3 client; the first six are those of ``s3torchconnector.S3ClientConfig``.

    Credentials are never part of it: they come from the usual AWS chain (environment, profile, SSO, web identity,
    container, instance metadata).

    Attributes:
        throughput_target_gbps: network rate to aim for, gigabits per second: where the search for the number of
            connections begins.
        part_size: bytes of one part of a multipart upload, 5 MiB to 5 GiB; None lets it follow the file's size, the
            number of ranks and what the service answers.
        unsigned: send requests without a signature (public buckets).
        force_path_style: address buckets as ``endpoint/bucket`` instead of ``bucket.endpoint``; automatic for IP
            addresses, ``localhost`` and buckets that cannot be a host name.
        max_attempts: how often one request is sent at most, at least 1. An answer that asks for fewer requests (503
            SlowDown) does not count: such a request is sent again, at the pace of its keys, until `deadline`.
        profile: profile of the AWS configuration files; None for ``AWS_PROFILE``, ``AWS_DEFAULT_PROFILE``, else
            ``default``.
        requester_pays: pay for requests to a requester-pays bucket; not with `unsigned`, for then nobody can be billed.
        endpoint_url: S3 endpoint; None for ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, that of the profile's
            services section, the profile's own, else AWS.
        server_side_encryption: ``"AES256"`` or ``"aws:kms"``; None leaves it to the bucket.
        sse_kms_key_id: key for ``"aws:kms"``; None for the account's default key.
        storage_class: e.g. ``"STANDARD_IA"``; None for the bucket's default.
        checksum_headers: send CRC-32 in headers for S3 to check, and ask for it on reads: True (a store that refuses it
            fails the save) or False; None for ``AWS_REQUEST_CHECKSUM_CALCULATION`` and
            ``AWS_RESPONSE_CHECKSUM_VALIDATION`` (``when_supported`` or ``when_required``), else for the profile, else
            True until the store refuses it.
        ca_bundle: PEM file with certificate authorities besides the system's; None for ``AWS_CA_BUNDLE``, else the
            profile's.
        deadline: seconds that one request may take in all, retries included; a part of an upload and a range of a
            download are one request each.
        connect_timeout: seconds to reach the endpoint.
        read_timeout: seconds without any byte moving before a connection is given up.
        max_connections: requests at once, at most; None begins at what `throughput_target_gbps` asks for and climbs to
            twice that as long as it moves more bytes.
        use_fips_endpoint: AWS's endpoints with validated cryptography; None for ``AWS_USE_FIPS_ENDPOINT``, else the
            profile's.
        use_dualstack_endpoint: AWS's endpoints that IPv6 reaches too; None for ``AWS_USE_DUALSTACK_ENDPOINT``, else the
            profile's.
        use_accelerate_endpoint: AWS's endpoints near the client (S3 Transfer Acceleration); None for the profile's.

        network_interfaces: names of network interfaces, such as ``["eth0", "eth1"]``, that connections take turns over;
            empty for the one that the system chooses.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    throughput_target_gbps: float = 10.0
    part_size: int | None = None
    unsigned: bool = False
    force_path_style: bool = False
    max_attempts: int = 10
    profile: str | None = None
    requester_pays: bool = False
    endpoint_url: str | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    checksum_headers: bool | None = None
    ca_bundle: str | None = None
    deadline: float = 600.0
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    max_connections: int | None = None
    use_fips_endpoint: bool | None = None
    use_dualstack_endpoint: bool | None = None
    use_accelerate_endpoint: bool | None = None
    network_interfaces: Sequence[str] = ()

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, limit: str) -> None:
            if not ok:
                raise ValueError(f"{field}={getattr(self, field)!r}: must be {limit}")

        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def positive(value: object) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")

        require(positive(self.throughput_target_gbps), "throughput_target_gbps", "a positive number")
        require(
            self.part_size is None or (whole(self.part_size) and 5 * MIB <= self.part_size <= 5 * GIB),
            "part_size",
            f"None or an integer from {5 * MIB} (5 MiB) to {5 * GIB} (5 GiB)",
        )
        require(whole(self.max_attempts) and self.max_attempts >= 1, "max_attempts", "an integer of at least 1")
        require(
            self.server_side_encryption in (None, "AES256", "aws:kms"),
            "server_side_encryption",
            "None, 'AES256' or 'aws:kms'",
        )
        require(
            self.sse_kms_key_id is None or self.server_side_encryption == "aws:kms",
            "sse_kms_key_id",
            "None unless server_side_encryption='aws:kms'",
        )
        for field in (
            "checksum_headers",
            "use_fips_endpoint",
            "use_dualstack_endpoint",
            "use_accelerate_endpoint",
        ):
            value = getattr(self, field)
            require(value is None or isinstance(value, bool), field, "None, True or False")
        require(
            not (self.requester_pays and self.unsigned),
            "requester_pays",
            "False with unsigned=True, for S3 bills whoever signed a request",
        )
        refuse_password(self.endpoint_url)
        for field in ("deadline", "connect_timeout", "read_timeout"):
            require(positive(getattr(self, field)), field, "a positive number of seconds")
        require(
            self.max_connections is None or (whole(self.max_connections) and self.max_connections >= 1),
            "max_connections",
            "None or an integer of at least 1",
        )
        names = self.network_interfaces
        listed = isinstance(names, Sequence) and not isinstance(names, str)
        require(listed and all(isinstance(name, str) for name in names), "network_interfaces", "a list of names")
        object.__setattr__(self, "network_interfaces", tuple(names))
