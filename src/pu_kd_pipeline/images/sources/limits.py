"""Limits of what a source may hold, so that a small file cannot take gigabytes of memory."""

from __future__ import annotations

MAX_TEXT_CHARACTERS = 10_000  # of an id, a label or a class name
