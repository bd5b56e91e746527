"""Memory that a process frees, and the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pu_kd_pipeline.allocator import ALLOCATOR_VARIABLES

# Three arrays of 20 MB at a time, as a batch has; prints the page faults of the later rounds.
ROUNDS = """
import resource
import sys
import numpy as np
from pu_kd_pipeline import allocator

print(sys.argv[1] == "keep" and allocator.keep_freed_memory())

def one_round():
    arrays = [np.empty(20_000_000, dtype=np.uint8) for _ in range(3)]
    for array in arrays:
        array.fill(1)

for _ in range(3):
    one_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    one_round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str, **variables: str) -> tuple[str, int]:
    """Return whether freed memory was kept, and how many pages the kernel gave again."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in ALLOCATOR_VARIABLES
    }
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, mode],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    is_kept, n_faults = done.stdout.split()
    return is_kept, int(n_faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_of_batches_stays_in_the_process():
    _, n_returned = page_faults("as it is")
    is_kept, n_kept = page_faults("keep")

    assert is_kept == "True"
    # 5 rounds of 60 MB have 73,000 pages of 4 KB, or 145 of 2 MB.
    assert n_returned >= 100
    assert n_kept < n_returned / 20


def test_the_users_own_choice_of_allocation_is_left_alone():
    is_kept, _ = page_faults("keep", MALLOC_TRIM_THRESHOLD_="1000000")
    assert is_kept == "False"
