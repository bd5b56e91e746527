"""A small package of nodes and its data folder, which tests change and run."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from pu_kd_pipeline import progress
from pu_kd_pipeline.incremental.runner import IncrementalRunner

HELPERS = '''
def doubled(value):
    """Return twice the value."""
    return 2 * value
'''
NODES = """
from {package}.helpers import doubled

def start(params):
    return {{"value": params["number"]}}

def left(start, params):
    return {{"value": doubled(start["value"]) + params["shift"]}}

def right(start):
    return {{"value": start["value"] % 2}}

def join(left, right):
    if left["value"] == 13:
        raise ZeroDivisionError("thirteen")
    return {{"value": left["value"] + right["value"]}}

def name_parity(right):
    return {{"value": "odd" if right["value"] else "even"}}
"""
DATASETS = ("start_value", "left_value", "right_value", "joined", "parity")
ALL_NODES = {"start", "left", "right", "join", "parity"}
NO_RECORD = "there is no record that it finished here"


class Project:
    """Nodes start -> left, right -> join, and right -> parity."""

    def __init__(self, folder: Path, package: str) -> None:
        self.package = package
        self.code = folder / package
        self.data = folder / "data"
        self.params: dict[str, Any] = {"first": {"number": 3}, "second": {"shift": 1}}
        self.save_args: dict[str, Any] = {"indent": 2}

        self.code.mkdir()
        (self.code / "__init__.py").touch()
        self.write_nodes()
        self.write_helpers(HELPERS)

    def write_nodes(self, old: str = "", new: str = "") -> None:
        """Write the module of the nodes, with one text replaced by another."""
        text = NODES.format(package=self.package)
        if old:
            text = text.replace(old, new)
        file = self.code / "nodes.py"
        file.write_text(text)

    def write_helpers(self, text: str) -> None:
        file = self.code / "helpers.py"
        file.write_text(text)

    def pipeline(self) -> Pipeline:
        """Import the nodes again, as another process would."""
        self.forget_modules()
        importlib.invalidate_caches()
        # Its bytecode would hide a second change within the resolution of the file's time.
        sys.dont_write_bytecode = True
        nodes = importlib.import_module(f"{self.package}.nodes")
        return Pipeline(
            [
                Node(nodes.start, "params:first", "start_value", name="start"),
                Node(nodes.left, ["start_value", "params:second"], "left_value", name="left"),
                Node(nodes.right, "start_value", "right_value", name="right"),
                Node(nodes.join, ["left_value", "right_value"], "joined", name="join"),
                Node(nodes.name_parity, "right_value", "parity", name="parity"),
            ]
        )

    def forget_modules(self) -> None:
        prefix = f"{self.package}."
        # A copy of the names, because the loop changes the dictionary.
        for name in list(sys.modules):
            if name.startswith(prefix):
                del sys.modules[name]

    def catalog(self) -> DataCatalog:
        entries: dict[str, Any] = {}
        # One entry is a dataset factory, `{side}_value`, as in conf/base/catalog.
        for name in ("{side}_value", "joined", "parity"):
            entries[name] = {
                "type": "json.JSONDataset",
                "filepath": str(self.data / f"{name}.json"),
                "save_args": self.save_args,
            }
        for name, folder in (("node_records", "records"), ("checkpoints", "checkpoints")):
            entries[name] = {
                "type": "pu_kd_pipeline.datasets.FolderDataset",
                "filepath": str(self.data / folder),
            }
        catalog = DataCatalog.from_config(entries)
        for name, value in self.params.items():
            catalog[f"params:{name}"] = MemoryDataset(value)
        return catalog

    def run(
        self, runner: SequentialRunner | None = None, catalog: DataCatalog | None = None
    ) -> dict[str, str]:
        """Run, and return node -> reason of the nodes that ran."""
        reasons: dict[str, str] = {}

        def listener(node: str, reason: str | None) -> None:
            if reason is not None:
                reasons[node] = reason

        progress.decisions.add(listener)
        try:
            (runner or IncrementalRunner()).run(self.pipeline(), catalog or self.catalog())
        finally:
            progress.decisions.remove(listener)
        return reasons

    def files(self) -> list[Path]:
        """Return the files of the outputs."""
        found = self.data.glob("*.json")
        return sorted(found)

    def results(self) -> dict[str, Any]:
        found = {}
        for file in self.files():
            content = json.loads(file.read_text())
            found[file.stem] = content["value"]
        return found
