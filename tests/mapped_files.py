"""Which files this process has mapped into its memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

MAPS = Path("/proc/self/maps")
_LONGEST_WAIT_S = 30


def check_nothing_is_mapped(folder: Path) -> None:
    """Check that no file of a folder is mapped, or skip the test where the system does not tell.

    The disk space of a file that is removed is free only then. Threads of Arrow may hold a file for
    a moment after it was read.
    """
    if not MAPS.exists():
        pytest.skip("this system does not list what a process has mapped")
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while str(folder) in MAPS.read_text():
        assert time.monotonic() < deadline, f"a file of {folder} is still mapped"
        time.sleep(0.01)
