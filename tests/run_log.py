"""Reads the log of a run, as `kedro run` writes it to a file."""

from __future__ import annotations

import re

_LINE = re.compile(r" INFO +\d+/\d+ .*$", re.MULTILINE)
_SKIPPED = re.compile(r" INFO +\d+/\d+  [\w.]+  up to date")
_RAN = re.compile(r" INFO +\d+/\d+  ([\w.]+)  ran [^(]+ \((.*)\)(?:  .*)?")


def nodes_that_ran(log: str) -> dict[str, str]:
    """Return node -> the reason to run it.

    Raises:
        ValueError: the line of a node has another format.
    """
    reasons = {}
    for line in _LINE.findall(log):
        ran = _RAN.fullmatch(line)
        if ran is not None:
            reasons[ran[1]] = ran[2]
        elif not _SKIPPED.fullmatch(line):
            raise ValueError(f"this line of a node has another format: {line}")
    return reasons
