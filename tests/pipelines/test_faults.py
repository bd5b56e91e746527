"""Faults that are caused for real: kill -9 at random moments, signals, a full disk. The same command then goes on.

PU_KD_KILLS says how many kills there are in a row; 50 take about ten minutes.
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

from pipelines.test_incremental_full import contents
from tests.conftest import PROJECT, QUICK, run_kedro

pytestmark = pytest.mark.xdist_group("faults")

N_KILLS = int(os.environ.get("PU_KD_KILLS", "6"))
DIFFERS = re.compile(
    r"metrics\.json|report\.html|\.png$|_report\.json"
)  # times, paths, and pictures of them


def started(data: Path, *params: str, pipeline: str = "full") -> subprocess.Popen[str]:
    every = ",".join((f"data={data}", *QUICK, "tracking=false", *params))
    return subprocess.Popen(
        [sys.executable, "-m", "kedro", "run", f"--pipeline={pipeline}", f"--params={every}"],
        cwd=PROJECT, env={**os.environ, "COLUMNS": "250"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def made(data: Path) -> dict[str, str]:
    return {path: digest for path, digest in contents(data).items() if not DIFFERS.search(path)}


def leftovers(data: Path) -> list[str]:
    return [
        str(path)
        for layer in data.glob("0*")
        for path in layer.rglob(".*")
        if path.name != ".gitkeep"
    ]


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_result(finished_run, tmp_path):
    draw = random.Random(0)
    n_kills = 0
    while n_kills < N_KILLS:
        process = started(tmp_path, "checkpoint_every_s=0.2")
        # within the start-up now and then, mostly at work, and never so late that nothing is left to kill
        time.sleep(draw.uniform(0.5, 4.0 + 12.0 * draw.random()))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            shutil.rmtree(
                tmp_path / "06_models", ignore_errors=True
            )  # it was through: once more, from the models on
            continue
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_kills += 1
    last = started(tmp_path)
    told, _ = last.communicate(timeout=300)
    assert last.returncode == 0, told
    assert made(tmp_path) == made(finished_run)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "code", "told"), [("SIGTERM", 143, "SIGTERM"), ("SIGINT", 130, "Ctrl-C")]
)
def test_a_stopped_run_goes_on_where_it_was(finished_run, tmp_path, number, code, told):
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    process = started(tmp_path, "distillation.n_updates=100000", pipeline="distillation")
    assert process.stdout is not None
    for line in process.stdout:
        if " distillation: " in line:  # it learns
            break
    process.send_signal(getattr(signal, number))
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"Stopped by {told}" in rest
    assert "Traceback" not in rest
    result = run_kedro("--pipeline=full", data=tmp_path, params=("tracking=false",))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Up to date: pool_scoring.score_pool" in result.stdout
    assert made(tmp_path) == made(finished_run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte, less than the demo's images."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mounting, capture_output=True, check=False).returncode
    ):
        pytest.skip("a small disk cannot be made here: mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_more_space_goes_on(finished_run, small_disk):
    sizes = (500, 900, 1_600, 64_000)  # kB: it fills up in different stages
    said = []
    for size in sizes:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
        process = started(small_disk)
        told, _ = process.communicate(timeout=300)
        if size == sizes[-1]:
            assert process.returncode == 0, told
            break
        assert process.returncode == 1, told
        assert "Traceback" not in told
        said.append(told)
        assert leftovers(small_disk) == []
    assert all("Error: There is no space left on the disk" in told for told in said)
    assert (
        "Up to date: data_ingestion.ingest_labeled_images" in told
    )  # what was finished on the full disk counts
    assert made(small_disk) == made(finished_run)
