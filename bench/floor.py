"""The floor: plain sockets in Python threads that move the same bytes over as many connections.

Each connection sends PUT requests of one part, or asks for ranges of one part, from and into warm memory that is used
again and again: one kernel copy per byte (and TLS where the endpoint has it), no checksum, no checkpoint.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PART = 16 * 1024 * 1024
WINDOW = 256 * 1024 * 1024
MAX_HEAD = 64 * 1024


class Link:
    """One connection to the server."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self.socket = socket.create_connection((url.hostname or "", url.port or 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
            self.socket = context.wrap_socket(self.socket, server_hostname=url.hostname)

    def ask(self, head: str, body: memoryview | None = None) -> None:
        self.socket.sendall(head.encode() + b"Host: bench\r\n\r\n")
        if body is not None:
            self.socket.sendall(body)

    def answered(self) -> bytes:
        """Reads an answer's head; what came behind it."""
        received = b""
        while b"\r\n\r\n" not in received:
            more = self.socket.recv(4096)
            if not more or len(received) > MAX_HEAD:
                raise SystemExit("floor: the server went away")
            received += more
        head, rest = received.split(b"\r\n\r\n", 1)
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")):
            raise SystemExit(f"floor: {head[:100]!r}")
        return rest


def prepared(operation: str, spec: dict[str, Any]) -> tuple[Callable[[], None], int]:
    """What is to be measured, ready to go, and the bytes it moves."""
    endpoint, connections = os.environ["AWS_ENDPOINT_URL"], spec["connections"]
    parts = max(1, round(spec["gib"] * 2**30 / PART))
    memory = memoryview(bytearray(os.urandom(PART)) * (WINDOW // PART))
    path = "/" + spec["uri"].split("//")[1]

    def places(first: int) -> list[memoryview]:
        """Where in the window the parts of connection `first` are; connections use different places where they can."""
        starts = [part * PART % WINDOW for part in range(first, parts, connections)]
        return [memory[start : start + PART] for start in starts]

    def put(first: int) -> None:
        link = Link(endpoint)
        for number, place in enumerate(places(first)):
            query = f"partNumber={number + 1}&uploadId=floor"
            link.ask(f"PUT {path}?{query} HTTP/1.1\r\nContent-Length: {PART}\r\n", place)
            link.answered()

    def get(first: int) -> None:
        link = Link(endpoint)
        for place in places(first):
            link.ask(f"GET {path} HTTP/1.1\r\nRange: bytes=0-{PART - 1}\r\n")
            rest = link.answered()
            place[: len(rest)] = rest
            done = len(rest)
            while done < PART:
                received = link.socket.recv_into(place[done:])
                if not received:
                    raise SystemExit("floor: the server went away")
                done += received

    if operation == "load":
        source = Link(endpoint)
        source.ask(f"PUT {path} HTTP/1.1\r\nContent-Length: {PART}\r\n", memory[:PART])
        source.answered()
    work = put if operation == "save" else get

    def run() -> None:
        failures: list[BaseException] = []

        def guarded(first: int) -> None:
            try:
                work(first)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(first,)) for first in range(min(connections, parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    return run, parts * PART
