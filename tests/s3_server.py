"""An S3-compatible server of its own process, for tests; moto and s3fs are not in the dev extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "bucket"
_HOW_TO = "is not installed: pip install s3fs 'moto[server]' in an environment of its own"


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
