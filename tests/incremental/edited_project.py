"""A small project whose runs are processes of their own, so that edits and kills are real.

Its nodes make each kind of output once: a JSON file, a table in shards, a Parquet table. They read
parameters and a file outside of the data folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NODES = """
import pandas as pd
import pyarrow as pa
from functools import partial
from {package}.helpers import scaled

def read_number(params):
    with open(params["file"], encoding="utf-8") as file:
        from_file = int(file.read())
    return {{"value": params["number"] + from_file}}

def make_shard(number, position):
    values = [scaled(number) + position + row for row in range(50)]
    return pa.table({{"value": values}})

def make_shards(number):
    from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint

    maker = maker_fingerprint(make_shard)
    value = number["value"]
    return {{
        f"{{position}}-{{value}}-{{maker}}": partial(make_shard, value, position)
        for position in range(3)
    }}

def add_up(shards, params):
    frame = shards.to_pandas()
    return pd.DataFrame({{"total": [int(frame["value"].sum()) * params["factor"]]}})

def parity(number):
    return {{"value": number["value"] % 2 == 0}}
"""
HELPERS = """
def scaled(value):
    return {factor} * value
"""
ENTRIES = {
    "number": {"type": "json.JSONDataset", "filepath": "number.json"},
    "shards": {"type": "pu_kd_pipeline.datasets.ShardedTableDataset", "filepath": "shards"},
    "total": {"type": "pu_kd_pipeline.datasets.TableDataset", "filepath": "total.parquet"},
    "parity": {"type": "json.JSONDataset", "filepath": "parity.json"},
    "node_records": {
        "type": "pu_kd_pipeline.datasets.FolderDataset",
        "filepath": "node_records",
    },
}
# Imported once by the server that runs are forked from; the project's own package is not.
PRELOADED = [
    "kedro.io",
    "kedro_datasets.json",
    "pandas",
    "pyarrow.parquet",
    "pu_kd_pipeline.incremental.runner",
    "pu_kd_pipeline.storage.sharded_table",
    "pu_kd_pipeline.storage.table",
    "pu_kd_pipeline.provenance.fingerprint",
]


@dataclass(frozen=True)
class Request:
    """One run.

    Attributes:
        kind: `run`, `force` or `explain`.
        data: folder of outputs and records.
        kill_before: the run is killed before its n-th rename of a file; None: it is not.
    """

    kind: str
    data: Path
    kill_before: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        exit_code: 0, or -9 after a kill.
        decisions: node -> reason to run, None for a node that was skipped.
        text: what it printed.
    """

    exit_code: int | None
    decisions: dict[str, str | None] = field(default_factory=dict)
    text: str = ""


class EditedProject:
    """The project in a folder; its methods edit it as a user would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = "edited_package"
        self.data = folder / "data"
        self.number = 1
        self.factor = 1
        self.outside = folder / "number.txt"
        self._code = folder / self.package
        self._code.mkdir()
        (self._code / "__init__.py").touch()
        self.edit_helpers(2)
        self.edit_nodes("")
        self.edit_file(5)
        # A server of its own: it forks quickly, and holds no module of the package.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def edit_helpers(self, factor: int) -> None:
        """Change the code that makes shards, two calls below the node."""
        file = self._code / "helpers.py"
        file.write_text(HELPERS.format(factor=factor))

    def edit_nodes(self, comment: str, divisor: int = 2) -> None:
        """Change a comment, which does not count, and the divisor of the node `parity`."""
        text = NODES.format(package=self.package)
        text = text.replace("% 2", f"% {divisor}")
        file = self._code / "nodes.py"
        file.write_text(f"# {comment}\n{text}")

    def edit_file(self, number: int) -> None:
        """Change the file that a parameter names; its size stays the same."""
        self.outside.write_text(str(number))

    def start(self, request: Request) -> Outcome:
        """Run in a process of its own."""
        answers = self.folder / "answers.json"
        answers.unlink(missing_ok=True)
        parameters = {
            "first": {"number": self.number, "file": str(self.outside)},
            "second": {"factor": self.factor},
        }
        arguments = (request, self.folder, self.package, parameters, answers)
        process = self._context.Process(target=_run, args=arguments)
        process.start()
        process.join()
        if not answers.is_file():
            return Outcome(process.exitcode)
        answer = json.loads(answers.read_text())
        return Outcome(process.exitcode, answer["decisions"], answer["text"])

    def results(self, data: Path) -> dict[str, Any]:
        """Return what the outputs in a data folder hold, read without the project's own readers."""
        import pandas as pd

        shard_names = json.loads((data / "shards" / "shards.json").read_text())
        if isinstance(shard_names, dict):
            shard_names = shard_names["shards"]
        frames = [pd.read_parquet(data / "shards" / f"{name}.parquet") for name in shard_names]
        return {
            "number": json.loads((data / "number.json").read_text()),
            "shards": pd.concat(frames)["value"].tolist(),
            "total": pd.read_parquet(data / "total.parquet")["total"].tolist(),
            "parity": json.loads((data / "parity.json").read_text()),
        }

    def results_from_nothing(self) -> dict[str, Any]:
        """Return the results of a run in an empty data folder."""
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        outcome = self.start(Request("run", fresh))
        assert outcome.exit_code == 0, outcome.text
        return self.results(fresh)


# --- in the process of a run ----------------------------------------------------------------------


def _run(
    request: Request, folder: Path, package: str, parameters: dict[str, Any], answers: Path
) -> None:
    """Run the pipeline of the package, and write what was decided."""
    import contextlib
    import importlib
    import io

    from kedro.io import DataCatalog, MemoryDataset
    from kedro.pipeline import Node, Pipeline

    from pu_kd_pipeline import progress
    from pu_kd_pipeline.incremental.runner import ExplainingRunner, IncrementalRunner

    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    nodes = importlib.import_module(f"{package}.nodes")
    pipeline = Pipeline(
        [
            Node(nodes.read_number, "params:first", "number", name="read_number"),
            Node(nodes.make_shards, "number", "shards", name="make_shards"),
            Node(nodes.add_up, ["shards", "params:second"], "total", name="add_up"),
            Node(nodes.parity, "number", "parity", name="parity"),
        ]
    )
    entries = {}
    for name, entry in ENTRIES.items():
        entries[name] = {**entry, "filepath": str(request.data / entry["filepath"])}
    catalog = DataCatalog.from_config(entries)
    for name, value in parameters.items():
        catalog[f"params:{name}"] = MemoryDataset(value)

    decisions: dict[str, str | None] = {}
    progress.decisions.add(decisions.__setitem__)
    if request.kill_before is not None:
        kill_before_rename(request.kill_before)
    text = io.StringIO()
    runner = IncrementalRunner(force=request.kind == "force")
    if request.kind == "explain":
        runner = ExplainingRunner()
    try:
        with contextlib.redirect_stdout(text):
            runner.run(pipeline, catalog)
    finally:
        answer = {"decisions": decisions, "text": text.getvalue()}
        answers.write_text(json.dumps(answer))


def kill_before_rename(n: int) -> None:
    """Kill this process before the n-th file that it renames: what is complete has its name."""
    n_renamed = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal n_renamed
        # `os.replace` raises the same event as `os.rename`.
        if event == "os.rename":
            n_renamed += 1
            if n_renamed == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
