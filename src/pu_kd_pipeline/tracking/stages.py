"""The status of a run that several stages share: it follows from those of the stages."""

from __future__ import annotations

from collections.abc import Mapping

# Before the name of a stage, the tag with its status.
STAGE_TAG = "stage."
# A run has the first of these that any of its stages has.
STATUSES_BY_PRIORITY = ("RUNNING", "FAILED", "KILLED", "FINISHED")


def overall_status(tags: Mapping[str, str]) -> str:
    """Return the status of a run with these tags; FINISHED if none is about a stage."""
    statuses = set()
    for key, value in tags.items():
        if key.startswith(STAGE_TAG):
            statuses.add(value)
    for status in STATUSES_BY_PRIORITY:
        if status in statuses:
            return status
    return "FINISHED"
