"""Workers on a Ray cluster train what processes of one machine train, also if a node is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

RUN = """
import sys
from pathlib import Path
from tests.training.lost_training_node import main
main(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_training_on_a_cluster_survives_the_loss_of_a_node(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    happened = json.loads(line)
    # Bit for bit: the same workers exchange the same numbers.
    assert happened["is_equal"]

    assert happened["n_lost"] == 1
    assert happened["is_equal_after_the_loss"], happened
    messages = happened["messages"]
    assert any("workers start again, because one was lost" in text for text in messages)
    assert any("resumes after update" in text for text in messages)
    # Nothing before the last checkpoint was computed again.
    assert happened["steps"].count(4) == 1
    assert happened["steps"][-1] == 24
