"""Digests of files, and when they are computed again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pu_kd_pipeline.incremental.file_states import FileStates


def test_a_digest_is_remembered_between_runs(tmp_path, monkeypatch):
    file = tmp_path / "data.bin"
    file.write_bytes(b"one")
    states = FileStates(tmp_path / "states.json")
    first = states.digest(file)
    states.save()
    next_run = FileStates(tmp_path / "states.json")
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("it was read"))
    assert next_run.digest(file) == first


def test_a_digest_is_of_the_content_and_not_of_the_times(tmp_path):
    file = tmp_path / "data.bin"
    file.write_bytes(b"one")
    states = FileStates(tmp_path / "states.json")
    first = states.digest(file)
    file.write_bytes(b"two")  # of the same size, a moment later
    assert states.digest(file) != first
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    assert states.digest(file) == first


def test_a_change_within_the_resolution_of_file_times_is_seen(tmp_path):
    file = tmp_path / "data.bin"
    states = FileStates(tmp_path / "states.json")
    digests = set()
    for number in range(5):
        file.write_bytes(bytes([number]))
        digests.add(states.digest(file))
        age_ns = time.time_ns() - file.stat().st_mtime_ns
        assert age_ns >= 20_000_000  # or the next write might have the same time
    assert len(digests) == 5
