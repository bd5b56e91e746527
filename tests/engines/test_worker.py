"""What a worker checks before it works."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest

from pu_kd_pipeline.engines.worker import Assignment, _loaded_work
from pu_kd_pipeline.errors import InputError, UnavailableError
from tests.engines.works import ToyWork


def assignment_of(file: Path, content: bytes) -> Assignment:
    digest = hashlib.sha256(content).hexdigest()
    return Assignment(file, digest, {}, os.getcwd(), (), 20, n_threads=1)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return pickle.dumps(ToyWork(tmp_path))


def test_the_work_is_what_was_sent(tmp_path, content):
    file = tmp_path / "work"
    file.write_bytes(content)
    assert _loaded_work(assignment_of(file, content)) == ToyWork(tmp_path)


def test_a_machine_without_the_data_folder_is_refused(tmp_path, content):
    missing = tmp_path / "elsewhere" / "work"
    message = "it cannot read .*: the data folder has to be on a file system that all machines"
    with pytest.raises(InputError, match=message):
        _loaded_work(assignment_of(missing, content))


def test_a_file_that_cannot_be_read_now_may_be_readable_later(tmp_path, content):
    with pytest.raises(UnavailableError, match="it cannot read"):
        # A folder: any error but those that say that there is no such file.
        _loaded_work(assignment_of(tmp_path, content))


def test_another_file_is_not_unpickled(tmp_path, content):
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    file = tmp_path / "work"
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="is not what this run wrote"):
        _loaded_work(assignment_of(file, content))
    assert not (tmp_path / "unpickled").exists()
