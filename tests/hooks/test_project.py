"""Log messages of any logger and handler are safe to show."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from kedro.logging import RichHandler
from rich.console import Console

from pu_kd_pipeline.hooks.project import HOOK_CALLS, make_logs_safe

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


@pytest.mark.parametrize("name", HOOK_CALLS)
def test_arguments_of_hooks_are_not_shown(name: str, output: io.StringIO) -> None:
    assert find_spec(name), "Kedro logs calls of hooks elsewhere"
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    # As pluggy writes a call, and Kedro passes it on.
    logger.debug("  after_catalog_created [hook]\n      conf_creds: {'s3': {'secret': 'abc'}}\n")
    logger.setLevel(level)
    assert "after_catalog_created" in output.getvalue()
    assert "abc" not in output.getvalue()
