"""The memory of this process: its peak, also of a part of its time."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from pu_kd_pipeline.allocator import return_freed_memory

if sys.platform != "win32":
    import resource

SECONDS_BETWEEN_SAMPLES = 0.2
STATM = Path("/proc/self/statm")  # only on Linux; its second number is the resident size in pages
BYTES_PER_MB = 1024 * 1024


class PeakMemory:
    """The largest resident size of this process since the last `reset`.

    Nothing resets the peak that the system keeps, because a pilot reads it. Where a part of the run
    raises that peak, it is the exact answer; elsewhere, the largest of five samples per second is.
    """

    def __init__(self) -> None:
        self._largest = 0
        self._before = 0
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def reset(self) -> None:
        """Begin another part of the run; the first one starts the thread that takes samples.

        Memory that the part before has freed is not this one's.
        """
        return_freed_memory()
        self._before = process_peak_bytes()
        self._largest = resident_bytes()
        if self._thread is None:
            self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._is_over.set()

    def megabytes(self) -> float | None:
        """Return the peak since the last `reset`, in MiB; None where it is not known."""
        peak = process_peak_bytes()
        largest = peak if peak > self._before else max(self._largest, resident_bytes())
        return largest / BYTES_PER_MB if largest else None

    def _sample(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_SAMPLES):
            self._largest = max(self._largest, resident_bytes())


def process_peak_bytes() -> int:
    """Return the largest resident size of this process until now; 0 where it is not known."""
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, and bytes on macOS.
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def resident_bytes() -> int:
    """Return the resident size of this process now; 0 where it is not known."""
    with suppress(OSError, ValueError, IndexError):
        return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
