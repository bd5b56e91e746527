"""A node of a Ray cluster that is lost costs its shards in flight, and its cells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.conftest import PROJECT

RUN = """
import sys
from pathlib import Path
from tests.engines.lost_node import main
main(Path(sys.argv[1]))
"""
# A cell says how long it took.
DURATIONS = ["seconds", "pu_seconds"]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_nodes_that_are_removed_cost_their_shards_in_flight(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = subprocess.run(
        # Not as the main module, of which workers would have another one.
        [sys.executable, "-c", RUN, str(tmp_path)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    # Ray may print lines of its own when it ends.
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for name, n_starts in json.loads(line).items():
        # The shard of the lost node alone was started again.
        assert sorted(n_starts)[-2:] == [1, 2], (name, done.stderr)

    local = {file.name: file.read_bytes() for file in (tmp_path / "local/features").iterdir()}
    assert len(local) > 9
    assert {file.name: file.read_bytes() for file in (tmp_path / "ray/features").iterdir()} == local

    expected = ShardedTable.open(tmp_path / "local/comparison").to_pandas()
    found = ShardedTable.open(tmp_path / "ray/comparison").to_pandas()
    assert len(found) == 4
    assert not found["accuracy"].isna().any()
    pd.testing.assert_frame_equal(
        found.drop(columns=DURATIONS), expected.drop(columns=DURATIONS), check_exact=True
    )
