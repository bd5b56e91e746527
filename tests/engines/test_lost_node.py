"""A node of a Ray cluster that is lost costs its shards in flight."""

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
from tests.engines.lost_node import main
main(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_node_that_is_removed_costs_its_shards_in_flight(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        # Not as the main module, of which workers would have another one.
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=230,
    )
    assert done.returncode == 0, done.stderr
    # Ray may print lines of its own when it ends.
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    happened = json.loads(line)
    assert happened["n_raylets"] == 3
    # The shard of the lost node alone was started again.
    assert sorted(happened["n_starts"])[-2:] == [1, 2], done.stderr
    local = {file.name: file.read_bytes() for file in (tmp_path / "local").iterdir()}
    assert len(local) > 9
    assert {file.name: file.read_bytes() for file in (tmp_path / "ray").iterdir()} == local
