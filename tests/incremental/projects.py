"""A small package of nodes and its data folder, which tests change and run."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from pu_kd_pipeline import progress
from pu_kd_pipeline.incremental.runner import ExplainingRunner, IncrementalRunner

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


def planned_reasons(text: str) -> dict[str, str]:
    """Return node -> reason of the nodes that would run, read off what `kedro explain` prints."""
    return {node: reason for node, (_, reason) in planned_lines(text).items() if reason != "-"}


def planned_lines(text: str) -> dict[str, tuple[str, str]]:
    """Return node -> how long it takes, empty where no time is known, and why it would run."""
    found = {}
    for line in text.splitlines():
        node, *columns = re.split(r" {2,}", line.rstrip(), maxsplit=2)
        # The last line has no columns, and what else was printed is about no node.
        if columns and re.fullmatch(r"[\w.]+", node):
            time = columns[0] if len(columns) == 2 else ""
            found[node] = (time, columns[-1])
    return found


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
        functions = importlib.import_module(f"{self.package}.nodes")
        return Pipeline(self.nodes(functions))

    def nodes(self, functions: Any) -> list[Node]:
        """Return the nodes of the pipeline, with the functions of the module of the nodes."""
        return [
            Node(functions.start, "params:first", "start_value", name="start"),
            Node(functions.left, ["start_value", "params:second"], "left_value", name="left"),
            Node(functions.right, "start_value", "right_value", name="right"),
            Node(functions.join, ["left_value", "right_value"], "joined", name="join"),
            Node(functions.name_parity, "right_value", "parity", name="parity"),
        ]

    def forget_modules(self) -> None:
        prefix = f"{self.package}."
        # A copy of the names, because the loop changes the dictionary.
        for name in list(sys.modules):
            if name.startswith(prefix):
                del sys.modules[name]

    def entries(self) -> dict[str, Any]:
        """Return the catalog's entries, as its files would have them."""
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
        return entries

    def catalog(self) -> DataCatalog:
        catalog = DataCatalog.from_config(self.entries())
        for name, value in self.params.items():
            catalog[f"params:{name}"] = MemoryDataset(value)
        return catalog

    def run(
        self,
        runner: SequentialRunner | None = None,
        catalog: DataCatalog | None = None,
        pipeline: Pipeline | None = None,
    ) -> dict[str, str]:
        """Run, and return node -> reason of the nodes that ran.

        Args:
            runner: the runner; None: one that skips what is up to date.
            catalog: the catalog; None: a new one, as in a new process.
            pipeline: the pipeline; None: imported again, as in a new process.
        """
        reasons: dict[str, str] = {}

        def listener(node: str, reason: str | None) -> None:
            if reason is not None:
                reasons[node] = reason

        progress.decisions.add(listener)
        try:
            runner = runner or IncrementalRunner()
            runner.run(pipeline or self.pipeline(), catalog or self.catalog())
        finally:
            progress.decisions.remove(listener)
        return reasons

    def explain(self, **options: Any) -> dict[str, str]:
        """Return node -> reason of the nodes that a run would run, as `kedro explain` prints it."""
        printed = io.StringIO()
        runner = ExplainingRunner(**options)
        with contextlib.redirect_stdout(printed):
            # `run` would print the log of Kedro as well.
            runner._run(self.pipeline(), self.catalog())
        return planned_reasons(printed.getvalue())

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


TABLE_NODES = """
import pyarrow as pa
from {package} import nets
from {package}.nodes import *

def build_net(params):
    from pu_kd_pipeline.learning.loop import seeded
    from pu_kd_pipeline.models.factory import untrained
    from pu_kd_pipeline.models.cards import ModelCard

    spec = {{"size_px": 8, "channels": 1, "mean": (0.5,), "std": (0.5,)}}
    card = ModelCard(architecture=params["factory"], classes=("a", "b"), input=spec)
    with seeded(params["seed"]):
        return untrained(card)

def make_table(start, net):
    import torch
    from pu_kd_pipeline.provenance.fingerprint import maker_fingerprint

    image = torch.full((1, 1, 8, 8), float(start["value"]))
    key = maker_fingerprint(make_part)
    made = {{}}
    for part in range(3):
        name = f"part-{{part}}-{{start['value']}}-{{net.fingerprint()[:12]}}-{{key}}"
        made[name] = lambda part=part: make_part(net.network, image, part)
    return made

def make_part(network, image, part):
    logits = network(image + part).detach().numpy()[0]
    return pa.table({{"logit": logits}})

def sum_table(table):
    return {{"value": float(table.to_pandas()["logit"].sum())}}
"""
NETS = """
from torch import nn
from {package}.layers import FACTOR

class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.linear = nn.Linear(64, n_classes)

    def forward(self, images):
        return FACTOR * self.linear(images.flatten(1))

def build(n_classes):
    return Net(n_classes)
"""
LAYERS = "FACTOR = {factor}\n"
TABLE_PROJECT_NODES = ALL_NODES | {"build", "table", "sum"}


class TableProject(Project):
    """In addition, a network of a factory, and a sharded table of its outputs."""

    def __init__(self, folder: Path, package: str) -> None:
        super().__init__(folder, package)
        self.params["net"] = {"factory": f"{package}.nets:build", "seed": 0}
        text = TABLE_NODES.format(package=package)
        (self.code / "table_nodes.py").write_text(text)
        (self.code / "nets.py").write_text(NETS.format(package=package))
        self.write_layers(1)

    def write_layers(self, factor: float) -> None:
        """Write the module that the factory's module imports."""
        (self.code / "layers.py").write_text(LAYERS.format(factor=factor))

    def nodes(self, functions: Any) -> list[Node]:
        more = importlib.import_module(f"{self.package}.table_nodes")
        return [
            *super().nodes(functions),
            Node(more.build_net, "params:net", "net", name="build"),
            Node(more.make_table, ["start_value", "net"], "table", name="table"),
            Node(more.sum_table, "table", "sum_value", name="sum"),
        ]

    def entries(self) -> dict[str, Any]:
        entries = super().entries()
        for name, kind in (("net", "ModelDataset"), ("table", "ShardedTableDataset")):
            entries[name] = {
                "type": f"pu_kd_pipeline.datasets.{kind}",
                "filepath": str(self.data / name),
            }
        return entries
