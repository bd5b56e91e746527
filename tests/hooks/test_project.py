"""Log messages of any logger and handler are safe to show."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from kedro.logging import RichHandler
from rich.console import Console

from pu_kd_pipeline.hooks.project import make_logs_safe

NAME = "cat\x1b[31m\r\u202e"
SHOWN = r"cat\x1b[31m\r\u202e"
URL = "https://user:pass@host/x?token=abc"
MASKED = "https://***@host/x?token=***"


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """What a handler prints that was added before the logs were made safe."""
    text = io.StringIO()
    console = Console(file=text, width=200)
    handler = RichHandler(console=console, show_path=False)
    logging.getLogger().addHandler(handler)
    factory = logging.getLogRecordFactory()
    make_logs_safe()
    make_logs_safe()  # as for a second run in one notebook
    yield text
    logging.setLogRecordFactory(factory)
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("logger", ["pu_kd_pipeline.x", "urllib3", "kedro.x"])
def test_credentials_and_control_characters_are_not_shown(logger: str, output: io.StringIO) -> None:
    error = OSError(f"no {URL}")
    logging.getLogger(logger).warning("%s of %s: %s, %.2f, %d", NAME, URL, error, 0.123, 4)
    assert f"{SHOWN} of {MASKED}: no {MASKED}, 0.12, 4" in output.getvalue()


def test_names_are_no_markup(output: io.StringIO) -> None:
    logging.getLogger("pu_kd_pipeline.x").warning("%s", "[red]cat[/red] [/nothing] [link=x]y")
    assert "[red]cat[/red] [/nothing] [link=x]y" in output.getvalue()
