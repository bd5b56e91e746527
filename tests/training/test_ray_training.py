"""Workers on a Ray cluster train what processes of one machine train, also if a node is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.training.lost_training_node import N_UPDATES

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
    messages = "\n".join(happened["messages"])
    assert re.search(
        "all workers start again from the last checkpoint: student: worker . of 2", messages
    )
    # The node was removed after the record of update 8.
    resumed = re.search(r"student: resumes after update (\d+)", messages)
    assert resumed is not None
    assert 8 <= int(resumed[1]) < N_UPDATES
    # A training that resumes publishes the records of its checkpoint again.
    assert happened["steps"][:2] == [4, 8]
    steps = list(range(4, N_UPDATES + 1, 4))
    assert happened["steps"][-len(steps) :] == steps
