"""Run fuzz targets: read files that were damaged at random, and check how each attempt ends.

Whatever the bytes, a target returns or raises `InputError` within bounds of time and memory. The
normal suite runs a few hundred cases of each (`test_fuzzing.py`). To run more, from the project's
root:

    python -m tests.hostile.fuzzing --minutes 10 [--targets png parquet_source …] [--seed 1]

A case that fails is minimized and written to `tests/corpus`, whose files the suite replays.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed

from pu_kd_pipeline.errors import InputError
from tests.hostile.targets import TARGETS, Target

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
# For one case. The slowest takes milliseconds; the rest is margin for a loaded machine.
MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 6 * 2**30
"""Address space of each process that the command starts."""


def run_case(target: Target, data: bytes, trace: Path | None = None) -> str:
    """Read one damaged file and return the outcome.

    Args:
        target: the kind of file.
        data: content of the damaged file.
        trace: file that the data are written to first, so that a crash leaves them behind.

    Returns:
        `good`, `refused`, or the reason why an image is unusable.
    """
    if trace is not None:
        trace.write_bytes(data)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    # CPU time: a busy machine must not fail a case.
    start = time.process_time()
    outcome = "good"
    try:
        result = target.read(data, folder)
        if isinstance(result, str):
            outcome = result
    except InputError as error:
        message = str(error)
        message.encode()  # fails where the message cannot be printed
        outcome = "refused"
        if not message:
            outcome = "refused without a reason"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.process_time() - start
    assert seconds < MAX_SECONDS, f"{seconds:.1f} s for {len(data)} bytes"
    return outcome


def run_many(
    target: Target, n_cases: int, seed: int | None = None, trace: Path | None = None
) -> dict[str, int]:
    """Run many cases and count their outcomes; without a seed, they are the same every time."""
    outcomes: dict[str, int] = {}

    @settings(
        max_examples=n_cases,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=target.damage(target.valid_files()))
    def cases(data: bytes) -> None:
        outcome = run_case(target, data, trace)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    if seed is None:
        cases()
    else:
        with_seed(seed)(cases)()
    return outcomes


def _copy_to_corpus(trace: Path, prefix: str) -> Path:
    checksum = zlib.crc32(trace.read_bytes())
    file = CORPUS / f"{prefix}-{checksum:08x}.bin"
    shutil.copy(trace, file)
    return file


@contextmanager
def _saves_failure(trace: Path, target: str) -> Iterator[None]:
    """Copy the last case of a failure to the corpus: it is the smallest that hypothesis found."""
    try:
        yield
    except BaseException:
        print(f"saved as {_copy_to_corpus(trace, target)}", flush=True)
        raise


def _run_round(name: str, seed: int, n_cases: int, trace: Path) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with _saves_failure(trace, name):
        print(name, seed, run_many(TARGETS[name], n_cases, seed, trace), flush=True)


def _has_failed(name: str, seed: int, n_cases: int, trace: Path) -> bool:
    """Run one round in a process of its own, so that a crash is a finding and not the end."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_run_round, args=(name, seed, n_cases, trace))
    process.start()
    process.join()
    exit_code = process.exitcode
    if not exit_code:
        return False
    print(f"FAILED {name} (exit code {exit_code})", flush=True)
    # Negative: a signal ended the process before it could save its last case itself.
    if exit_code < 0:
        _copy_to_corpus(trace, f"{name}-crash")
    return True


def main() -> None:
    """Fuzz the targets in turn until the time is over; a target that failed is not run again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS))
    parser.add_argument("--cases", type=int, default=500, help="number of cases per round")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    seed = arguments.seed
    failed: set[str] = set()
    trace = Path(tempfile.mkdtemp()) / "last.bin"
    while time.monotonic() < end and len(failed) < len(arguments.targets):
        for name in arguments.targets:
            if name in failed or time.monotonic() >= end:
                continue
            if _has_failed(name, seed, arguments.cases, trace):
                failed.add(name)
        # Another seed per round: the same one would repeat the same cases.
        seed += 1
    sys.exit(f"failed: {', '.join(sorted(failed))}" if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
