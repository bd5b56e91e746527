"""Servers that do to a client what no server should."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def retry_after_an_hour(connection: socket.socket) -> None:
    connection.sendall(
        b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def dripping_body(connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.2)


def endless_body(connection: socket.socket) -> None:
    connection.sendall(OK + b"Connection: close\r\n\r\n")
    spaces = b" " * (1 << 20)
    while True:
        connection.sendall(spaces)


def endless_header(connection: socket.socket) -> None:
    connection.sendall(OK)
    while True:
        connection.sendall(b"X-Name: value\r\n")
        time.sleep(0.2)


def circle(connection: socket.socket) -> None:
    connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


def silence(connection: socket.socket) -> None:
    time.sleep(600)


def web_page(connection: socket.socket) -> None:
    page = b"<html>Sign in</html>"
    connection.sendall(OK + b"Content-Length: %d\r\n\r\n%s" % (len(page), page))


BEHAVIORS: tuple[Callable[[socket.socket], None], ...] = (
    retry_after_an_hour,
    dripping_body,
    endless_body,
    endless_header,
    circle,
    silence,
    web_page,
)


@contextlib.contextmanager
def serving(behavior: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the address of a server that answers every request in one way."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, behavior), daemon=True).start()
        port = server.getsockname()[1]
        yield f"http://127.0.0.1:{port}"


def _accept(server: socket.socket, behavior: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, behavior), daemon=True).start()


def _answer(connection: socket.socket, behavior: Callable[[socket.socket], None]) -> None:
    with connection, contextlib.suppress(OSError):
        connection.recv(65536)
        behavior(connection)
