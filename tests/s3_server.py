"""An S3-compatible server in this process, for tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

BUCKET = "bucket"
_HOW_TO = "is not installed: it is in the extra dev"


@contextmanager
def s3_credentials() -> Iterator[dict[str, Any]]:
    """Yield credentials for a server with an empty bucket, or skip the test with a reason."""
    pytest.importorskip("s3fs", reason=f"s3fs {_HOW_TO}")
    server_module = pytest.importorskip("moto.server", reason=f"moto {_HOW_TO}")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    connection = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    credentials = {"key": "key", "secret": "secret", "client_kwargs": connection}
    s3_client(credentials).create_bucket(Bucket=BUCKET)
    yield credentials
    server.stop()


def s3_client(credentials: dict[str, Any]) -> Any:
    """Return a client of the server that does not go through our code."""
    import boto3

    return boto3.client(
        "s3",
        aws_access_key_id=credentials["key"],
        aws_secret_access_key=credentials["secret"],
        **credentials["client_kwargs"],
    )


def put_objects(contents: Mapping[str, bytes]) -> None:
    """Put many objects into the bucket at once, without a request for each."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for key, content in contents.items():
        backend.put_object(BUCKET, key, content)


@dataclass
class Proxy:
    """A server between a client and the S3 server, which counts requests and can spoil answers.

    Attributes:
        credentials: of the S3 server, with the address of this one.
        fault: the name of what happens to a request, by its number from 1 on, its method and its
            path: `500`, `503` or `403` (an error of that status), `drop` (no answer), `cut` (half
            of one), or None.
        requests: method and path of each request so far.
    """

    credentials: dict[str, Any]
    fault: Callable[[int, str, str], str | None] = lambda number, method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def n_requests(self, method: str) -> int:
        return sum(found == method for found, _ in self.requests)


_ERRORS = {
    "500": ("InternalError", "We encountered an internal error. Please try again."),
    "503": ("SlowDown", "Please reduce your request rate."),
    "403": ("AccessDenied", "Access Denied"),
}


@contextmanager
def proxied(credentials: dict[str, Any]) -> Iterator[Proxy]:
    """Yield a proxy in front of the S3 server of some credentials."""
    connection = dict(credentials["client_kwargs"])
    target = connection["endpoint_url"].removeprefix("http://")
    proxy = Proxy({})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            with proxy.lock:
                proxy.requests.append((self.command, self.path))
                fault = proxy.fault(len(proxy.requests), self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault in _ERRORS:
                self.send_error_of_s3(fault)
                return
            connection = HTTPConnection(target, timeout=600)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = response.getheader("Content-Length") or str(len(content))
            self.send_header("Content-Length", length)
            self.end_headers()
            if fault == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            self.wfile.write(content)
            connection.close()

        def send_error_of_s3(self, status: str) -> None:
            code, message = _ERRORS[status]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            body = b"" if self.command == "HEAD" else text.encode()
            self.send_response(int(status))
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    connection["endpoint_url"] = f"http://127.0.0.1:{server.server_port}"
    proxy.credentials.update({**credentials, "client_kwargs": connection})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
