"""The script that lets a container do its work once."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

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
