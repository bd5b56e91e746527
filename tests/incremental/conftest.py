"""The small project that the tests of incremental runs change and run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.incremental.projects import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # A name of its own: modules of another test would be found under the same one.
    number = abs(hash(tmp_path)) % 10**8
    made = Project(tmp_path, f"pack_{number}")
    yield made

    made.forget_modules()
    sys.modules.pop(made.package, None)
