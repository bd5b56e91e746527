"""Labels in the paths of files, by a regular expression of the user."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.masking import visible

_TIMEOUT_S = 20.0
_TIMEOUT_S_PER_PATH = 1e-4  # a pattern takes some microseconds
# Prints, for each path, the label in a list, or an empty list where the pattern does not match.
_PROGRAM = """
import json, re, sys
pattern, paths = json.load(sys.stdin)
match = re.compile(pattern).fullmatch
found = map(match, paths)
json.dump([[each["label"]] if each else [] for each in found], sys.stdout)
"""


def labels_in_paths(pattern: str, paths: Sequence[str], where: str) -> dict[str, str | None]:
    """Return path -> label of the paths that a pattern matches entirely; "" counts as no label.

    Some patterns take exponential time, and nothing can interrupt Python's regular expressions
    within a process: a process of its own matches them, and is stopped after some time.

    Args:
        pattern: a regular expression with a group `label`.
        paths: what it is matched with.
        where: name of the source, for messages.

    Raises:
        InputError: the pattern takes too long, or fails.
    """
    if not paths:
        return {}
    timeout_s = _TIMEOUT_S + _TIMEOUT_S_PER_PATH * len(paths)
    try:
        finished = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([pattern, list(paths)]),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise InputError(
            f"{where}: class_pattern {pattern!r} takes more than {timeout_s:.0f} seconds for the "
            f"{len(paths):,} files: one repetition in another, such as (a+)+, takes exponential "
            "time. Write it without the inner or the outer one"
        ) from exc
    if finished.returncode != 0:
        lines = finished.stderr.splitlines() or [f"exit code {finished.returncode}"]
        raise InputError(
            f"{where}: class_pattern {pattern!r} fails: {visible(lines[-1])}. Simplify it"
        )

    labels = {}
    for path, found in zip(paths, json.loads(finished.stdout), strict=True):
        if found:
            labels[path] = found[0] or None
    return labels
