"""An HTTP proxy on loopback, for tests: CONNECT and whole URLs, with a password where it is told one."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# What belongs to one connection and is not passed on.
HOP_BY_HOP = {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "transfer-encoding"}


class Proxy(ThreadingHTTPServer):
    """Counts what it is asked for: `asked` has each method with its target, `refused` how many had the wrong password.

    Args:
        password: of the user ``me``; None lets everybody through.
        to: host and port that every name leads to; None for the name's own.
    """

    daemon_threads = True
    address_family = socket.AF_INET

    def __init__(self, password: str | None, to: tuple[str, int] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        user = base64.b64encode(f"me:{password}".encode()).decode()
        self.expected = None if password is None else f"Basic {user}"
        self.to = to
        self.asked: list[tuple[str, str]] = []
        self.refused = 0
        self.seen_by_services: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle_one_request()
            return
        self.close_connection = True

    def admitted(self) -> bool:
        self.server.asked.append((self.command, self.path))
        if self.server.expected in (None, self.headers.get("Proxy-Authorization")):
            return True
        self.server.refused += 1
        self.send_response(407)
        self.send_header("Proxy-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        return False

    def do_CONNECT(self) -> None:
        if not self.admitted():
            return
        host, _, port = self.path.rpartition(":")
        try:
            service = socket.create_connection(self.server.to or (host.strip("[]"), int(port)), timeout=30)
        except OSError:
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        back = threading.Thread(target=_carry, args=(service, self.connection), daemon=True)
        back.start()
        _carry(self.connection, service)
        back.join()
        service.close()

    def ask_service(self) -> None:
        if not self.admitted():
            return
        url = urlsplit(self.path)
        assert url.hostname, "a proxy is asked for the whole URL"
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        self.server.seen_by_services.extend(headers)
        service = HTTPConnection(*(self.server.to or (url.hostname, url.port or 80)), timeout=30)
        service.putrequest(self.command, self.path.split(url.netloc, 1)[1], skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            service.putheader(name, value)
        service.endheaders(body or None)
        self.answer(service.getresponse())
        service.close()

    def answer(self, response: HTTPResponse) -> None:
        body = response.read()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = ask_service


def _carry(source: socket.socket, to: socket.socket) -> None:
    """Passes on what comes, until it ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxy(password: str | None = None, to: tuple[str, int] | None = None) -> Iterator[Proxy]:
    """A proxy while the context lasts."""
    with Proxy(password, to) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
