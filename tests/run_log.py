"""Reads the log of a run, as `kedro run` writes it to a file."""

from __future__ import annotations

import re

_RAN = re.compile(r" INFO +\d+/\d+  ([\w.]+)  ran [^(]+ \((.*)\)  ")


def nodes_that_ran(log: str) -> dict[str, str]:
    """Return node -> the reason to run it."""
    return dict(_RAN.findall(log))
