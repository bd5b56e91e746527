"""The script that lets a container do its work once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pu_kd_pipeline.errors import ExitCode
from tests.deployment.builders import (
    DOCKER,
)


def once(folder: Path, *command: str) -> subprocess.Popen[str]:
    script = str(DOCKER / "once")
    # Its presence tells a later start that the work is done.
    finished = str(folder / "finished")
    arguments = [script, finished, *command]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_container_does_its_work_once(tmp_path: Path) -> None:
    work = ["sh", "-c", f"echo done >> {tmp_path}/diary"]
    # An orchestrator may start a finished container again.
    for _ in range(2):
        process = once(tmp_path, *work)
        assert process.wait(10) == 0
    diary = (tmp_path / "diary").read_text()
    assert diary == "done\n"


def test_a_container_that_failed_tries_again(tmp_path: Path) -> None:
    work = ["sh", "-c", f"echo tried >> {tmp_path}/diary; exit 3"]
    for _ in range(2):
        process = once(tmp_path, *work)
        assert process.wait(10) == 3
    diary = (tmp_path / "diary").read_text()
    assert diary == "tried\ntried\n"


def test_a_signal_reaches_the_work_which_may_clean_up(tmp_path: Path) -> None:
    on_signal = f"sleep 0.3; echo closed > {tmp_path}/diary; exit 143"
    script = f"trap '{on_signal}' TERM; touch {tmp_path}/ready; sleep 20 & wait"
    process = once(tmp_path, "sh", "-c", script)

    # A signal before the trap is set would end the shell at once.
    ready = tmp_path / "ready"
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    diary = (tmp_path / "diary").read_text()
    assert diary == "closed\n"
    # Work that was stopped is not finished: the next start must repeat it.
    finished = tmp_path / "finished"
    assert not finished.exists()


def tries(folder: Path, exit_code: int, **variables: str) -> int:
    """Return how often work that ends with an exit code is tried; its own code stays."""
    diary = folder / f"diary_{exit_code}"
    work = f"echo tried >> {diary}; exit {exit_code}"
    environment = {"PATH": os.environ["PATH"], "RETRY_DELAY": "0", **variables}
    command = [str(DOCKER / "once"), str(folder / "finished"), "sh", "-c", work]
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=20)
    assert done.returncode == exit_code
    return diary.read_text().count("tried")


@pytest.mark.parametrize("exit_code", list(ExitCode))
def test_only_what_may_succeed_the_next_time_is_tried_again(
    tmp_path: Path, exit_code: ExitCode
) -> None:
    expected = 3 if exit_code == ExitCode.FAILURE else 1
    assert tries(tmp_path, exit_code, RETRIES="2") == expected


def test_work_that_was_killed_is_tried_again(tmp_path: Path) -> None:
    # Also by the system, because of its memory.
    assert tries(tmp_path, 137, RETRIES="1") == 2
    assert tries(tmp_path, 139) == 1


def test_work_that_is_stopped_is_not_tried_again(tmp_path: Path) -> None:
    environment = {**os.environ, "RETRIES": "2", "RETRY_DELAY": "20"}
    command = [str(DOCKER / "once"), str(tmp_path / "finished"), "sh", "-c", "exit 70"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    # Stopped between two tries.
    assert "trying again" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 70


def test_a_deadline_ends_work_and_is_not_extended_by_another_try(tmp_path: Path) -> None:
    environment = {**os.environ, "RETRIES": "2", "DEADLINE": "0.3s"}
    work = f"trap 'echo closed > {tmp_path}/diary; exit 143' TERM; sleep 20 & wait"
    command = [str(DOCKER / "once"), str(tmp_path / "finished"), "sh", "-c", work]
    done = subprocess.run(command, env=environment, check=False, timeout=10)
    # The code of `timeout`.
    assert done.returncode == 124
    assert (tmp_path / "diary").read_text() == "closed\n"


def test_work_that_ignores_the_deadline_is_killed_and_not_tried_again(tmp_path: Path) -> None:
    timing = {"DEADLINE": "0.3s", "KILL_AFTER": "0.2s", "RETRY_DELAY": "0"}
    environment = {**os.environ, "RETRIES": "2", **timing}
    work = f"echo tried >> {tmp_path}/diary; trap '' TERM; while :; do sleep 0.05; done"
    command = [str(DOCKER / "once"), str(tmp_path / "finished"), "sh", "-c", work]
    done = subprocess.run(command, env=environment, check=False, timeout=10)
    assert done.returncode == 124
    assert (tmp_path / "diary").read_text() == "tried\n"


def test_work_that_is_killed_before_the_deadline_is_tried_again(tmp_path: Path) -> None:
    environment = {**os.environ, "RETRIES": "1", "DEADLINE": "30s", "RETRY_DELAY": "0"}
    work = f"echo tried >> {tmp_path}/diary; kill -KILL $$"
    command = [str(DOCKER / "once"), str(tmp_path / "finished"), "sh", "-c", work]
    # The pipe also ends only if no process is left that measures the deadline.
    done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=10)
    assert done.returncode == 137
    assert (tmp_path / "diary").read_text() == "tried\ntried\n"
