"""Real faults: kill -9 at random moments, signals, a full disk. The same command then resumes.

PU_KD_KILLS sets the number of kills in a row; 50 take about ten minutes.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pu_kd_pipeline.errors import ExitCode
from tests.conftest import PROJECT, QUICK, run_kedro
from tests.pipelines.test_incremental_full import contents

pytestmark = pytest.mark.xdist_group("faults")

N_KILLS = int(os.environ.get("PU_KD_KILLS", "6"))
# These files have times and paths in them, or pictures of these.
DIFFERS = re.compile(r"metrics\.json|report\.html|certificate\.|\.png$|_report\.json")


def started(data: Path, *params: str, pipeline: str = "full") -> subprocess.Popen[str]:
    given = ",".join([f"data={data}", *QUICK, "tracking=false", *params])
    return subprocess.Popen(
        [sys.executable, "-m", "kedro", "run", f"--pipeline={pipeline}", f"--params={given}"],
        cwd=PROJECT,
        env={**os.environ, "COLUMNS": "250"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A process in the background of a script ignores Ctrl-C, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def reproducible(data: Path) -> dict[str, str]:
    """Return file -> digest of all outputs that are the same in every run."""
    return {path: digest for path, digest in contents(data).items() if not DIFFERS.search(path)}


def unfinished_files(data: Path) -> list[str]:
    """Return the temporary files, whose names start with a dot."""
    found = []
    for layer in data.glob("0*"):
        for path in layer.rglob(".*"):
            if path.name != ".gitkeep":
                found.append(str(path))
    return found


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_result(finished_run, tmp_path):
    draw = random.Random(0)
    n_kills = 0
    while n_kills < N_KILLS:
        process = started(tmp_path, "checkpoint_every_s=0.2")
        # Sometimes during start-up, mostly at work, and never so late that nothing is left.
        time.sleep(draw.uniform(0.5, 4.0 + 12.0 * draw.random()))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            # The run finished: the next one makes the models again.
            shutil.rmtree(tmp_path / "06_models", ignore_errors=True)
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_kills += 1
    last = started(tmp_path)
    output, _ = last.communicate(timeout=300)

    assert last.returncode == 0, output
    assert reproducible(tmp_path) == reproducible(finished_run)
    assert unfinished_files(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "exit_code", "name"), [("SIGTERM", 143, "SIGTERM"), ("SIGINT", 130, "Ctrl-C")]
)
def test_a_stopped_run_resumes_where_it_was(finished_run, tmp_path, number, exit_code, name):
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    process = started(tmp_path, "distillation.n_updates=100000", pipeline="distillation")

    assert process.stdout is not None

    for line in process.stdout:
        # The first line of progress: the training has started.
        if " distillation: " in line:
            break
    process.send_signal(getattr(signal, number))
    rest, _ = process.communicate(timeout=60)

    assert process.returncode == exit_code
    assert f"Stopped by {name}" in rest
    assert "Traceback" not in rest

    result = run_kedro("--pipeline=full", data=tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "  pool_scoring.score_pool  up to date\n" in result.stdout
    assert reproducible(tmp_path) == reproducible(finished_run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte, less than the demo's images."""
    folder = tmp_path / "disk"
    folder.mkdir()
    reason = "a small disk cannot be made here: mounting a tmpfs needs root"
    if shutil.which("mount") is None:
        pytest.skip(reason)
    command = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_on_disk(disk: Path, size_kb: int, *, exit_code: int) -> str:
    """Run the pipeline after setting the size of the disk; return what it printed."""
    subprocess.run(["mount", "-o", f"remount,size={size_kb}k", str(disk)], check=True)
    process = started(disk)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == exit_code, output
    return output


def test_a_full_disk_is_one_message_and_the_run_resumes_with_more_space(finished_run, small_disk):
    # The disk fills up in different stages.
    for size_kb in (500, 900, 1_600):
        output = run_on_disk(small_disk, size_kb, exit_code=ExitCode.FAILURE)
        assert "Traceback" not in output
        assert "Error: There is no space left on the disk" in output
        assert unfinished_files(small_disk) == []
    output = run_on_disk(small_disk, 64_000, exit_code=0)

    # What was finished on the full disk is not made again.
    assert "  data_ingestion.ingest_labeled_images  up to date\n" in output
    assert reproducible(small_disk) == reproducible(finished_run)
