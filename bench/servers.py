"""Starts and stops the benchmark's server, and asks it what it saw."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
BINARY = TARGET / "s3dcp-bench-server"
TRANSFER = TARGET / "examples" / "transfer"
# The test suite's own authority, which nothing but this run trusts.
CERTIFICATES = ROOT / "crates" / "s3" / "tests" / "engine" / "tls"


class Server:
    """A running server; `mode` is "discard" or "store"."""

    def __init__(
        self, mode: str, *, latency_ms: int = 0, connection_rate: int | None = None, tls: bool = False
    ) -> None:
        command = [str(BINARY), mode, "--latency-ms", str(latency_ms)]
        if connection_rate:
            command += ["--connection-rate", str(connection_rate)]
        self.bundle = str(CERTIFICATES / "ca.pem") if tls else None
        if tls:
            command += ["--tls", str(CERTIFICATES / "server.pem"), str(CERTIFICATES / "server.key")]
        if not BINARY.exists():
            raise SystemExit(f"{BINARY} is missing: cargo build --release -p s3dcp-bench-server")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise SystemExit(f"the server did not start: {' '.join(command)}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to talk to this server."""
        variables = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return {**variables, "AWS_CA_BUNDLE": self.bundle} if self.bundle else variables

    def seen(self) -> dict[str, Any]:
        """Requests, bytes and connections since the last call."""
        context = ssl.create_default_context(cafile=self.bundle) if self.bundle else None
        with urllib.request.urlopen(f"{self.url}/_stats", context=context) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    def cpu_seconds(self) -> float:
        """User and system time of the server up to now."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
