"""Servers that misbehave on purpose, on real sockets on loopback; each connection has a thread of its own.

`Scripted` answers by itself, `Between` stands between a client and an S3 server and holds or answers what its rule
picks, `Exchanged` changes requests and answers on their way, `Tls` puts TLS in front of a server.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a script or a rule does with a request: these bytes as the answer, or whatever it does with the connection.
Act = bytes | Callable[["Wire", socket.socket], None]
# Sends a whole request to the server; the pieces of its answer.
Forward = Callable[[bytes], Iterator[bytes]]
# What becomes of a whole request: the pieces of the answer.
Exchange = Callable[[bytes, Forward], Iterable[bytes]]

CERTIFICATES = Path(__file__).parents[2] / "crates/s3/tests/engine/tls"
AUTHORITY = CERTIFICATES / "ca.pem"
PIECE = 64 * 1024


@dataclass(frozen=True)
class Request:
    """The head of a request, and what came of its body along with it."""

    head: bytes
    early: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    def header(self, name: str) -> str | None:
        """The value of a header."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode("latin-1").lower() == name:
                return value.strip().decode("latin-1")
        return None

    def is_part(self, number: int | None = None) -> bool:
        """Whether this sends a part of an upload, or that part."""
        return self.method == "PUT" and f"partNumber={'' if number is None else f'{number}&'}" in self.target


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP answer; ``_`` in a header's name stands for ``-``."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def error(status: str, code: str, message: str = "Scripted.", more: str = "") -> bytes:
    """An error as S3 writes it."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{more}<RequestId>RID1</RequestId></Error>"
    return answer(status, body.encode(), x_amz_request_id="RID1")


def silence(wire: Wire, connection: socket.socket) -> None:
    """Say nothing until the server is closed."""
    wire.closed.wait()


def slow_head(wire: Wire, connection: socket.socket) -> None:
    """Begin an answer whose head never ends, a byte at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nx-endless: ")
    _drip(wire, connection)


def slow_body(wire: Wire, connection: socket.socket) -> None:
    """Answer with a body that comes a byte at a time."""
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nETag: "e"\r\n\r\n')
    _drip(wire, connection)


def _drip(wire: Wire, connection: socket.socket) -> None:
    while not wire.closed.wait(0.02):
        connection.sendall(b"x")


class Wire:
    """Accepts connections and serves each in a thread until it is closed; a context manager."""

    scheme = "http"

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.closed = threading.Event()
        self.connections = 0
        self.seen: list[Request] = []
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0))
        self.url = f"{self.scheme}://{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        for each in [self._listener, *self._open]:
            close(each)

    def wait_for(self, wanted: Callable[[Request], bool]) -> None:
        """Wait until a request that `wanted` picks has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(wanted, self.seen)), 60), self.seen

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection."""
        raise NotImplementedError

    def read(self, connection: socket.socket) -> Request | None:
        """The next request, noted in `seen`; None at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := connection.recv(PIECE)):
                return None
            data += piece
        head, _, early = data.partition(b"\r\n\r\n")
        request = Request(head, early)
        with self._changed:
            self.seen.append(request)
            self._changed.notify_all()
        return request

    def _accept(self) -> None:
        while not self.closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.serve(connection)
        close(connection)
        self._open.discard(connection)


def close(connection: socket.socket) -> None:
    """Close a socket so that a thread that waits for it wakes up."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def rest(connection: socket.socket, request: Request) -> Iterator[bytes]:
    """What is left of a request's body, piece by piece."""
    left = int(request.header("content-length") or 0) - len(request.early)
    while left > 0 and (piece := connection.recv(min(left, PIECE))):
        left -= len(piece)
        yield piece


def skip_body(connection: socket.socket, request: Request) -> None:
    """Read what is left of a request."""
    for _ in rest(connection, request):
        pass


class Scripted(Wire):
    """Does with each request what the script says."""

    def __init__(self, script: Callable[[Request], Act], host: str = "127.0.0.1") -> None:
        self._script = script
        super().__init__(host)

    def serve(self, connection: socket.socket) -> None:
        while request := self.read(connection):
            skip_body(connection, request)
            act = self._script(request)
            if not isinstance(act, bytes):
                return act(self, connection)
            connection.sendall(act)
        return None


def address(url: str) -> tuple[str, int]:
    """Host and port of a server."""
    host, port = url.partition("://")[2].split(":")
    return host, int(port)


class Between(Wire):
    """Passes requests on to the server at `url`, but for those that `rule` does something with."""

    def __init__(self, url: str, rule: Callable[[Request], Act | None] = lambda _: None) -> None:
        self._server = address(url)
        self.rule = rule
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        request = self.read(connection)
        if request is None:
            return
        act = self.rule(request)
        if isinstance(act, bytes):
            skip_body(connection, request)
            connection.sendall(act)
        elif act is not None:
            act(self, connection)
        else:
            with socket.create_connection(self._server) as server:
                # One request per connection, so that the end of the answer is that of the connection.
                server.sendall(request.head + b"\r\nConnection: close\r\n\r\n" + request.early)
                relay(connection, server)


class Exchanged(Wire):
    """Answers each request, read whole, with what `exchange` makes of it and of the server at `url`."""

    def __init__(self, url: str, exchange: Exchange) -> None:
        self._server = address(url)
        self._exchange = exchange
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        if request := self.read(connection):
            body = b"".join([request.early, *rest(connection, request)])
            for piece in self._exchange(request.head + b"\r\n\r\n" + body, self._forward):
                connection.sendall(piece)

    def _forward(self, request: bytes) -> Iterator[bytes]:
        head, body = request.split(b"\r\n\r\n", 1)
        with socket.create_connection(self._server) as server:
            server.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            while piece := server.recv(PIECE):
                yield piece


class Tls(Wire):
    """TLS in front of the server at `url`, with a certificate for 127.0.0.1 of an authority that few know."""

    scheme = "https"

    def __init__(self, url: str, host: str = "127.0.0.1") -> None:
        self._server = address(url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
        self.trusted = 0
        super().__init__(host)

    def serve(self, connection: socket.socket) -> None:
        with self._context.wrap_socket(connection, server_side=True) as outer:
            self.trusted += 1
            with socket.create_connection(self._server) as server:
                relay(outer, server)


def relay(client: socket.socket, server: socket.socket) -> None:
    """Move bytes both ways until the server's end."""

    def up() -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := client.recv(PIECE):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    threading.Thread(target=up, daemon=True).start()
    while data := server.recv(PIECE):
        client.sendall(data)


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a port that leaves requests for a connection unanswered: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        try:
            while True:
                waiting.enter_context(socket.create_connection(address, timeout=0.3))
        except TimeoutError:
            yield f"http://127.0.0.1:{address[1]}"
