"""Digests of files, and when they are computed again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.incremental.file_states import FileStates


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.bin"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def states(tmp_path: Path) -> FileStates:
    return FileStates(tmp_path / "states.json")


def test_a_digest_is_remembered_between_runs(tmp_path, file, states, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("it was read")

    first = states.digest(file)
    states.save()

    # Reading the data of a project again takes minutes.
    next_run = FileStates(tmp_path / "states.json")
    monkeypatch.setattr(Path, "open", fail)
    digest = next_run.digest(file)
    assert digest == first


def test_a_digest_is_of_the_content_and_not_of_the_times(file, states):
    first = states.digest(file)
    file.write_bytes(b"two")  # of the same size, a moment later
    changed = states.digest(file)
    assert changed != first

    # As after a copy from elsewhere.
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    restored = states.digest(file)
    assert restored == first


def test_a_change_within_the_resolution_of_file_times_is_seen(file, states):
    digests = set()
    for number in range(5):
        file.write_bytes(bytes([number]))
        digest = states.digest(file)
        digests.add(digest)

        # It waits for that long, or the next write might have the same time.
        age_ns = time.time_ns() - file.stat().st_mtime_ns
        assert age_ns >= 20_000_000
    assert len(digests) == 5
