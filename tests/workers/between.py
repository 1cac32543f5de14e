"""A proxy in front of an S3 endpoint that a test can make misbehave, one request per connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

Forward = Callable[[bytes], Iterator[bytes]]
Exchange = Callable[[bytes, Forward], Iterator[bytes]]

PIECE = 64 * 1024


@contextmanager
def between(endpoint_url: str, exchange: Exchange) -> Iterator[str]:
    """The URL of a proxy whose answers to a request are the pieces that ``exchange(request, forward)`` yields.

    ``forward(request)`` sends it to the endpoint and yields what that answers. The connection is closed at the end.
    """
    address = urlsplit(endpoint_url)

    def forward(request: bytes) -> Iterator[bytes]:
        head, rest = request.split(b"\r\n", 1)
        with socket.create_connection((address.hostname, address.port)) as server:
            server.sendall(head + b"\r\nConnection: close\r\n" + rest)
            while piece := server.recv(PIECE):
                yield piece

    def serve(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            if request := _read_request(connection):
                for piece in exchange(request, forward):
                    connection.sendall(piece)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _read_request(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        piece = connection.recv(PIECE)
        if not piece:
            return b""
        request += piece
    head, body = request.split(b"\r\n\r\n", 1)
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    missing = (int(lengths[0]) if lengths else 0) - len(body)
    pieces = [request]
    while missing > 0:
        piece = connection.recv(min(missing, PIECE))
        if not piece:
            return b""
        missing -= len(piece)
        pieces.append(piece)
    return b"".join(pieces)
