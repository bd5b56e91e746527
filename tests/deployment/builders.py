"""Where the committed files are, and what the tests of deployment read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
DOCKER = PROJECT / "docker"
SERVERS = {"postgres", "mlflow", "kedro_viz"}
SERVICES = {*SERVERS, "tracking_run"}


def read_yaml(name: str) -> Any:
    """Return the content of a committed file below `docker`."""
    text = (DOCKER / name).read_text()
    return yaml.safe_load(text)


def everything_before(needs: dict[str, list[str]], name: str) -> set[str]:
    """Return all stages that must have finished before one, however indirectly."""
    found = set(needs[name])
    for need in needs[name]:
        found |= everything_before(needs, need)
    return found
